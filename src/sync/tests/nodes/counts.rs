//! Requests of all nodes, added up.

use std::time::Duration;

use super::super::sim::{Cable, INTERVAL, Key, Sim};

const A: Key = ("default", 1);

fn connections(sim: &Sim, node: usize) -> u32 {
    sim.nodes[node].view(A).map_or(0, |v| v.connections)
}

fn busy() -> (Sim, Vec<crate::registry::Flight>) {
    let mut sim = Sim::new(3);
    sim.nodes[0].add(A, None, Some(0));
    sim.settle();
    let flights = (0..10).map(|_| sim.nodes[0].take("default").unwrap().0).collect();
    // The means of the first rounds are of a time in which there were fewer.
    sim.run(2 * INTERVAL + 50);
    sim.until("others see them", |sim| connections(sim, 1) == 10 && connections(sim, 2) == 10);
    sim.run(2 * INTERVAL);
    assert_eq!(connections(&sim, 0), 10);
    sim.sums_agree();
    (sim, flights)
}

#[test]
fn requests_on_one_node_are_others_on_the_rest_within_two_rounds() {
    let mut sim = Sim::new(2);
    sim.nodes[0].add(A, None, Some(0));
    sim.settle();
    let flight = sim.nodes[0].take("default").unwrap().0;
    let _second = sim.nodes[0].take("default").unwrap();
    sim.run(2 * INTERVAL + 60);
    assert_eq!(connections(&sim, 1), 2, "{}", sim.told());
    assert_eq!(sim.nodes[1].view(A).unwrap().local_connections, 0);
    sim.nodes[0].release(flight);
    sim.run(2 * INTERVAL + 60);
    assert_eq!(connections(&sim, 1), 1, "{}", sim.told());
    sim.sums_agree();
}

#[test]
fn the_share_of_a_node_that_hangs_is_taken_back_and_comes_again_with_it() {
    let (mut sim, flights) = busy();
    sim.nodes[0].halted = true;
    sim.run(3 * INTERVAL);
    assert_eq!((connections(&sim, 1), connections(&sim, 2)), (0, 0), "{}", sim.told());
    assert_eq!(sim.nodes[1].registry().shared().nodes, 2);
    sim.sums_agree();

    sim.nodes[0].halted = false;
    sim.run(3 * INTERVAL);
    assert_eq!((connections(&sim, 1), connections(&sim, 2)), (10, 10), "{}", sim.told());
    assert_eq!(connections(&sim, 0), 10);
    sim.sums_agree();

    for flight in flights {
        sim.nodes[0].release(flight);
    }
    sim.until("all are 0", |sim| (0..3).all(|i| connections(sim, i) == 0));
    sim.settle();
    assert!(sim.dump().totals.is_empty());
    sim.sums_agree();
}

#[test]
fn a_node_that_is_cut_off_keeps_its_own_and_is_counted_again_afterwards() {
    let (mut sim, flights) = busy();
    sim.nodes[0].cable = Cable::Cut;
    sim.run(3 * INTERVAL);
    assert_eq!((connections(&sim, 0), connections(&sim, 1)), (10, 0));
    sim.nodes[0].cable = Cable::Deaf;
    sim.run(4 * INTERVAL);
    sim.nodes[0].cable = Cable::Fine;
    sim.settle();
    sim.run(3 * INTERVAL);
    assert_eq!((connections(&sim, 0), connections(&sim, 1)), (10, 10), "{}", sim.told());
    sim.nodes[0].restart();
    sim.run(3 * INTERVAL);
    assert_eq!((connections(&sim, 0), connections(&sim, 1)), (10, 10), "{}", sim.told());
    sim.sums_agree();
    flights.into_iter().for_each(|flight| sim.nodes[0].release(flight));
}

#[test]
fn requests_on_a_server_that_is_removed_and_registered_again_are_not_counted_twice() {
    let (mut sim, flights) = busy();
    assert!(sim.nodes[1].remove(A));
    sim.run(3 * INTERVAL);
    sim.sums_agree();
    assert!(sim.dump().totals.is_empty(), "{}", sim.told());
    sim.nodes[2].add(A, None, Some(0));
    sim.settle();
    flights.into_iter().for_each(|flight| sim.nodes[0].release(flight));
    let flight = sim.nodes[1].take("default").unwrap().0;
    sim.run(4 * INTERVAL);
    assert!((0..3).all(|i| connections(&sim, i) == 1), "{}", sim.told());
    sim.sums_agree();
    sim.nodes[1].release(flight);
}

#[test]
fn nobody_has_a_share_after_a_restart_of_redis_but_those_that_are_there() {
    let (mut sim, flights) = busy();
    let old = sim.redis.data();
    sim.nodes[0].halted = true;
    sim.redis.start_again_with(&old);
    sim.nodes[1].restart();
    sim.nodes[2].restart();
    sim.until("it is used again", |sim| sim.nodes[1].registry().shared().connected == 1);
    sim.run(3 * INTERVAL);
    assert_eq!((connections(&sim, 1), connections(&sim, 2)), (0, 0), "{}", sim.told());
    sim.sums_agree();
    drop(flights);
}

#[test]
fn requests_of_a_node_that_never_lost_the_server_are_counted_after_its_removal() {
    let mut sim = Sim::new(2);
    sim.nodes[0].add(A, None, Some(0));
    sim.settle();
    let flights: Vec<_> = (0..2)
        .flat_map(|i| (0..3).map(move |_| i))
        .map(|i| (i, sim.nodes[i].take("default").unwrap().0))
        .collect();
    sim.until("each sees the other's", |sim| (0..2).all(|i| connections(sim, i) == 6));
    // Removed on one node, and registered again on the other before that heard of it.
    assert!(sim.nodes[0].remove(A));
    std::thread::sleep(Duration::from_millis(20));
    sim.nodes[1].add(A, None, None);
    sim.settle();
    sim.run(3 * INTERVAL);
    assert_eq!((connections(&sim, 0), connections(&sim, 1)), (3, 3), "{}", sim.told());
    sim.sums_agree();
    for (i, flight) in flights {
        sim.nodes[i].release(flight);
    }
    sim.until("all are 0", |sim| (0..2).all(|i| connections(sim, i) == 0));
}
