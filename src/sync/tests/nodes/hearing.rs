//! What is said of a listener that hears nothing.

use super::super::sim::INTERVAL;
use super::*;

fn deaf(attempts: u32) -> Option<Deaf> {
    Some(Deaf { attempts, why: "the reason".to_owned() })
}

fn said(sim: &mut Sim) -> (usize, usize) {
    sim.run(2 * INTERVAL);
    let node = &sim.nodes[0];
    (node.said(Level::Warn, "can't be listened to"), node.said(Level::Notice, "listened to again"))
}

#[test]
fn that_redis_can_not_be_listened_to_is_said_once_and_so_is_its_end() {
    let mut sim = Sim::new(1);
    sim.settle();
    sim.nodes[0].node.hears(deaf(1));
    assert_eq!(said(&mut sim), (0, 0), "one connection that ends says nothing");
    sim.nodes[0].node.hears(None);
    assert_eq!(said(&mut sim), (0, 0));
    for attempts in 1..6 {
        sim.nodes[0].node.hears(deaf(attempts));
        assert_eq!(said(&mut sim), (usize::from(attempts > 1), 0), "{attempts}");
    }
    let line = "the reason; changes of other nodes come within redis_interval instead of at once";
    assert_eq!(sim.nodes[0].said(Level::Warn, line), 1);
    for _ in 0..2 {
        sim.nodes[0].node.hears(None);
        assert_eq!(said(&mut sim), (1, 1));
    }
    sim.nodes[0].node.hears(deaf(2));
    assert_eq!(said(&mut sim), (2, 1), "and again");
}

#[test]
fn while_redis_is_away_nothing_is_said_of_listening() {
    let mut sim = Sim::new(1);
    sim.nodes[0].node.hears(deaf(1));
    sim.settle();
    sim.nodes[0].cable = Cable::Cut;
    for attempts in 2..9 {
        sim.nodes[0].node.hears(deaf(attempts));
        assert_eq!(said(&mut sim), (0, 0));
    }
    sim.settle();
    sim.nodes[0].node.hears(deaf(9));
    assert_eq!(said(&mut sim), (0, 0), "the first attempt since may have begun before");
    sim.nodes[0].node.hears(deaf(10));
    assert_eq!(said(&mut sim), (1, 0));
}
