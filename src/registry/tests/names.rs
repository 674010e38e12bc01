//! Names: their addresses are servers, which follow the name in all that is said of it.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::shm::{Server, flag};

fn app() -> Address {
    Address::Name("app".to_owned(), 80)
}

fn at(n: u8) -> Address {
    Address::Inet(Ipv4Addr::new(10, 0, 0, n).into(), 80)
}

fn ips(all: impl IntoIterator<Item = u8>) -> Vec<IpAddr> {
    all.into_iter().map(|n| Ipv4Addr::new(10, 0, 0, n).into()).collect()
}

impl Bench {
    /// Registers a name, or gives a sign of life of it.
    fn add_name(&mut self, weight: Option<u32>) {
        let registration = Registration { weight, ..Registration::of(app()) };
        let (rules, now) = (self.rules, self.now);
        self.registry().add(space(), &registration, &rules, now, &mut self.events).unwrap();
    }

    fn name(&self) -> NameRef {
        let mut names = Vec::new();
        assert!(self.registry().find_names(&mut 0, u32::MAX, &mut names));
        names[0]
    }

    /// The resolver says that the name has these addresses of 10.0.0.0/24.
    fn resolve(&mut self, all: impl IntoIterator<Item = u8>) -> Result<(), Error> {
        let (name, now) = (self.name(), self.now);
        let found = Found::sift(ips(all), &[]);
        self.registry().take_addresses(name, &found, now, &mut self.events)
    }

    /// A name with addresses.
    fn named(all: impl IntoIterator<Item = u8>) -> Self {
        let mut b = Self::new();
        b.add_name(None);
        b.resolve(all).unwrap();
        b.check();
        b
    }

    /// What there is, in the order of arrival.
    fn addrs(&self) -> Vec<String> {
        self.views().iter().map(|v| v.addr().to_owned()).collect()
    }

    fn server(&self, address: &Address) -> Server {
        let found = self.found().unwrap();
        let r = self.registry();
        r.g.servers[r.find(found.slot, address).unwrap() as usize]
    }

    fn seen(&self, address: &Address) -> ServerView {
        let addr = address.to_string();
        self.views().into_iter().find(|v| v.addr() == addr).unwrap()
    }

    /// Which of them answer so many requests that are under way at the same time.
    fn serving(&mut self, n: usize) -> Vec<String> {
        let flights: Vec<_> = (0..n).map(|_| self.take().unwrap().0).collect();
        let busy = self.views().into_iter().filter(|v| v.connections > 0);
        let mut busy: Vec<_> = busy.map(|v| v.addr().to_owned()).collect();
        busy.sort();
        for flight in flights {
            self.release(flight, Verdict::Fine);
        }
        busy
    }
}

#[test]
fn a_name_has_no_requests_its_addresses_have() {
    let mut b = Bench::new();
    b.add_name(Some(3));
    b.check();
    let nobody = b.take().unwrap_err();
    assert_eq!((nobody.unresolved, nobody.to_string()), (1, "1 unresolved".to_owned()));
    assert_eq!(b.seen(&app()).state, State::Unresolved);
    assert_eq!(b.health().total_servers, 1);
    b.resolve([2, 1]).unwrap();
    b.check();
    assert_eq!(b.addrs(), ["app:80", "10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(b.serving(4), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(b.seen(&app()).state, State::Up);
    for n in [1, 2] {
        let view = b.seen(&at(n));
        assert_eq!((view.of_name(), view.weight, view.max_conns), (Some("app:80"), 3, 1000));
    }
    assert_eq!(b.seen(&app()).of_name(), None);
    let health = b.health();
    assert_eq!((health.total_servers, health.eligible), (2, 2), "the name is not counted twice");
    for policy in [&RoundRobin as &dyn Policy, &Random, &RandomTwo, &Hash, &Consistent] {
        for _ in 0..20 {
            let (flight, _) = b.take_by(policy, &[]).unwrap();
            b.release(flight, Verdict::Fine);
        }
        b.check();
    }
}

#[test]
fn what_an_answer_changes_is_said_and_what_stays_keeps_everything() {
    let mut b = Bench::named([1, 2]);
    b.happened();
    let (flight, _) = b.take().unwrap();
    let before = b.views().into_iter().find(|v| v.connections == 1).unwrap();
    let stays = if before.addr() == "10.0.0.1:80" { 1 } else { 2 };
    b.passes(5);
    b.resolve([stays, 3]).unwrap();
    b.check();
    let gone = format!("10.0.0.{}:80", 3 - stays);
    let said = [(Happening::Removed, gone), (Happening::Added, "10.0.0.3:80".to_owned())];
    assert_eq!(b.happened(), said);
    let after = b.seen(&at(stays));
    assert_eq!((after.connections, after.requests), (1, 1));
    assert_eq!(after.created_at, before.created_at);
    b.resolve([stays, 3]).unwrap();
    assert_eq!(b.happened(), [], "the same answer changes nothing");
    b.resolve([]).unwrap();
    b.release(flight, Verdict::Fine);
    b.check();
    assert_eq!(b.addrs(), ["app:80"]);
    assert_eq!(b.registry().totals().connections, 0);
}

#[test]
fn the_log_says_whose_address_it_is() {
    let mut b = Bench::named([1]);
    let lines: Vec<_> = b.events.drain().map(|e| e.to_string()).collect();
    let added = "server 10.0.0.1:80 added in namespace \"backend\", an address of app:80";
    assert_eq!(lines, ["server app:80 added in namespace \"backend\"", added]);
}

#[test]
fn addresses_follow_their_name_and_may_differ_until_it_says_otherwise() {
    let mut b = Bench::named([1, 2, 3]);
    let (found, now) = (b.found(), b.now);
    let weights = |b: &Bench| [1, 2, 3].map(|n| b.seen(&at(n)).weight);
    let states = |b: &Bench| [1, 2, 3].map(|n| b.seen(&at(n)).state);
    b.registry().set_weight(found, &at(1), 9, now).unwrap();
    b.registry().toggle(found, &at(2), false, now, &mut b.events).unwrap();
    b.add_name(None);
    b.resolve([1, 2, 3]).unwrap();
    assert_eq!(weights(&b), [9, 1, 1], "neither a heartbeat nor an answer says otherwise");
    assert_eq!(states(&b), [State::Up, State::Down, State::Up]);
    assert_eq!(b.serving(20), ["10.0.0.1:80", "10.0.0.3:80"]);

    b.registry().set_weight(found, &app(), 5, now).unwrap();
    assert_eq!(weights(&b), [5; 3]);
    b.registry().toggle(found, &app(), true, now, &mut b.events).unwrap();
    assert_eq!(states(&b), [State::Up; 3], "it was on, and is said to be");
    b.happened();
    b.registry().toggle(found, &app(), false, now, &mut b.events).unwrap();
    assert_eq!(states(&b), [State::Down; 3]);
    assert_eq!(b.happened(), [(Happening::Disabled, "app:80".to_owned())], "said once");
    assert_eq!(b.take().unwrap_err().disabled, 3);
    b.resolve([1, 2, 3, 4]).unwrap();
    assert_eq!(b.seen(&at(4)).disabled_reason, Some("manual"), "new ones are as the name is");
    b.registry().toggle(found, &app(), true, now, &mut b.events).unwrap();
    assert_eq!(b.serving(8).len(), 4);
    b.check();
}

#[test]
fn a_drain_of_a_name_waits_for_all_of_its_addresses() {
    let mut b = Bench::named([1, 2]);
    let flights: Vec<_> = (0..4).map(|_| b.take().unwrap().0).collect();
    let (found, now) = (b.found(), b.now);
    let (watch, change) = b.registry().drain(found, &app(), now, &mut b.events).unwrap();
    assert_eq!(change.conns, 4);
    assert_eq!(b.take().unwrap_err().draining, 2);
    for (i, flight) in flights.into_iter().enumerate() {
        assert_eq!(b.registry().look(watch), Watched::Draining(4 - i as u32));
        b.release(flight, Verdict::Fine);
    }
    assert_eq!(b.registry().look(watch), Watched::Draining(0));
    b.registry().toggle(found, &app(), true, now, &mut b.events).unwrap();
    assert_eq!(b.registry().look(watch), Watched::Enabled);
    assert_eq!(b.serving(2).len(), 2);
}

#[test]
fn heartbeats_of_a_name_are_those_of_its_addresses_and_so_is_silence() {
    let mut b = Bench::named([1, 2]);
    b.passes(20_000);
    b.resolve([1, 2, 3]).unwrap();
    b.check();
    assert_eq!(b.seen(&at(3)).time_since_heartbeat, 20_000, "an answer is no sign of life");
    b.add_name(None);
    b.passes(20_000);
    b.check();
    assert_eq!(b.serving(6).len(), 3);
    b.happened();
    b.passes(10_001);
    assert_eq!(b.take().unwrap_err().to_string(), "3 expired");
    let sweep = b.sweep();
    assert_eq!((sweep.expired, sweep.disabled), (1, 1), "a name counts once");
    b.check();
    assert_eq!(b.happened(), [(Happening::Expired, "app:80".to_owned())]);
    assert_eq!(b.seen(&at(1)).disabled_reason, Some("heartbeat_timeout"));
    b.resolve([1, 2, 4]).unwrap();
    b.check();
    assert_eq!(b.seen(&at(4)).state, State::Expired);
    b.happened();
    b.add_name(None);
    b.check();
    assert_eq!(b.happened(), [(Happening::Back, "app:80".to_owned())]);
    assert_eq!(b.serving(6), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80"]);
}

#[test]
fn a_name_that_is_forgotten_takes_its_addresses_along() {
    let mut b = Bench::named(1..=64);
    b.rules.on_expire = OnExpire::Remove;
    b.passes(30_001);
    assert_eq!(b.sweep().removed, 1);
    assert_eq!(b.registry().servers(), 0);
    b.check();
}

#[test]
fn an_address_goes_with_its_name_and_not_by_itself() {
    let mut b = Bench::named([1, 2]);
    let (found, now) = (b.found(), b.now);
    let refused = Error::OfName("10.0.0.1:80".to_owned(), "app:80".to_owned());
    let message =
        "Server 10.0.0.1:80 is an address of the name app:80: remove or refresh that instead";
    assert_eq!(refused.to_string(), message);
    let removed = b.registry().remove(found, &at(1), now, &mut b.events);
    assert_eq!(removed, Err(refused));
    let refreshed = b.registry().refresh(found, &at(1), now, &mut b.events);
    assert!(matches!(refreshed, Err(Error::OfName(..))));
    b.happened();
    b.registry().remove(found, &app(), now, &mut b.events).unwrap();
    assert_eq!(b.happened(), [(Happening::Removed, "app:80".to_owned())]);
    assert_eq!(b.registry().servers(), 0);
    b.check();
}

#[test]
fn an_address_that_is_registered_by_itself_stays_so_and_one_that_is_added_becomes_so() {
    let mut b = Bench::new();
    b.rules.on_duplicate = OnDuplicate::Reject;
    let add = |b: &mut Bench, n: u8| {
        let (rules, now) = (b.rules, b.now);
        let registration = Registration::of(at(n));
        b.registry().add(space(), &registration, &rules, now, &mut b.events).map(drop)
    };
    add(&mut b, 1).unwrap();
    b.add_name(None);
    b.resolve([1, 2]).unwrap();
    b.check();
    assert_eq!(b.seen(&at(1)).of_name(), None);
    assert_eq!(b.seen(&at(2)).of_name(), Some("app:80"));
    add(&mut b, 2).unwrap();
    b.check();
    assert_eq!(b.seen(&at(2)).of_name(), None);
    assert!(matches!(add(&mut b, 2), Err(Error::Duplicate(_))));
    b.resolve([]).unwrap();
    assert_eq!(b.addrs(), ["10.0.0.1:80", "app:80", "10.0.0.2:80"]);
    let (found, now) = (b.found(), b.now);
    b.registry().remove(found, &at(2), now, &mut b.events).unwrap();
    b.resolve([2]).unwrap();
    assert_eq!(b.seen(&at(2)).of_name(), Some("app:80"), "free again, it is the name's");
    b.check();
}

#[test]
fn two_names_share_no_address() {
    let mut b = Bench::named([1, 2]);
    let other = Registration::of(Address::Name("other".to_owned(), 80));
    let (rules, now) = (b.rules, b.now);
    b.registry().add(space(), &other, &rules, now, &mut b.events).unwrap();
    let mut names = Vec::new();
    b.registry().find_names(&mut 0, u32::MAX, &mut names);
    let found = Found::sift(ips([2, 3]), &[]);
    let other = names.into_iter().find(|name| *name != b.name()).unwrap();
    b.registry().take_addresses(other, &found, now, &mut b.events).unwrap();
    b.check();
    let of = |n: u8| b.seen(&at(n)).of_name().map(str::to_owned);
    assert_eq!(of(2).as_deref(), Some("app:80"));
    assert_eq!(of(3).as_deref(), Some("other:80"));
}

#[test]
fn what_is_taken_of_an_answer() {
    let all: Vec<IpAddr> = (0..1000u32).rev().map(|n| Ipv4Addr::from(n << 8 | 7).into()).collect();
    let found = Found::sift(all, &[]);
    assert_eq!((found.taken.len(), found.over), (64, 936));
    assert_eq!(found.taken[0], IpAddr::from([0, 0, 0, 7]));
    assert!(found.taken.is_sorted(), "the lowest, whatever order they come in");

    let text =
        ["::", "0.0.0.0", "10.0.0.2", "::ffff:10.0.0.2", "10.0.0.1", "2001:db8::1", "10.0.0.1"];
    let all: Vec<IpAddr> = text.iter().map(|t| t.parse().unwrap()).collect();
    let found = Found::sift(all.clone(), &[]);
    let taken: Vec<_> = found.taken.iter().map(IpAddr::to_string).collect();
    assert_eq!(
        taken,
        ["10.0.0.1", "10.0.0.2", "2001:db8::1"],
        "each once, and nowhere is no address"
    );
    assert!(found.unspecified && found.refused.is_empty() && found.over == 0);
    let allow = [Network::parse("10.0.0.2/32").unwrap().0];
    let found = Found::sift(all, &allow);
    assert_eq!(found.taken, ips([2]));
    assert_eq!(found.refused.len(), 2);
}

#[test]
fn an_answer_that_has_no_room_says_so_and_a_full_zone_swaps_what_it_has() {
    let mut b = Bench::sized(128 * 1024);
    b.add_name(None);
    let mut n = 1000;
    while b.add_with(n, None, None).is_ok() {
        n += 1;
    }
    b.remove(1000).unwrap();
    b.remove(1001).unwrap();
    assert_eq!(b.resolve([1, 2, 3]), Err(Error::Full("server")));
    b.check();
    assert_eq!(b.resolve([3, 4]), Ok(()));
    b.check();
    assert_eq!((b.seen(&at(3)).state, b.seen(&at(4)).state), (State::Up, State::Up));
}

#[test]
fn an_answer_for_a_name_that_has_gone_changes_nothing() {
    let mut b = Bench::named([1]);
    let (name, found, now) = (b.name(), b.found(), b.now);
    b.registry().remove(found, &app(), now, &mut b.events).unwrap();
    let answer = Found::sift(ips([1]), &[]);
    b.add(1);
    b.registry().take_addresses(name, &answer, now, &mut b.events).unwrap();
    assert!(!b.registry().set_lost(name, true) && b.registry().copy_name(name).is_none());
    // Another takes its slot.
    b.add_name(None);
    assert_ne!(b.name(), name);
    b.registry().take_addresses(name, &answer, now, &mut b.events).unwrap();
    assert_eq!(b.addrs(), ["10.0.0.1:1", "app:80"]);
    b.registry().retire();
    assert_eq!(b.resolve([1]), Err(Error::Retired));
}

#[test]
fn the_only_address_of_the_only_name_ignores_max_fails() {
    let mut b = Bench::named([1]);
    for _ in 0..3 {
        let (flight, _) = b.take().unwrap();
        assert!(b.release(flight, Verdict::Failed).alone);
    }
    b.resolve([1, 2]).unwrap();
    b.check();
    let flights = [b.take().unwrap().0, b.take().unwrap().0];
    assert!(b.release(flights[0], Verdict::Failed).failed);
    b.release(flights[1], Verdict::Fine);
    assert_eq!(b.serving(4).len(), 1);
    let left = b.seen(&at(1)).state == State::Up;
    b.resolve([if left { 2 } else { 1 }]).unwrap();
    b.check();
    assert_eq!(b.serving(1).len(), 1, "alone it is not left out");
}

#[test]
fn names_are_no_servers_to_a_panic() {
    let mut b = Bench::new();
    b.rules.panic_threshold = 50;
    b.rules.ttl = 30_000;
    b.add_name(None);
    b.resolve([1, 2]).unwrap();
    b.passes(20_000);
    b.add(1);
    b.add(2);
    b.passes(10_001);
    // Two of four, the name not among them.
    b.sweep();
    b.check();
    assert!(!b.events.drain().any(|e| e.what == Happening::Panic));
    assert_eq!(b.serving(4), ["10.0.0.1:1", "10.0.0.1:2"]);
    b.passes(20_000);
    let (flight, _) = b.take().unwrap();
    b.release(flight, Verdict::Fine);
    assert!(b.events.drain().any(|e| e.what == Happening::Panic), "four of four");
    assert_eq!(b.serving(8).len(), 4);
    b.check();
}

#[test]
fn other_nodes_and_the_file_hear_of_names_and_not_of_addresses() {
    let mut b = Bench::named([1, 2]);
    b.registry().share(true);
    let copies = |b: &Bench| {
        let mut copies = Vec::new();
        b.registry().copy_queued(1000, &mut copies);
        copies.into_iter().map(|copy| copy.news(b.now).address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(copies(&b), ["app:80"]);
    b.tell();
    let (found, now) = (b.found(), b.now);
    b.add_name(Some(7));
    b.registry().set_weight(found, &at(1), 3, now).unwrap();
    b.registry().toggle(found, &at(1), false, now, &mut b.events).unwrap();
    assert_eq!(copies(&b), ["app:80"]);
    b.check();
    let mut means = Vec::new();
    let _requests = [b.take().unwrap(), b.take().unwrap()];
    b.passes(1000);
    let mut round = Round::new(true, true);
    b.registry().take_means(&mut round, u32::MAX, b.now, &mut means);
    assert!(means.is_empty());

    let mut snapshot = b.registry().snapshot();
    let mut saved = Vec::new();
    b.registry().copy(&mut snapshot, u32::MAX, &mut saved);
    let saved: Vec<_> = saved.iter().map(|copy| copy.saved(b.now)).collect();
    assert_eq!(saved.len(), 1);
    assert_eq!((saved[0].address.clone(), saved[0].weight), (app(), 7));
    let mut new = Bench::new();
    let source = Source { instance: 1, next_number: 9, seen: None };
    assert_eq!(new.registry().restore(source, &saved, new.now), Ok(1));
    new.check();
    new.resolve([1]).unwrap();
    assert_eq!(new.seen(&at(1)).weight, 7);

    // Wiped, settled or removed at another node, a name takes its addresses along.
    b.tell();
    let removed = Record {
        namespace: "backend".to_owned(),
        address: app(),
        version: 9,
        state: RecordState::Removed(0),
    };
    let own = Record { address: at(1), ..removed.clone() };
    let rules = b.rules;
    b.registry().take_record(&own, &rules, b.now, &mut b.events).unwrap();
    assert_eq!(
        b.registry().servers(),
        3,
        "what another node says of an address is not about this one"
    );
    b.registry().take_record(&removed, &rules, b.now, &mut b.events).unwrap();
    b.check();
    assert_eq!(b.registry().servers(), 0);
}

#[test]
fn changes_that_come_from_other_nodes_reach_the_addresses() {
    let mut b = Bench::named([1, 2]);
    b.registry().share(true);
    b.tell();
    let live = LiveRecord {
        added: 1000,
        weight: 4,
        weight_age: 0,
        max_conns: 5,
        max_conns_age: 0,
        disabled: true,
        draining: false,
        switch_age: 0,
        disabled_age: 0,
        created_age: 1000,
        settings: Settings::DEFAULT,
        settings_age: None,
        heartbeat_age: 0,
    };
    let mut record = Record {
        namespace: "backend".to_owned(),
        address: app(),
        version: 9,
        state: RecordState::Live(live),
    };
    let rules = b.rules;
    b.passes(20_000);
    b.registry().take_record(&record, &rules, b.now, &mut b.events).unwrap();
    b.check();
    for n in [1, 2] {
        let view = b.seen(&at(n));
        assert_eq!((view.weight, view.max_conns, view.state), (4, 5, State::Down));
        assert_eq!(view.time_since_heartbeat, 0);
        assert_ne!(b.server(&at(n)).flags & flag::AFAR, 0);
    }
    // Another node has registered one of them by itself.
    record.address = at(2);
    b.registry().take_record(&record, &rules, b.now, &mut b.events).unwrap();
    b.check();
    assert_eq!(b.seen(&at(2)).of_name(), None);
}

#[test]
fn a_zone_that_takes_over_has_names_and_addresses() {
    let mut b = Bench::new();
    b.add(9);
    b.add_name(None);
    b.remove(9).unwrap();
    b.resolve([1, 2]).unwrap();
    let name = b.name();
    b.registry().set_not_found(name, true);
    let next = Bench::new();
    {
        let (mut new, mut old) = (next.registry(), b.registry());
        new.succeed(&mut old).unwrap();
    }
    next.check();
    assert_eq!(next.addrs(), ["app:80", "10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(next.seen(&at(2)).of_name(), Some("app:80"));
    let name = next.name();
    assert!(!next.registry().set_not_found(name, true), "what the log says is known");

    let mut small = Bench::sized(128 * 1024);
    let mut n = 1000;
    while small.add_with(n, None, None).is_ok() {
        n += 1;
    }
    let (mut new, mut old) = (small.registry(), b.registry());
    assert_eq!(new.succeed(&mut old), Err(Error::Full("server")));
    drop((new, old));
    small.check();
    b.check();
}

#[test]
fn a_server_line_takes_an_address_from_its_name() {
    let mut b = Bench::named([1, 2]);
    let line = StaticServer {
        address: at(1),
        weight: 2,
        max_conns: 0,
        max_fails: 1,
        fail_timeout_ms: 10_000,
        backup: false,
        down: false,
        slow_start_ms: 0,
    };
    let (rules, now) = (b.rules, b.now);
    let lines = [(space(), line)];
    b.registry().configure(&[space()], &lines, &rules, now, &mut b.events).unwrap();
    b.check();
    assert!(b.seen(&at(1)).is_static && b.seen(&at(1)).of_name().is_none());
    b.resolve([2]).unwrap();
    assert_eq!(b.addrs().len(), 3);
    b.registry().configure(&[space()], &[], &rules, now, &mut b.events).unwrap();
    b.resolve([1, 2]).unwrap();
    b.check();
    assert_eq!(b.seen(&at(1)).of_name(), Some("app:80"));
}

#[test]
fn after_a_crash_an_address_without_its_name_is_gone() {
    let mut b = Bench::named([1, 2]);
    {
        let found = b.found().unwrap();
        let mut r = b.registry();
        let slot = r.find(found.slot, &app()).unwrap();
        r.g.servers[slot as usize].live = 0;
        r.repair();
    }
    b.check();
    assert_eq!(b.registry().servers(), 0);
    b.add_name(None);
    b.resolve([1]).unwrap();
    b.registry().repair();
    b.check();
    assert_eq!(b.addrs(), ["app:80", "10.0.0.1:80"]);
}

#[test]
fn whatever_happens_to_names_the_zone_is_whole_and_no_request_is_lost() {
    let mut dice = 42u64;
    let mut below = move |n: u64| {
        dice = crate::balance::mix(dice.wrapping_add(0x9e37_79b9_7f4a_7c15));
        dice % n
    };
    let mut b = Bench::new();
    b.rules.panic_threshold = 50;
    b.rules.slow_start = 5_000;
    let mut flights = Vec::new();
    for step in 0..4_000 {
        let host = ["app", "web", "db"][below(3) as usize];
        let which = match below(3) {
            0 => at(1 + below(6) as u8),
            _ => Address::Name(host.to_owned(), 80),
        };
        let (found, now, rules) = (b.found(), b.now, b.rules);
        match below(14) {
            0..3 => {
                let weight = (below(2) == 0).then(|| below(4) as u32);
                let registration = Registration { weight, ..Registration::of(which) };
                let added = b.registry().add(space(), &registration, &rules, now, &mut b.events);
                added.unwrap();
            }
            3 => _ = b.registry().remove(found, &which, now, &mut b.events),
            4..7 => {
                let mut names = Vec::new();
                b.registry().find_names(&mut 0, u32::MAX, &mut names);
                if let Some(name) = names.get(below(3) as usize) {
                    let (first, n) = (1 + below(6) as u8, below(5) as u8);
                    let answer = Found::sift(ips(first..first + n), &[]);
                    b.registry().take_addresses(*name, &answer, now, &mut b.events).unwrap();
                }
            }
            7 => _ = b.registry().toggle(found, &which, below(3) > 0, now, &mut b.events),
            8 => _ = b.registry().set_weight(found, &which, below(4) as u32, now),
            9 => _ = b.registry().drain(found, &which, now, &mut b.events),
            10 => {
                b.passes(below(12_000));
                b.sweep();
            }
            11 => {
                let on = below(2) == 0;
                b.registry().share(on);
                b.tell();
            }
            12 => b.registry().repair(),
            _ => {
                let policy: &dyn Policy =
                    [&LeastConn as &dyn Policy, &RoundRobin, &Random, &Consistent]
                        [below(4) as usize];
                if let Ok((flight, _)) = b.take_by(policy, &[]) {
                    flights.push(flight);
                }
                if flights.len() > 5 {
                    let verdict = if below(3) == 0 { Verdict::Failed } else { Verdict::Fine };
                    let flight = flights.swap_remove(below(6) as usize);
                    b.release(flight, verdict);
                }
            }
        }
        b.events.drain().for_each(drop);
        if let Err(e) = b.registry().check() {
            panic!("step {step}: {e}");
        }
    }
    for flight in flights {
        b.release(flight, Verdict::Fine);
    }
    assert_eq!(b.registry().totals().connections, 0);
}
