use super::*;

#[test]
fn an_added_server_has_the_defaults_and_a_namespace() {
    let mut b = Bench::new();
    assert_eq!(b.found(), None);
    let added = b.add_with(80, None, None).unwrap();
    assert_eq!(added, Change { weight: 1, max_conns: 1000, enabled: true, conns: 0 });
    let v = b.view(80);
    assert_eq!((v.addr(), v.host(), v.port), ("10.0.0.1:80", "10.0.0.1", 80));
    assert_eq!((v.state, v.is_active, v.eligible), (State::Up, true, true));
    assert_eq!(v.created_at, b.now.wall);
    assert_eq!(b.happened(), [(Happening::Added, "10.0.0.1:80".into())]);
    b.check();
}

#[test]
fn a_namespace_goes_with_its_last_server_unless_it_is_configured() {
    let mut b = Bench::new();
    b.add(1);
    b.remove(1).unwrap();
    assert_eq!(b.found(), None);
    b.registry().configure_space(space()).unwrap();
    b.add(1);
    b.remove(1).unwrap();
    assert!(b.found().is_some());
    b.check();
}

#[test]
fn adding_again_is_a_heartbeat_and_changes_what_is_given() {
    let mut b = Bench::new();
    b.add_with(1, Some(5), Some(7)).unwrap();
    let created = b.now.wall;
    b.passes(20_000);
    let again = b.add_with(1, None, Some(9)).unwrap();
    assert_eq!((again.weight, again.max_conns), (5, 9));
    b.passes(20_000);
    let v = b.view(1);
    assert!(v.is_active);
    assert_eq!(v.created_at, created);
    assert_eq!(v.time_since_heartbeat, 20_000);
    assert_eq!(b.views().len(), 1);
    b.check();
}

#[test]
fn adding_again_is_refused_under_reject_and_is_no_heartbeat() {
    let mut b = Bench::new();
    b.rules.on_duplicate = OnDuplicate::Reject;
    b.add(1);
    b.passes(10);
    let refused = b.add_with(1, Some(9), None);
    assert_eq!(refused, Err(Error::Duplicate("10.0.0.1:1".into())));
    let v = b.view(1);
    assert_eq!((v.weight, v.time_since_heartbeat), (1, 10));
}

#[test]
fn an_expired_server_is_out_before_any_timer_runs() {
    let mut b = Bench::new();
    b.add(1);
    b.passes(30_000);
    assert_eq!(b.serve(), Some(1), "at the TTL it is still in");
    b.passes(1);
    assert_eq!(b.take().unwrap_err(), Nobody { expired: 1, ..Nobody::default() });
    assert_eq!(b.view(1).state, State::Expired);
    b.check();
}

#[test]
fn a_server_that_expired_comes_back_with_its_next_heartbeat() {
    let mut b = Bench::new();
    b.add(1);
    b.happened();
    b.passes(30_001);
    let sweep = b.sweep();
    assert_eq!((sweep.expired, sweep.disabled, sweep.removed), (1, 1, 0));
    let v = b.view(1);
    assert_eq!((v.enabled, v.disabled_reason), (false, Some("heartbeat_timeout")));
    assert_eq!(v.disabled_at, b.now.wall);
    let again = b.sweep();
    assert_eq!((again.expired, again.disabled), (1, 0), "it is switched off once");
    assert!(b.refresh(1).unwrap().enabled);
    let v = b.view(1);
    assert_eq!((v.enabled, v.disabled_reason, v.disabled_at), (true, None, 0));
    assert_eq!(b.serve(), Some(1));
    let what: Vec<_> = b.happened().into_iter().map(|(what, _)| what).collect();
    assert_eq!(what, [Happening::Expired, Happening::Back]);
    b.check();
}

#[test]
fn one_disabled_by_hand_stays_so_until_enabled_by_hand() {
    let mut b = Bench::new();
    b.rules.on_expire = OnExpire::Remove;
    b.rules.remove_after = 40_000;
    b.add(1);
    b.toggle(1, false);
    b.refresh(1).unwrap();
    assert_eq!(b.take().unwrap_err(), Nobody { disabled: 1, ..Nobody::default() });
    b.passes(1_000_000);
    let sweep = b.sweep();
    assert_eq!((sweep.expired, sweep.disabled, sweep.removed), (0, 0, 0));
    b.refresh(1).unwrap();
    let v = b.view(1);
    assert_eq!((v.enabled, v.state, v.disabled_reason), (false, State::Down, Some("manual")));
    b.toggle(1, true);
    assert_eq!(b.serve(), Some(1));
    b.check();
}

#[test]
fn one_disabled_by_hand_while_silenced_does_not_come_back_with_a_heartbeat() {
    let mut b = Bench::new();
    b.add(1);
    b.passes(40_000);
    b.sweep();
    b.toggle(1, false);
    b.refresh(1).unwrap();
    assert_eq!(b.view(1).disabled_reason, Some("manual"));
    assert_eq!(b.serve(), None);
    b.check();
}

#[test]
fn the_cleanup_removes_by_on_expire_and_by_remove_after() {
    let mut b = Bench::new();
    b.rules.remove_after = 100_000;
    b.add(1);
    b.passes(100_000);
    assert_eq!(b.sweep().removed, 0);
    b.passes(1);
    assert_eq!(b.sweep().removed, 1);
    assert_eq!(b.found(), None);

    b.rules.on_expire = OnExpire::Remove;
    b.add(2);
    b.passes(30_001);
    let sweep = b.sweep();
    assert_eq!((sweep.expired, sweep.removed), (1, 1));
    b.check();
}

#[test]
fn a_longer_ttl_brings_back_those_whose_silence_it_allows() {
    for longer in [3_600_000, 0] {
        let mut b = Bench::new();
        b.add(1);
        b.add(2);
        b.add(3);
        b.toggle(3, false);
        b.passes(40_000);
        b.sweep();
        b.happened();
        b.rules.ttl = longer;
        configure(&mut b, &[]);
        assert_eq!(b.happened().iter().filter(|(what, _)| *what == Happening::Back).count(), 2);
        assert!(b.view(1).enabled && b.serve().is_some());
        assert_eq!(b.view(3).disabled_reason, Some("manual"));
        b.check();
    }
    // A worker of the old configuration may find them expired once more: the next cleanup ends it.
    let mut b = Bench::new();
    b.add(1);
    b.passes(40_000);
    assert_eq!(b.serve(), None);
    b.rules.ttl = 3_600_000;
    b.sweep();
    assert_eq!(b.serve(), Some(1));
    b.check();
}

#[test]
fn a_ttl_of_zero_expires_nobody() {
    let mut b = Bench::new();
    b.rules.ttl = 0;
    b.rules.on_expire = OnExpire::Remove;
    b.rules.remove_after = 1;
    b.add(1);
    b.passes(1 << 40);
    assert_eq!(b.sweep().expired, 0);
    assert_eq!(b.serve(), Some(1));
}

#[test]
fn setting_the_wall_clock_expires_nobody() {
    let mut b = Bench::new();
    b.add(1);
    b.now.wall += 10_000_000;
    assert_eq!(b.sweep().expired, 0);
    assert!(b.view(1).is_active);
    b.now.wall = 5;
    assert_eq!(b.serve(), Some(1));
}

#[test]
fn a_drain_ends_with_enable_not_with_heartbeats() {
    let mut b = Bench::new();
    b.add(1);
    let (flight, _) = b.take().unwrap();
    let found = b.found();
    let (watch, drained) = b.registry().drain(found, &address(1), b.now, &mut b.events).unwrap();
    assert_eq!(drained.conns, 1);
    b.refresh(1).unwrap();
    b.add(1);
    assert_eq!(b.take().unwrap_err(), Nobody { draining: 1, ..Nobody::default() });
    assert_eq!(b.view(1).state, State::Draining);
    assert_eq!(b.registry().look(watch), Watched::Draining(1));
    b.release(flight, Verdict::Fine);
    assert_eq!(b.registry().look(watch), Watched::Draining(0));
    b.toggle(1, true);
    assert_eq!(b.registry().look(watch), Watched::Enabled);
    assert_eq!(b.serve(), Some(1));
    b.check();
}

#[test]
fn who_comes_after_a_drained_server_is_not_taken_for_it() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    let found = b.found();
    let (watch, _) = b.registry().drain(found, &address(1), b.now, &mut b.events).unwrap();
    b.remove(1).unwrap();
    assert_eq!(b.registry().look(watch), Watched::Gone);
    b.add(1);
    b.registry().drain(found, &address(1), b.now, &mut b.events).unwrap();
    assert_eq!(b.registry().look(watch), Watched::Gone);
}

#[test]
fn weight_zero_takes_no_new_requests() {
    let mut b = Bench::new();
    b.add(1);
    let found = b.found();
    b.registry().set_weight(found, &address(1), 0, b.now).unwrap();
    assert_eq!(b.take().unwrap_err(), Nobody { weight_zero: 1, ..Nobody::default() });
    b.registry().set_weight(found, &address(1), 2, b.now).unwrap();
    assert_eq!(b.serve(), Some(1));
    b.check();
}

#[test]
fn what_is_not_there_is_not_found() {
    let mut b = Bench::new();
    let gone = Err(Error::NotFound("10.0.0.1:1".into()));
    assert_eq!(b.refresh(1), gone);
    b.add(2);
    assert_eq!(b.refresh(1), gone);
    assert_eq!(b.remove(1), Err(Error::NotFound("10.0.0.1:1".into())));
}

#[test]
fn reset_clears_statistics_and_failure_marks_but_no_counts() {
    let mut b = Bench::new();
    b.add(1);
    b.add(2);
    let (kept, _) = b.take().unwrap();
    let (failed, port) = b.take().unwrap();
    assert!(b.release(failed, Verdict::Failed).failed);
    assert_eq!(b.view(port).state, State::Unhealthy);
    let found = b.found().unwrap();
    let mut cursor = Cursor::START;
    let mut n = 0;
    while !cursor.done {
        n += b.registry().reset(found, &mut cursor, 1);
    }
    assert_eq!(n, 2);
    let views = b.views();
    assert!(views.iter().all(|v| v.requests == 0 && v.fails == 0 && v.state == State::Up));
    assert_eq!(views.iter().map(|v| v.connections).sum::<u32>(), 1);
    b.release(kept, Verdict::Fine);
    b.check();
}

#[test]
fn a_full_zone_refuses_one_more_and_changes_nothing() {
    let mut b = Bench::sized(128 * 1024);
    let mut n = 0;
    let error = loop {
        match b.add_with(n + 1, None, None) {
            Ok(_) => n += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(error, Error::Full("server")));
    assert_eq!(usize::from(n), b.zone.layout().servers);
    b.check();
    let other = SpaceName::new(b"other").unwrap();
    let registration = Registration::of(address(1));
    let full = b.registry().add(other, &registration, &b.rules, b.now, &mut b.events);
    assert!(matches!(full, Err(Error::Full(_))));
    assert_eq!(b.registry().find_space(other), None, "no namespace is left behind");
    b.add_with(1, Some(3), None).expect("a known server needs no room");
    b.remove(1).unwrap();
    b.add(60_000);
    assert_eq!(b.views().len(), usize::from(n));
    b.check();
}

#[test]
fn namespaces_can_run_out_and_come_back() {
    let mut b = Bench::sized(128 * 1024);
    let spaces = b.zone.layout().spaces;
    let names: Vec<_> = (0..=spaces).map(|i| format!("space-{i}")).collect();
    let registration = Registration::of(address(1));
    let mut results = Vec::new();
    for name in &names {
        let name = SpaceName::new(name.as_bytes()).unwrap();
        results.push(b.registry().add(name, &registration, &b.rules, b.now, &mut b.events));
    }
    assert!(results[..spaces].iter().all(Result::is_ok));
    assert_eq!(results[spaces], Err(Error::Full("namespace")));
    b.check();
    let first = SpaceName::new(names[0].as_bytes()).unwrap();
    let found = b.registry().find_space(first);
    b.registry().remove(found, &address(1), b.now, &mut b.events).unwrap();
    let last = SpaceName::new(names[spaces].as_bytes()).unwrap();
    b.registry().add(last, &registration, &b.rules, b.now, &mut b.events).unwrap();
    b.check();
}

#[test]
fn static_servers_never_expire_and_stay() {
    let mut b = Bench::new();
    let line = line(1);
    configure(&mut b, std::slice::from_ref(&line));
    b.passes(1 << 40);
    assert_eq!(b.sweep().expired, 0);
    assert_eq!(b.serve(), Some(1));
    assert!(b.view(1).is_static);
    assert_eq!(b.remove(1), Err(Error::Static("10.0.0.1:1".into())));
    configure(&mut b, &[]);
    assert!(b.views().is_empty());
    assert!(b.found().is_some(), "the namespace is configured");
    b.check();
}

#[test]
fn a_new_configuration_keeps_what_was_switched_by_hand() {
    let mut b = Bench::new();
    configure(&mut b, &[line(1), StaticServer { down: true, ..line(2) }]);
    assert_eq!(b.view(2).disabled_reason, Some("configuration"));
    b.toggle(1, false);
    b.toggle(2, true);
    b.add(3);
    configure(
        &mut b,
        &[StaticServer { weight: 7, ..line(1) }, StaticServer { down: true, ..line(2) }],
    );
    assert_eq!((b.view(1).enabled, b.view(1).weight), (false, 7));
    assert!(b.view(2).enabled, "its line has not changed");
    assert!(b.view(3).enabled, "a registered server stays");
    configure(&mut b, &[line(2)]);
    configure(&mut b, &[StaticServer { down: true, ..line(2) }]);
    assert!(!b.view(2).enabled, "its line has changed");
    configure(&mut b, &[line(2)]);
    assert!(b.view(2).enabled, "and changed back");
    b.check();
}

#[test]
fn a_registered_server_can_become_static_with_requests_on_it() {
    let mut b = Bench::new();
    b.add(1);
    let (flight, _) = b.take().unwrap();
    configure(&mut b, &[StaticServer { backup: true, ..line(1) }]);
    b.check();
    assert_eq!(b.view(1).connections, 1);
    b.release(flight, Verdict::Fine);
    assert_eq!(b.view(1).connections, 0);
    b.check();
}

#[test]
fn a_successor_takes_the_servers_as_they_are_without_their_requests() {
    let mut old = Bench::new();
    old.add_with(1, Some(5), None).unwrap();
    old.add(2);
    old.toggle(2, false);
    let _in_flight = old.take().unwrap();
    let mut new = Bench::sized(2 << 20);
    new.now = old.now;
    {
        let mut from = old.registry();
        new.registry().succeed(&mut from).unwrap();
        from.retire();
    }
    new.check();
    assert_eq!(new.view(1).weight, 5);
    assert_eq!(new.view(1).connections, 0);
    assert!(!new.view(2).enabled);
    assert_eq!(new.serve(), Some(1));
    assert_eq!(old.add_with(3, None, None), Err(Error::Retired));
    assert_eq!(old.refresh(1), Err(Error::Retired));
}

#[test]
fn in_a_zone_that_was_replaced_time_expires_nobody() {
    let mut b = Bench::new();
    b.add(1);
    b.registry().retire();
    b.passes(1_000_000);
    assert_eq!(b.serve(), Some(1), "its old workers still have requests");
    assert_eq!(b.view(1).state, State::Up);
    assert_eq!(b.health().eligible, 1);
    assert_eq!(b.sweep().expired, 0);
}

#[test]
fn the_same_configuration_again_changes_nothing() {
    let mut b = Bench::new();
    let lines = [line(1), StaticServer { down: true, ..line(2) }];
    configure(&mut b, &lines);
    let version = b.registry().version();
    let before = format!("{:?}", b.views());
    b.passes(5);
    configure(&mut b, &lines);
    assert_eq!(b.registry().version(), version);
    b.now = Now { mono: b.now.mono - 5, wall: b.now.wall - 5 };
    assert_eq!(format!("{:?}", b.views()), before);
    b.check();
}

#[test]
fn in_a_successor_a_newcomer_is_not_owed_turns() {
    let mut old = Bench::new();
    old.add(1);
    for _ in 0..1000 {
        old.serve();
    }
    let mut new = Bench::new();
    new.now = old.now;
    new.registry().succeed(&mut old.registry()).unwrap();
    new.add(2);
    let served: Vec<_> = (0..10).map(|_| new.serve().unwrap()).collect();
    assert_eq!(served.iter().filter(|p| **p == 2).count(), 5, "{served:?}");
}

#[test]
fn a_smaller_successor_takes_what_has_room() {
    let mut old = Bench::sized(1 << 20);
    let room = crate::shm::Layout::new(128 * 1024).unwrap().servers as u16;
    for n in 1..=room + 5 {
        old.add(n);
    }
    let new = Bench::sized(128 * 1024);
    let mut from = old.registry();
    assert_eq!(new.registry().succeed(&mut from), Err(Error::Full("server")));
    assert_eq!(new.views().len(), usize::from(room));
    new.check();
}

#[test]
fn a_walk_sees_each_server_once_while_others_come_and_go() {
    let mut b = Bench::new();
    for n in 1..=20 {
        b.add(n);
    }
    let found = b.found().unwrap();
    let mut cursor = Cursor::START;
    let mut seen = Vec::new();
    let mut n = 100;
    while !cursor.done {
        let mut some = Vec::new();
        b.registry().read(found, &mut cursor, 3, &b.rules, b.now, &mut some);
        // The one read last goes, and a new one takes its slot.
        if let Some(last) = some.last().filter(|v| v.port < 20) {
            b.remove(last.port).unwrap();
            b.add(n);
            n += 1;
        }
        seen.extend(some.into_iter().map(|v| v.port).filter(|p| *p <= 20));
        assert!(seen.len() <= 20);
    }
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
}

fn line(n: u16) -> StaticServer {
    StaticServer {
        address: address(n),
        weight: 1,
        max_conns: 0,
        max_fails: 1,
        fail_timeout_ms: 10_000,
        backup: false,
        down: false,
        slow_start_ms: 0,
    }
}

fn configure(b: &mut Bench, lines: &[StaticServer]) {
    let servers: Vec<_> = lines.iter().map(|l| (space(), l.clone())).collect();
    b.registry().configure(&[space()], &servers, &b.rules, b.now, &mut b.events).unwrap();
}
