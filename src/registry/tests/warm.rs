//! `slow_start`.

use super::*;

const SLOW: u64 = 10_000;

fn slow(n: u16) -> Registration {
    Registration {
        slow_start_ms: Some(SLOW as u32),
        max_conns: Some(0),
        ..Registration::of(address(n))
    }
}

fn register(b: &mut Bench, said: &Registration) {
    b.registry().add(space(), said, &b.rules, b.now, &mut Events::default()).unwrap();
}

/// A server of full weight, and one that begins to grow now.
fn old_and_new() -> Bench {
    let mut b = Bench::new();
    b.add_with(1, None, Some(0)).unwrap();
    register(&mut b, &slow(2));
    b
}

/// Of a hundred requests that end at once, those to a server.
fn share(b: &mut Bench, policy: &dyn Policy, n: u16) -> usize {
    let to = |b: &mut Bench| {
        let (flight, port) = b.take_by(policy, &[]).unwrap();
        b.release(flight, Verdict::Fine);
        port == n
    };
    (0..100).filter(|_| to(b)).count()
}

/// Whether a server grows: in the order of turns it gets less than its half.
fn grows(b: &mut Bench, n: u16) -> bool {
    share(b, &RoundRobin, n) < 30
}

#[test]
fn a_new_server_grows_to_its_share() {
    for policy in [&LeastConn as &dyn Policy, &RoundRobin] {
        let mut b = old_and_new();
        for tenth in 0..10u64 {
            // Of 1 + f parts f.
            let expected = (100 * tenth / (10 + tenth)) as usize;
            let got = share(&mut b, policy, 2);
            assert!(got.abs_diff(expected) <= 3, "{policy:?} at {tenth}/10: {got}, not {expected}");
            b.passes(SLOW / 10);
            b.check();
        }
        assert!(share(&mut b, policy, 2).abs_diff(50) <= 1, "{policy:?}: in the end its half");
        assert_eq!(b.registry().g.header.warming_len, 0);
    }
}

#[test]
fn a_server_that_grows_is_drawn_by_what_it_has_grown_to_and_hashed_by_its_weight() {
    let mut b = old_and_new();
    for tenth in 0..=10u64 {
        let mut of_thousand = |policy| (0..10).map(|_| share(&mut b, policy, 2)).sum::<usize>();
        let expected = 1000.0 * tenth as f64 / (10 + tenth) as f64;
        let got = of_thousand(&Random) as f64;
        assert!((got - expected).abs() <= 5.0 * expected.sqrt() + 5.0, "{tenth}/10: {got}");
        for policy in [&Hash as &dyn Policy, &Consistent] {
            let got = of_thousand(policy);
            assert!(got.abs_diff(500) <= 80, "{policy:?} at {tenth}/10: {got}");
        }
        b.passes(SLOW / 10);
        b.check();
    }
}

#[test]
fn those_that_begin_together_are_drawn_evenly() {
    let mut b = Bench::new();
    (1..=4).for_each(|n| register(&mut b, &slow(n)));
    for policy in [&Random as &dyn Policy, &RandomTwo] {
        for n in 1..=4 {
            let got: usize = (0..10).map(|_| share(&mut b, policy, n)).sum();
            assert!(got.abs_diff(250) <= 70, "{policy:?}: {got}");
        }
    }
}

#[test]
fn requests_under_way_are_weighed_by_what_a_server_has_grown_to() {
    let mut b = old_and_new();
    b.passes(SLOW / 4);
    let ports: Vec<_> = (0..100).map(|_| b.take().unwrap().1).collect();
    let new = ports.iter().filter(|port| **port == 2).count();
    assert!(new.abs_diff(20) <= 1, "a fifth of them: {new}");
    // Nobody touches it, and its rank grows all the same.
    b.passes(SLOW / 4);
    let ports: Vec<_> = (0..50).map(|_| b.take().unwrap().1).collect();
    let more = ports.iter().filter(|port| **port == 2).count();
    assert!((new + more).abs_diff(50) <= 1, "a third of them: {}", new + more);
    b.check();
}

#[test]
fn who_comes_back_grows_again() {
    let mut b = old_and_new();
    b.passes(SLOW);
    assert!(!grows(&mut b, 2));

    b.toggle(2, false);
    b.toggle(2, true);
    assert!(grows(&mut b, 2), "switched on");
    b.passes(SLOW);
    assert!(!grows(&mut b, 2));

    let found = b.found();
    b.registry().drain(found, &address(2), b.now, &mut Events::default()).unwrap();
    b.toggle(2, true);
    assert!(grows(&mut b, 2), "after a drain");
    b.passes(SLOW);

    b.passes(30_001);
    b.refresh(1).unwrap();
    assert_eq!(share(&mut b, &RoundRobin, 2), 0);
    b.refresh(2).unwrap();
    assert!(grows(&mut b, 2), "heard of again");
    b.passes(SLOW);
    assert!(!grows(&mut b, 2));

    while share(&mut b, &RoundRobin, 2) > 0 {
        let (flight, port) = b.take_by(&RoundRobin, &[]).unwrap();
        b.release(flight, if port == 2 { Verdict::Failed } else { Verdict::Fine });
    }
    b.passes(10_001);
    b.refresh(1).unwrap();
    b.refresh(2).unwrap();
    assert!(
        (0..3).any(|_| b.take_by(&RoundRobin, &[]).map(|t| (b.release(t.0, Verdict::Fine), t.1).1)
            == Ok(2))
    );
    assert!(grows(&mut b, 2), "after failures");
    b.passes(SLOW);
    assert!(!grows(&mut b, 2));
    b.check();
}

#[test]
fn heartbeats_and_other_settings_do_not_begin_it_anew() {
    let mut b = old_and_new();
    b.passes(SLOW);
    b.refresh(2).unwrap();
    register(&mut b, &slow(2));
    b.add_with(2, Some(1), Some(7)).unwrap();
    b.toggle(2, true);
    assert!(!grows(&mut b, 2));
}

#[test]
fn the_registry_says_it_for_those_that_do_not() {
    let mut b = Bench::new();
    b.add(1);
    b.rules.slow_start = SLOW;
    b.add(2);
    assert!(grows(&mut b, 2));
    b.passes(SLOW);
    assert!(!grows(&mut b, 2));
    register(&mut b, &Registration { slow_start_ms: Some(0), ..Registration::of(address(3)) });
    assert!(share(&mut b, &RoundRobin, 3) >= 33, "0 is said too");
}

#[test]
fn told_to_stop_it_stops() {
    let mut b = old_and_new();
    assert!(grows(&mut b, 2));
    register(&mut b, &Registration { slow_start_ms: Some(0), ..Registration::of(address(2)) });
    register(&mut b, &slow(2));
    assert!(!grows(&mut b, 2));
    b.check();
}

#[test]
fn the_only_server_takes_all_there_is() {
    let mut b = Bench::new();
    register(&mut b, &slow(1));
    assert_eq!((share(&mut b, &RoundRobin, 1), share(&mut b, &LeastConn, 1)), (100, 100));
}

#[test]
fn those_that_begin_together_share_evenly() {
    let mut b = Bench::new();
    (1..=4).for_each(|n| register(&mut b, &slow(n)));
    for _ in 0..5 {
        for n in 1..=4 {
            assert!(share(&mut b, &RoundRobin, n).abs_diff(25) <= 1);
        }
        b.passes(SLOW / 5);
    }
}

#[test]
fn more_than_are_remembered_grow_as_well() {
    let mut b = Bench::new();
    (1..=200).for_each(|n| register(&mut b, &slow(n)));
    let held: Vec<_> = (0..400).map(|_| b.take().unwrap().0).collect();
    b.passes(SLOW);
    b.sweep();
    let warm = b.registry().g.servers.iter().filter(|s| s.live != 0 && s.warmth > 0).count();
    assert_eq!(warm, 0);
    b.check();
    for flight in held {
        b.release(flight, Verdict::Fine);
    }
    assert!((0..20).all(|_| b.serve().is_some()));
    assert_eq!(b.registry().g.header.warming_len, 0, "and are forgotten");
}

#[test]
fn a_slot_that_is_used_again_is_not_taken_for_what_was_there() {
    let mut b = old_and_new();
    b.remove(2).unwrap();
    b.add_with(3, None, Some(0)).unwrap();
    assert!(!grows(&mut b, 3));
    assert_eq!(b.registry().g.header.warming_len, 0);
    b.check();
}

#[test]
fn a_repair_does_not_make_it_full_grown() {
    let mut b = old_and_new();
    b.passes(SLOW / 10);
    b.registry().repair();
    b.check();
    assert!(grows(&mut b, 2));
    b.passes(SLOW);
    assert!(!grows(&mut b, 2));
}

#[test]
fn who_had_requests_in_a_panic_goes_on_as_it_is() {
    let mut b = Bench::new();
    b.rules.panic_threshold = 50;
    (1..=4).for_each(|n| register(&mut b, &slow(n)));
    b.passes(30_001);
    assert!(b.serve().is_some());
    (1..=4).for_each(|n| drop(b.refresh(n)));
    b.add_with(5, None, Some(0)).unwrap();
    assert!(share(&mut b, &RoundRobin, 1).abs_diff(20) <= 1);
    b.check();
}
