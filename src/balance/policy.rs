//! The one trait of this room.

use std::fmt;

use crate::registry::{Order, Ready};

/// A way to choose a server.
pub trait Policy: Sync + fmt::Debug {
    /// Its name in `registry_balance`.
    fn name(&self) -> &'static str;

    /// The order that the policy reads: namespaces keep an order from the first time it is asked
    /// for.
    fn order(&self) -> Order;

    /// Whether, of equals, those that the worker has idle connections to come first: then
    /// [`Choice::warm`](crate::registry::Choice::warm) names some.
    fn prefers_warm(&self) -> bool {
        false
    }

    /// Picks one of the ready servers that has not been tried for this request: its slot, or
    /// `None` when there is none left. At most logarithmic in the number of servers, save for those
    /// already tried.
    fn pick(&self, ready: &Ready<'_>) -> Option<u32>;
}
