//! Planned wipes, other epochs, and removals that are forgotten.

use super::super::sim::{Cable, Key, Sim};
use super::*;

const A: Key = ("default", 1);
const B: Key = ("default", 2);
const C: Key = ("blue", 3);

/// What scripts/init_redis.sh --force does.
const WIPE: &str = r"
local P, call = ARGV[1], redis.call
local S = P .. ':sync:'
local old = call('GET', S .. 'epoch')
for _, key in ipairs(call('KEYS', P .. ':*')) do call('DEL', key) end
call('INCR', 'wipes')
local new = string.format('%016x', 1000 + call('GET', 'wipes'))
call('SET', S .. 'epoch', new .. ' ' .. old)
local t = call('TIME')
call('SET', S .. 'wiped', t[1] * 1000 + math.floor(t[2] / 1000))
return cjson.encode({ epoch = new })
";

fn joined() -> Sim {
    let mut sim = Sim::new(3);
    sim.nodes[0].add(A, None, None);
    sim.nodes[1].add(B, None, None);
    sim.nodes[2].add(C, None, None);
    sim.settle();
    sim.agree();
    sim
}

#[test]
fn a_planned_wipe_is_obeyed_and_what_is_registered_after_it_stays() {
    let mut sim = joined();
    sim.eval(WIPE).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    sim.nodes[0].add(B, Some(4), None);
    sim.settle();
    sim.agree();
    for node in &sim.nodes {
        assert!(!node.has(A) && !node.has(C) && node.has(B));
        assert_eq!(node.said(Level::Notice, "emptied on purpose"), 1, "{:?}", node.lines);
    }
}

#[test]
fn a_node_that_was_away_obeys_the_later_of_two_wipes() {
    let mut sim = joined();
    sim.nodes[2].cable = Cable::Cut;
    assert!(sim.nodes[2].refresh(A));
    sim.eval(WIPE).unwrap();
    sim.run(100);
    sim.nodes[0].add(A, Some(2), None);
    sim.run(100);
    sim.eval(WIPE).unwrap();
    sim.run(100);
    sim.nodes[1].add(B, Some(3), None);
    sim.nodes[2].add(C, Some(5), None);
    sim.settle();
    sim.agree();
    assert!(!sim.nodes[2].has(A) && sim.nodes[0].has(B) && sim.nodes[0].has(C), "{}", sim.told());
}

#[test]
fn what_was_registered_between_the_wipe_and_its_being_noticed_stays() {
    let mut sim = joined();
    sim.all(Cable::Cut);
    sim.nodes[0].add(A, Some(2), None);
    sim.run(30);
    sim.eval(WIPE).unwrap();
    sim.run(30);
    sim.nodes[1].add(B, Some(3), None);
    sim.settle();
    sim.agree();
    assert!(!sim.nodes[2].has(A) && sim.nodes[2].has(B), "{}", sim.told());
}

#[test]
fn another_epoch_is_no_wipe() {
    let mut sim = joined();
    sim.redis.cli(&["FLUSHALL"]);
    sim.redis.cli(&["SET", "upstream:sync:epoch", "00000000000000aa 00000000000000bb"]);
    sim.settle();
    sim.agree();
    assert!(sim.nodes[0].has(A) && sim.nodes[0].has(B) && sim.nodes[0].has(C));
    for node in &sim.nodes {
        assert_eq!(node.said(Level::Warn, "both are kept"), 1, "{:?}", node.lines);
    }
}

fn forgetful() -> Sim {
    let mut sim = Sim::with(Server::start(&[]), "upstream", 2, |settings| {
        settings.tombstone_ttl = 1000;
    });
    sim.nodes[0].add(A, None, None);
    sim.nodes[0].add(B, None, None);
    sim.settle();
    sim.nodes[1].cable = Cable::Cut;
    assert!(sim.nodes[0].remove(A));
    sim.until("the removal is forgotten", |sim| {
        !sim.dump().records.contains_key("default 10.0.0.1:1")
    });
    sim
}

#[test]
fn a_node_that_was_away_until_removals_were_forgotten_drops_what_is_gone() {
    let mut sim = forgetful();
    assert!(sim.nodes[1].has(A) && sim.nodes[1].refresh(A) && sim.nodes[1].set_weight(B, 8));
    sim.nodes[1].add(C, Some(2), None);
    sim.settle();
    sim.agree();
    assert!(!sim.nodes[0].has(A) && !sim.nodes[1].has(A), "{}", sim.told());
    assert_eq!(sim.nodes[0].view(B).unwrap().weight, 8);
    assert_eq!(sim.nodes[0].view(C).unwrap().weight, 2);
    assert_eq!(sim.nodes[1].said(Level::Warn, "longer than removals are remembered"), 1);
}

#[test]
fn a_restart_of_redis_does_not_bring_back_what_was_removed_while_a_node_was_away() {
    let mut sim = forgetful();
    let data = sim.redis.data();
    sim.redis.start_again_with(&data);
    sim.run(50);
    sim.settle();
    sim.agree();
    assert!(!sim.nodes[0].has(A) && sim.nodes[0].has(B), "{}", sim.told());
}
