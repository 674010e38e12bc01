//! What knowing of the others' requests does to the balance.

use super::super::sim::{Cable, Dice, INTERVAL, Key, Sim};
use super::*;

const SERVERS: [Key; 5] =
    [("default", 1), ("default", 2), ("default", 3), ("default", 4), ("default", 5)];

/// Requests that each node has under way, in the mean.
const LOAD: u64 = 6;

/// How uneven the load of servers is over all nodes.
#[derive(Debug)]
struct Spread {
    /// The variance over servers, its mean over time.
    variance: f64,
    /// The variance over servers of each server's mean over the whole time.
    lasting: f64,
}

/// Random requests of `n` nodes.
fn spread(n: usize, sharing: bool, seed: u64) -> Spread {
    let mut sim = Sim::new(n);
    for key in SERVERS {
        sim.nodes[0].add(key, None, Some(0));
    }
    sim.settle();
    if !sharing {
        sim.all(Cable::Cut);
    }
    let mut dice = Dice::new(seed);
    let mut flights = Vec::new();
    let began = Instant::now();
    let (mut ms, mut looks, mut variance) = (0, 0.0, 0.0);
    let mut sums = [0.0; SERVERS.len()];
    while began.elapsed() < Duration::from_millis(2500) {
        sim.step();
        std::thread::sleep(Duration::from_millis(1));
        let until = began.elapsed().as_millis() as u64;
        for at in ms..until {
            for node in 0..n {
                // Each lasts 30 ms in the mean: from 5 to 55.
                if dice.below(30) < LOAD {
                    let (flight, port) = sim.nodes[node].take("default").unwrap();
                    flights.push((at + 5 + dice.below(51), node, flight, port));
                }
            }
        }
        ms = until;
        let mut i = 0;
        while i < flights.len() {
            if flights[i].0 <= ms {
                let (_, node, flight, _) = flights.swap_remove(i);
                sim.nodes[node].release(flight);
            } else {
                i += 1;
            }
        }
        if ms < 500 {
            continue;
        }
        let mut loads = [0.0; SERVERS.len()];
        for (_, _, _, port) in &flights {
            loads[usize::from(*port) - 1] += 1.0;
        }
        variance += variance_of(&loads);
        looks += 1.0;
        for (sum, load) in sums.iter_mut().zip(loads) {
            *sum += load;
        }
    }
    Spread { variance: variance / looks, lasting: variance_of(&sums.map(|sum| sum / looks)) }
}

fn variance_of(loads: &[f64]) -> f64 {
    let mean = loads.iter().sum::<f64>() / loads.len() as f64;
    loads.iter().map(|load| (load - mean).powi(2)).sum::<f64>() / loads.len() as f64
}

/// A burst of requests that only one node has, all on one server.
fn lopsided(sharing: bool) -> [u32; SERVERS.len()] {
    let mut sim = Sim::new(3);
    sim.nodes[0].add(SERVERS[0], None, Some(0));
    sim.settle();
    if !sharing {
        sim.all(Cable::Cut);
    }
    let long: Vec<_> = (0..8).map(|_| sim.nodes[0].take("default").unwrap()).collect();
    for key in &SERVERS[1..] {
        sim.nodes.iter_mut().for_each(|node| node.add(*key, None, Some(0)));
    }
    sim.run(5 * INTERVAL);
    let mut flights = Vec::new();
    for _ in 0..30 {
        sim.run(INTERVAL / 2);
        for node in 1..3 {
            flights.push((node, sim.nodes[node].take("default").unwrap()));
        }
        if flights.len() > 10 {
            for (node, (flight, _)) in flights.drain(..2) {
                sim.nodes[node].release(flight);
            }
        }
    }
    let mut loads = [0; SERVERS.len()];
    for (_, port) in long.iter().chain(flights.iter().map(|(_, taken)| taken)) {
        loads[usize::from(*port) - 1] += 1;
    }
    loads
}

#[test]
fn a_server_that_one_node_alone_keeps_busy_is_spared_by_the_others() {
    let alone = std::thread::spawn(|| lopsided(false));
    let (shared, alone) = (lopsided(true), alone.join().unwrap());
    assert!(alone[0] >= 10 && shared[0] == 8, "{alone:?} {shared:?}");
    assert!(shared[1..].iter().all(|load| (1..=4).contains(load)), "{shared:?}");
}

#[test]
fn nodes_that_know_of_each_other_are_no_less_even_than_those_that_do_not() {
    let threads: Vec<_> = [(2, 1), (3, 2), (10, 3)]
        .into_iter()
        .map(|(n, seed)| {
            std::thread::spawn(move || (n, spread(n, false, seed), spread(n, true, seed)))
        })
        .collect();
    for thread in threads {
        let (n, alone, shared) = thread.join().unwrap();
        println!("{n} nodes: {alone:.2?} alone, {shared:.2?} sharing");
        // Noise, and a busy machine; when all go the same way it is more than twice as much.
        assert!(shared.variance < alone.variance * 1.4 + 0.3, "{n}: {alone:?} {shared:?}");
        assert!(shared.lasting < 0.3, "{n}: {alone:?} {shared:?}");
    }
}
