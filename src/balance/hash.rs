//! Servers by a hash, of a key or of the client's address: the same one for the same key.

use super::{Policy, Seed, nth};
use crate::registry::{Order, Pick, Ready};

/// Hashes of a key that are tried before turns decide: as many as in stock nginx.
const HASHES: u64 = 21;

/// The hash names a place in the sum of all weights. Who stands there and is not ready, or has been
/// tried, is passed by with another hash of the same key: the keys of the others stay where they are.
/// A request without a key goes to the server whose turn it is.
fn by_hash(ready: &Ready<'_>) -> Option<Pick> {
    let found = ready.seed().and_then(|key| (0..HASHES).find_map(|n| ready.stands_at(nth(key, n))));
    found.map(Pick::drawn).or_else(|| ready.first(Order::Turn))
}

/// `registry_balance hash KEY`.
#[derive(Debug)]
pub struct Hash;

impl Policy for Hash {
    fn name(&self) -> &'static str {
        "hash KEY"
    }

    fn order(&self) -> Order {
        Order::Turn
    }

    fn seed(&self) -> Seed {
        Seed::Key
    }

    #[inline]
    fn pick(&self, ready: &Ready<'_>) -> Option<Pick> {
        by_hash(ready)
    }
}

/// `registry_balance ip_hash`.
#[derive(Debug)]
pub struct IpHash;

impl Policy for IpHash {
    fn name(&self) -> &'static str {
        "ip_hash"
    }

    fn order(&self) -> Order {
        Order::Turn
    }

    fn seed(&self) -> Seed {
        Seed::Address
    }

    #[inline]
    fn pick(&self, ready: &Ready<'_>) -> Option<Pick> {
        by_hash(ready)
    }
}
