//! Servers that are not heard of, and commands that come late.

use super::super::sim::{Cable, Key, Member, Sim, TIMEOUT};
use super::*;
use crate::registry::{OnExpire, State};

const A: Key = ("default", 1);
const TTL: u64 = 500;

/// Node 0 has heard of the server itself, the others through Redis.
fn heard(on_expire: OnExpire) -> Sim {
    let mut sim = Sim::new(3);
    for node in &mut sim.nodes {
        (node.rules.ttl, node.rules.on_expire) = (TTL, on_expire);
    }
    sim.nodes[0].add(A, None, None);
    sim.until("all know it", |sim| sim.nodes.iter().all(|node| node.has(A)));
    sim
}

fn is_up(node: &Member) -> bool {
    node.view(A).is_some_and(|v| v.is_active && v.state == State::Up)
}

impl Sim {
    /// Runs, with cleanups, for so many milliseconds.
    fn sweep_for(&mut self, ms: u64, mut each: impl FnMut(&mut Self)) {
        let end = Instant::now() + Duration::from_millis(ms);
        while Instant::now() < end {
            each(self);
            self.run(20);
            self.nodes.iter_mut().for_each(Member::sweep);
        }
    }
}

#[test]
fn a_server_heard_of_through_redis_does_not_expire_while_redis_is_away() {
    let mut sim = heard(OnExpire::Disable);
    sim.all(Cable::Cut);
    sim.sweep_for(3 * TTL, |sim| {
        assert!(is_up(&sim.nodes[1]) && is_up(&sim.nodes[2]), "{}", sim.told());
    });
    // Where it was heard of itself, it is silent.
    assert!(!is_up(&sim.nodes[0]));

    sim.all(Cable::Fine);
    sim.until("it is back", |sim| sim.nodes[1].registry().shared().connected == 1);
    let back = Instant::now();
    sim.until("it is silent", |sim| {
        sim.nodes.iter_mut().for_each(Member::sweep);
        !is_up(&sim.nodes[1])
    });
    let took = back.elapsed().as_millis() as u64;
    assert!((TTL * 3 / 4..TTL * 2).contains(&took), "{took}");
    // Each node's time begins when that node is back, which may be later.
    sim.until("it is silent there too", |sim| {
        sim.nodes.iter_mut().for_each(Member::sweep);
        !is_up(&sim.nodes[2])
    });

    assert!(sim.nodes[2].refresh(A));
    sim.until("all hear of it", |sim| sim.nodes.iter().all(is_up));
}

#[test]
fn a_server_that_another_node_hears_of_stays_up_everywhere() {
    let mut sim = heard(OnExpire::Remove);
    sim.sweep_for(3 * TTL, |sim| {
        assert!(sim.nodes[1].refresh(A));
        assert!(sim.nodes.iter().all(is_up), "{}", sim.told());
    });
    sim.settle();
    sim.agree();
}

#[test]
fn a_removal_for_silence_is_refused_when_another_node_has_heard_of_the_server() {
    let mut sim = heard(OnExpire::Remove);
    sim.nodes[0].cable = Cable::Cut;
    sim.sweep_for(2 * TTL, |sim| assert!(sim.nodes[1].refresh(A)));
    assert!(sim.nodes[0].has(A) && !is_up(&sim.nodes[0]));
    sim.nodes[0].cable = Cable::Fine;
    sim.until("it is back", |sim| {
        sim.nodes[1].refresh(A);
        sim.nodes.iter().all(is_up)
    });
    sim.sweep_for(TTL, |sim| assert!(sim.nodes[1].refresh(A)));
    assert!(sim.nodes.iter().all(is_up));

    sim.sweep_for(2 * TTL, |_| {});
    sim.until("it is forgotten", |sim| {
        sim.nodes.iter_mut().for_each(Member::sweep);
        sim.nodes.iter().all(|node| !node.has(A))
    });
    sim.settle();
    sim.agree();
}

/// Node 0 sends a weight to a Redis that hangs for so long; node 1 has set another one since.
fn late(ms: u64, restarts: bool) {
    let mut sim = Sim::new(2);
    sim.nodes[0].add(A, Some(1), None);
    sim.settle();
    sim.redis.pause();
    let paused = Instant::now();
    assert!(sim.nodes[0].set_weight(A, 5));
    if restarts {
        sim.nodes[0].restart();
    }
    while paused.elapsed() < Duration::from_millis(TIMEOUT) {
        sim.nodes[0].step();
    }
    assert!(sim.nodes[1].set_weight(A, 7));
    // It is the first that comes there.
    sim.nodes[0].cable = Cable::Cut;
    sim.nodes[1].cable = Cable::Cut;
    sim.run(ms.saturating_sub(paused.elapsed().as_millis() as u64));
    sim.redis.resume();
    sim.run(50);
    sim.nodes[1].cable = Cable::Fine;
    sim.until("the later is told", |sim| sim.nodes[1].queued() == 0);
    sim.settle();
    sim.agree();
    assert_eq!(sim.nodes[0].view(A).unwrap().weight, 7, "{}", sim.told());
}

#[test]
fn what_was_sent_before_redis_hung_does_not_win_over_what_was_said_since() {
    late(TIMEOUT + 250, false);
}

#[test]
fn what_comes_there_much_too_late_is_not_obeyed() {
    late(TIMEOUT + 900, false);
    late(TIMEOUT + 900, true);
}
