//! Cut off, and data lost.

use super::*;

const A: super::super::sim::Key = ("default", 1);
const B: super::super::sim::Key = ("default", 2);

fn joined(n: usize) -> Sim {
    let mut sim = Sim::new(n);
    sim.nodes[0].add(A, None, None);
    sim.nodes[1].add(B, None, None);
    sim.settle();
    sim.agree();
    for node in &sim.nodes {
        assert!(node.has(A) && node.has(B));
    }
    sim
}

#[test]
fn a_server_removed_while_cut_off_stays_removed_whatever_is_said_of_it_elsewhere() {
    let mut sim = joined(3);
    sim.nodes[0].cable = Cable::Cut;
    assert!(sim.nodes[0].remove(A));
    for i in 0..6 {
        sim.run(20);
        assert!(sim.nodes[1].refresh(A) && sim.nodes[2].toggle(A, i % 2 == 0));
        assert!(sim.nodes[1].set_weight(A, 3 + i));
    }
    sim.settle();
    sim.agree();
    assert!(!sim.nodes[1].has(A) && sim.nodes[1].has(B));

    sim.nodes[2].add(A, Some(9), None);
    sim.settle();
    sim.agree();
    assert_eq!(sim.nodes[0].view(A).unwrap().weight, 9);
}

#[test]
fn nodes_fill_an_empty_redis_again_and_nothing_removed_lately_comes_back() {
    let mut sim = joined(3);
    // One that is cut off knows nothing of the removal, and comes when another has filled it.
    sim.nodes[2].cable = Cable::Cut;
    assert!(sim.nodes[0].remove(A));
    sim.run(60);
    sim.redis.cli(&["FLUSHALL"]);
    sim.run(100);
    sim.settle();
    sim.agree();
    assert!(!sim.nodes[0].has(A) && sim.nodes[0].has(B), "{}", sim.told());
}

#[test]
fn what_was_removed_after_an_older_copy_of_the_data_does_not_come_back_with_it() {
    let mut sim = joined(3);
    let old = sim.redis.data();
    assert!(sim.nodes[0].remove(A));
    sim.nodes[1].set_weight(B, 7);
    sim.settle();
    sim.redis.start_again_with(&old);
    sim.settle();
    sim.agree();
    assert!(!sim.nodes[0].has(A));
    assert_eq!(sim.nodes[2].view(B).unwrap().weight, 7);
}

#[test]
fn a_server_that_an_older_copy_of_the_data_has_as_removed_is_there_again() {
    let mut sim = joined(2);
    assert!(sim.nodes[0].remove(A));
    sim.settle();
    let old = sim.redis.data();
    sim.nodes[0].add(A, Some(5), None);
    sim.settle();
    sim.redis.start_again_with(&old);
    sim.settle();
    sim.agree();
    assert_eq!(sim.nodes[1].view(A).map(|v| v.weight), Some(5), "{}", sim.told());
}

#[test]
fn a_removal_that_a_node_hears_of_late_does_not_take_back_what_was_registered_since() {
    let mut sim = joined(3);
    // Node 0 learns of the removal only when it tells something of the server.
    sim.nodes[0].cable = Cable::Cut;
    assert!(sim.nodes[1].remove(A) && sim.nodes[0].refresh(A));
    sim.run(60);
    sim.nodes[2].cable = Cable::Cut;
    sim.run(20);
    sim.nodes[2].add(A, Some(6), None);
    sim.run(60);
    sim.nodes[0].cable = Cable::Fine;
    sim.until("node 0 has heard", |sim| !sim.nodes[0].has(A));
    // And tells all that it knows of removals.
    let data = sim.redis.data();
    sim.redis.start_again_with(&data);
    sim.until("node 0 has told", |sim| {
        sim.nodes[0].registry().shared().unseen == 0
            && sim.nodes[0].queued() == 0
            && sim.nodes[0].registry().shared().connected == 1
    });
    sim.settle();
    sim.agree();
    assert_eq!(sim.nodes[0].view(A).map(|v| v.weight), Some(6), "{}", sim.told());
}

#[test]
fn what_was_said_last_counts_though_it_was_so_already_where_it_was_said() {
    let mut sim = joined(2);
    sim.all(Cable::Cut);
    assert!(sim.nodes[0].set_weight(A, 5) && sim.nodes[0].toggle(B, false));
    sim.run(30);
    assert!(sim.nodes[1].set_weight(A, 1) && sim.nodes[1].toggle(B, true));
    sim.nodes[1].cable = Cable::Fine;
    sim.run(50);
    sim.settle();
    sim.agree();
    assert_eq!(sim.nodes[0].view(A).unwrap().weight, 1);
    assert!(sim.nodes[0].view(B).unwrap().enabled);
}
