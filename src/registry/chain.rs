//! Hash chains: records of one bucket, linked by index.

use std::hash::{DefaultHasher, Hasher};

use crate::shm::{NONE, Server, Space};

/// A record that stands in a chain.
pub(super) trait Chained {
    /// The next of its chain.
    fn next(&mut self) -> &mut u32;
}

impl Chained for Space {
    fn next(&mut self) -> &mut u32 {
        &mut self.hash_next
    }
}

impl Chained for Server {
    fn next(&mut self) -> &mut u32 {
        &mut self.hash_next
    }
}

/// A bucket of a table of `len` for a key, under the zone's secret.
pub(super) fn bucket(secret: u64, parts: &[&[u8]], len: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(secret);
    for part in parts {
        hasher.write(part);
    }
    (((hasher.finish() >> 32) * len as u64) >> 32) as usize
}

/// Puts a record at the head of a chain.
pub(super) fn link<R: Chained>(head: &mut u32, records: &mut [R], slot: u32) {
    *records[slot as usize].next() = *head;
    *head = slot;
}

/// Takes a record out of its chain.
pub(super) fn unlink<R: Chained>(head: &mut u32, records: &mut [R], slot: u32) {
    let after = *records[slot as usize].next();
    if *head == slot {
        *head = after;
        return;
    }
    let mut at = *head;
    while at != NONE {
        let next = records[at as usize].next();
        if *next == slot {
            *next = after;
            return;
        }
        at = *next;
    }
}
