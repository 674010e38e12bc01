//! Random histories: whatever happens, all nodes end equal, and as what was called last says.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use super::super::sim::{Cable, Dice, Key, Sim, address};
use super::*;
use crate::registry::{Flight, Registration, State};
use crate::shm::testing::cases;

/// Calls of two clients that are closer together than this have no order. Milliseconds.
const TIE: u128 = 15;

/// What was said of a server last: when, and what.
#[derive(Default, Debug)]
struct Said {
    added: Option<Instant>,
    removed: Option<Instant>,
    weight: Vec<(Instant, u32)>,
    on: Vec<(Instant, bool)>,
    max_fails: Vec<(Instant, u32)>,
}

struct History {
    sim: Sim,
    dice: Dice,
    said: BTreeMap<Key, Said>,
    log: String,
    began: Instant,
    old: Option<Vec<u8>>,
    /// Requests under way.
    flights: Vec<(usize, Flight)>,
}

/// Other programs write it as well.
const STRANGE: Key = ("default", 4);

const KEYS: [Key; 6] =
    [("default", 1), ("default", 2), ("default", 3), STRANGE, ("blue", 1), ("blue", 2)];

impl History {
    fn note(&mut self, what: &str) {
        let ms = self.began.elapsed().as_millis();
        writeln!(self.log, "{ms:6} {what}").unwrap();
    }

    fn call(&mut self) {
        let key = KEYS[self.dice.below(6) as usize];
        let n = self.dice.below(3) as usize;
        let what = self.dice.below(12);
        let weight = 1 + self.dice.below(9) as u32;
        let node = &mut self.sim.nodes[n];
        let said = self.said.entry(key).or_default();
        let known = node.view(key);
        let at = Instant::now();
        let text = match what {
            0..=3 => {
                let weight = (what < 2).then_some(weight);
                let max_fails = (what == 2).then_some(1 + self.dice.below(4) as u32);
                let registration =
                    Registration { weight, max_fails, ..Registration::of(address(key.1)) };
                node.register(key.0, &registration).unwrap();
                said.added = Some(at);
                match known {
                    None => {
                        said.weight.push((at, weight.unwrap_or(1)));
                        said.max_fails.push((at, max_fails.unwrap_or(1)));
                        said.on.push((at, true));
                    }
                    Some(_) => {
                        said.weight.extend(weight.map(|weight| (at, weight)));
                        said.max_fails.extend(max_fails.map(|fails| (at, fails)));
                    }
                }
                format!("add {weight:?} {max_fails:?}")
            }
            4 => {
                let done = node.remove(key);
                if done {
                    said.removed = Some(at);
                }
                format!("remove {done}")
            }
            5 | 6 => {
                let on = what == 5;
                let done = node.toggle(key, on);
                if done {
                    said.on.push((at, on));
                }
                format!("toggle {on} {done}")
            }
            7 | 8 => {
                let done = node.set_weight(key, weight);
                if done {
                    said.weight.push((at, weight));
                }
                format!("weight {weight} {done}")
            }
            // That of a server that is switched off is not seen here.
            9 if known.is_some_and(|v| v.state != State::Down) => {
                said.on.push((at, true));
                format!("drain {}", node.drain(key))
            }
            _ => format!("refresh {}", node.refresh(key)),
        };
        self.note(&format!("n{n} {key:?} {text}"));
    }

    fn event(&mut self) {
        let n = self.dice.below(3) as usize;
        match self.dice.below(44) {
            0..=5 => {
                self.sim.nodes[n].cable = Cable::Cut;
                self.note(&format!("n{n} is cut off"));
            }
            6..=8 => {
                self.sim.nodes[n].cable = Cable::Deaf;
                self.note(&format!("n{n} is deaf"));
            }
            9..=18 => {
                self.sim.nodes[n].cable = Cable::Fine;
                self.note(&format!("n{n} is back"));
            }
            19..=22 => {
                self.sim.nodes[n].restart();
                self.note(&format!("n{n} has another worker"));
            }
            23 => {
                self.note("Redis forgets all");
                self.sim.redis.cli(&["FLUSHALL"]);
            }
            24 | 25 => {
                self.note("Redis is copied");
                self.old = Some(self.sim.redis.data());
            }
            26 | 27 if self.old.is_some() => {
                self.note("Redis goes back");
                self.sim.redis.start_again_with(self.old.as_ref().unwrap());
            }
            28 | 29 => {
                // What another program writes counts from when it is found: that is another order.
                let addr = format!("10.0.0.1:{}", STRANGE.1);
                let meta = ["upstream:servers:meta".replace("upstream", &self.sim.prefix), addr];
                let text = format!("{{\"weight\":{}}}", 1 + self.dice.below(9));
                let args: [&str; 4] = match self.dice.below(2) {
                    0 => ["HDEL", &meta[0], &meta[1], "x"],
                    _ => ["HSET", &meta[0], &meta[1], &text],
                };
                self.note(&args.join(" "));
                self.sim.redis.cli(&args);
            }
            30 => {
                self.note(&format!("n{n} hangs"));
                self.sim.nodes[n].halted = true;
            }
            31 | 32 => {
                self.sim.nodes.iter_mut().for_each(|node| node.halted = false);
            }
            33..=36 => {
                for _ in 0..self.dice.below(8) {
                    if let Some((flight, _)) = self.sim.nodes[n].take("default") {
                        self.flights.push((n, flight));
                    }
                }
            }
            37 | 38 => {
                for (n, flight) in self.flights.drain(..) {
                    self.sim.nodes[n].release(flight);
                }
            }
            _ => self.sim.run(60),
        }
    }

    fn check(&mut self) {
        self.sim.nodes.iter_mut().for_each(|node| node.halted = false);
        self.sim.settle();
        self.sim.agree();
        self.sim.sums_agree();
        for (n, flight) in self.flights.drain(..) {
            self.sim.nodes[n].release(flight);
        }
        self.sim.until("all counts are 0", |sim| {
            let views = sim.nodes.iter().flat_map(|node| node.views("default"));
            views.map(|v| v.connections).sum::<u32>() == 0 && sim.dump().totals.is_empty()
        });
        self.sim.sums_agree();
        let shown = self.sim.nodes[0].shown();
        for (key, said) in self.said.iter().filter(|(key, _)| **key != STRANGE) {
            let found = shown.get(&(key.0.to_owned(), format!("10.0.0.1:{}", key.1)));
            let Some(added) = said.added else { continue };
            match said.removed {
                Some(removed) if removed > added => {
                    if (removed - added).as_millis() > TIE {
                        assert!(found.is_none(), "{key:?} was removed: {said:?}");
                    }
                    continue;
                }
                Some(removed) if (added - removed).as_millis() <= TIE => continue,
                _ => assert!(found.is_some(), "{key:?} was added: {said:?}"),
            }
            if said.removed.is_some() {
                continue;
            }
            let found = found.unwrap();
            let among = |times: &[Instant], ok: &dyn Fn(usize) -> bool| {
                let last = *times.last().unwrap();
                (0..times.len()).any(|i| (last - times[i]).as_millis() <= TIE && ok(i))
            };
            let times: Vec<_> = said.weight.iter().map(|(at, _)| *at).collect();
            let is_last = among(&times, &|i| said.weight[i].1 == found.weight);
            assert!(is_last, "weight of {key:?}: {found:?} {said:?}");
            let times: Vec<_> = said.max_fails.iter().map(|(at, _)| *at).collect();
            let max_fails = found.settings.get("max_fails").map_or(1, |n| n.as_u64().unwrap());
            let is_last = among(&times, &|i| u64::from(said.max_fails[i].1) == max_fails);
            assert!(is_last, "max_fails of {key:?}: {found:?} {said:?}");
            let times: Vec<_> = said.on.iter().map(|(at, _)| *at).collect();
            let is_last = among(&times, &|i| said.on[i].1 == found.enabled);
            assert!(is_last, "{key:?}: {found:?} {said:?}");
        }
    }
}

fn history(redis: Server, seed: u64) -> Server {
    let mut dice = Dice::new(seed);
    let sim = Sim::with(redis, &format!("h{seed}"), 3, |_| {});
    let steps = 20 + dice.below(60);
    let (said, log, began) = (BTreeMap::new(), String::new(), Instant::now());
    let mut history = History { sim, dice, said, log, began, old: None, flights: Vec::new() };
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..steps {
            if history.dice.below(3) == 0 {
                history.event();
            } else {
                history.call();
            }
            let pause = 3 + history.dice.below(12);
            history.sim.run(pause);
        }
        history.note("healed");
        history.check();
    }));
    if let Err(panic) = done {
        eprintln!("SEED={seed}\n{}{}", history.log, history.sim.told());
        std::panic::resume_unwind(panic);
    }
    let sim = history.sim;
    sim.redis.cli(&["FLUSHALL"]);
    sim.redis
}

#[test]
fn after_any_history_all_nodes_are_equal_and_as_was_said_last() {
    if let Some(seed) = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        history(Server::start(&[]), seed);
        return;
    }
    let first = u64::from(std::process::id()) << 20;
    let mut threads = Vec::new();
    for t in 0..4 {
        threads.push(std::thread::spawn(move || {
            let mut redis = Server::start(&[]);
            for i in 0..u64::from(cases(4)) {
                redis = history(redis, first + (t << 16) + i);
            }
        }));
    }
    let ends: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
    assert!(ends.iter().all(Result::is_ok), "see above");
}
