//! How one server is chosen among those that may be chosen.
//!
//! A policy sees ready servers and nothing else: not nginx, not the clock, not why a server is
//! ready. One policy a file.

#![forbid(unsafe_code)]

mod digest;
mod least_conn;
mod policy;
mod random;
mod round_robin;

pub use digest::{digest, mix, nth};
pub use least_conn::{LeastConn, LeastConnWarm};
pub use policy::{Policy, Seed};
pub use random::{Random, RandomTwo};
pub use round_robin::RoundRobin;

/// The policies by the names that `registry_balance` takes; the first is the default.
pub const POLICIES: [&dyn Policy; 5] =
    [&LeastConn, &LeastConnWarm, &RoundRobin, &Random, &RandomTwo];

/// The policy of that name.
pub fn by_name(name: &str) -> Option<&'static dyn Policy> {
    POLICIES.into_iter().find(|p| p.name() == name)
}

/// Reads what stands behind `registry_balance`.
///
/// # Errors
///
/// What is wrong, and what may be there.
pub fn parse(words: &[&str]) -> Result<&'static dyn Policy, String> {
    match words {
        ["random", "two", "least_conn"] => return Ok(&RandomTwo),
        ["random", "two", "least_conn", other, ..] | ["random", "two", other, ..] => {
            return Err(format!(
                "invalid parameter \"{other}\" of \"random two\": it may be least_conn"
            ));
        }
        ["random", other, ..] if *other != "two" => {
            return Err(format!("invalid parameter \"{other}\" of \"random\": it may be two"));
        }
        _ => {}
    }
    let method = words.join(" ");
    by_name(&method).ok_or_else(|| {
        let [names @ .., last] = POLICIES.map(Policy::name);
        let names = names.join(", ");
        format!("invalid balancing method \"{method}\": it may be {names} or {last}")
    })
}

#[cfg(test)]
mod tests;
