//! Numbers that are the same on all nodes and in all versions: what a key is spread by.

use std::net::IpAddr;

/// Spreads what is in a number over all its bits (the finalizer of SplitMix64, Steele et al. 2014).
#[inline]
pub const fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// The `n`th of the numbers that follow from a seed (SplitMix64).
#[inline]
pub const fn nth(seed: u64, n: u64) -> u64 {
    mix(seed.wrapping_add((n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

/// A hash of bytes: FNV-1a, of which the low bits alone are good, spread over all.
#[inline]
pub fn digest(bytes: &[u8]) -> u64 {
    let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The digest of a client as stock `ip_hash` sees it: the first three octets of an IPv4 address, all
/// of an IPv6 one, and one digest for all that have none (unix sockets).
pub fn digest_of_client(ip: Option<IpAddr>) -> u64 {
    match ip {
        Some(IpAddr::V4(v4)) => digest(&v4.octets()[..3]),
        Some(IpAddr::V6(v6)) => digest(&v6.octets()),
        None => digest(&[0; 3]),
    }
}
