//! Servers drawn by lot, by weight.

use super::{Policy, Seed, nth};
use crate::registry::{Order, Pick, Ready};

/// Draws until somebody is met who has not been tried: as often as stock nginx, which then goes round
/// as well.
const DRAWS: u64 = 20;

/// `registry_balance random`.
#[derive(Debug)]
pub struct Random;

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn order(&self) -> Order {
        Order::Turn
    }

    fn seed(&self) -> Seed {
        Seed::Random
    }

    #[inline]
    fn pick(&self, ready: &Ready<'_>) -> Option<Pick> {
        let drawn = (0..DRAWS).find_map(|n| ready.draw(nth(ready.seed()?, n)));
        drawn.map(Pick::drawn).or_else(|| ready.first(Order::Turn))
    }
}

/// `registry_balance random two`: of two that are drawn, the one with fewer requests for its weight.
/// Nearly as even as the least loaded of all, and workers of other nodes do not all run to the same
/// server.
#[derive(Debug)]
pub struct RandomTwo;

impl Policy for RandomTwo {
    fn name(&self) -> &'static str {
        "random two"
    }

    fn order(&self) -> Order {
        Order::Turn
    }

    fn seed(&self) -> Seed {
        Seed::Random
    }

    #[inline]
    fn pick(&self, ready: &Ready<'_>) -> Option<Pick> {
        let mut drawn = (0..DRAWS).filter_map(|n| ready.draw(nth(ready.seed()?, n)));
        let Some(one) = drawn.next() else { return ready.first(Order::Turn) };
        let other = drawn.find(|other| *other != one).unwrap_or(one);
        let better = if ready.load(other) < ready.load(one) { other } else { one };
        Some(Pick::drawn(better))
    }
}
