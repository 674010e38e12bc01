use super::*;
use crate::shm::testing::{dies_after, killed_after};

#[test]
fn what_a_killed_worker_carried_is_taken_back() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    let (mine, _) = b.take().unwrap();
    dies_after(|| {
        let mut other = Bench {
            checks: CHECKS,
            worker: b.registry().join(2),
            zone: b.zone,
            rules: RULES,
            now: b.now,
            events: Events::default(),
            draws: 0,
        };
        for _ in 0..7 {
            other.take().unwrap();
        }
    });
    assert_eq!(b.views().iter().map(|v| v.connections).sum::<u32>(), 8);
    assert_eq!(b.registry().reap(), 1);
    assert_eq!(b.views().iter().map(|v| v.connections).sum::<u32>(), 1);
    b.check();
    b.release(mine, Verdict::Fine);
    assert!(b.views().iter().all(|v| v.connections == 0));
    assert_eq!(b.registry().reap(), 0, "and only once");
    b.check();
}

#[test]
fn slots_of_the_dead_are_not_given_away_with_what_they_carried() {
    let mut b = Bench::new();
    b.add(1);
    dies_after(|| {
        b.worker = b.registry().join(2);
        b.take().unwrap();
    });
    assert_eq!(b.view(1).connections, 1);
    let _new = b.registry().join(3);
    assert_eq!(b.view(1).connections, 1);
    assert_eq!(b.registry().reap(), 1);
    assert_eq!(b.view(1).connections, 0);
    b.check();
}

#[test]
fn a_worker_killed_with_the_lock_leaves_a_whole_zone() {
    let mut b = Bench::new();
    for n in 1..=20 {
        b.add(n);
    }
    let flights: Vec<_> = (0..50).map(|_| b.take().unwrap().0).collect();
    dies_after(|| {
        let mut registry = b.registry();
        // What is derived is in any state when a change is cut short.
        let g = &mut registry.g;
        g.header.free_server = 7;
        g.header.heap_used = 3;
        g.space_index.fill(12);
        g.server_index.fill(3);
        for s in g.servers.iter_mut() {
            (s.conns, s.class, s.hash_next, s.member_next) = (99, 5, 4, 4);
            (s.fresh_next, s.turn) = (9, [u64::MAX; 2]);
        }
        g.spaces[0].heaps = Default::default();
        g.spaces[0].classes = [7; crate::shm::class::COUNT];
        std::mem::forget(registry);
    });
    b.check();
    assert_eq!(b.views().len(), 20);
    assert_eq!(b.views().iter().map(|v| v.connections).sum::<u32>(), 50);
    for flight in flights {
        b.release(flight, Verdict::Fine);
    }
    assert!(b.views().iter().all(|v| v.connections == 0));
    b.check();
}

#[test]
fn a_change_of_several_fields_is_finished_by_the_next_holder() {
    let mut b = Bench::new();
    b.add_with(1, Some(1), Some(1)).unwrap();
    dies_after(|| {
        let mut registry = b.registry();
        let g = &mut registry.g;
        let slot = g.spaces[0].member_head;
        g.header.journal = g.servers[slot as usize];
        (g.header.journal.weight, g.header.journal.max_conns) = (9, 99);
        g.header.journal_target = slot;
        g.servers[slot as usize].weight = 9;
        std::mem::forget(registry);
    });
    let v = b.view(1);
    assert_eq!((v.weight, v.max_conns), (9, 99));
    b.check();
}

#[test]
fn a_server_half_added_is_not_there() {
    let mut b = Bench::new();
    b.add(1);
    dies_after(|| {
        let mut registry = b.registry();
        let g = &mut registry.g;
        let slot = g.header.free_server as usize;
        g.header.free_server = g.servers[slot].hash_next;
        g.servers[slot].weight = 3;
        std::mem::forget(registry);
    });
    b.check();
    assert_eq!(b.views().len(), 1);
    b.add(2);
    b.check();
}

#[test]
fn a_request_on_a_server_half_removed_is_given_back_to_nobody_else() {
    let mut b = Bench::new();
    b.add(1);
    let (on_the_first, _) = b.take().unwrap();
    let first = b.found().unwrap();
    dies_after(|| {
        let mut registry = b.registry();
        let g = &mut registry.g;
        let slot = g.spaces[0].member_head;
        g.servers[slot as usize].live = 0;
        std::mem::forget(registry);
    });
    b.check();
    b.add(2);
    let (on_the_second, _) = b.take().unwrap();
    assert_eq!(on_the_second.slot(), on_the_first.slot(), "its place is used again");
    assert!(!b.registry().is_current(first), "that of the namespace too");
    b.release(on_the_first, Verdict::Failed);
    assert_eq!((b.view(2).connections, b.view(2).fails), (1, 0));
    b.release(on_the_second, Verdict::Fine);
    b.check();
}

#[test]
fn a_panic_with_the_lock_is_repaired_too() {
    let mut b = Bench::new();
    b.add(1);
    let zone = b.zone;
    let panicked = std::panic::catch_unwind(|| {
        let mut registry = Registry::lock(zone).unwrap();
        registry.g.spaces[0].member_head = 77;
        panic!("on purpose");
    });
    assert!(panicked.is_err());
    b.check();
    assert_eq!(b.serve(), Some(1));
}

#[test]
fn counts_outside_the_ledger_are_stated_again_after_a_death() {
    let mut b = Bench::sized(128 * 1024);
    let servers = b.zone.layout().servers as u16;
    for n in 1..=servers {
        b.add_with(n, None, Some(0)).unwrap();
    }
    // This worker and another fill the ledger, and both have requests outside it.
    let mut flights: Vec<_> = (0..servers).map(|_| b.take().unwrap().0).collect();
    dies_after(|| {
        b.worker = b.registry().join(2);
        for _ in 0..servers {
            b.take().unwrap();
        }
        b.worker = b.registry().join(3);
        for _ in 0..servers {
            b.take().unwrap();
        }
    });
    let mut filler = b.registry().join(4);
    std::mem::swap(&mut b.worker, &mut filler);
    let outside: Vec<_> = (0..servers).map(|_| b.take().unwrap().0).collect();
    std::mem::swap(&mut b.worker, &mut filler);
    flights.push(b.take().unwrap().0);
    b.registry().reap();
    flights.push(b.take().unwrap().0);
    b.check();
    std::mem::swap(&mut b.worker, &mut filler);
    for flight in outside {
        b.release(flight, Verdict::Fine);
    }
    std::mem::swap(&mut b.worker, &mut filler);
    for flight in flights {
        b.release(flight, Verdict::Fine);
    }
    assert!(b.views().iter().all(|v| v.connections == 0));
    b.check();
}

#[test]
fn who_leaves_after_a_death_takes_back_no_more_than_it_had() {
    let mut b = Bench::sized(128 * 1024);
    super::history::crowd(&mut b);
    b.add_with(1, None, Some(0)).unwrap();
    let mut leaves = b.registry().join(2);
    std::mem::swap(&mut b.worker, &mut leaves);
    b.take().unwrap();
    std::mem::swap(&mut b.worker, &mut leaves);
    let (mine, _) = b.take().unwrap();
    dies_after(|| {
        b.worker = b.registry().join(3);
        b.take().unwrap();
    });
    assert_eq!(b.view(1).connections, 3);
    b.registry().reap();
    // The first to go on states what it has; the other leaves without having done so.
    let (another, _) = b.take().unwrap();
    b.registry().leave(leaves);
    assert_eq!(b.view(1).connections, 2);
    b.release(mine, Verdict::Fine);
    b.release(another, Verdict::Fine);
    assert_eq!(b.view(1).connections, 0);
    b.check();
}

#[test]
fn one_worker_leads_and_another_follows_when_it_dies_or_leaves() {
    let mut b = Bench::new();
    let second = b.registry().join(2);
    assert!(b.registry().elect(&b.worker));
    assert!(!b.registry().elect(&second));
    assert!(b.registry().elect(&b.worker), "it stays elected");
    assert_eq!(b.registry().leader_pid(), Some(1));
    b.registry().resign(&b.worker);
    assert!(!b.registry().elect(&b.worker), "who resigned stands no more");
    assert!(b.registry().elect(&second));
    b.registry().leave(second);
    dies_after(|| {
        b.worker = b.registry().join(3);
        assert!(b.registry().elect(&b.worker));
    });
    let third = b.registry().join(4);
    assert!(b.registry().elect(&third));
    b.check();
}

#[test]
fn a_worker_of_a_newer_configuration_takes_the_lead() {
    let b = Bench::new();
    assert!(b.registry().elect(&b.worker));
    b.registry().next_cycle();
    let newer = b.registry().join(2);
    assert!(b.registry().elect(&newer));
    assert!(!b.registry().elect(&b.worker));
}

#[test]
fn without_a_free_slot_a_worker_still_counts() {
    let mut b = Bench::new();
    b.add(1);
    let slots = b.zone.layout().workers;
    let others: Vec<_> = (1..slots).map(|_| b.registry().join(2)).collect();
    let mut without = b.registry().join(3);
    assert_eq!(without.incarnation(), 0);
    std::mem::swap(&mut b.worker, &mut without);
    let (flight, _) = b.take().unwrap();
    assert_eq!(b.view(1).connections, 1);
    b.check();
    b.release(flight, Verdict::Fine);
    assert_eq!(b.view(1).connections, 0);
    drop(others);
    b.check();
}

/// A worker is killed at 300 moments chosen by chance, while it changes servers and takes and gives
/// back requests as fast as it can. Whatever it was doing, the zone is whole, each server has a
/// weight and a limit that belong together, and only the survivor's requests are left.
#[test]
fn a_worker_killed_at_any_moment_leaves_a_whole_zone() {
    let mut b = Bench::sized(128 * 1024);
    for n in 1..=30 {
        b.add_with(n, Some(u32::from(n)), Some(u32::from(n) * 100)).unwrap();
    }
    let mine: Vec<_> = (0..40).map(|_| b.take().unwrap().0).collect();
    for round in 0..300u64 {
        killed_after(std::time::Duration::from_micros(100 + round * 37 % 900), || {
            b.worker = b.registry().join(2);
            let mut seed = round;
            let mut flights = Vec::new();
            loop {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let n = (seed >> 40) as u16 % 30 + 1;
                match (seed >> 33) % 8 {
                    0 => drop(b.remove(n)),
                    1 | 2 => {
                        // Limits that no change cut short may mix.
                        let weight = (seed >> 20) as u32 % 900 + 1;
                        b.add_with(n, Some(weight), Some(weight * 100)).unwrap();
                    }
                    3 => drop(b.refresh(n)),
                    4 => {
                        if b.found().is_some() && b.refresh(n).is_ok() {
                            b.toggle(n, seed >> 60 > 3);
                        }
                    }
                    5 | 6 => flights.extend(b.take().ok().map(|(flight, _)| flight)),
                    _ => {
                        if let Some(flight) = flights.pop() {
                            b.release(flight, Verdict::Failed);
                        }
                    }
                }
            }
        });
        b.registry().reap();
        b.check();
        for v in b.views() {
            assert_eq!(v.max_conns, v.weight * 100, "{}", v.addr());
        }
    }
    for flight in mine {
        b.release(flight, Verdict::Fine);
    }
    assert!(b.views().iter().all(|v| v.connections == 0));
    b.check();
}
