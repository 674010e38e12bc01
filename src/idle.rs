//! The connections that one worker keeps open to servers and has no use for at the moment.
//!
//! Found by server in constant time, however many servers there are: stock nginx walks a list of
//! all. Knows nothing of sockets: a connection is a handle `C`, and who is handed one closes it.
//!
//! Three orders run through the same entries: a server's own connections and all connections, each
//! from the one used last to the one idle for the longest time. All connections have the same
//! `timeout`, so the longest idle one is also the next to time out.

#![forbid(unsafe_code)]

const NONE: u32 = u32::MAX;

/// Most of a server's idle connections that a search looks at. More than one matter only where a
/// server's connections differ: see `shape` in [`Idle::put`].
const SEARCH: usize = 64;

/// A server: its slot in the zone, and its number, which tells it from an earlier one in that slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerKey {
    /// Small, and used again.
    pub slot: u32,
    /// Never used again.
    pub number: u64,
}

/// How many connections may be idle, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections in all, at least 1.
    pub connections: u32,
    /// Connections to one server, at least 1.
    pub per_server: u32,
    /// Milliseconds.
    pub timeout: u64,
}

/// Where a connection is kept: valid until it is taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(u32);

impl Ticket {
    /// Of nothing.
    pub const NONE: Self = Self(NONE);
}

#[derive(Clone, Copy)]
struct Links {
    newer: u32,
    older: u32,
}

#[derive(Clone, Copy)]
struct Entry<C> {
    /// `None`: free, and `all.older` is the next free one.
    connection: Option<C>,
    server: ServerKey,
    shape: u64,
    /// Idle since then, by the monotonic clock in milliseconds.
    since: u64,
    all: Links,
    mates: Links,
}

/// Ends of a list.
#[derive(Clone, Copy)]
struct Ends {
    newest: u32,
    oldest: u32,
}

#[derive(Clone, Copy)]
struct Bucket {
    number: u64,
    ends: Ends,
    len: u32,
}

const NOTHING: Ends = Ends { newest: NONE, oldest: NONE };

/// The idle connections.
pub struct Idle<C> {
    limits: Limits,
    entries: Vec<Entry<C>>,
    free: u32,
    /// By the servers' slots.
    buckets: Vec<Bucket>,
    all: Ends,
    len: u32,
}

impl<C: Copy> Idle<C> {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, entries: Vec::new(), free: NONE, buckets: Vec::new(), all: NOTHING, len: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes out a connection that must be closed before one to `server` can be put in: of a server
    /// that is gone, the server's longest idle one, or the longest idle one of all. To be called
    /// until it gives `None`.
    pub fn crowded_out(&mut self, server: ServerKey) -> Option<C> {
        let oldest = match self.buckets.get(server.slot as usize) {
            Some(b)
                if b.len > 0 && (b.number != server.number || b.len >= self.limits.per_server) =>
            {
                b.ends.oldest
            }
            _ if self.len >= self.limits.connections => self.all.oldest,
            _ => return None,
        };
        Some(self.remove(Ticket(oldest)))
    }

    /// Puts a connection in. `shape` tells apart connections to one server that must not be taken
    /// for each other.
    pub fn put(&mut self, server: ServerKey, shape: u64, connection: C, now: u64) -> Ticket {
        let entry = Entry {
            connection: Some(connection),
            server,
            shape,
            since: now,
            all: Links { newer: NONE, older: self.all.newest },
            mates: Links { newer: NONE, older: NONE },
        };
        let at = match self.entries.get(self.free as usize) {
            Some(free) => {
                let at = std::mem::replace(&mut self.free, free.all.older);
                self.entries[at as usize] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };

        match self.all.newest {
            NONE => self.all.oldest = at,
            newest => self.entries[newest as usize].all.newer = at,
        }
        self.all.newest = at;

        let slot = server.slot as usize;
        if slot >= self.buckets.len() {
            self.buckets.resize(slot + 1, Bucket { number: 0, ends: NOTHING, len: 0 });
        }
        let bucket = &mut self.buckets[slot];
        bucket.number = server.number;
        bucket.len += 1;
        match bucket.ends.newest {
            NONE => bucket.ends.oldest = at,
            newest => self.entries[newest as usize].mates.newer = at,
        }
        self.entries[at as usize].mates.older = bucket.ends.newest;
        bucket.ends.newest = at;
        self.len += 1;
        Ticket(at)
    }

    /// Takes out the connection to `server` that was used last, of those of that `shape` for which
    /// `same` says yes and that have not been idle for `timeout`.
    pub fn take(
        &mut self,
        server: ServerKey,
        shape: u64,
        now: u64,
        same: impl Fn(C) -> bool,
    ) -> Option<C> {
        let bucket = self.buckets.get(server.slot as usize)?;
        if bucket.number != server.number {
            return None;
        }
        let mut at = bucket.ends.newest;
        for _ in 0..SEARCH {
            let entry = self.entries.get(at as usize)?;
            if now.saturating_sub(entry.since) >= self.limits.timeout {
                return None;
            }
            if entry.shape == shape && entry.connection.is_some_and(&same) {
                return Some(self.remove(Ticket(at)));
            }
            at = entry.mates.older;
        }
        None
    }

    /// Takes out a connection.
    ///
    /// # Panics
    ///
    /// When the ticket's connection has been taken out already.
    pub fn remove(&mut self, ticket: Ticket) -> C {
        let Ticket(at) = ticket;
        let entry = self.entries[at as usize];
        let connection = entry.connection.expect("a ticket of a connection that is kept");

        let Links { newer, older } = entry.all;
        match newer {
            NONE => self.all.newest = older,
            newer => self.entries[newer as usize].all.older = older,
        }
        match older {
            NONE => self.all.oldest = newer,
            older => self.entries[older as usize].all.newer = newer,
        }

        let bucket = &mut self.buckets[entry.server.slot as usize];
        bucket.len -= 1;
        let Links { newer, older } = entry.mates;
        match newer {
            NONE => bucket.ends.newest = older,
            newer => self.entries[newer as usize].mates.older = older,
        }
        match older {
            NONE => bucket.ends.oldest = newer,
            older => self.entries[older as usize].mates.newer = newer,
        }

        let entry = &mut self.entries[at as usize];
        entry.connection = None;
        entry.all.older = std::mem::replace(&mut self.free, at);
        self.len -= 1;
        connection
    }

    /// Takes out a connection that has been idle for `timeout`.
    pub fn timed_out(&mut self, now: u64) -> Option<C> {
        let oldest = self.entries.get(self.all.oldest as usize)?;
        if now.saturating_sub(oldest.since) < self.limits.timeout {
            return None;
        }
        Some(self.remove(Ticket(self.all.oldest)))
    }

    /// Takes out the connection that has been idle for the longest time.
    pub fn oldest(&mut self) -> Option<C> {
        (self.all.oldest != NONE).then(|| self.remove(Ticket(self.all.oldest)))
    }

    /// Takes out a connection to the server.
    pub fn any_to(&mut self, server: ServerKey) -> Option<C> {
        let bucket = self.buckets.get(server.slot as usize)?;
        if bucket.number != server.number || bucket.len == 0 {
            return None;
        }
        let oldest = bucket.ends.oldest;
        Some(self.remove(Ticket(oldest)))
    }

    /// The connections that have been idle at least since `then`, the one used last first.
    pub fn since(&self, then: u64) -> impl Iterator<Item = C> {
        let entry = |at: u32| self.entries.get(at as usize);
        std::iter::successors(entry(self.all.newest), move |e| entry(e.all.older))
            .skip_while(move |e| e.since > then)
            .filter_map(|e| e.connection)
    }

    /// The servers with idle connections, by slot, from that slot on.
    pub fn servers(&self, from_slot: u32) -> impl Iterator<Item = ServerKey> {
        let buckets = self.buckets.iter().enumerate().skip(from_slot as usize);
        buckets
            .filter(|(_, bucket)| bucket.len > 0)
            .map(|(slot, bucket)| ServerKey { slot: slot as u32, number: bucket.number })
    }

    /// The servers of the connections used last, the last one first; a server may come again.
    pub fn warmest(&self) -> impl Iterator<Item = ServerKey> {
        let entry = |at: u32| self.entries.get(at as usize);
        std::iter::successors(entry(self.all.newest), move |e| entry(e.all.older)).map(|e| e.server)
    }
}

impl<C> std::fmt::Debug for Idle<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Idle")
            .field("limits", &self.limits)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server(slot: u32) -> ServerKey {
        ServerKey { slot, number: u64::from(slot) + 100 }
    }

    fn idle(connections: u32, per_server: u32) -> Idle<u32> {
        Idle::new(Limits { connections, per_server, timeout: 1000 })
    }

    fn put(idle: &mut Idle<u32>, server: ServerKey, shape: u64, c: u32, now: u64) -> Vec<u32> {
        let mut out = Vec::new();
        while let Some(c) = idle.crowded_out(server) {
            out.push(c);
        }
        idle.put(server, shape, c, now);
        out
    }

    #[test]
    fn a_connection_is_taken_by_its_server_the_one_used_last_first() {
        let mut idle = idle(10, 10);
        for (slot, c) in [(1, 11), (2, 21), (1, 12)] {
            assert_eq!(put(&mut idle, server(slot), 0, c, 0), [0; 0]);
        }
        assert_eq!(idle.take(server(1), 0, 1, |_| true), Some(12));
        assert_eq!(idle.take(server(1), 0, 1, |_| true), Some(11));
        assert_eq!(idle.take(server(1), 0, 1, |_| true), None);
        assert_eq!(idle.take(server(3), 0, 1, |_| true), None);
        assert_eq!(idle.len(), 1);
    }

    #[test]
    fn shapes_are_kept_apart_and_so_are_those_that_only_hash_alike() {
        let mut idle = idle(10, 10);
        put(&mut idle, server(1), 7, 1, 0);
        put(&mut idle, server(1), 8, 2, 0);
        put(&mut idle, server(1), 8, 3, 0);
        assert_eq!(idle.take(server(1), 8, 1, |c| c != 3), Some(2));
        assert_eq!(idle.take(server(1), 9, 1, |_| true), None);
        assert_eq!(idle.take(server(1), 7, 1, |_| true), Some(1));
    }

    #[test]
    fn a_full_pool_gives_up_what_was_idle_for_the_longest_time() {
        let mut idle = idle(3, 2);
        put(&mut idle, server(1), 0, 1, 0);
        put(&mut idle, server(2), 0, 2, 0);
        put(&mut idle, server(2), 0, 3, 0);
        assert_eq!(put(&mut idle, server(2), 0, 4, 0), [2], "two to a server");
        assert_eq!(put(&mut idle, server(3), 0, 5, 0), [1], "three in all");
        assert_eq!(idle.len(), 3);
    }

    #[test]
    fn a_server_in_the_slot_of_another_gets_none_of_its_connections() {
        let mut idle = idle(10, 10);
        put(&mut idle, server(1), 0, 1, 0);
        put(&mut idle, server(1), 0, 2, 0);
        let next = ServerKey { slot: 1, number: 500 };
        assert_eq!(idle.take(next, 0, 1, |_| true), None);
        assert_eq!(put(&mut idle, next, 0, 3, 0), [1, 2]);
        assert_eq!(idle.take(server(1), 0, 1, |_| true), None);
        assert_eq!(idle.take(next, 0, 1, |_| true), Some(3));
    }

    #[test]
    fn what_timed_out_is_never_taken() {
        let mut idle = idle(10, 10);
        put(&mut idle, server(1), 0, 1, 0);
        put(&mut idle, server(2), 0, 2, 500);
        assert_eq!(idle.take(server(1), 0, 1000, |_| true), None);
        assert_eq!(idle.timed_out(999), None);
        assert_eq!(idle.timed_out(1000), Some(1));
        assert_eq!(idle.timed_out(1000), None);
        assert_eq!(idle.take(server(2), 0, 1000, |_| true), Some(2));
    }

    proptest! {
        /// Whatever is done, the pool agrees with a plain list of what is in it.
        #[test]
        fn agrees_with_a_list(
            connections in 1u32..12,
            per_server in 1u32..6,
            steps in prop::collection::vec((0u8..6, 0u32..5, 0u64..2, 0u64..3), 1..200),
        ) {
            let mut idle = idle(connections, per_server);
            // Oldest first: server, shape, connection, since.
            let mut list: Vec<(ServerKey, u64, u32, u64)> = Vec::new();
            let mut tickets = std::collections::HashMap::new();
            let mut now = 0;
            for (n, (what, slot, shape, life)) in steps.into_iter().enumerate() {
                let s = ServerKey { slot, number: life };
                now += u64::from(what) * 40;
                match what {
                    0..3 => {
                        while let Some(c) = idle.crowded_out(s) {
                            let mates = |e: &&(ServerKey, u64, u32, u64)| e.0.slot == s.slot;
                            let worst = list.iter().filter(mates).find(|e| {
                                e.0 != s || list.iter().filter(|e| e.0 == s).count() >= per_server as usize
                            });
                            let expected = worst.unwrap_or_else(|| &list[0]).2;
                            prop_assert_eq!(c, expected);
                            list.retain(|e| e.2 != c);
                        }
                        let c = n as u32;
                        tickets.insert(c, idle.put(s, shape, c, now));
                        list.push((s, shape, c, now));
                        prop_assert!(list.len() <= connections as usize);
                    }
                    3 => {
                        let fits = |e: &&(ServerKey, u64, u32, u64)| e.0 == s && e.1 == shape && now - e.3 < 1000;
                        let expected = list.iter().rev().find(fits).map(|e| e.2);
                        prop_assert_eq!(idle.take(s, shape, now, |_| true), expected);
                        list.retain(|e| Some(e.2) != expected);
                    }
                    4 => {
                        let expected = list.first().filter(|e| now - e.3 >= 1000).map(|e| e.2);
                        prop_assert_eq!(idle.timed_out(now), expected);
                        list.retain(|e| Some(e.2) != expected);
                    }
                    _ => {
                        if let Some(&(.., c, _)) = list.get(slot as usize) {
                            prop_assert_eq!(idle.remove(tickets[&c]), c);
                            list.retain(|e| e.2 != c);
                        }
                    }
                }
                prop_assert_eq!(idle.len(), list.len());
                let old: Vec<_> = idle.since(now.saturating_sub(100)).collect();
                let expected = list.iter().rev().filter(|e| e.3 <= now.saturating_sub(100));
                prop_assert_eq!(old, expected.map(|e| e.2).collect::<Vec<_>>());
                let order: Vec<_> = idle.warmest().collect();
                let expected: Vec<_> = list.iter().rev().map(|e| e.0).collect();
                prop_assert_eq!(order, expected);
                let mut pooled: Vec<_> = list.iter().map(|e| e.0.slot).collect();
                pooled.sort_unstable();
                pooled.dedup();
                prop_assert_eq!(idle.servers(0).map(|s| s.slot).collect::<Vec<_>>(), pooled);
            }
            while let Some(c) = idle.oldest() {
                prop_assert_eq!(list.remove(0).2, c);
            }
            prop_assert!(list.is_empty());
        }
    }
}
