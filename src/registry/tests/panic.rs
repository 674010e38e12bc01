//! `panic_threshold`.

use proptest::prelude::*;

use super::*;
use crate::balance::{Seed, nth};

/// A registry with so many servers, of which those above `fresh` have expired.
fn partly_expired(servers: u16, fresh: u16, percent: u32) -> Bench {
    let mut b = Bench::new();
    b.rules.panic_threshold = percent;
    (1..=servers).for_each(|n| b.add(n));
    b.passes(20_000);
    (1..=fresh).for_each(|n| drop(b.refresh(n)));
    b.passes(10_001);
    b
}

/// The ports that a number of requests go to, each held.
fn ports(b: &mut Bench, requests: u16) -> Vec<u16> {
    let mut ports: Vec<_> = (0..requests).filter_map(|_| b.take().ok()).map(|t| t.1).collect();
    ports.sort_unstable();
    ports
}

/// What was logged of it.
fn turns(b: &mut Bench) -> Vec<Happening> {
    let turns = [Happening::Panic, Happening::Calm];
    b.happened().into_iter().map(|h| h.0).filter(|what| turns.contains(what)).collect()
}

#[test]
fn more_than_the_threshold_out_and_requests_go_to_all() {
    let mut b = partly_expired(4, 2, 50);
    assert_eq!(ports(&mut b, 4), [1, 1, 2, 2], "half of them is not more than half");
    assert_eq!(turns(&mut b), []);

    let mut b = partly_expired(5, 2, 50);
    assert_eq!(ports(&mut b, 10), [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    assert_eq!(turns(&mut b), [Happening::Panic], "said once");
    assert_eq!(b.view(5).state, State::Expired);
    assert_eq!(b.health().eligible, 5);
    b.check();

    b.refresh(3).unwrap();
    b.add(6);
    assert!(ports(&mut b, 12).iter().all(|n| [1, 2, 3, 6].contains(n)), "it ends by itself");
    assert_eq!(turns(&mut b), [Happening::Calm]);
    assert_eq!(b.health().eligible, 4);
    b.check();
}

#[test]
fn it_is_off_unless_it_is_set() {
    let mut b = partly_expired(10, 1, 0);
    assert_eq!(ports(&mut b, 3), [1, 1, 1]);
    assert_eq!(turns(&mut b), []);
}

#[test]
fn what_it_says() {
    let mut b = partly_expired(5, 1, 50);
    b.serve();
    let said: Vec<_> = b.events.drain().filter(Event::is_alarming).map(|e| e.to_string()).collect();
    assert_eq!(
        said,
        ["4 of 5 servers are expired or unhealthy in namespace \"backend\": more than \
          panic_threshold, requests go to all of them until it falls"]
    );
    (2..=5).for_each(|n| drop(b.refresh(n)));
    b.events = Events::default();
    b.serve();
    let said: Vec<_> = b.events.drain().map(|e| e.to_string()).collect();
    assert_eq!(
        said,
        ["0 of 5 servers are expired or unhealthy in namespace \"backend\": no more than \
          panic_threshold, requests go to the others alone"]
    );
}

#[test]
fn three_servers_are_no_sample() {
    let mut b = partly_expired(3, 1, 50);
    assert_eq!(ports(&mut b, 3), [1, 1, 1]);
    let mut b = partly_expired(3, 0, 50);
    assert!(b.take().is_err());
    assert_eq!(turns(&mut b), []);
}

#[test]
fn those_switched_off_by_hand_are_not_counted_and_get_nothing() {
    let mut b = partly_expired(8, 3, 50);
    // 5 of 8 are out; of the 5 that are not switched off, 2.
    (6..=8).for_each(|n| b.toggle(n, false));
    assert_eq!(ports(&mut b, 3), [1, 2, 3]);
    assert_eq!(turns(&mut b), []);
    b.toggle(8, true);
    b.toggle(7, true);
    assert_eq!(ports(&mut b, 4).into_iter().filter(|n| *n == 6).count(), 0);
    assert_eq!(turns(&mut b), [Happening::Panic]);
    // Seven, four of which are out.
    b.toggle(5, false);
    b.toggle(4, false);
    b.serve();
    assert_eq!(turns(&mut b), [Happening::Calm]);
    b.check();
}

#[test]
fn what_else_keeps_requests_from_a_server_still_does() {
    let mut b = partly_expired(6, 0, 50);
    let found = b.found();
    b.registry().drain(found, &address(1), b.now, &mut Events::default()).unwrap();
    b.registry().set_weight(found, &address(2), 0, b.now).unwrap();
    let full = Registration { max_conns: Some(1), ..Registration::of(address(3)) };
    b.registry().add(space(), &full, &b.rules, b.now, &mut Events::default()).unwrap();
    assert_eq!(ports(&mut b, 7), [3, 4, 4, 5, 5, 6, 6]);
    b.check();
}

#[test]
fn a_server_that_fails_rests_and_is_tried_again() {
    let mut b = partly_expired(5, 0, 50);
    let (flight, failing) = b.take().unwrap();
    assert!(b.release(flight, Verdict::Failed).failed);
    b.check();
    assert!((0..8).all(|_| b.serve() != Some(failing)));
    b.passes(10_001);
    assert!((0..5).any(|_| b.serve() == Some(failing)), "after fail_timeout");
    b.check();
}

#[test]
fn all_fall_silent_at_a_time_and_no_request_fails() {
    for policy in [&LeastConn as &dyn Policy, &RoundRobin] {
        let mut b = Bench::new();
        b.rules.panic_threshold = 50;
        (1..=500).for_each(|n| b.add(n));
        b.take_by(policy, &[]).unwrap();
        b.passes(30_001);
        let mut ports: Vec<_> =
            (0..500).map(|_| b.take_by(policy, &[]).expect("a server").1).collect();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() >= 450, "{}", ports.len());
        assert_eq!(turns(&mut b), [Happening::Panic]);
        b.check();
    }
}

const DRAWN: [&dyn Policy; 4] = [&Random, &RandomTwo, &Hash, &Consistent];

/// Where each of 600 keys goes.
fn places(b: &mut Bench, policy: &dyn Policy) -> Vec<u16> {
    let mut place = |n| {
        let (flight, port) = b.take_with(policy, Some(nth(17, n)), &[]).unwrap();
        b.release(flight, Verdict::Fine);
        port
    };
    (0..600).map(&mut place).collect()
}

#[test]
fn it_is_drawn_among_all_and_each_key_has_its_own_server() {
    for policy in DRAWN {
        let mut b = Bench::new();
        b.rules.panic_threshold = 50;
        for n in 1..=10 {
            b.add_with(n, Some(1 + u32::from(n % 2) * 2), Some(0)).unwrap();
        }
        b.toggle(10, false);
        let before = places(&mut b, policy);
        b.passes(20_000);
        (1..=6).for_each(|n| drop(b.refresh(n)));
        b.passes(10_001);
        assert!(places(&mut b, policy).iter().all(|n| *n <= 6), "{policy:?}");
        b.check();
        b.passes(10_000);
        (1..=2).for_each(|n| drop(b.refresh(n)));
        b.passes(10_001);
        let after = places(&mut b, policy);
        assert_eq!(turns(&mut b), [Happening::Panic]);
        if policy.seed() == Seed::Key {
            assert_eq!(before, after, "{policy:?}");
        }
        for n in 1..=9 {
            let got = after.iter().filter(|to| **to == n).count();
            // Of 19 parts one or three.
            let expected = 600.0 * (1.0 + f64::from(n % 2) * 2.0) / 19.0;
            assert!((got as f64 - expected).abs() < 5.0 * expected.sqrt(), "{policy:?} {n}: {got}");
        }
        assert!(!after.contains(&10), "{policy:?}: switched off by hand");
        b.check();

        let mut tried = Vec::new();
        while let Ok((flight, _)) = b.take_by(policy, &tried) {
            assert!(!tried.contains(&flight.number));
            tried.push(flight.number);
            tried.sort_unstable();
        }
        assert_eq!(tried.len(), 9, "{policy:?}");
    }
}

#[test]
fn all_fall_silent_at_a_time_and_what_is_drawn_is_served() {
    for policy in DRAWN {
        let mut b = Bench::new();
        b.rules.panic_threshold = 50;
        (1..=500).for_each(|n| b.add(n));
        let before = places(&mut b, policy);
        b.passes(30_001);
        let _ = places(&mut b, policy);
        b.sweep();
        if policy.seed() == Seed::Key {
            assert_eq!(before, places(&mut b, policy), "{policy:?}");
        }
        b.check();
    }
}

#[test]
fn the_timer_touches_nobody_while_it_lasts() {
    for on_expire in [OnExpire::Disable, OnExpire::Remove] {
        let mut b = partly_expired(20, 8, 50);
        b.rules.on_expire = on_expire;
        b.rules.remove_after = 1;
        // Before any request.
        let sweep = b.sweep();
        assert_eq!((sweep.expired, sweep.disabled, sweep.removed), (12, 0, 0), "{on_expire:?}");
        assert_eq!(turns(&mut b), [Happening::Panic]);
        let sweep = b.sweep();
        assert_eq!((sweep.expired, sweep.disabled, sweep.removed), (12, 0, 0));
        assert!(b.views().iter().all(|v| v.enabled));
        (9..=10).for_each(|n| drop(b.refresh(n)));
        let sweep = b.sweep();
        assert_eq!(sweep.removed, 10, "then it does");
        assert_eq!(turns(&mut b), [Happening::Calm]);
        b.check();
    }
}

#[test]
fn below_the_threshold_a_cleanup_does_all_at_once() {
    let mut b = partly_expired(10, 6, 50);
    let sweep = b.sweep();
    assert_eq!((sweep.expired, sweep.disabled), (4, 4));
    b.check();
}

#[test]
fn each_is_tried_once_and_backups_come_last() {
    let mut b = partly_expired(5, 1, 50);
    let line = |n| StaticServer {
        address: address(n),
        weight: 1,
        max_conns: 0,
        max_fails: 1,
        fail_timeout_ms: 10_000,
        backup: true,
        down: false,
        slow_start_ms: 0,
    };
    let lines = [(space(), line(8)), (space(), line(9))];
    let (rules, now) = (b.rules, b.now);
    b.registry().configure(&[space()], &lines, &rules, now, &mut b.events).unwrap();
    for policy in [&LeastConn as &dyn Policy].into_iter().chain(DRAWN) {
        let (mut tried, mut order) = (Vec::new(), Vec::new());
        while let Ok((flight, port)) = b.take_by(policy, &tried) {
            order.push(port);
            tried.push(flight.number);
            tried.sort_unstable();
        }
        let (primaries, backups) = order.split_at(5);
        let sorted = |ports: &[u16]| {
            let mut ports = ports.to_vec();
            ports.sort_unstable();
            ports
        };
        assert_eq!((sorted(primaries), sorted(backups)), (vec![1, 2, 3, 4, 5], vec![8, 9]));
        b.check();
    }
}

#[test]
fn connections_to_expired_servers_are_kept_while_it_lasts() {
    let mut b = partly_expired(5, 1, 50);
    let (flight, _) = b.take_by(&LeastConn, &[]).unwrap();
    assert!(b.release(flight, Verdict::Fine).stays);
    let mut all = Vec::new();
    while let Ok((flight, _)) = b.take_by(&LeastConn, &{
        let mut tried: Vec<_> = all.iter().map(|f: &Flight| f.number).collect();
        tried.sort_unstable();
        tried
    }) {
        all.push(flight);
    }
    assert_eq!(all.len(), 5);
    for flight in all {
        assert!(b.registry().keeps_connections(flight.slot(), flight.number));
        assert!(b.release(flight, Verdict::Fine).stays);
    }
}

#[test]
fn a_repair_in_the_middle_of_it_changes_nothing() {
    let mut b = partly_expired(9, 2, 50);
    b.serve();
    assert_eq!(turns(&mut b), [Happening::Panic]);
    b.registry().repair();
    b.check();
    assert_eq!(ports(&mut b, 9), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(turns(&mut b), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// In a panic and out of it the server with the least requests for its weight is chosen, of those
    /// that may be.
    #[test]
    fn the_least_loaded_of_all_that_may_be_chosen(
        weights in proptest::collection::vec(1u32..5, 4..12),
        steps in proptest::collection::vec((0u8..6, 0u16..12), 1..120),
    ) {
        let mut b = Bench::new();
        b.rules.panic_threshold = 40;
        for (n, weight) in (1..).zip(&weights) {
            b.add_with(n, Some(*weight), Some(6)).unwrap();
        }
        let mut flights: Vec<Flight> = Vec::new();
        for (what, n) in steps {
            let port = n % weights.len() as u16 + 1;
            match what {
                0 => b.passes(9_000),
                1 => drop(b.refresh(port)),
                2 => b.toggle(port, n % 2 == 0),
                3 if !flights.is_empty() => {
                    let flight = flights.swap_remove(usize::from(n) % flights.len());
                    b.release(flight, if n == 0 { Verdict::Failed } else { Verdict::Fine });
                }
                4 => drop(b.sweep()),
                _ => {
                    let before = b.views();
                    let taken = b.take();
                    let panic = {
                        let found = b.found().unwrap();
                        b.registry().in_panic(found.slot)
                    };
                    let open = |v: &&ServerView| {
                        let present = v.is_active && v.enabled;
                        let by_hand = v.disabled_reason == Some("manual");
                        (present || (panic && !by_hand))
                            && v.connections < v.max_conns
                            && v.state != State::Unhealthy
                    };
                    let load = |v: &ServerView| v.connections * 12 / v.weight;
                    let least = before.iter().filter(open).map(load).min();
                    match taken {
                        Ok((flight, port)) => {
                            let chosen = before.iter().find(|v| v.port == port).unwrap();
                            // Who failed may be tried again: the view before does not say so.
                            if chosen.state != State::Unhealthy && chosen.fails == 0 {
                                prop_assert!(open(&chosen), "{chosen:?}");
                            }
                            if before.iter().all(|v| v.fails == 0) {
                                prop_assert_eq!(Some(load(chosen)), least);
                            }
                            flights.push(flight);
                        }
                        Err(_) => prop_assert!(before.iter().all(|v| v.fails > 0) || least.is_none()),
                    }
                }
            }
            b.check();
        }
    }
}
