//! How one server is chosen among those that may be chosen.
//!
//! A policy sees ready servers and nothing else: not nginx, not the clock, not why a server is
//! ready. One policy a file.

#![forbid(unsafe_code)]

mod consistent;
mod digest;
mod hash;
mod lap;
mod least_conn;
mod policy;
mod random;
mod round_robin;

pub use consistent::Consistent;
pub use digest::{digest, digest_of_client, mix, nth};
pub use hash::{Hash, IpHash};
pub use lap::{LAPS, laps_of};
pub use least_conn::{LeastConn, LeastConnWarm};
pub use policy::{Policy, Seed};
pub use random::{Random, RandomTwo};
pub use round_robin::RoundRobin;

/// The policies by the names that `registry_balance` takes; the first is the default.
pub const POLICIES: [&dyn Policy; 8] =
    [&LeastConn, &LeastConnWarm, &RoundRobin, &Random, &RandomTwo, &IpHash, &Hash, &Consistent];

/// The policy of that name.
pub fn by_name(name: &str) -> Option<&'static dyn Policy> {
    POLICIES.into_iter().find(|p| p.name() == name)
}

/// Reads what stands behind `registry_balance`: the policy, and the key if it has one.
///
/// # Errors
///
/// What is wrong, and what may be there.
pub fn parse<'a>(words: &[&'a str]) -> Result<(&'static dyn Policy, Option<&'a str>), String> {
    match words {
        ["hash"] => {
            return Err(
                "\"registry_balance hash\" needs a key: write hash KEY or hash KEY consistent"
                    .to_owned(),
            );
        }
        ["hash", key] => return Ok((&Hash, Some(key))),
        ["hash", key, "consistent"] => return Ok((&Consistent, Some(key))),
        ["hash", _, "consistent", other, ..] | ["hash", _, other, ..] => {
            return Err(format!("invalid parameter \"{other}\" of \"hash\": it may be consistent"));
        }
        ["random", "two", "least_conn"] => return Ok((&RandomTwo, None)),
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
    by_name(&method).map(|policy| (policy, None)).ok_or_else(|| {
        let [names @ .., last] = POLICIES.map(Policy::name);
        let names = names.join(", ");
        format!("invalid balancing method \"{method}\": it may be {names} or {last}")
    })
}

#[cfg(test)]
mod tests;
