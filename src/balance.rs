//! How one server is chosen among those that may be chosen.
//!
//! A policy sees ready servers and nothing else: not nginx, not the clock, not why a server is
//! ready. One policy a file.

#![forbid(unsafe_code)]

mod least_conn;
mod policy;
mod round_robin;

pub use least_conn::{LeastConn, LeastConnWarm};
pub use policy::Policy;
pub use round_robin::RoundRobin;

/// The policies by the names that `registry_balance` takes; the first is the default.
pub const POLICIES: [&dyn Policy; 3] = [&LeastConn, &LeastConnWarm, &RoundRobin];

/// The policy of that name.
pub fn by_name(name: &str) -> Option<&'static dyn Policy> {
    POLICIES.into_iter().find(|p| p.name() == name)
}

#[cfg(test)]
mod tests;
