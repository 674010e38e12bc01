//! The server with the fewest requests for its weight; ties go round, by weight.

use super::Policy;
use crate::registry::{Order, Pick, Ready};

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
    fn pick(&self, ready: &Ready<'_>) -> Option<Pick> {
        ready.first(Order::Load)
    }
}

/// `registry_balance least_conn warm`: of equals, a server that the worker has an idle connection
/// to. With little traffic few servers see any of it.
#[derive(Debug)]
pub struct LeastConnWarm;

impl Policy for LeastConnWarm {
    fn name(&self) -> &'static str {
        "least_conn warm"
    }

    fn order(&self) -> Order {
        Order::Load
    }

    fn prefers_warm(&self) -> bool {
        true
    }

    #[inline]
    fn pick(&self, ready: &Ready<'_>) -> Option<Pick> {
        ready.warm(Order::Load).or_else(|| ready.first(Order::Load))
    }
}
