//! The one trait of this room.

use std::fmt;

use crate::registry::{Order, Pick, Ready};

/// What a policy draws by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seed {
    /// It draws nothing: it goes by its order alone.
    Nothing,
    /// A random number.
    Random,
    /// The digest of the key that is configured.
    Key,
    /// The digest of the client's address: the first three octets of IPv4, all of IPv6.
    Address,
}

/// A way to choose a server.
pub trait Policy: Sync + fmt::Debug {
    /// Its name in `registry_balance`.
    fn name(&self) -> &'static str;

    /// The order that the policy reads, always or as the last resort: namespaces keep an order from
    /// the first time it is asked for.
    fn order(&self) -> Order;

    /// What [`Choice::seed`](crate::registry::Choice::seed) is to be. Namespaces keep the tree that is
    /// drawn from since the first time that it is not [`Seed::Nothing`].
    fn seed(&self) -> Seed {
        Seed::Nothing
    }

    /// Whether, of equals, those that the worker has idle connections to come first: then
    /// [`Choice::warm`](crate::registry::Choice::warm) names some.
    fn prefers_warm(&self) -> bool {
        false
    }

    /// Picks one of the ready servers that has not been tried for this request, or `None` when there
    /// is none left. At most logarithmic in the number of servers, save for those already tried.
    fn pick(&self, ready: &Ready<'_>) -> Option<Pick>;
}
