//! Random histories against a model that scans, counts and sorts as naively as it can.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Add(u16, Option<u32>, Option<u32>),
    Remove(u16),
    Refresh(u16),
    Toggle(u16, bool),
    Weight(u16, u32),
    Drain(u16),
    Take { round_robin: bool, retries: usize },
    Release(usize, Verdict),
    Pass(u64),
    Sweep,
    Reload,
}

fn op() -> impl Strategy<Value = Op> {
    let n = 1..12u16;
    prop_oneof![
        4 => (n.clone(), proptest::option::of(0..5u32), proptest::option::of(0..4u32))
            .prop_map(|(n, w, m)| Op::Add(n, w, m)),
        1 => n.clone().prop_map(Op::Remove),
        3 => n.clone().prop_map(Op::Refresh),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, on)| Op::Toggle(n, on)),
        1 => (n.clone(), 0..5u32).prop_map(|(n, w)| Op::Weight(n, w)),
        1 => n.prop_map(Op::Drain),
        12 => (any::<bool>(), 0..3usize)
            .prop_map(|(round_robin, retries)| Op::Take { round_robin, retries }),
        8 => (any::<usize>(), prop_oneof![
            4 => Just(Verdict::Fine), 1 => Just(Verdict::Failed), 1 => Just(Verdict::Stale)
        ]).prop_map(|(i, v)| Op::Release(i, v)),
        3 => prop_oneof![1..2_000u64, 9_000..32_000u64].prop_map(Op::Pass),
        1 => Just(Op::Sweep),
        1 => Just(Op::Reload),
    ]
}

#[derive(Clone, Debug, Default)]
struct Model {
    heard: u64,
    weight: u32,
    max_conns: u32,
    conns: u32,
    disabled: bool,
    silenced: bool,
    draining: bool,
    fails: u32,
    accessed: u64,
    checked: u64,
    number: u64,
}

struct World {
    b: Bench,
    servers: BTreeMap<u16, Model>,
    flights: Vec<(Flight, u16)>,
}

impl World {
    fn eligible(&self, n: u16, tried: &[u64]) -> bool {
        let s = &self.servers[&n];
        let now = self.b.now.mono;
        let alone = self.servers.len() == 1;
        !s.disabled
            && !s.silenced
            && now - s.heard <= RULES.ttl
            && !s.draining
            && s.weight > 0
            && (s.max_conns == 0 || s.conns < s.max_conns)
            && (alone || s.fails < 1 || now - s.checked > 10_000)
            && !tried.contains(&s.number)
    }

    fn run(&mut self, op: &Op) {
        let now = self.b.now.mono;
        match *op {
            Op::Add(n, weight, max_conns) => {
                self.b.add_with(n, weight, max_conns).unwrap();
                let number = self.number_of(n);
                let s = self.servers.entry(n).or_insert(Model {
                    weight: 1,
                    max_conns: 1000,
                    number,
                    ..Model::default()
                });
                s.heard = now;
                s.silenced = false;
                s.weight = weight.unwrap_or(s.weight);
                s.max_conns = max_conns.unwrap_or(s.max_conns);
            }
            Op::Remove(n) => {
                assert_eq!(self.b.remove(n).is_ok(), self.servers.remove(&n).is_some());
                self.flights.iter_mut().filter(|(_, p)| *p == n).for_each(|f| f.1 = 0);
            }
            Op::Refresh(n) => {
                let done = self.b.refresh(n).is_ok();
                assert_eq!(done, self.servers.contains_key(&n));
                if let Some(s) = self.servers.get_mut(&n) {
                    (s.heard, s.silenced) = (now, false);
                }
            }
            Op::Toggle(n, on) => {
                if let Some(s) = self.servers.get_mut(&n) {
                    s.disabled = !on;
                    if on {
                        (s.silenced, s.draining) = (false, false);
                    }
                    self.b.toggle(n, on);
                }
            }
            Op::Weight(n, weight) => {
                if let Some(s) = self.servers.get_mut(&n) {
                    s.weight = weight;
                    let found = self.b.found();
                    let mut r = self.b.registry();
                    r.set_weight(found, &address(n), weight, self.b.now).unwrap();
                }
            }
            Op::Drain(n) => {
                if let Some(s) = self.servers.get_mut(&n) {
                    s.draining = true;
                    let found = self.b.found();
                    let mut r = self.b.registry();
                    r.drain(found, &address(n), self.b.now, &mut self.b.events).unwrap();
                }
            }
            Op::Take { round_robin, retries } => self.take(round_robin, retries),
            Op::Release(i, verdict) => {
                if !self.flights.is_empty() {
                    let (flight, n) = self.flights.swap_remove(i % self.flights.len());
                    self.b.release(flight, verdict);
                    self.released(n, verdict);
                }
            }
            Op::Pass(ms) => self.b.passes(ms),
            Op::Sweep => {
                self.b.sweep();
                for s in self.servers.values_mut() {
                    s.silenced |= !s.disabled && now - s.heard > RULES.ttl;
                }
            }
            Op::Reload => {
                self.b.registry().next_cycle();
                self.b
                    .registry()
                    .configure(&[], &[], &RULES, self.b.now, &mut self.b.events)
                    .unwrap();
            }
        }
    }

    fn number_of(&mut self, n: u16) -> u64 {
        let registry = self.b.registry();
        let space = registry.find_space(space()).unwrap();
        let slot = registry.find(space.slot, &address(n)).unwrap();
        registry.g.servers[slot as usize].number
    }

    fn take(&mut self, round_robin: bool, retries: usize) {
        let policy: &dyn Policy = if round_robin { &RoundRobin } else { &LeastConn };
        let mut tried = Vec::new();
        for _ in 0..=retries {
            let candidates: Vec<u16> =
                self.servers.keys().copied().filter(|n| self.eligible(*n, &tried)).collect();
            match self.b.take_by(policy, &tried) {
                Err(why) => {
                    assert!(candidates.is_empty(), "{why}, but there are {candidates:?}");
                    return;
                }
                Ok((flight, n)) => {
                    assert!(candidates.contains(&n), "{n} is not one of {candidates:?}");
                    if !round_robin {
                        let load = |n: u16| {
                            let s = &self.servers[&n];
                            f64::from(s.conns) / f64::from(s.weight)
                        };
                        let least = candidates.iter().map(|c| load(*c)).fold(f64::MAX, f64::min);
                        assert!(load(n) <= least, "{n} has more than {least}");
                    }
                    let now = self.b.now.mono;
                    let s = self.servers.get_mut(&n).unwrap();
                    assert_eq!(s.number, flight.number);
                    s.conns += 1;
                    if s.fails > 0 && now - s.checked > 10_000 {
                        s.checked = now;
                    }
                    tried.push(flight.number);
                    tried.sort_unstable();
                    self.flights.push((flight, n));
                }
            }
        }
    }

    fn released(&mut self, n: u16, verdict: Verdict) {
        let now = self.b.now.mono;
        let alone = self.servers.len() == 1;
        let Some(s) = self.servers.get_mut(&n) else { return };
        s.conns -= 1;
        match verdict {
            Verdict::Failed if alone => s.fails = 0,
            Verdict::Failed => {
                s.fails += 1;
                (s.accessed, s.checked) = (now, now);
            }
            Verdict::Fine if alone || s.accessed < s.checked => s.fails = 0,
            Verdict::Fine | Verdict::Stale => {}
        }
    }

    fn agree(&self) {
        self.b.check();
        let views = self.b.views();
        assert_eq!(views.len(), self.servers.len());
        for v in views {
            let s = &self.servers[&v.port];
            assert_eq!(
                (v.connections, v.weight, v.max_conns),
                (s.conns, s.weight, s.max_conns),
                "{}",
                v.addr()
            );
            assert_eq!(v.enabled, !s.disabled && !s.silenced, "{}", v.addr());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_agrees_with_the_model(ops in proptest::collection::vec(op(), 1..120)) {
        let mut world = World { b: Bench::sized(128 * 1024), servers: BTreeMap::new(), flights: Vec::new() };
        for op in &ops {
            world.run(op);
            world.agree();
        }
        for (flight, n) in std::mem::take(&mut world.flights) {
            world.b.release(flight, Verdict::Fine);
            world.released(n, Verdict::Fine);
        }
        world.agree();
        prop_assert!(world.b.views().iter().all(|v| v.connections == 0));
    }
}
