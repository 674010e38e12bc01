//! The server with the fewest requests for its weight; ties go round, by weight.

use super::Policy;
use crate::registry::{Order, Ready};

/// `registry_balance least_conn`, the default.
#[derive(Debug)]
pub struct LeastConn;

impl Policy for LeastConn {
    fn name(&self) -> &'static str {
        "least_conn"
    }

    fn order(&self) -> Order {
        Order::Load
    }

    #[inline]
    fn pick(&self, ready: &Ready<'_>) -> Option<u32> {
        ready.first(Order::Load)
    }
}
