//! A process dies at each marked point of each change (see `shm/fault.rs`). Whatever it was doing:
//! the zone is whole, each server is as it was before the change or as it is after it, and only the
//! requests of the living are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::*;
use crate::shm::testing::{dies_after, is_killed_in, shared_word};
use crate::shm::{fault, flag};

/// What is true of a server, without what the clock or a request says of it.
type Truth = (u32, u32, u32, u16, u64, u64, u32, Option<Settings>);

/// All that is true in a zone: namespaces, and servers in them.
type Picture = BTreeMap<(String, String), Truth>;

/// A zone with servers, requests of living workers, and what a dead worker left.
struct World {
    b: Bench,
    /// The requests of the living, each with whose it is.
    mine: Vec<(usize, Flight)>,
    /// Workers that live on; `b.worker` is none of them.
    living: Vec<Worker>,
    /// The requests of the process that is to die.
    flights: Vec<Flight>,
    /// A zone to succeed this one.
    next: &'static Zone,
}

type Step = fn(&mut World);

/// Where a process dies, and in which life.
type Death = (&'static str, fn() -> World, &'static [Step]);

fn named_address(n: u8) -> Address {
    Address::Inet(std::net::Ipv4Addr::new(10, 0, 0, n).into(), 80)
}

fn picture(zone: &Zone) -> Picture {
    let r = Registry::lock(zone).unwrap();
    let t = &*r.g;
    let mut all: Picture =
        r.space_names().map(|name| ((name.to_owned(), String::new()), Truth::default())).collect();
    for s in t.servers.iter().filter(|s| s.live != 0) {
        let space = super::super::space::name_of(&t.spaces[s.space as usize]).to_owned();
        let name = super::super::address::printed(s).to_owned();
        let flags = s.flags & !(flag::RETRY | flag::EXPIRED | flag::SEEN);
        let (m, d) = (s.heartbeat_mono, s.disabled_wall);
        let settings = Some(Settings::of(s));
        let truth = (flags, s.weight, s.max_conns, s.disabled_reason, m, d, s.fail_marks, settings);
        all.insert((space, name), truth);
    }
    all
}

impl World {
    fn new() -> Self {
        let mut b = Bench::sized(128 * 1024);
        for n in 1..=12 {
            b.add_with(n, Some(u32::from(n)), Some(500)).unwrap();
        }
        let checked = Registration {
            max_fails: Some(4),
            timeouts_ms: [Some(1), None, Some(3)],
            health_path: HealthPath::new("/a/path/that/is/as/long/as/it/may/be/and/no/more"),
            ..Registration::of(address(3))
        };
        assert!(checked.health_path.is_some());
        b.registry().add(space(), &checked, &b.rules, b.now, &mut b.events).unwrap();
        b.registry().configure_space(SpaceName::new(b"empty").unwrap()).unwrap();
        let next = zone(128 * 1024);
        let mut world = World { b, mine: vec![], living: vec![], flights: vec![], next };
        world.lives(20);
        dies_after(|| {
            world.b.worker = world.b.registry().join(9);
            for _ in 0..20 {
                world.b.take().unwrap();
            }
        });
        world
    }

    /// A world where the ledger is full, and where the living and a dead worker have requests that
    /// are not in it.
    fn full() -> Self {
        let mut world = Self::new();
        let room = world.b.zone.layout().servers as u16 - 16;
        for n in 100..100 + room {
            world.b.add_with(n, None, Some(0)).unwrap();
        }
        let all = world.b.zone.layout().servers;
        while world.b.registry().totals().outside < 5 {
            world.lives(all);
        }
        dies_after(|| {
            world.b.worker = world.b.registry().join(9);
            for _ in 0..20 {
                world.b.take().unwrap();
            }
        });
        assert!(world.b.registry().totals().outside > 25);
        world
    }

    /// A worker that lives on, with requests.
    fn lives(&mut self, requests: usize) {
        self.b.worker = self.b.registry().join(1);
        let who = self.living.len();
        for _ in 0..requests {
            let (flight, _) = self.b.take().unwrap();
            self.mine.push((who, flight));
        }
        let worker = std::mem::replace(&mut self.b.worker, Worker::spectator());
        self.living.push(worker);
    }

    fn in_space<T>(&mut self, f: impl FnOnce(&mut Registry<'_>, SpaceRef) -> T) -> T {
        let found = self.b.found().unwrap();
        f(&mut self.b.registry(), found)
    }

    /// Does something with the name that these tests have.
    fn name(
        &mut self,
        f: impl FnOnce(&mut Registry<'_>, &Registration, Now, &mut Events) -> Result<(), Error>,
    ) {
        let name = Registration::of(Address::Name("app".to_owned(), 80));
        f(&mut self.b.registry(), &name, self.b.now, &mut self.b.events).unwrap();
    }

    /// The resolver says that it has these addresses.
    fn resolves(&mut self, all: &[u8]) {
        let all = all.iter().map(|n| match named_address(*n) {
            Address::Inet(ip, _) => ip,
            _ => unreachable!(),
        });
        let (mut names, found) = (Vec::new(), Found::sift(all.collect(), &[]));
        let mut r = self.b.registry();
        r.find_names(&mut 0, u32::MAX, &mut names);
        r.take_addresses(names[0], &found, self.b.now, &mut self.b.events).unwrap();
    }

    fn end_one(&mut self, verdict: Verdict) {
        let flight = self.flights.pop().unwrap();
        self.b.release(flight, verdict);
    }

    fn configure(&mut self, spaces: &[&[u8]], servers: &[(u16, u32)]) {
        let spaces: Vec<_> = spaces.iter().map(|s| SpaceName::new(s).unwrap()).collect();
        let line = |(n, weight): &(u16, u32)| StaticServer {
            address: address(*n),
            weight: *weight,
            max_conns: 0,
            max_fails: 1,
            fail_timeout_ms: 10_000,
            backup: n % 2 == 0,
            down: false,
            slow_start_ms: 0,
        };
        let servers: Vec<_> = servers.iter().map(|s| (space(), line(s))).collect();
        let (rules, now) = (self.b.rules, self.b.now);
        self.b.registry().configure(&spaces, &servers, &rules, now, &mut self.b.events).unwrap();
    }

    /// What holds after any death: nobody but the living is counted, and when their requests end
    /// nothing is left.
    fn ends_well(&mut self, what: &str) {
        self.b.registry().reap();
        for worker in &mut self.living {
            self.b.registry().restate(worker);
        }
        self.whole(what);
        let mut counts = BTreeMap::new();
        for (_, flight) in &self.mine {
            *counts.entry(flight.number).or_insert(0) += 1;
        }
        let count = |s: &crate::shm::Server| {
            (s.conns, if s.live == 0 { 0 } else { counts.get(&s.number).copied().unwrap_or(0) })
        };
        for s in self.b.registry().g.servers.iter().filter(|s| s.live != 0) {
            let (counted, real) = count(s);
            assert_eq!(counted, real, "{what}: {}", super::super::address::printed(s));
        }
        // What comes next is not mixed up with what was there.
        for n in 900..904 {
            self.b.add(n);
        }
        self.whole(what);
        for (who, flight) in std::mem::take(&mut self.mine) {
            std::mem::swap(&mut self.b.worker, &mut self.living[who]);
            self.b.release(flight, Verdict::Fine);
            std::mem::swap(&mut self.b.worker, &mut self.living[who]);
        }
        self.whole(what);
        let totals = self.b.registry().totals();
        assert_eq!((totals.connections, totals.ledger, totals.outside), (0, 0, 0), "{what}");
        assert_eq!(totals.workers, self.living.len() + 1, "{what}");
    }

    fn whole(&self, what: &str) {
        if let Err(e) = self.b.registry().check() {
            panic!("{what}: {e}");
        }
    }
}

/// One after the other, as a worker's life.
const LIFE: &[Step] = &[
    |w| w.b.worker = w.b.registry().join(2),
    |w| _ = w.b.add_with(3, Some(77), Some(770)).unwrap(),
    |w| _ = w.b.add_with(20, Some(2), None).unwrap(),
    |w| {
        let registration = Registration::of(address(1));
        let (rules, now) = (w.b.rules, w.b.now);
        let other = SpaceName::new(b"other").unwrap();
        w.b.registry().add(other, &registration, &rules, now, &mut w.b.events).unwrap();
    },
    |w| {
        let other = w.b.registry().find_space(SpaceName::new(b"other").unwrap());
        w.b.registry().remove(other, &address(1), w.b.now, &mut w.b.events).unwrap();
    },
    |w| w.b.rules.slow_start = 60_000,
    |w| w.b.add(21),
    |w| w.b.toggle(4, false),
    |w| w.b.toggle(4, true),
    |w| {
        let now = w.b.now;
        w.in_space(|r, space| r.set_weight(Some(space), &address(5), 0, now)).unwrap();
    },
    |w| {
        let (now, found) = (w.b.now, w.b.found());
        w.b.registry().drain(found, &address(6), now, &mut w.b.events).unwrap();
    },
    |w| w.b.toggle(6, true),
    |w| {
        w.b.passes(10);
        w.b.refresh(7).unwrap();
    },
    |w| w.flights.push(w.b.take().unwrap().0),
    |w| w.flights.extend((0..30).map(|_| w.b.take().unwrap().0)),
    |w| w.flights.push(w.b.take_by(&RoundRobin, &[]).unwrap().0),
    |w| w.flights.push(w.b.take_by(&Random, &[]).unwrap().0),
    |w| w.end_one(Verdict::Fine),
    |w| w.end_one(Verdict::Failed),
    |w| _ = w.b.registry().elect(&w.b.worker),
    |w| _ = w.b.registry().reap(),
    |w| w.b.remove(3).unwrap(),
    |w| w.b.remove(8).unwrap(),
    |w| {
        w.b.passes(31_000);
        for n in [1, 2, 5, 6, 9, 10] {
            w.b.refresh(n).unwrap();
        }
    },
    |w| w.flights.push(w.b.take().unwrap().0),
    |w| _ = w.b.sweep(),
    |w| _ = w.b.refresh(4).unwrap(),
    |w| w.b.rules.ttl = 0,
    |w| _ = w.b.sweep(),
    |w| _ = w.in_space(|r, space| r.reset(space, &mut Cursor::START.clone(), 100)),
    |w| w.flights.clone().into_iter().for_each(|_| w.end_one(Verdict::Failed)),
    |w| w.b.check_servers(Initial::Down),
    |w| w.b.add(22),
    |w| w.b.judge_all(Ok(())),
    |w| w.b.judge_all(Err(Trouble::Refused)),
    |w| w.b.registry().configure_checks(&CheckPlan::default(), false),
    |w| w.b.registry().leave(std::mem::replace(&mut w.b.worker, Worker::spectator())),
];

/// A zone filled to the last server, from two sides, so that heaps grow, move and are compacted.
const GROWTH: &[Step] = &[
    |w| w.b.worker = w.b.registry().join(2),
    |w| w.flights.push(w.b.take_by(&RoundRobin, &[]).unwrap().0),
    |w| w.flights.push(w.b.take_by(&Random, &[]).unwrap().0),
    |w| {
        let other = SpaceName::new(b"other").unwrap();
        let (rules, now) = (w.b.rules, w.b.now);
        for n in 200..1000 {
            let registration = Registration::of(address(n));
            let name = if n % 3 == 0 { space() } else { other };
            let added = w.b.registry().add(name, &registration, &rules, now, &mut w.b.events);
            if added.is_err() {
                return;
            }
            let space = w.b.registry().find_space(name).unwrap();
            for policy in [&LeastConn as &dyn Policy, &RoundRobin, &Random] {
                let seed = Some(u64::from(n) << 54);
                let choice = Choice { space, policy, tried: &[], warm: &[], seed, again: None };
                let mut target = Target::NONE;
                let (zone, worker) = (w.b.zone, &mut w.b.worker);
                let mut r = Registry::lock(zone).unwrap();
                let taken = r.take(worker, &choice, &rules, now, &mut target, &mut w.b.events);
                let (flight, _) = taken.unwrap();
                r.release(worker, flight, Verdict::Fine, now);
            }
        }
    },
];

/// Requests beside a full ledger, and the dead that had such requests.
const OUTSIDE: &[Step] = &[
    |w| w.b.worker = w.b.registry().join(2),
    |w| w.flights.push(w.b.take().unwrap().0),
    |w| _ = w.b.registry().reap(),
    |w| w.end_one(Verdict::Fine),
    |w| w.flights.extend((0..60).map(|_| w.b.take().unwrap().0)),
    |w| w.end_one(Verdict::Fine),
    |w| w.b.registry().leave(std::mem::replace(&mut w.b.worker, Worker::spectator())),
];

/// The life of a name.
const NAMES: &[Step] = &[
    |w| w.b.worker = w.b.registry().join(2),
    |w| w.name(|r, name, now, events| r.add(space(), name, &RULES, now, events).map(drop)),
    |w| w.resolves(&[200, 201, 202]),
    |w| w.flights.extend((0..30).map(|_| w.b.take().unwrap().0)),
    |w| w.resolves(&[200, 202, 203, 204]),
    |w| {
        w.name(|r, name, now, _| {
            let found = r.find_space(space());
            r.set_weight(found, &name.address, 7, now).map(drop)
        });
    },
    |w| {
        w.name(|r, name, now, events| {
            let found = r.find_space(space());
            r.toggle(found, &name.address, false, now, events).map(drop)
        });
    },
    |w| {
        w.name(|r, name, now, events| {
            let found = r.find_space(space());
            r.toggle(found, &name.address, true, now, events).map(drop)
        });
    },
    |w| {
        w.b.passes(10);
        w.name(|r, name, now, events| r.add(space(), name, &RULES, now, events).map(drop));
    },
    |w| {
        // One of them is registered by itself.
        w.name(|r, name, now, events| {
            let own = Registration { address: named_address(202), ..name.clone() };
            r.add(space(), &own, &RULES, now, events).map(drop)
        });
    },
    |w| w.end_one(Verdict::Fine),
    |w| {
        w.name(|r, name, now, events| {
            let found = r.find_space(space());
            r.remove(found, &name.address, now, events)
        });
    },
];

/// What is told to other nodes, and what departed servers leave.
const SHARING: &[Step] = &[
    |w| w.b.registry().share(true),
    |w| w.b.tell(),
    |w| w.b.refresh(7).map(drop).unwrap(),
    |w| w.b.remove(3).unwrap(),
    |w| w.b.add(40),
    |w| w.b.remove(7).unwrap(),
    |w| w.b.tell(),
    |w| w.b.remove(40).unwrap(),
    |w| {
        w.b.passes(61_000);
        let now = w.b.now;
        w.b.registry().forget_old_departed(now);
    },
    |w| w.b.tell(),
    |w| w.name(|r, name, now, events| r.add(space(), name, &RULES, now, events).map(drop)),
    |w| w.resolves(&[200, 201]),
    |w| w.b.tell(),
    |w| {
        w.name(|r, name, now, events| {
            let found = r.find_space(space());
            r.remove(found, &name.address, now, events)
        });
    },
    |w| w.b.tell(),
];

/// What the master does at reloads that keep the zone.
const RELOADS: &[Step] = &[
    |w| w.b.registry().next_cycle(),
    |w| w.configure(&[b"empty", b"backend", b"new"], &[(1, 5), (2, 5), (30, 1), (31, 1)]),
    |w| w.b.registry().next_cycle(),
    |w| w.configure(&[b"backend", b"new"], &[(2, 6), (30, 1)]),
    |w| w.configure(&[], &[]),
];

/// What it does when the zone gets another size. The new one is nobody's yet.
const SUCCESSION: &[Step] = &[|w| {
    let mut next = Registry::lock(w.next).unwrap();
    let mut old = w.b.registry();
    next.succeed(&mut old).unwrap();
    old.retire();
}];

/// Runs the steps in a process that is to die at the `nth` passing of a point. Returns before which
/// step it did, `None` when it did not.
fn death(
    world: &mut World,
    steps: &[Step],
    point: &str,
    nth: u32,
    at: &AtomicU64,
) -> Option<usize> {
    let killed = is_killed_in(|| {
        fault::arm(&format!("{point}:{nth}")).unwrap();
        for (i, step) in steps.iter().enumerate() {
            at.store(i as u64, SeqCst);
            step(world);
        }
        fault::arm("").unwrap();
    });
    killed.then(|| at.load(SeqCst) as usize)
}

/// Each server is as before the step or as after it, and none is gone or there that was not.
fn one_or_the_other(found: &Picture, before: &Picture, after: &Picture, what: &str) {
    for (key, truth) in found {
        let known = [before.get(key), after.get(key)];
        assert!(known.contains(&Some(truth)), "{what}: {key:?} is {truth:?}, not one of {known:?}");
    }
    for key in before.keys().filter(|key| after.contains_key(*key)) {
        assert!(found.contains_key(key), "{what}: {key:?} is lost");
    }
}

/// Dies at all points that the steps pass, early and late. Returns which these are.
fn die_everywhere(fresh: fn() -> World, steps: &[Step], nths: &[u32]) -> BTreeSet<&'static str> {
    let mut twin = fresh();
    let mut pictures = vec![picture(twin.b.zone)];
    for step in steps {
        step(&mut twin);
        pictures.push(picture(twin.b.zone));
    }
    let (at, mut passed) = (shared_word(), BTreeSet::new());
    for point in fault::POINTS {
        for nth in nths {
            let mut world = fresh();
            let Some(step) = death(&mut world, steps, point, *nth, at) else { break };
            passed.insert(*point);
            let what = format!("{point}:{nth} in step {step}");
            let found = picture(world.b.zone);
            one_or_the_other(&found, &pictures[step], &pictures[step + 1], &what);
            world.ends_well(&what);
        }
    }
    passed
}

#[test]
fn a_worker_that_dies_at_a_marked_point_leaves_the_old_or_the_new() {
    let mut passed = die_everywhere(World::new, LIFE, &[1, 2, 5, 17]);
    passed.extend(die_everywhere(World::new, GROWTH, &[1, 20, 200]));
    passed.extend(die_everywhere(World::full, OUTSIDE, &[1, 2, 4]));
    passed.extend(die_everywhere(World::new, NAMES, &[1, 2, 4]));
    passed.extend(die_everywhere(World::new, SHARING, &[1, 2, 5]));
    passed.extend(die_everywhere(World::new, RELOADS, &[1, 2, 3, 5]));
    // A point that nothing here passes is one that no death was tried at.
    let elsewhere = ["repair.", "succeed."];
    let missed: Vec<_> = fault::POINTS
        .iter()
        .filter(|p| !passed.contains(*p) && !elsewhere.iter().any(|e| p.starts_with(e)))
        .collect();
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn a_master_that_dies_while_it_moves_servers_leaves_the_old_zone_as_it_was() {
    let at = shared_word();
    let mut passed = 0;
    for point in fault::POINTS {
        for nth in [1, 2, 3] {
            let mut world = World::new();
            let before = picture(world.b.zone);
            if death(&mut world, SUCCESSION, point, nth, at).is_none() {
                break;
            }
            passed += usize::from(point.starts_with("succeed."));
            assert_eq!(picture(world.b.zone), before, "{point}");
            world.whole(point);
            if !world.b.registry().is_retired() {
                world.ends_well(point);
            }
        }
    }
    assert!(passed >= 4, "{passed}");
}

#[test]
fn a_repair_that_is_cut_short_is_done_again() {
    let at = shared_word();
    let mut passed = BTreeSet::new();
    let first: [Death; 8] = [
        ("lock.taken", World::new, LIFE),
        ("add.live", World::new, LIFE),
        ("remove.dead", World::new, LIFE),
        ("journal.half", World::new, LIFE),
        ("space.live", World::new, LIFE),
        ("names.unlinked", World::new, NAMES),
        ("book.outside", World::full, OUTSIDE),
        ("recount.half", World::full, OUTSIDE),
    ];
    for (point, fresh, steps) in first {
        let mut twin = fresh();
        let mut pictures = vec![picture(twin.b.zone)];
        for step in steps {
            step(&mut twin);
            pictures.push(picture(twin.b.zone));
        }
        for second in fault::POINTS.iter().filter(|p| p.starts_with("repair.")) {
            for nth in [1, 2, 7] {
                let mut world = fresh();
                let step = death(&mut world, steps, point, 1, at).unwrap();
                let look: &[Step] = &[|w| drop(w.b.registry())];
                if death(&mut world, look, second, nth, at).is_none() {
                    break;
                }
                passed.insert(*second);
                let what = format!("{point} in step {step}, then {second}:{nth}");
                let found = picture(world.b.zone);
                one_or_the_other(&found, &pictures[step], &pictures[step + 1], &what);
                world.ends_well(&what);
            }
        }
    }
    let all = fault::POINTS.iter().copied().filter(|p| p.starts_with("repair."));
    assert_eq!(passed, all.collect());
}

#[test]
fn every_point_stands_in_the_sources_once() {
    let sources = [
        include_str!("../../registry.rs"),
        include_str!("../../shm/zone.rs"),
        include_str!("../flight.rs"),
        include_str!("../health.rs"),
        include_str!("../heap.rs"),
        include_str!("../life.rs"),
        include_str!("../member.rs"),
        include_str!("../names.rs"),
        include_str!("../queue.rs"),
        include_str!("../repair.rs"),
        include_str!("../space.rs"),
        include_str!("../statics.rs"),
        include_str!("../sweep.rs"),
        include_str!("../tree.rs"),
        include_str!("../worker.rs"),
    ]
    .concat();
    for point in fault::POINTS {
        let mark = format!("fault::point!(\"{point}\")");
        assert_eq!(sources.matches(&mark).count(), 1, "{point}");
    }
}
