use super::*;

#[test]
fn least_conn_takes_the_least_loaded_for_its_weight() {
    let mut b = Bench::new();
    b.add_with(1, Some(1), None).unwrap();
    b.add_with(2, Some(3), None).unwrap();
    let flights: Vec<_> = (0..8).map(|_| b.take().unwrap()).collect();
    let on = |port| flights.iter().filter(|(_, p)| *p == port).count();
    assert_eq!((on(1), on(2)), (2, 6));
    b.check();
    for (flight, _) in flights {
        b.release(flight, Verdict::Fine);
    }
    assert!(b.views().iter().all(|v| v.connections == 0));
    b.check();
}

#[test]
fn ties_go_round_by_weight() {
    let mut b = Bench::new();
    b.add_with(1, Some(1), None).unwrap();
    b.add_with(2, Some(3), None).unwrap();
    let served: Vec<_> = (0..40).map(|_| b.serve().unwrap()).collect();
    assert_eq!(served.iter().filter(|p| **p == 2).count(), 30);
    // Evenly: in any four in a row there is one for the lighter.
    assert!(served.windows(4).all(|w| w.iter().filter(|p| **p == 1).count() <= 2));
}

#[test]
fn equal_servers_never_differ_by_more_than_one_request() {
    let mut b = Bench::new();
    for n in 1..=8 {
        b.add(n);
    }
    let mut flights = std::collections::VecDeque::new();
    // As 64 clients do that each wait for a reply before they ask again.
    for i in 0..500 {
        if i >= 64 {
            let flight = flights.pop_front().unwrap();
            b.release(flight, Verdict::Fine);
        }
        flights.push_back(b.take().unwrap().0);
        let conns: Vec<_> = b.views().iter().map(|v| v.connections).collect();
        let (min, max) = (conns.iter().min().unwrap(), conns.iter().max().unwrap());
        assert!(max - min <= 1, "{conns:?}");
    }
}

#[test]
fn round_robin_is_smooth() {
    let mut b = Bench::new();
    for (n, weight) in [(1, 5), (2, 1), (3, 1)] {
        b.add_with(n, Some(weight), None).unwrap();
    }
    let served: Vec<_> = (0..70).map(|_| b.take_by(&RoundRobin, &[]).unwrap().1).collect();
    for seven in served.chunks(7) {
        assert_eq!(seven.iter().filter(|p| **p == 1).count(), 5, "{served:?}");
    }
    let longest = served.chunk_by(|a, b| a == b).map(<[u16]>::len).max().unwrap();
    assert!(longest <= 3, "{served:?}");
}

#[test]
fn equal_servers_take_turns_in_the_order_they_came() {
    let mut b = Bench::new();
    for n in 1..=3 {
        b.add(n);
    }
    let served: Vec<_> = (0..6).map(|_| b.take_by(&RoundRobin, &[]).unwrap().1).collect();
    assert_eq!(served, [1, 2, 3, 1, 2, 3]);
    let served: Vec<_> = (0..6).map(|_| b.serve().unwrap()).collect();
    assert_eq!(served, [1, 2, 3, 1, 2, 3]);
}

#[test]
fn two_policies_on_one_namespace_share_the_counts() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    let (_, first) = b.take_by(&RoundRobin, &[]).unwrap();
    let (_, second) = b.take_by(&LeastConn, &[]).unwrap();
    assert_ne!(first, second, "least_conn sees what round_robin sent");
    b.check();
}

#[test]
fn round_robin_keeps_its_shares_beside_another_policy() {
    let mut b = Bench::new();
    for n in 1..=3 {
        b.add(n);
    }
    let _long = [b.take().unwrap(), b.take().unwrap()];
    let mut shares = [0; 4];
    for _ in 0..9 {
        b.serve();
        b.serve();
        let (flight, port) = b.take_by(&RoundRobin, &[]).unwrap();
        b.release(flight, Verdict::Fine);
        shares[usize::from(port)] += 1;
    }
    assert_eq!(shares, [0, 3, 3, 3]);
}

#[test]
fn a_newcomer_is_not_owed_the_turns_it_missed() {
    let mut b = Bench::new();
    b.add(1);
    for _ in 0..1000 {
        b.serve();
    }
    b.add(2);
    let served: Vec<_> = (0..10).map(|_| b.serve().unwrap()).collect();
    assert_eq!(served.iter().filter(|p| **p == 2).count(), 5, "{served:?}");
}

#[test]
fn one_that_was_busy_for_long_is_not_owed_turns_either() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    let (busy, port) = b.take().unwrap();
    for _ in 0..1000 {
        assert_ne!(b.serve(), Some(port));
    }
    b.release(busy, Verdict::Fine);
    let served: Vec<_> = (0..10).map(|_| b.serve().unwrap()).collect();
    let again = served.iter().filter(|p| **p == port).count();
    assert!((5..=6).contains(&again), "{served:?}");
}

#[test]
fn virtual_time_starts_again_before_it_overflows() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    b.serve();
    b.registry().g.spaces[0].turn[0] = (1 << 62) + 1;
    let served: Vec<_> = (0..10).map(|_| b.serve().unwrap()).collect();
    assert_eq!(served.iter().filter(|p| **p == 1).count(), 5, "{served:?}");
    b.check();
}

#[test]
fn max_conns_is_never_exceeded() {
    let mut b = Bench::new();
    b.add_with(1, None, Some(2)).unwrap();
    let (first, _) = b.take().unwrap();
    b.take().unwrap();
    assert_eq!(b.take().unwrap_err(), Nobody { at_max_conns: 1, ..Nobody::default() });
    b.check();
    b.release(first, Verdict::Fine);
    b.take().unwrap();
    b.add_with(1, None, Some(0)).unwrap();
    b.take().expect("0 is no limit");
    b.check();
}

#[test]
fn tried_servers_are_not_tried_again() {
    let mut b = Bench::new();
    for n in 1..=5 {
        b.add(n);
    }
    let mut tried = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..5 {
        let (flight, port) = b.take_by(&LeastConn, &tried).unwrap();
        b.release(flight, Verdict::Fine);
        tried.push(flight.number);
        tried.sort_unstable();
        ports.push(port);
    }
    ports.sort_unstable();
    assert_eq!(ports, [1, 2, 3, 4, 5]);
    let none = b.take_by(&LeastConn, &tried).unwrap_err();
    assert_eq!(none, Nobody { tried: 5, ..Nobody::default() });
    assert_eq!(none.to_string(), "5 tried");
}

#[test]
fn a_server_that_is_left_by_every_request_is_not_the_first_of_each() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    let mut first = [0; 3];
    for _ in 0..10 {
        let (flight, port) = b.take_by(&RoundRobin, &[]).unwrap();
        b.release(flight, Verdict::Fine);
        first[usize::from(port)] += 1;
        if port == 1 {
            let (flight, other) = b.take_by(&RoundRobin, &[flight.number]).unwrap();
            assert_eq!(other, 2);
            b.release(flight, Verdict::Fine);
        }
    }
    assert_eq!(first, [0, 5, 5]);
}

#[test]
fn max_fails_takes_a_server_out_for_fail_timeout_and_one_request_tries_it_again() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    let (flight, failed) = b.take().unwrap();
    assert_eq!(
        b.release(flight, Verdict::Failed),
        Released { alone: false, failed: true, stays: true }
    );
    for _ in 0..10 {
        assert_ne!(b.serve(), Some(failed));
    }
    b.check();
    b.passes(10_000);
    assert_ne!(b.serve(), Some(failed), "not before fail_timeout is over");
    b.passes(1);
    // One request tries it; until that has ended, no other does.
    let mut trying = None;
    for _ in 0..4 {
        let (flight, port) = b.take().unwrap();
        if port == failed {
            assert!(trying.is_none());
            trying = Some(flight);
        }
    }
    b.check();
    b.passes(1);
    b.release(trying.unwrap(), Verdict::Fine);
    assert_eq!(b.view(failed).state, State::Up);
    assert_eq!(b.view(failed).fails, 1);
    assert_eq!(b.take().unwrap().1, failed);
    b.check();
}

#[test]
fn a_failed_try_starts_the_rest_again() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    let (flight, failed) = b.take().unwrap();
    b.release(flight, Verdict::Failed);
    b.passes(10_001);
    let flight = loop {
        let (flight, port) = b.take().unwrap();
        if port == failed {
            break flight;
        }
    };
    b.release(flight, Verdict::Failed);
    b.passes(10_000);
    for _ in 0..4 {
        assert_ne!(b.take().unwrap().1, failed);
    }
    b.check();
}

#[test]
fn the_only_server_ignores_max_fails() {
    let mut b = Bench::new();
    b.add(1);
    for _ in 0..5 {
        let (flight, _) = b.take().unwrap();
        assert_eq!(
            b.release(flight, Verdict::Failed),
            Released { alone: true, failed: false, stays: true }
        );
    }
    assert_eq!(b.serve(), Some(1));
    assert_eq!(b.view(1).fails, 5);
    // Left alone by the other's removal, a failed one is back.
    b.add(2);
    let (flight, failed) = b.take().unwrap();
    b.release(flight, Verdict::Failed);
    b.remove(if failed == 1 { 2 } else { 1 }).unwrap();
    assert_eq!(b.serve(), Some(failed));
    b.check();
}

#[test]
fn a_stale_kept_connection_is_no_failure_and_its_server_is_taken_again() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    let (flight, port) = b.take().unwrap();
    assert_eq!(b.release(flight, Verdict::Stale), Released { stays: true, ..Released::default() });
    assert_eq!(b.view(port).fails, 0);
    let space = b.found().unwrap();
    let choice = Choice {
        space,
        policy: &LeastConn,
        tried: &[],
        warm: &[],
        seed: None,
        again: Some(flight),
    };
    let mut target = Target::NONE;
    let mut registry = Registry::lock(b.zone).unwrap();
    let again = registry.take(&mut b.worker, &choice, &RULES, b.now, &mut target, &mut b.events);
    drop(registry);
    assert_eq!(again.unwrap().0.number, flight.number);
    assert_eq!(target.port, port);
}

#[test]
fn backups_serve_when_no_primary_can() {
    let mut b = Bench::new();
    let line = |n, backup| StaticServer {
        address: address(n),
        weight: 1,
        max_conns: 1,
        max_fails: 1,
        fail_timeout_ms: 10_000,
        backup,
        down: false,
        slow_start_ms: 0,
    };
    let servers = [(space(), line(1, false)), (space(), line(2, true))];
    b.registry().configure(&[space()], &servers, &b.rules, b.now, &mut b.events).unwrap();
    let (first, port) = b.take().unwrap();
    assert_eq!(port, 1);
    assert_eq!(b.take().unwrap().1, 2, "the primary is at max_conns");
    b.release(first, Verdict::Fine);
    assert_eq!(b.serve(), Some(1));
    b.check();
}

#[test]
fn a_removed_servers_requests_are_given_back_to_nobody_else() {
    let mut b = Bench::new();
    b.add(1);
    let (old, _) = b.take().unwrap();
    b.remove(1).unwrap();
    b.add(1);
    let (new, _) = b.take().unwrap();
    assert_ne!(old.number, new.number);
    b.release(old, Verdict::Failed);
    assert_eq!(b.view(1).connections, 1);
    assert_eq!(b.view(1).fails, 0);
    b.check();
    b.release(new, Verdict::Fine);
    assert_eq!(b.view(1).connections, 0);
    b.check();
}

#[test]
fn a_full_ledger_fails_no_request_and_counts_stay_exact() {
    let mut b = Bench::sized(128 * 1024);
    // Workers beyond the ledger's room: each has a request on each server.
    let servers = b.zone.layout().servers as u16;
    for n in 1..=servers {
        b.add_with(n, None, Some(0)).unwrap();
    }
    let mut workers: Vec<Worker> = (0..4).map(|_| b.registry().join(2)).collect();
    let mut flights = Vec::new();
    for worker in &mut workers {
        std::mem::swap(&mut b.worker, worker);
        let some: Vec<_> = (0..servers).map(|_| b.take().unwrap().0).collect();
        flights.push(some);
        std::mem::swap(&mut b.worker, worker);
    }
    assert!(b.views().iter().all(|v| v.connections == 4));
    b.check();
    // One leaves with all its requests; the others give theirs back.
    let left = workers.pop().unwrap();
    b.registry().leave(left);
    flights.pop();
    b.check();
    assert_eq!(b.views().iter().map(|v| v.connections).sum::<u32>(), 3 * u32::from(servers));
    for (worker, some) in workers.iter_mut().zip(flights) {
        std::mem::swap(&mut b.worker, worker);
        for flight in some {
            b.release(flight, Verdict::Fine);
        }
        std::mem::swap(&mut b.worker, worker);
    }
    assert!(b.views().iter().all(|v| v.connections == 0));
    b.check();
}

#[test]
fn one_choice_drops_at_most_eight_expired_servers() {
    let mut b = Bench::new();
    for n in 1..=100 {
        b.add(n);
    }
    b.passes(30_001);
    b.add(200);
    b.happened();
    for _ in 0..3 {
        assert_eq!(b.serve(), Some(200));
        let expired = b.happened().len();
        assert!(expired <= 8, "{expired}");
        b.check();
    }
    assert_eq!(b.sweep().disabled, 100);
    b.check();
}

#[test]
fn when_all_have_expired_at_once_nobody_is_eligible() {
    let mut b = Bench::new();
    for n in 1..=100 {
        b.add(n);
    }
    b.passes(30_001);
    b.happened();
    assert_eq!(b.take().unwrap_err(), Nobody { expired: 100, ..Nobody::default() });
    assert!(b.happened().len() <= 8);
    assert_eq!(b.health().eligible, 0);
    assert_eq!(b.health().expired_servers, 100);
}

#[test]
fn a_static_server_serves_when_all_others_have_expired_at_once() {
    let mut b = Bench::new();
    for n in 1..=100 {
        b.add(n);
    }
    let line = StaticServer {
        address: address(1000),
        weight: 1,
        max_conns: 0,
        max_fails: 1,
        fail_timeout_ms: 10_000,
        backup: false,
        down: false,
        slow_start_ms: 0,
    };
    b.registry().configure(&[], &[(space(), line)], &b.rules, b.now, &mut b.events).unwrap();
    b.passes(30_001);
    assert_eq!(b.serve(), Some(1000));
    b.check();
}

#[test]
fn failures_are_judged_by_what_a_server_said_when_it_registered() {
    let mut b = Bench::new();
    let add = |b: &mut Bench, max_fails, ms| {
        let said = Registration {
            max_fails: Some(max_fails),
            fail_timeout_ms: Some(ms),
            ..Registration::of(address(1))
        };
        b.registry().add(space(), &said, &RULES, b.now, &mut Events::default()).unwrap();
    };
    add(&mut b, 2, 1_000);
    b.add(2);
    let fails = |b: &mut Bench| loop {
        let (flight, port) = b.take().unwrap();
        if port == 1 {
            return b.release(flight, Verdict::Failed).failed;
        }
        b.release(flight, Verdict::Fine);
    };
    assert!(!fails(&mut b));
    assert!(fails(&mut b), "the second time");
    assert_eq!(b.view(1).state, State::Unhealthy);
    assert!((0..4).all(|_| b.serve() == Some(2)));
    b.passes(1_001);
    assert!((0..2).any(|_| b.serve() == Some(1)), "after its own fail_timeout");
    b.check();

    // A heartbeat without parameters leaves them.
    b.add(1);
    assert!(!fails(&mut b));
    // One with others is in force at once.
    add(&mut b, 1, 1_000);
    assert_eq!(b.view(1).state, State::Unhealthy);
    add(&mut b, 0, 1_000);
    assert_eq!(b.view(1).state, State::Up);
    assert!(!fails(&mut b), "never, with 0");
    b.check();
}
