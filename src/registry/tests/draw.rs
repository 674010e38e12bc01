//! Servers that are drawn: by lot, or by a hash.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::balance::nth;

impl Bench {
    /// One request, which ends at once; the port that it went to.
    fn drawn(&mut self, policy: &dyn Policy, seed: u64) -> u16 {
        let (flight, port) = self.take_with(policy, Some(seed), &[]).unwrap();
        self.release(flight, Verdict::Fine);
        port
    }

    /// How often each port is drawn in so many requests.
    fn shares(&mut self, policy: &dyn Policy, requests: u64) -> BTreeMap<u16, u64> {
        let mut shares = BTreeMap::new();
        for n in 0..requests {
            *shares.entry(self.drawn(policy, nth(7, n))).or_default() += 1;
        }
        shares
    }
}

impl Bench {
    /// Where each of 1000 keys goes.
    fn places(&mut self, policy: &dyn Policy) -> Vec<u16> {
        (0..1000).map(|n| self.drawn(policy, nth(11, n))).collect()
    }
}

/// Each has its share by weight, but for five standard deviations of a fair draw.
#[track_caller]
fn by_weight(shares: &BTreeMap<u16, u64>, weights: &[(u16, u32)]) {
    let requests: u64 = shares.values().sum();
    let total: u32 = weights.iter().map(|w| w.1).sum();
    for (n, weight) in weights {
        let p = f64::from(*weight) / f64::from(total);
        let (expected, got) = (requests as f64 * p, *shares.get(n).unwrap_or(&0) as f64);
        let deviation = (expected * (1.0 - p)).sqrt();
        assert!((got - expected).abs() <= 5.0 * deviation, "{n} of {weights:?}: {shares:?}");
    }
}

#[test]
fn random_goes_by_weight() {
    let mut b = Bench::new();
    let weights = [(1, 1), (2, 2), (3, 7), (4, 30), (5, 0)];
    for (n, weight) in weights {
        b.add_with(n, Some(weight), None).unwrap();
    }
    by_weight(&b.shares(&Random, 10_000), &weights);
    b.check();
}

#[test]
fn random_draws_among_the_ready_alone() {
    let mut b = Bench::new();
    for n in 1..=200 {
        b.add(n);
    }
    b.drawn(&Random, 1);
    for n in 1..=197 {
        b.toggle(n, false);
    }
    b.check();
    by_weight(&b.shares(&Random, 3000), &[(198, 1), (199, 1), (200, 1)]);
    for n in 1..=197 {
        b.toggle(n, true);
    }
    b.check();
    assert!(b.shares(&Random, 3000).len() == 200);
}

#[test]
fn random_by_another_weight_from_the_moment_that_it_is_set() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    by_weight(&b.shares(&Random, 1000), &[(1, 1), (2, 1)]);
    let (found, now) = (b.found(), b.now);
    b.registry().set_weight(found, &address(2), 9, now).unwrap();
    b.check();
    by_weight(&b.shares(&Random, 1000), &[(1, 1), (2, 9)]);
}

#[test]
fn random_by_the_same_number_is_the_same_server() {
    let mut b = Bench::new();
    (1..=50).for_each(|n| b.add(n));
    for seed in 0..100 {
        let seed = nth(3, seed);
        assert_eq!(b.drawn(&Random, seed), b.drawn(&Random, seed));
    }
}

#[test]
fn random_never_draws_one_that_has_been_tried() {
    let mut b = Bench::new();
    b.add_with(1, Some(65_535), None).unwrap();
    (2..=5).for_each(|n| b.add(n));
    for policy in [&Random as &dyn Policy, &RandomTwo, &Hash, &Consistent] {
        for seed in 0..50 {
            let mut tried = Vec::new();
            for _ in 0..5 {
                let (flight, _) = b.take_with(policy, Some(nth(1, seed)), &tried).unwrap();
                assert!(!tried.contains(&flight.number));
                tried.push(flight.number);
                tried.sort_unstable();
                b.release(flight, Verdict::Fine);
            }
            assert_eq!(b.take_with(policy, Some(seed), &tried).unwrap_err().tried, 5);
        }
    }
}

#[test]
fn random_two_takes_the_less_loaded_for_its_weight() {
    let mut b = Bench::new();
    b.add_with(1, Some(2), None).unwrap();
    b.add(2);
    // Of two servers both are drawn, whatever the number.
    let flights: Vec<_> =
        (0..9).map(|n| b.take_with(&RandomTwo, Some(nth(2, n)), &[]).unwrap()).collect();
    let ports: Vec<_> = flights.iter().map(|f| f.1).collect();
    let ones = ports.iter().filter(|p| **p == 1).count();
    assert_eq!(ones, 6, "{ports:?}");
    for (flight, _) in flights.into_iter().filter(|f| f.1 == 1) {
        b.release(flight, Verdict::Fine);
    }
    assert_eq!(b.drawn(&RandomTwo, 77), 1, "which is idle now");
}

#[test]
fn random_two_is_more_even_than_random() {
    let most = |policy: &dyn Policy| {
        let mut b = Bench::new();
        (1..=100).for_each(|n| b.add(n));
        let mut on = BTreeMap::new();
        for n in 0..1000 {
            let (_, port) = b.take_with(policy, Some(nth(9, n)), &[]).unwrap();
            *on.entry(port).or_insert(0) += 1;
        }
        on.into_values().max().unwrap()
    };
    let (one, two) = (most(&Random), most(&RandomTwo));
    assert!(two <= 13 && one >= 17, "{one} {two}");
}

#[test]
fn random_takes_backups_in_turn_when_there_is_nobody_else() {
    let mut b = Bench::new();
    let line = |n: u16, backup| StaticServer {
        address: address(n),
        weight: 1,
        max_conns: 1,
        max_fails: 1,
        fail_timeout_ms: 10_000,
        backup,
        down: false,
        slow_start_ms: 0,
    };
    let lines = [(space(), line(1, false)), (space(), line(2, true)), (space(), line(3, true))];
    let (rules, now) = (b.rules, b.now);
    b.registry().configure(&[space()], &lines, &rules, now, &mut b.events).unwrap();
    for policy in [&Random as &dyn Policy, &RandomTwo, &Hash, &Consistent] {
        let (one, first) = b.take_with(policy, Some(5), &[]).unwrap();
        assert_eq!(first, 1);
        let backups: Vec<_> = (0..4).map(|n| b.drawn(policy, n)).collect();
        assert!(backups == [2, 3, 2, 3] || backups == [3, 2, 3, 2], "{backups:?}");
        b.check();
        b.release(one, Verdict::Fine);
    }
}

#[test]
fn in_a_panic_those_that_are_silent_are_drawn_as_well() {
    for policy in [&Random as &dyn Policy, &RandomTwo, &Hash, &Consistent] {
        let mut b = Bench::new();
        b.rules.panic_threshold = 50;
        (1..=10).for_each(|n| b.add(n));
        b.passes(20_000);
        (1..=3).for_each(|n| drop(b.refresh(n)));
        b.toggle(10, false);
        b.passes(10_001);
        let shares = b.shares(policy, 2000);
        assert!(shares.keys().copied().eq(1..=9), "{policy:?}: {shares:?}");
        b.check();
        (4..=9).for_each(|n| drop(b.refresh(n)));
        assert!(b.shares(policy, 2000).keys().copied().eq(1..=9));
    }
}

#[test]
fn nobody_is_drawn_whom_other_nodes_have_filled() {
    for policy in [&Random as &dyn Policy, &RandomTwo, &Hash, &Consistent] {
        let mut b = Bench::new();
        (1..=3).for_each(|n| _ = b.add_with(n, None, Some(9)).unwrap());
        b.drawn(policy, 1);
        let found = b.found().unwrap();
        {
            let mut r = b.registry();
            let slot = r.find(found.slot, &address(2)).unwrap();
            r.g.servers[slot as usize].others = 9 << 8;
            member::reclassify(&mut r.g, slot);
        }
        let shares = b.shares(policy, 300);
        assert_eq!(shares.keys().copied().collect::<Vec<_>>(), [1, 3], "{policy:?}");
        b.check();
    }
}

#[test]
fn hash_goes_by_weight_and_gives_a_key_the_same_server() {
    let mut b = Bench::new();
    let weights = [(1, 1), (2, 2), (3, 7), (4, 30), (5, 0)];
    for (n, weight) in weights {
        b.add_with(n, Some(weight), None).unwrap();
    }
    by_weight(&b.shares(&Hash, 10_000), &weights);
    let places = b.places(&Hash);
    assert_eq!(places, b.places(&Hash));
}

#[test]
fn hash_moves_the_keys_of_a_server_that_is_not_ready_and_no_others() {
    let mut b = Bench::new();
    (1..=10).for_each(|n| b.add(n));
    let before = b.places(&Hash);
    b.toggle(3, false);
    let without = b.places(&Hash);
    let moved: Vec<_> = before.iter().zip(&without).filter(|(a, b)| a != b).collect();
    assert!(moved.iter().all(|(from, _)| **from == 3), "{moved:?}");
    let to: std::collections::BTreeSet<_> = moved.iter().map(|(_, to)| **to).collect();
    assert_eq!(to.len(), 9, "to all the others");
    b.toggle(3, true);
    assert_eq!(b.places(&Hash), before);
}

#[test]
fn hash_does_not_depend_on_who_came_first() {
    let mut places = Vec::new();
    for order in [[1, 2, 3, 4, 5, 6], [4, 6, 1, 3, 2, 5]] {
        let mut b = Bench::new();
        order.into_iter().for_each(|n| b.add(n));
        places.push(b.places(&Hash));
    }
    assert_eq!(places[0], places[1]);
}

#[test]
fn hash_without_a_key_goes_round() {
    let mut b = Bench::new();
    (1..=3).for_each(|n| b.add(n));
    let mut to: Vec<_> = (0..6)
        .map(|_| {
            let (flight, port) = b.take_with(&Hash, None, &[]).unwrap();
            b.release(flight, Verdict::Fine);
            port
        })
        .collect();
    assert_eq!(to[..3], to[3..]);
    to.sort_unstable();
    assert_eq!(to, [1, 1, 2, 2, 3, 3]);
}

#[test]
fn hash_finds_who_is_left_when_most_are_not_ready() {
    let mut b = Bench::new();
    (1..=300).for_each(|n| b.add(n));
    b.drawn(&Hash, 1);
    (1..=298).for_each(|n| b.toggle(n, false));
    let shares = b.shares(&Hash, 100);
    assert_eq!(shares.keys().copied().collect::<Vec<_>>(), [299, 300], "in turn, as a last resort");
}

#[test]
fn consistent_goes_by_weight() {
    let mut b = Bench::new();
    let weights = [(1, 1), (2, 2), (3, 7), (4, 30), (5, 0)];
    for (n, weight) in weights {
        b.add_with(n, Some(weight), None).unwrap();
    }
    by_weight(&b.shares(&Consistent, 10_000), &weights);
    let mut b = Bench::new();
    let weights: Vec<_> = (1..=20).map(|n| (n, u32::from(n % 4) * 100 + 1)).collect();
    for (n, weight) in &weights {
        b.add_with(*n, Some(*weight), None).unwrap();
    }
    by_weight(&b.shares(&Consistent, 20_000), &weights);
}

#[test]
fn consistent_moves_the_keys_of_who_goes_and_no_others() {
    let mut b = Bench::new();
    for n in 1..=20 {
        b.add_with(n, Some(u32::from(n % 3) + 1), None).unwrap();
    }
    let before = b.places(&Consistent);
    let leaves: [fn(&mut Bench, u16); 2] = [|b, n| b.remove(n).unwrap(), |b, n| b.toggle(n, false)];
    for (n, leave) in [(4, leaves[0]), (9, leaves[1]), (20, leaves[0])] {
        leave(&mut b, n);
        let without = b.places(&Consistent);
        let moved: Vec<_> = before.iter().zip(&without).filter(|(a, b)| a != b).collect();
        assert!(!moved.is_empty() && moved.iter().all(|(from, _)| **from == n), "{n}: {moved:?}");
        let to: std::collections::BTreeSet<_> = moved.iter().map(|(_, to)| **to).collect();
        assert!(to.len() > 8, "{n}: its keys go to many: {to:?}");
        b.add_with(n, Some(u32::from(n % 3) + 1), None).unwrap();
        b.toggle(n, true);
        assert_eq!(b.places(&Consistent), before, "and come back with it");
    }
}

#[test]
fn consistent_gives_a_server_of_more_weight_more_keys_and_takes_it_none() {
    let mut b = Bench::new();
    (1..=10).for_each(|n| b.add(n));
    let mut before = b.places(&Consistent);
    for weight in [2, 3, 4, 100, 65_535] {
        let (found, now) = (b.found(), b.now);
        b.registry().set_weight(found, &address(3), weight, now).unwrap();
        let after = b.places(&Consistent);
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b);
        assert!(moved.clone().count() > 0 && moved.clone().all(|(_, to)| *to == 3), "{weight}");
        before = after;
    }
}

#[test]
fn consistent_does_not_depend_on_who_came_first() {
    let mut places = Vec::new();
    for order in [[1, 2, 3, 4, 5, 6], [4, 6, 1, 3, 2, 5]] {
        let mut b = Bench::new();
        order.into_iter().for_each(|n| b.add(n));
        places.push(b.places(&Consistent));
    }
    assert_eq!(places[0], places[1]);
}

#[test]
fn consistent_passes_by_who_has_been_tried_as_if_it_were_not_there() {
    let mut b = Bench::new();
    (1..=10).for_each(|n| b.add(n));
    for seed in 0..100 {
        let (flight, first) = b.take_with(&Consistent, Some(nth(5, seed)), &[]).unwrap();
        b.release(flight, Verdict::Fine);
        let (again, second) =
            b.take_with(&Consistent, Some(nth(5, seed)), &[flight.number]).unwrap();
        b.release(again, Verdict::Fine);
        b.toggle(first, false);
        assert_eq!(b.drawn(&Consistent, nth(5, seed)), second);
        b.toggle(first, true);
    }
}

#[test]
fn consistent_is_as_even_among_many_as_a_ring_of_160_points_each() {
    let mut b = Bench::sized(2 << 20);
    (1..=1000).for_each(|n| b.add(n));
    let shares = b.shares(&Consistent, 200_000);
    let deviation = |shares: &[f64]| {
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let squares = shares.iter().map(|s| (s / mean - 1.0).powi(2));
        (squares.sum::<f64>() / shares.len() as f64).sqrt()
    };
    let ours: Vec<_> = (1..=1000).map(|n| *shares.get(&n).unwrap_or(&0) as f64).collect();
    // Stock's ring: the length of all arcs that end at one of a server's points.
    let mut points: Vec<_> = (0..1000u64)
        .flat_map(|n| (0..160).map(move |i| (nth(nth(1, n), i) >> 32, n as usize)))
        .collect();
    points.sort_unstable();
    let mut ring = vec![0.0; 1000];
    for pair in points.windows(2) {
        ring[pair[1].1] += (pair[1].0 - pair[0].0) as f64;
    }
    let (ours, ring) = (deviation(&ours), deviation(&ring));
    // 200 keys a server deviate by 7 % of themselves.
    assert!(ours < 1.6 * ring && (0.06..0.1).contains(&ring), "{ours} {ring}");
}

#[test]
fn consistent_finds_the_few_that_are_eligible_among_many() {
    let mut b = Bench::sized(2 << 20);
    (1..=1000).for_each(|n| b.add(n));
    b.drawn(&Consistent, 1);
    (1..=997).for_each(|n| b.toggle(n, false));
    by_weight(&b.shares(&Consistent, 3000), &[(998, 1), (999, 1), (1000, 1)]);
}

#[test]
fn in_a_panic_a_key_stops_where_it_would_if_nobody_were_out() {
    let mut b = Bench::new();
    b.rules.panic_threshold = 50;
    (1..=30).for_each(|n| b.add(n));
    let before = [b.places(&Hash), b.places(&Consistent)];
    b.passes(30_001);
    (1..=5).for_each(|n| drop(b.refresh(n)));
    // Each choice drops eight.
    (0..5).for_each(|n| _ = b.drawn(&Random, n));
    assert!(b.views().iter().filter(|v| v.state == State::Expired).count() == 25);
    assert_eq!([b.places(&Hash), b.places(&Consistent)], before);
}

#[test]
fn three_orders_in_a_zone_that_is_full_to_the_last_server() {
    let mut b = Bench::sized(128 * 1024);
    let names = [SpaceName::new(b"one").unwrap(), SpaceName::new(b"two").unwrap(), space()];
    let (rules, now) = (b.rules, b.now);
    for n in 1.. {
        let name = names[usize::from(n) % 3];
        let registration = Registration::of(address(n));
        if b.registry().add(name, &registration, &rules, now, &mut b.events).is_err() {
            assert!(n > 100);
            break;
        }
        let space = b.registry().find_space(name).unwrap();
        for policy in [&LeastConn as &dyn Policy, &RoundRobin, &Random] {
            let seed = Some(nth(4, u64::from(n)));
            let choice = Choice { space, policy, tried: &[], warm: &[], seed, again: None };
            let mut r = Registry::lock(b.zone).unwrap();
            r.take(&mut b.worker, &choice, &rules, now, &mut Target::NONE.clone(), &mut b.events)
                .unwrap();
        }
        b.check();
    }
    // And again from nothing.
    b.registry().repair();
    b.check();
}

#[derive(Clone, Debug)]
enum Op {
    Add(u16, u32),
    Remove(u16),
    Toggle(u16, bool),
    Take,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::shm::testing::cases(64)))]

    /// Whatever came and went: the tree is in order, its sums are right, and each draw finds whom a scan
    /// of all weights finds.
    #[test]
    fn fuzz_draws_agree_with_a_scan(ops in proptest::collection::vec(prop_oneof![
        6 => (1..60u16, 0..70_000u32).prop_map(|(n, w)| Op::Add(n, w.min(WEIGHT_MAX))),
        2 => (1..60u16).prop_map(Op::Remove),
        2 => (1..60u16, any::<bool>()).prop_map(|(n, on)| Op::Toggle(n, on)),
        2 => Just(Op::Take),
    ], 1..80), seed in any::<u64>()) {
        let mut b = Bench::new();
        b.add(99);
        for op in ops {
            match op {
                Op::Add(n, w) => drop(b.add_with(n, Some(w), None).unwrap()),
                Op::Remove(n) => _ = b.remove(n),
                Op::Toggle(n, on) if b.views().iter().any(|v| v.port == n) => b.toggle(n, on),
                Op::Toggle(..) => {}
                Op::Take => {
                    let _ = b.drawn(&Random, seed);
                    b.check();
                }
            }
        }
        b.drawn(&Random, 1);
        b.check();
        let mut all = b.views();
        all.sort_by_key(|v| crate::balance::digest(v.addr().as_bytes()));
        let ready: Vec<_> = all.iter().filter(|v| v.enabled && v.weight > 0).collect();
        let total: u64 = ready.iter().map(|v| u64::from(v.weight)).sum();
        for n in 0..20 {
            // The policy's first number; nobody has been tried, so it is the only one.
            let at = ((u128::from(nth(nth(seed, n), 0)) * u128::from(total)) >> 64) as u64;
            let mut sum = 0;
            let naive = ready.iter().find(|v| { sum += u64::from(v.weight); at < sum }).unwrap();
            prop_assert_eq!(b.drawn(&Random, nth(seed, n)), naive.port);

            // Nobody's way is shorter; of equals the first on the ring.
            let key = nth(seed, n);
            let way = |v: &&&ServerView| {
                let hash = crate::balance::digest(v.addr().as_bytes()) >> 9;
                let distance = (hash >> 23).wrapping_sub(key >> 32) & u64::from(u32::MAX);
                let laps = crate::balance::laps_of(key, hash);
                ((((laps << 32) + distance) << 16) / u64::from(v.weight), distance, hash)
            };
            let naive = ready.iter().min_by_key(way).unwrap();
            prop_assert_eq!(b.drawn(&Consistent, key), naive.port);
        }
    }
}
