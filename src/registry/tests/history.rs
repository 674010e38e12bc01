//! Random histories against the model: calls of the API, requests of several workers, workers that
//! leave, die and are killed at any instant, cleanups, steps of the clocks, and reloads that change
//! `server` lines and the zone's size.
//!
//! `scripts/fuzz` runs them for as long as one likes.

use std::time::Duration;

use proptest::prelude::*;

use super::model::{self, Model, Models};
use super::*;
use crate::balance::POLICIES;
use crate::shm::testing::{cases, dies_after, killed_after};

/// At most 8, so that one choice may let all of them be tried again, or drop all of them.
const PORTS: std::ops::Range<u16> = 1..9;

const WORKERS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Add(u16, Option<u32>, Option<u32>),
    Remove(u16),
    /// Heard of by a worker whose clock is so many milliseconds behind.
    Refresh(u16, u64),
    Toggle(u16, bool),
    Weight(u16, u32),
    Drain(u16),
    Reset,
    Take {
        worker: usize,
        policy: usize,
        retries: usize,
    },
    Release(usize, Verdict),
    Pass(u64),
    /// Somebody sets the wall clock.
    Wall(u64),
    Sweep,
    /// A worker ends in good order, with the requests that it has, and another comes.
    Leave(usize),
    /// A worker dies with so many requests; it may hold the lock, and leave what is derived in
    /// disorder.
    Die {
        takes: usize,
        locked: bool,
        disorder: u32,
    },
    /// A worker that changes a server all the time is killed at any instant.
    Killed {
        port: u16,
        micros: u64,
    },
    Reap,
    /// A new configuration for the same zone, or for one of another size.
    Reload(Vec<(u16, StaticServer)>, Option<usize>),
}

fn line() -> impl Strategy<Value = (u16, StaticServer)> {
    let bools = (any::<bool>(), proptest::bool::weighted(0.2));
    (PORTS, 1..4u32, 0..4u32, 0..3u32, bools).prop_map(
        |(n, weight, max_conns, max_fails, flags)| {
            let (backup, down) = flags;
            let address = address(n);
            let fail_timeout_ms = 10_000;
            (
                n,
                StaticServer {
                    address,
                    weight,
                    max_conns,
                    max_fails,
                    fail_timeout_ms,
                    backup,
                    down,
                    slow_start_ms: 0,
                },
            )
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let verdict = prop_oneof![
        3 => Just(Verdict::Fine), 1 => Just(Verdict::Cut), 2 => Just(Verdict::Failed), 1 => Just(Verdict::Stale)
    ];
    let size = prop_oneof![Just(128 * 1024), Just(192 * 1024), Just(512 * 1024)];
    prop_oneof![
        8 => (PORTS, proptest::option::of(0..5u32), proptest::option::of(0..4u32)).prop_map(|(n, w, m)| Op::Add(n, w, m)),
        2 => PORTS.prop_map(Op::Remove),
        6 => (PORTS, 0..6u64).prop_map(|(n, behind)| Op::Refresh(n, behind)),
        2 => (PORTS, any::<bool>()).prop_map(|(n, on)| Op::Toggle(n, on)),
        2 => (PORTS, 0..5u32).prop_map(|(n, w)| Op::Weight(n, w)),
        2 => PORTS.prop_map(Op::Drain),
        1 => Just(Op::Reset),
        24 => (0..WORKERS, 0..POLICIES.len(), 0..3usize)
            .prop_map(|(worker, policy, retries)| Op::Take { worker, policy, retries }),
        16 => (any::<usize>(), verdict).prop_map(|(i, v)| Op::Release(i, v)),
        6 => prop_oneof![1..2_000u64, 9_000..32_000u64].prop_map(Op::Pass),
        1 => (0..2_000_000_000_000u64).prop_map(Op::Wall),
        2 => Just(Op::Sweep),
        1 => (0..WORKERS).prop_map(Op::Leave),
        1 => (0..4usize, any::<bool>(), any::<u32>())
            .prop_map(|(takes, locked, disorder)| Op::Die { takes, locked, disorder }),
        1 => (PORTS, 20..400u64).prop_map(|(port, micros)| Op::Killed { port, micros }),
        2 => Just(Op::Reap),
        2 => (proptest::collection::vec(line(), 0..4), proptest::option::of(size))
            .prop_map(|(lines, size)| Op::Reload(lines, size)),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let ttl = prop_oneof![4 => Just(30_000u64), 1 => Just(0)];
    let on_expire = prop_oneof![Just(OnExpire::Disable), Just(OnExpire::Remove)];
    let on_duplicate = prop_oneof![3 => Just(OnDuplicate::Refresh), 1 => Just(OnDuplicate::Reject)];
    // Who grows to its weight is eligible like any other.
    let slow_start = prop_oneof![Just(0u64), Just(40_000)];
    (ttl, on_expire, prop_oneof![Just(0u64), Just(45_000)], on_duplicate, slow_start).prop_map(
        |(ttl, on_expire, remove_after, on_duplicate, slow_start)| Rules {
            ttl,
            on_expire,
            remove_after,
            on_duplicate,
            panic_threshold: 0,
            slow_start,
        },
    )
}

/// A request under way: by which worker, and to which port, 0 when that server is gone.
type Aloft = (usize, Flight, u16);

struct World {
    b: Bench,
    workers: Vec<Worker>,
    servers: Models,
    flights: Vec<Aloft>,
    /// Zones that a reload has replaced, with workers that still have requests.
    old: Vec<(Bench, Vec<Worker>, Vec<Aloft>)>,
    others: u32,
}

fn join(b: &Bench) -> Vec<Worker> {
    (0..WORKERS).map(|_| b.registry().join(1)).collect()
}

impl World {
    /// `crowded`: other servers and workers have filled the ledger, so that the requests of these
    /// here are counted outside of it.
    fn new(rules: Rules, crowded: bool) -> Self {
        let mut b = Bench::sized(128 * 1024);
        b.rules = rules;
        if crowded {
            crowd(&mut b);
        }
        let workers = join(&b);
        Self {
            b,
            workers,
            servers: Models::new(),
            flights: Vec::new(),
            old: Vec::new(),
            others: 10,
        }
    }

    fn by<T>(&mut self, worker: usize, f: impl FnOnce(&mut Bench) -> T) -> T {
        std::mem::swap(&mut self.b.worker, &mut self.workers[worker]);
        let done = f(&mut self.b);
        std::mem::swap(&mut self.b.worker, &mut self.workers[worker]);
        done
    }

    fn run(&mut self, op: &Op) {
        let now = self.b.now.mono;
        match op {
            Op::Add(n, weight, max_conns) => self.add(*n, *weight, *max_conns),
            Op::Remove(n) => match self.servers.get(n).map(|s| s.fixed) {
                Some(true) => assert!(matches!(self.b.remove(*n), Err(Error::Static(_)))),
                known => {
                    assert_eq!(self.b.remove(*n).is_ok(), known.is_some());
                    self.gone(&[*n]);
                }
            },
            Op::Refresh(n, behind) => {
                self.b.now.mono -= behind;
                let done = self.b.refresh(*n).is_ok();
                self.b.now.mono = now;
                assert_eq!(done, self.servers.contains_key(n));
                if let Some(s) = self.servers.get_mut(n) {
                    (s.heard, s.silenced) = (now - behind, false);
                }
            }
            Op::Toggle(n, on) => {
                if let Some(s) = self.servers.get_mut(n) {
                    s.toggle(*on);
                    self.b.toggle(*n, *on);
                }
            }
            Op::Weight(n, weight) => {
                if let Some(s) = self.servers.get_mut(n) {
                    s.weight = *weight;
                    let (found, at) = (self.b.found(), self.b.now);
                    self.b.registry().set_weight(found, &address(*n), *weight, at).unwrap();
                }
            }
            Op::Drain(n) => {
                if let Some(s) = self.servers.get_mut(n) {
                    s.draining = true;
                    let (found, at) = (self.b.found(), self.b.now);
                    let mut r = self.b.registry();
                    r.drain(found, &address(*n), at, &mut self.b.events).unwrap();
                }
            }
            Op::Reset => self.reset(),
            Op::Take { worker, policy, retries } => {
                self.take(*worker, *policy, *retries);
            }
            Op::Release(i, verdict) => {
                if !self.flights.is_empty() {
                    let i = i % self.flights.len();
                    let (worker, flight, n) = self.flights.swap_remove(i);
                    self.by(worker, |b| b.release(flight, *verdict));
                    model::released(&mut self.servers, n, *verdict, now);
                }
            }
            Op::Pass(ms) => self.b.passes(*ms),
            Op::Wall(wall) => self.b.now.wall = *wall,
            Op::Sweep => {
                self.b.sweep();
                let gone = model::sweep(&mut self.servers, &self.b.rules, now);
                self.gone(&gone);
            }
            Op::Leave(worker) => self.leave(*worker),
            Op::Die { takes, locked, disorder } => self.die(*takes, *locked, *disorder),
            Op::Killed { port, micros } => self.killed(*port, *micros),
            Op::Reap => self.reap(),
            Op::Reload(lines, size) => self.reload(lines, *size),
        }
    }

    fn gone(&mut self, ports: &[u16]) {
        for n in ports {
            self.servers.remove(n);
        }
        let servers = &self.servers;
        self.flights.iter_mut().filter(|f| !servers.contains_key(&f.2)).for_each(|f| f.2 = 0);
    }

    fn add(&mut self, n: u16, weight: Option<u32>, max_conns: Option<u32>) {
        let now = self.b.now.mono;
        let done = self.b.add_with(n, weight, max_conns);
        if self.b.rules.on_duplicate == OnDuplicate::Reject && self.servers.contains_key(&n) {
            assert!(matches!(done, Err(Error::Duplicate(_))), "{done:?}");
            return;
        }
        done.unwrap();
        let number = self.number_of(n);
        let s = self.servers.entry(n).or_insert(Model { number, ..Model::registered() });
        (s.heard, s.silenced) = (now, false);
        s.weight = weight.unwrap_or(s.weight);
        s.max_conns = max_conns.unwrap_or(s.max_conns);
    }

    fn number_of(&self, n: u16) -> u64 {
        let registry = self.b.registry();
        let space = registry.find_space(space()).unwrap();
        let slot = registry.find(space.slot, &address(n)).unwrap();
        registry.g.servers[slot as usize].number
    }

    fn reset(&mut self) {
        let Some(found) = self.b.found() else { return };
        let mut cursor = Cursor::START;
        while !cursor.done {
            self.b.registry().reset(found, &mut cursor, 2);
        }
        for s in self.servers.values_mut() {
            (s.requests, s.fails, s.marks, s.accessed, s.checked) = (0, 0, 0, 0, 0);
        }
    }

    fn take(&mut self, worker: usize, policy: usize, retries: usize) {
        let policy = POLICIES[policy];
        let now = self.b.now.mono;
        let mut tried = Vec::new();
        for _ in 0..=retries {
            // Counts that a death has left in doubt are stated again by each worker's next step.
            self.restate();
            let candidates = model::candidates(&self.servers, &tried, &self.b.rules, now);
            match self.by(worker, |b| b.take_by(policy, &tried)) {
                Err(why) => {
                    assert!(candidates.is_empty(), "{why}, but there are {candidates:?}");
                    return;
                }
                Ok((flight, n)) => {
                    assert!(candidates.contains(&n), "{n} is not one of {candidates:?}");
                    if policy.name().starts_with("least_conn") && self.b.rules.slow_start == 0 {
                        let load = |n: u16| {
                            let s = &self.servers[&n];
                            f64::from(s.conns + s.dead) / f64::from(s.weight)
                        };
                        let least = candidates.iter().map(|c| load(*c)).fold(f64::MAX, f64::min);
                        assert!(load(n) <= least, "{n} has more than {least}");
                    }
                    let s = self.servers.get_mut(&n).unwrap();
                    assert_eq!(s.number, flight.number);
                    s.conns += 1;
                    s.taken(now);
                    tried.push(flight.number);
                    tried.sort_unstable();
                    self.flights.push((worker, flight, n));
                }
            }
        }
    }

    fn leave(&mut self, worker: usize) {
        let mut comes = self.b.registry().join(self.others);
        std::mem::swap(&mut comes, &mut self.workers[worker]);
        self.b.registry().leave(comes);
        let ended = self.flights.extract_if(.., |f| f.0 == worker);
        for (_, _, n) in ended {
            if let Some(s) = self.servers.get_mut(&n) {
                s.conns -= 1;
            }
        }
    }

    fn die(&mut self, takes: usize, locked: bool, disorder: u32) {
        let b = &mut self.b;
        dies_after(|| {
            b.worker = b.registry().join(2);
            for _ in 0..takes {
                let _ = b.take();
            }
            if locked {
                let mut registry = b.registry();
                if disorder.is_multiple_of(2) {
                    disturb(&mut registry, disorder);
                }
                std::mem::forget(registry);
            }
        });
        let now = self.b.now.mono;
        for v in self.b.views() {
            let s = self.servers.get_mut(&v.port).unwrap();
            let more = v.requests - s.requests;
            for _ in 0..more {
                s.taken(now);
            }
            s.dead += more as u32;
        }
        if locked {
            self.noticed();
        }
    }

    /// The dead have been found: what they had is off the counts.
    fn noticed(&mut self) {
        self.servers.values_mut().for_each(|s| s.dead = 0);
    }

    fn reap(&mut self) {
        self.b.registry().reap();
        self.noticed();
    }

    fn killed(&mut self, n: u16, micros: u64) {
        if self.servers.get(&n).is_some_and(|s| s.fixed)
            || self.b.rules.on_duplicate == OnDuplicate::Reject
        {
            return;
        }
        let b = &mut self.b;
        killed_after(Duration::from_micros(micros), || {
            b.worker = b.registry().join(2);
            let mut flights = Vec::new();
            for weight in 1.. {
                match weight % 5 {
                    0 => drop(b.remove(n)),
                    1 => flights.extend(b.take().ok()),
                    2 if flights.len() > 2 => {
                        let (flight, _) = flights.swap_remove(0);
                        b.release(flight, Verdict::Stale);
                    }
                    _ => drop(b.add_with(n, Some(weight % 99), Some(weight % 99 * 100))),
                }
            }
        });
        self.reap();
        self.look_again(n);
    }

    /// What a killed worker has done to a server, or has not, is read from the zone; whom it gave
    /// requests as well.
    fn look_again(&mut self, n: u16) {
        let views = self.b.views();
        let known = views.iter().find(|v| v.port == n);
        let same = known.map(|_| self.number_of(n)) == self.servers.get(&n).map(|s| s.number);
        if !same {
            self.gone(&[n]);
        }
        if known.is_some() {
            let number = self.number_of(n);
            self.servers.entry(n).or_insert(Model { number, ..Model::registered() });
        }
        let registry = self.b.registry();
        for v in views {
            let found = registry.find_space(space()).unwrap();
            let slot = registry.find(found.slot, &address(v.port)).unwrap();
            let record = &registry.g.servers[slot as usize];
            let s = self.servers.get_mut(&v.port).unwrap();
            (s.requests, s.checked) = (record.requests, record.checked_mono);
            if v.port == n {
                if record.heartbeat_mono > s.heard || record.flags & crate::shm::flag::EXPIRED == 0
                {
                    (s.heard, s.silenced) = (record.heartbeat_mono, false);
                }
                (s.weight, s.max_conns) = (record.weight, record.max_conns);
            }
        }
    }

    fn reload(&mut self, lines: &[(u16, StaticServer)], size: Option<usize>) {
        let now = self.b.now;
        // The first line of a server counts.
        let mut seen = Models::new();
        for (n, line) in lines {
            seen.entry(*n).or_insert_with(|| {
                let mut s = self.servers.remove(n).unwrap_or_else(Model::registered);
                s.line(line, now.mono);
                s
            });
        }
        self.servers.retain(|_, s| !s.fixed);
        self.servers.append(&mut seen);
        self.gone(&[]);

        if let Some(size) = size {
            self.succeed(size);
        }
        let lines: Vec<_> = lines.iter().map(|(_, line)| (space(), line.clone())).collect();
        let rules = self.b.rules;
        let mut registry = self.b.registry();
        registry.next_cycle();
        registry.configure(&[], &lines, &rules, now, &mut self.b.events).unwrap();
        drop(registry);
        let ports: Vec<u16> = self.servers.keys().copied().collect();
        for n in ports {
            let number = self.number_of(n);
            self.servers.get_mut(&n).unwrap().number = number;
        }
    }

    /// A zone of another size takes over; requests under way end in the old one.
    fn succeed(&mut self, size: usize) {
        let mut new = Bench::sized(size);
        (new.rules, new.now) = (self.b.rules, self.b.now);
        let mut registry = new.registry();
        let mut old = self.b.registry();
        registry.succeed(&mut old).unwrap();
        old.retire();
        drop((registry, old));
        let workers = std::mem::replace(&mut self.workers, join(&new));
        let flights = std::mem::take(&mut self.flights);
        self.old.push((std::mem::replace(&mut self.b, new), workers, flights));
        for s in self.servers.values_mut() {
            (s.conns, s.dead) = (0, 0);
        }
    }

    fn restate(&mut self) {
        let mut registry = self.b.registry();
        self.workers.iter_mut().for_each(|worker| registry.restate(worker));
        registry.restate(&mut self.b.worker);
    }

    fn agree(&mut self) {
        self.restate();
        self.b.check();
        let views = self.b.views();
        assert_eq!(views.len(), self.servers.len());
        for v in views {
            let s = &self.servers[&v.port];
            assert_eq!(
                (v.connections, v.weight, v.max_conns, v.requests, v.fails),
                (s.conns + s.dead, s.weight, s.max_conns, s.requests, s.fails),
                "{}",
                v.addr()
            );
            assert_eq!(v.enabled, !s.disabled && !s.silenced, "{}", v.addr());
            assert_eq!((v.is_static, v.backup), (s.fixed, s.backup), "{}", v.addr());
        }
    }

    /// Traffic stops: every request ends, the dead are found, and every count is 0, in old zones
    /// as well.
    fn rest(mut self) {
        for (worker, flight, n) in std::mem::take(&mut self.flights) {
            self.by(worker, |b| b.release(flight, Verdict::Fine));
            model::released(&mut self.servers, n, Verdict::Fine, self.b.now.mono);
        }
        self.reap();
        self.agree();
        assert!(self.b.views().iter().all(|v| v.connections == 0));
        for (mut b, mut workers, flights) in self.old {
            b.registry().reap();
            for (worker, flight, _) in flights {
                std::mem::swap(&mut b.worker, &mut workers[worker]);
                b.release(flight, Verdict::Failed);
                std::mem::swap(&mut b.worker, &mut workers[worker]);
            }
            let mut registry = b.registry();
            workers.iter_mut().for_each(|worker| registry.restate(worker));
            drop(registry);
            b.check();
            assert!(b.views().iter().all(|v| v.connections == 0));
        }
    }
}

/// Fills the ledger by requests to servers of another namespace.
pub(super) fn crowd(b: &mut Bench) {
    let name = SpaceName::new(b"others").unwrap();
    let ports = 100..100 + b.zone.layout().servers as u16 - PORTS.end;
    for n in ports.clone() {
        let registration = Registration { max_conns: Some(0), ..Registration::of(address(n)) };
        let lasting = Rules { ttl: 0, ..b.rules };
        b.registry().add(name, &registration, &lasting, b.now, &mut b.events).unwrap();
    }
    let space = b.registry().find_space(name).unwrap();
    loop {
        let mut worker = b.registry().join(9);
        for _ in ports.clone() {
            let choice = Choice {
                space,
                policy: &RoundRobin,
                tried: &[],
                warm: &[],
                seed: None,
                again: None,
            };
            let lasting = Rules { ttl: 0, ..b.rules };
            let mut registry = b.registry();
            let mut target = Target::NONE;
            registry
                .take(&mut worker, &choice, &lasting, b.now, &mut target, &mut b.events)
                .unwrap();
        }
        if b.registry().g.ledger.iter().all(|entry| entry.incarnation != 0) {
            break;
        }
    }
}

/// What is derived may be in any state when its holder dies.
fn disturb(registry: &mut Registry<'_>, seed: u32) {
    let g = &mut registry.g;
    g.header.free_server = seed;
    g.header.free_ledger = seed % 7;
    g.header.heap_used = seed % 11;
    g.header.servers = seed;
    g.space_index.fill(seed % 5);
    g.server_index.fill(seed % 13);
    for s in g.servers.iter_mut() {
        (s.conns, s.class, s.hash_next, s.member_next) = (seed, seed % 8, seed % 3, seed % 9);
        (s.fresh_next, s.turn) = (seed % 17, [u64::from(seed) << 32; 2]);
    }
    for space in g.spaces.iter_mut() {
        space.heaps = Default::default();
        space.classes = [seed; crate::shm::class::COUNT];
        (space.member_head, space.members) = (seed % 19, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(150), ..ProptestConfig::default() })]

    #[test]
    fn any_history_agrees_with_the_model(
        rules in rules(),
        crowded in proptest::bool::weighted(0.2),
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let mut world = World::new(rules, crowded);
        for op in &ops {
            world.run(op);
            world.agree();
        }
        world.rest();
    }
}
