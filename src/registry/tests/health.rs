//! Health checks: when they are due, whose they are, and what comes of them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::shm::testing::dies_after;

const BAD: Result<(), Trouble> = Err(Trouble::Status(503));

fn checked(initial: Initial) -> Bench {
    let mut b = Bench::new();
    b.check_servers(initial);
    b
}

/// Lets time pass until each server has been checked once more, with this result.
fn round(b: &mut Bench, result: Result<(), Trouble>) {
    for _ in 0..50 {
        b.passes(b.checks.interval / 50);
        b.judge_all(result);
    }
}

#[test]
fn a_server_is_unhealthy_after_so_many_failures_in_a_row_and_healthy_after_so_many_passes() {
    let mut b = checked(Initial::Up);
    b.rules.ttl = 0;
    b.add(1);
    b.add(2);
    b.events.drain().for_each(drop);
    for result in [BAD, BAD, Ok(()), BAD, BAD] {
        b.judge_all(result);
        b.passes(10_000);
    }
    assert_eq!(b.view(1).state, State::Up, "never three in a row");
    b.judge_all(BAD);
    assert_eq!(b.view(1).state, State::Unhealthy);
    assert!(!b.view(1).eligible);
    let lines: Vec<_> = b.events.drain().map(|e| (e.is_alarming(), e.to_string())).collect();
    let says = |n| {
        format!(
            "server 10.0.0.1:{n} unhealthy in namespace \"backend\": status 503, 3 checks failed"
        )
    };
    assert_eq!(lines, [(true, says(1)), (true, says(2))]);
    assert_eq!(b.take().unwrap_err(), Nobody { unhealthy: 2, ..Nobody::default() });

    b.passes(10_000);
    b.judge_all(BAD);
    b.passes(10_000);
    b.judge_all(Ok(()));
    assert!(b.events.is_empty(), "told once");
    assert_eq!(b.view(1).state, State::Unhealthy, "one pass is not enough");
    b.passes(10_000);
    b.judge_all(Ok(()));
    assert_eq!(b.view(1).state, State::Up);
    let lines: Vec<_> = b.events.drain().map(|e| (e.is_alarming(), e.to_string())).collect();
    let says = |n| format!("server 10.0.0.1:{n} healthy in namespace \"backend\"");
    assert_eq!(lines, [(false, says(1)), (false, says(2))]);
    b.check();
}

#[test]
fn what_checks_found_is_there_to_be_read() {
    let mut b = Bench::new();
    b.add(1);
    assert_eq!(b.view(1).health, None, "there are no checks");
    b.check_servers(Initial::Up);
    let none = CheckView {
        checks: 0,
        fails: 0,
        consecutive: 0,
        last_check: 0,
        last_error: None,
        latency_ms: 0,
    };
    assert_eq!(b.view(1).health, Some(none));
    let claim = b.due().pop().unwrap();
    b.passes(12);
    let last_check = b.now.wall;
    b.judge(&claim, BAD);
    b.passes(500);
    let failed = CheckView {
        checks: 1,
        fails: 1,
        consecutive: -1,
        last_check,
        last_error: Some(Trouble::Status(503)),
        latency_ms: 12,
    };
    assert_eq!(b.view(1).health, Some(failed));
    b.passes(10_000);
    b.judge_all(Ok(()));
    let now = b.view(1).health.unwrap();
    assert_eq!((now.checks, now.fails, now.consecutive, now.last_error), (2, 1, 1, None));
}

#[test]
fn what_is_thought_of_a_server_before_its_first_check_is_as_configured() {
    let mut b = checked(Initial::Down);
    b.add(1);
    assert_eq!(b.view(1).state, State::Unhealthy);
    b.judge_all(Ok(()));
    assert_eq!(b.view(1).state, State::Unhealthy, "two have to pass");
    b.passes(10_000);
    b.judge_all(Ok(()));
    assert_eq!(b.view(1).state, State::Up);

    let mut b = checked(Initial::Probe);
    b.add(1);
    assert_eq!(b.view(1).state, State::Unhealthy);
    b.events.drain().for_each(drop);
    b.judge_all(BAD);
    assert_eq!(b.happened(), [(Happening::Unhealthy, "10.0.0.1:1".to_owned())]);
    b.passes(10_000);
    b.judge_all(Ok(()));
    assert_eq!(b.view(1).state, State::Unhealthy, "it is one that has failed");
    b.add(2);
    b.judge_all(Ok(()));
    assert_eq!(b.view(2).state, State::Up, "the first check decides");
}

#[test]
fn silence_and_failed_checks_each_take_a_server_out() {
    let mut b = checked(Initial::Up);
    b.checks.fails = 1;
    b.add(1);
    b.judge_all(BAD);
    b.passes(31_000);
    b.sweep();
    assert_eq!(b.view(1).state, State::Expired);
    b.judge_all(Ok(()));
    b.passes(10_000);
    b.judge_all(Ok(()));
    assert_eq!(b.view(1).state, State::Expired, "healthy, but silent");
    b.refresh(1).unwrap();
    assert_eq!(b.view(1).state, State::Up);
    b.passes(10_000);
    b.judge_all(BAD);
    b.refresh(1).unwrap();
    assert_eq!(b.view(1).state, State::Unhealthy, "it speaks, but is unhealthy");
    b.toggle(1, false);
    assert_eq!(b.view(1).state, State::Down);
    b.passes(10_000);
    assert!(b.due().is_empty(), "one switched off by hand is not checked");
    b.toggle(1, true);
    assert_eq!(b.view(1).state, State::Unhealthy, "no hand makes it healthy");
    b.check();
}

#[test]
fn each_server_is_checked_once_in_an_interval_at_a_time_of_its_own() {
    let mut b = Bench::sized(4 << 20);
    b.rules.ttl = 0;
    b.check_servers(Initial::Up);
    for n in 1..=1000 {
        b.add(n);
    }
    assert_eq!(b.due().len(), 1000, "new ones at once");
    round(&mut b, Ok(()));
    round(&mut b, Ok(()));
    let mut each = BTreeMap::new();
    let mut ticks = Vec::new();
    for _ in 0..100 {
        b.passes(100);
        let claims = b.due();
        ticks.push(claims.len());
        for claim in claims {
            *each.entry(claim.slot).or_insert(0) += 1;
            b.judge(&claim, Ok(()));
        }
    }
    assert_eq!(each.len(), 1000);
    assert!(each.values().all(|n| *n == 2), "{each:?}");
    assert!(ticks.iter().all(|n| (5..50).contains(n)), "1000 in 50 ticks: {ticks:?}");
}

#[test]
fn jitter_moves_a_check_without_making_it_rarer() {
    let mut b = checked(Initial::Up);
    b.rules.ttl = 0;
    b.checks.jitter = 5000;
    b.add(1);
    let mut gaps = BTreeSet::new();
    let (mut last, mut n) = (b.now.mono, 0);
    for _ in 0..10_000 {
        b.passes(50);
        for claim in b.due() {
            gaps.insert((b.now.mono - last) / 1000);
            (last, n) = (b.now.mono, n + 1);
            b.judge(&claim, Ok(()));
        }
    }
    assert!((98..=101).contains(&n), "{n} checks in 100 intervals");
    assert!(gaps.len() > 6, "{gaps:?}");
}

#[test]
fn a_check_that_is_under_way_is_nobody_elses() {
    let mut b = checked(Initial::Up);
    b.rules.ttl = 0;
    b.add(1);
    let claim = b.due().pop().unwrap();
    b.passes(2900);
    assert!(b.due().is_empty());
    b.passes(200);
    let again = b.due().pop().expect("whoever had it is dead");
    b.judge(&claim, BAD);
    assert_eq!(b.view(1).health.unwrap().checks, 0, "it comes too late");
    b.judge(&again, Ok(()));
    assert_eq!(b.view(1).health.unwrap().checks, 1);
    b.judge(&again, Ok(()));
    b.passes(10_000);
    let claim = b.due().pop().unwrap();
    b.remove(1).unwrap();
    b.add(1);
    b.judge(&claim, BAD);
    assert_eq!(b.view(1).health.unwrap().checks, 0, "it was of another");
}

#[test]
fn a_check_that_begins_when_another_ends_is_under_way() {
    let mut b = checked(Initial::Up);
    b.rules.ttl = 0;
    b.checks.timeout = 12_000;
    b.add(1);
    let long = b.due().pop().unwrap();
    b.passes(12_000);
    b.judge(&long, BAD);
    let next = b.due().pop().expect("an interval and more has passed");
    for _ in 0..100 {
        b.passes(100);
        assert!(b.due().is_empty());
    }
    b.judge(&next, Ok(()));
    let health = b.view(1).health.unwrap();
    assert_eq!((health.checks, health.fails, health.consecutive), (2, 1, 1));
}

#[test]
fn a_check_to_be_repeated_is_due_at_once_and_counts_for_nothing() {
    let mut b = checked(Initial::Up);
    b.add(1);
    let claim = b.due().pop().unwrap();
    b.registry().repeat_check(&claim);
    assert_eq!(b.due().len(), 1);
    let health = b.view(1).health.unwrap();
    assert_eq!((health.checks, health.fails), (0, 0));
}

#[test]
fn a_server_that_serves_is_not_checked_when_only_idle_ones_are() {
    let mut b = checked(Initial::Up);
    b.checks.idle = true;
    b.add(1);
    b.judge_all(Ok(()));
    for _ in 0..30 {
        b.passes(1000);
        b.refresh(1).unwrap();
        b.serve().unwrap();
        assert!(b.due().is_empty());
    }
    let (flight, _) = b.take().unwrap();
    b.passes(5000);
    b.release(flight, Verdict::Cut);
    assert_eq!(b.due().len(), 1, "a request that nobody waited for is no proof");
}

#[test]
fn workers_share_the_checks_and_the_others_take_over_a_dead_ones() {
    let mut b = Bench::new();
    b.rules.ttl = 0;
    b.check_servers(Initial::Up);
    for n in 1..=100 {
        b.add(n);
    }
    dies_after(|| {
        let dying = b.registry().join(2);
        let share = b.registry().share_of_checks(&dying).unwrap();
        assert_eq!(share.of(), 2);
    });
    assert_eq!(b.registry().share_of_checks(&b.worker).unwrap().of(), 2);
    let mine = b.due();
    assert_eq!(mine.len(), 50);
    for claim in mine {
        b.judge(&claim, Ok(()));
    }
    b.passes(3600);
    assert!(b.due().len() >= 50, "overdue for half an interval and a second");
    b.registry().reap();
    assert_eq!(b.registry().share_of_checks(&b.worker).unwrap().of(), 1);
}

#[test]
fn a_worker_of_an_older_configuration_begins_no_checks() {
    let mut b = checked(Initial::Up);
    b.add(1);
    let claim = b.due().pop().unwrap();
    b.registry().next_cycle();
    assert_eq!(b.registry().share_of_checks(&b.worker), None);
    b.judge(&claim, Ok(()));
    assert_eq!(b.view(1).health.unwrap().checks, 1, "what it has begun counts");
    b.worker = b.registry().join(3);
    assert!(b.due().is_empty(), "and is not done again");
}

#[test]
fn a_new_configuration_keeps_what_was_found_where_there_are_still_checks() {
    let mut b = checked(Initial::Up);
    b.checks.fails = 1;
    b.add(1);
    b.judge_all(BAD);
    b.check_servers(Initial::Down);
    assert_eq!(b.view(1).state, State::Unhealthy);
    assert_eq!(b.view(1).health.unwrap().checks, 1);
    let none = CheckPlan { default: Some((0, Initial::Down)), spaces: vec![(space(), None)] };
    b.registry().configure_checks(&none, false);
    assert_eq!(b.view(1).state, State::Up, "nobody would ever make it healthy again");
    assert_eq!(b.view(1).health, None);
    b.check_servers(Initial::Down);
    assert_eq!(b.view(1).state, State::Up, "who serves goes on serving");
    assert_eq!(b.view(1).health.unwrap().checks, 0);
    b.add(2);
    assert_eq!(b.view(2).state, State::Unhealthy);
    let first = CheckPlan { default: Some((0, Initial::Down)), ..CheckPlan::default() };
    b.registry().configure_checks(&first, true);
    assert_eq!(b.view(1).state, State::Unhealthy, "after a start it is as good as new");
    b.check();
}

#[test]
fn results_move_with_their_servers_to_a_zone_of_another_size() {
    let mut b = checked(Initial::Up);
    b.checks.fails = 1;
    b.add(1);
    b.judge_all(BAD);
    let next = zone(2 << 20);
    Registry::lock(next).unwrap().succeed(&mut b.registry()).unwrap();
    b.zone = next;
    b.check_servers(Initial::Up);
    assert_eq!(b.view(1).state, State::Unhealthy);
    assert_eq!(b.view(1).health.unwrap().fails, 1);
}

#[test]
fn a_server_that_recovers_grows_to_its_weight() {
    let mut b = checked(Initial::Up);
    b.rules.slow_start = 60_000;
    b.checks.fails = 1;
    b.checks.passes = 1;
    b.add(1);
    b.passes(70_000);
    b.refresh(1).unwrap();
    b.sweep();
    b.judge_all(BAD);
    b.passes(10_000);
    b.judge_all(Ok(()));
    let r = b.registry();
    let warmth = r.g.servers[0].warmth;
    assert!((1..10).contains(&warmth), "{warmth}");
}

#[test]
fn rounds_of_checks_never_leave_the_zone_in_disorder() {
    let mut b = checked(Initial::Probe);
    b.rules.ttl = 0;
    b.rules.panic_threshold = 50;
    for n in 1..=20 {
        b.add(n);
    }
    for result in [BAD, Ok(()), BAD, BAD, BAD, Ok(()), Ok(()), Ok(())] {
        round(&mut b, result);
        let _ = b.serve();
        b.check();
    }
    assert!(b.views().iter().all(|v| v.state == State::Up));
}
