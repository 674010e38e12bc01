//! Each in its turn, by weight, evenly spread: of weights 5, 1 and 1 the first server never gets
//! its five requests in a row.

use super::Policy;
use crate::registry::{Order, Pick, Ready};

/// `registry_balance round_robin`.
#[derive(Debug)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        "round_robin"
    }

    fn order(&self) -> Order {
        Order::Turn
    }

    #[inline]
    fn pick(&self, ready: &Ready<'_>) -> Option<Pick> {
        ready.first(Order::Turn)
    }
}
