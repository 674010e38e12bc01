//! What knowing of the others' requests does to the balance.

use super::super::sim::{Cable, Dice, Key, Sim};
use super::*;

const SERVERS: [Key; 5] =
    [("default", 1), ("default", 2), ("default", 3), ("default", 4), ("default", 5)];

/// Requests that each node has under way, in the mean.
const LOAD: u64 = 6;

/// How uneven the load of servers is over all nodes: the mean over time of the variance over
/// servers, and how much of it is of one interval and the next alike.
struct Spread {
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
                // Each lasts 150 ms in the mean: from 10 to 290.
                if dice.below(150) < LOAD {
                    let (flight, port) = sim.nodes[node].take("default").unwrap();
                    flights.push((at + 10 + dice.below(280), node, flight, port));
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

#[test]
fn nodes_that_know_of_each_other_are_no_less_even_than_those_that_do_not() {
    let threads: Vec<_> = [(2, 1), (3, 2), (10, 3)]
        .into_iter()
        .map(|(n, seed)| {
            std::thread::spawn(move || {
                let alone = spread(n, false, seed);
                let shared = spread(n, true, seed);
                (n, alone, shared)
            })
        })
        .collect();
    for thread in threads {
        let (n, alone, shared) = thread.join().unwrap();
        println!("{n} nodes: {:.2} alone, {:.2} shared; lasting {:.2}, {:.2}", alone.variance, shared.variance, alone.lasting, shared.lasting);
        assert!(shared.variance < alone.variance * 1.3 + 0.3, "{n}");
    }
}
