//! Servers by a hash of a key that a change of servers disturbs as little as can be.

use super::{Policy, Seed};
use crate::registry::{Order, Pick, Ready};

/// `registry_balance hash KEY consistent`: who goes moves its own keys alone, and who comes takes keys
/// and shuffles none among the others.
#[derive(Debug)]
pub struct Consistent;

impl Policy for Consistent {
    fn name(&self) -> &'static str {
        "hash KEY consistent"
    }

    fn order(&self) -> Order {
        Order::Turn
    }

    fn seed(&self) -> Seed {
        Seed::Key
    }

    #[inline]
    fn pick(&self, ready: &Ready<'_>) -> Option<Pick> {
        let found = ready.seed().and_then(|key| ready.on_ring(key));
        found.map(Pick::drawn).or_else(|| ready.first(Order::Turn))
    }
}
