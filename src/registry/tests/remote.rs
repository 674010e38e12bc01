//! What comes from other nodes.

use super::*;

/// That a server was removed so long ago, at a version.
fn removed(n: u16, version: u64, ago: u64) -> Record {
    let namespace = "backend".to_owned();
    Record { namespace, address: address(n), version, state: RecordState::Removed(ago) }
}

/// A bench whose server was registered, told, removed again, and told of that.
fn removed_and_told() -> Bench {
    let mut b = Bench::new();
    b.registry().share(true);
    b.add(1);
    b.tell();
    b.passes(1000);
    b.remove(1).unwrap();
    b.tell();
    b
}

fn takes(b: &mut Bench, record: &Record) -> Option<u64> {
    let (rules, now) = (b.rules, b.now);
    let taken = b.registry().take_record(record, &rules, now, &mut b.events).unwrap();
    b.check();
    taken
}

#[test]
fn a_server_that_was_removed_and_added_again_at_once_is_not_taken_back_by_its_own_removal() {
    // The exchange that told the removal fell between the two: its answer has the removal, by Redis'
    // clock some milliseconds later than the registration that is still to be told.
    for (early, since) in [(0, 0), (1, 0), (3, 2), (9, 0)] {
        let mut b = removed_and_told();
        b.passes(1);
        b.add(1);
        b.passes(since);
        // The registration is `since` old; the removal is said to be younger by `early`.
        b.passes(early);
        assert_eq!(takes(&mut b, &removed(1, 2, since)), None, "{early} {since}");
        assert_eq!(b.view(1).state, State::Up, "{early} {since}");
        assert_eq!(b.registry().queued(), 1, "it is still to be told");
    }
}

#[test]
fn a_removal_that_is_clearly_later_than_a_registration_still_to_be_told_holds() {
    let mut b = removed_and_told();
    b.passes(1);
    b.add(1);
    b.passes(100);
    assert_eq!(takes(&mut b, &removed(1, 2, 50)), Some(50));
    assert!(b.views().is_empty());
}

#[test]
fn a_removal_of_what_redis_was_told_of_holds_however_close_it_is() {
    let mut b = removed_and_told();
    b.passes(1);
    b.add(1);
    b.tell();
    assert_eq!(takes(&mut b, &removed(1, 9, 0)), Some(0));
    assert!(b.views().is_empty());
}

/// What Redis is to be told.
fn news(b: &Bench) -> Vec<What> {
    let mut copies = Vec::new();
    b.registry().copy_queued(10, &mut copies);
    copies.iter().map(|copy| copy.news(b.now).what).collect()
}

#[test]
fn a_removal_that_redis_has_lost_is_told_as_one_that_it_knew() {
    let mut b = Bench::new();
    b.registry().share(true);
    b.add(1);
    b.tell();
    b.passes(1000);
    b.remove(1).unwrap();
    assert_eq!(news(&b), [What::Remove { ago: 0, again: false }]);
    b.tell();
    b.passes(5);
    let mut next = 0;
    let now = b.now;
    while !b.registry().mark_unseen(&mut next, 3, Unseen::Tell, now) {}
    assert_eq!(news(&b), [What::Remove { ago: 5, again: true }]);
    b.check();
}

#[test]
fn a_server_stays_when_redis_has_lost_whether_it_came_before_its_removal_or_after() {
    for (unseen, stays) in [(1, true), (AWAY_TOO_LONG, false), (WIPED, false)] {
        let mut b = removed_and_told();
        b.passes(3);
        b.add(1);
        b.tell();
        let mut next = 0;
        let now = b.now;
        while !b.registry().mark_unseen(&mut next, 3, Unseen::Tell, now) {}
        b.registry().shared().unseen = unseen;
        // Told first by a node that had not heard of the registration.
        takes(&mut b, &removed(1, 2, 3));
        assert_eq!(!b.views().is_empty(), stays, "{unseen}");
    }
}
