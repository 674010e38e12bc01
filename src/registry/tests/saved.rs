//! What outlives a zone: a restart, and two nginx that share a file.

use std::collections::HashSet;

use super::*;

/// What a zone would write.
fn file(b: &Bench) -> (Source, Vec<SavedServer>) {
    let mut copies = Vec::new();
    let mut snapshot = b.registry().snapshot();
    while !snapshot.done {
        b.registry().copy(&mut snapshot, 3, &mut copies);
    }
    let filed = *b.registry().filed();
    let seen = (filed.other != 0).then_some((filed.other, filed.other_next));
    let source = Source { instance: filed.instance, next_number: snapshot.next_number, seen };
    (source, copies.iter().map(|copied| copied.saved(b.now)).collect())
}

/// Writes what a zone has: nothing is unsaved after it.
fn write(b: &Bench) -> (Source, Vec<SavedServer>) {
    let version = b.registry().version();
    let mut registry = b.registry();
    registry.filed().version = version;
    registry.filed().path = PATH;
    drop(registry);
    file(b)
}

const PATH: u64 = 5;

/// Reads in what another zone wrote. Returns whether something is left to write.
fn merge(b: &mut Bench, (source, servers): &(Source, Vec<SavedServer>)) -> bool {
    let keys: HashSet<String> = servers.iter().map(SavedServer::key).collect();
    let mut merge = b.registry().merge(*source, PATH);
    for server in servers {
        let (rules, now) = (b.rules, b.now);
        b.registry().merge_one(&mut merge, server, &rules, now, &mut b.events);
    }
    while !b.registry().merge_gone(&mut merge, 2, &keys, &mut b.events) {}
    b.check();
    if !merge.has_unsaved() {
        let _ = write(b);
    }
    merge.has_unsaved()
}

fn ports(b: &Bench) -> Vec<u16> {
    let mut ports: Vec<_> = b.views().iter().map(|v| v.port).collect();
    ports.sort_unstable();
    ports
}

fn line(n: u16) -> StaticServer {
    StaticServer {
        address: address(n),
        weight: 2,
        max_conns: 0,
        max_fails: 1,
        fail_timeout_ms: 10_000,
        backup: false,
        down: false,
        slow_start_ms: 0,
    }
}

fn configure(b: &mut Bench, lines: &[StaticServer]) {
    let lines: Vec<_> = lines.iter().map(|line| (space(), line.clone())).collect();
    let (rules, now) = (b.rules, b.now);
    b.registry().configure(&[space()], &lines, &rules, now, &mut b.events).unwrap();
}

#[test]
fn a_restart_brings_back_what_a_reload_keeps() {
    let mut old = Bench::new();
    configure(&mut old, &[line(8), StaticServer { down: true, ..line(9) }]);
    old.add_with(1, Some(3), Some(0)).unwrap();
    let picky = Registration {
        max_fails: Some(7),
        fail_timeout_ms: Some(7_000),
        timeouts_ms: [None, None, Some(900)],
        health_path: HealthPath::new("/live"),
        ..Registration::of(address(2))
    };
    old.registry().add(space(), &picky, &RULES, old.now, &mut Events::default()).unwrap();
    old.add(3);
    old.toggle(2, false);
    old.toggle(8, false);
    // `down` on the line, switched on by hand since.
    old.toggle(9, true);
    let found = old.found();
    old.registry().drain(found, &address(3), old.now, &mut Events::default()).unwrap();
    let _request = old.take().unwrap();
    old.passes(40_000);
    old.sweep();
    assert_eq!(old.view(1).state, State::Expired);

    let (source, servers) = file(&old);
    let mut new = Bench::new();
    new.now = Now { mono: 50, wall: old.now.wall + 60_000 };
    assert_eq!(new.registry().restore(source, &servers, new.now), Ok(5));
    new.check();
    configure(&mut new, &[line(8), StaticServer { down: true, ..line(9) }]);
    new.check();
    for (before, after) in old.views().iter().zip(new.views()) {
        assert_eq!(before.addr(), after.addr(), "in their order");
        assert_eq!((before.weight, before.max_conns), (after.weight, after.max_conns));
        assert_eq!(before.is_static, after.is_static);
        assert_eq!(before.created_at, after.created_at);
        assert_eq!(after.connections, 0, "requests are not kept");
    }
    let picky = |s: &&SavedServer| {
        let mut expected = Settings { max_fails: 7, fail_timeout_ms: 7_000, ..Settings::DEFAULT };
        expected.timeouts_ms = [0, 0, 900];
        expected.health_path = HealthPath::new("/live").unwrap();
        s.settings == expected
    };
    assert_eq!(file(&new).1.iter().filter(picky).count(), 1);
    let state = |n: u16| (new.view(n).state, new.view(n).disabled_reason);
    assert_eq!(state(1), (State::Up, None), "silence is not kept");
    assert_eq!(state(2), (State::Down, Some("manual")));
    assert_eq!(new.view(2).disabled_at, old.view(2).disabled_at);
    assert_eq!(state(3), (State::Draining, None));
    assert_eq!(state(8), (State::Down, Some("manual")));
    assert_eq!(state(9), (State::Up, None));

    // One TTL to show up.
    new.passes(30_000);
    assert!(new.view(1).is_active);
    new.passes(1);
    assert!(!new.view(1).is_active);
}

#[test]
fn server_lines_that_went_meanwhile_do_not_come_back() {
    let mut old = Bench::new();
    configure(&mut old, &[line(8)]);
    old.add(1);
    let (source, servers) = file(&old);
    let mut new = Bench::new();
    new.registry().restore(source, &servers, new.now).unwrap();
    configure(&mut new, &[]);
    assert_eq!(ports(&new), [1]);
    new.check();
}

#[test]
fn a_zone_that_is_too_small_takes_as_many_as_fit() {
    let mut old = Bench::new();
    let room = Bench::sized(96 * 1024).registry().g.servers.len();
    for n in 1..=room as u16 + 5 {
        old.add(n);
    }
    let (source, servers) = file(&old);
    let mut new = Bench::sized(96 * 1024);
    assert_eq!(new.registry().restore(source, &servers, new.now), Err(5));
    assert_eq!(ports(&new), (1..=room as u16).collect::<Vec<_>>(), "the oldest");
    new.check();
    new.remove(1).unwrap();
    new.add(9999);
}

#[test]
fn both_sides_of_an_upgrade_learn_what_the_other_registers_and_removes() {
    let mut old = Bench::new();
    for n in 1..=4 {
        old.add(n);
    }
    let at_start = write(&old);
    let mut new = Bench::new();
    new.registry().restore(at_start.0, &at_start.1, new.now).unwrap();
    let _ = write(&new);

    // Before the old side has read anything of the new one.
    old.add(5);
    old.remove(1).unwrap();
    assert!(!merge(&mut new, &write(&old)), "nothing of its own is left to write");
    assert_eq!(ports(&new), [2, 3, 4, 5]);

    new.add(6);
    new.remove(2).unwrap();
    assert!(!merge(&mut old, &write(&new)));
    assert_eq!(ports(&old), [3, 4, 5, 6]);

    // Both at once: what one has not written yet is not undone by what the other has.
    old.add(7);
    old.remove(3).unwrap();
    new.add(8);
    new.remove(4).unwrap();
    assert!(merge(&mut new, &write(&old)), "its own changes are left to write");
    assert_eq!(ports(&new), [5, 6, 7, 8]);
    assert!(!merge(&mut old, &write(&new)));
    assert_eq!(ports(&old), [5, 6, 7, 8]);

    // The same file again changes nothing.
    assert!(!merge(&mut old, &write(&new)));
    assert_eq!(ports(&old), [5, 6, 7, 8]);
    let said = old.happened();
    assert!(said.contains(&(Happening::Added, "10.0.0.1:6".into())), "{said:?}");
    assert!(said.contains(&(Happening::Removed, "10.0.0.1:2".into())), "{said:?}");
}

#[test]
fn the_later_change_of_a_server_wins() {
    let mut old = Bench::new();
    old.add(1);
    old.add(2);
    let at_start = write(&old);
    let mut new = Bench::new();
    new.registry().restore(at_start.0, &at_start.1, new.now).unwrap();
    let _ = write(&new);
    old.passes(10);
    new.passes(20);
    old.toggle(1, false);
    old.toggle(2, false);
    let found = new.found();
    new.registry().set_weight(found, &address(1), 9, new.now).unwrap();
    assert!(merge(&mut new, &write(&old)));
    assert_eq!((new.view(1).weight, new.view(1).enabled), (9, true), "the weight was later");
    assert!(!new.view(2).enabled);
    old.passes(20);
    merge(&mut old, &write(&new));
    assert_eq!((old.view(1).weight, old.view(1).enabled), (9, true));
    assert!(!old.view(2).enabled);
}

#[test]
fn heartbeats_that_came_to_the_other_side_count() {
    let mut old = Bench::new();
    old.add(1);
    old.add(2);
    let at_start = write(&old);
    let mut new = Bench::new();
    new.registry().restore(at_start.0, &at_start.1, new.now).unwrap();
    let _ = write(&new);
    for _ in 0..3 {
        old.passes(20_000);
        new.passes(20_000);
        old.refresh(1).unwrap();
        merge(&mut new, &write(&old));
        new.sweep();
    }
    assert_eq!(new.view(1).state, State::Up);
    assert_eq!(new.view(1).time_since_heartbeat, 0);
    assert_eq!(new.view(2).state, State::Expired, "nobody has heard of it");
}

#[test]
fn a_zone_of_another_size_is_not_taken_for_another_nginx() {
    let mut old = Bench::new();
    old.add(1);
    old.add(2);
    let last = write(&old);
    // Changes that came after the file was last written.
    old.remove(1).unwrap();
    old.add(3);
    let mut new = Bench::sized(1 << 21);
    new.registry().succeed(&mut old.registry()).unwrap();
    assert!(new.registry().is_unsaved(PATH));
    assert!(merge(&mut new, &last), "all is left to write");
    assert_eq!(ports(&new), [2, 3]);
}

#[test]
fn a_change_between_two_slices_is_not_taken_for_saved() {
    let mut old = Bench::new();
    old.add(1);
    let theirs = write(&old);
    let mut new = Bench::new();
    let _ = write(&new);
    let mut merge = new.registry().merge(theirs.0, PATH);
    let (rules, now) = (new.rules, new.now);
    new.registry().merge_one(&mut merge, &theirs.1[0], &rules, now, &mut new.events);
    assert!(!merge.has_unsaved());
    new.add(2);
    while !new.registry().merge_gone(&mut merge, 2, &HashSet::new(), &mut new.events) {}
    assert!(merge.has_unsaved());
    assert_eq!(ports(&new), [1, 2]);
}

#[test]
fn who_writes_is_always_one_that_lives() {
    let b = Bench::new();
    let other = b.registry().join(2);
    assert!(b.registry().elect_writer(&b.worker));
    assert!(!b.registry().elect_writer(&other));
    b.registry().resign(&b.worker);
    assert!(!b.registry().elect_writer(&b.worker), "somebody stays");
    assert!(b.registry().elect_writer(&other));
    b.registry().resign(&other);
    assert!(b.registry().elect_writer(&b.worker), "nobody stays: the first of those who go");
    assert!(!b.registry().elect_writer(&other));
    assert!(!b.registry().is_deserted());
    let registry = || Registry::lock(b.zone).unwrap();
    registry().leave(b.worker);
    assert!(registry().elect_writer(&other), "and then the next");
    registry().leave(other);
    assert!(registry().is_deserted());
}

#[test]
fn a_dead_worker_writes_nothing() {
    let b = Bench::new();
    crate::shm::testing::dies_after(|| {
        let other = b.registry().join(2);
        b.registry().next_cycle();
        let newer = b.registry().join(3);
        assert!(b.registry().elect_writer(&newer));
        drop((other, newer));
    });
    assert!(b.registry().elect_writer(&b.worker));
    b.registry().resign(&b.worker);
    assert!(b.registry().elect_writer(&b.worker), "the dead do not stay");
    let zone = b.zone;
    Registry::lock(zone).unwrap().leave(b.worker);
    assert!(Registry::lock(zone).unwrap().is_deserted());
}
