//! What must be true of a whole zone whenever nobody holds its lock.

use super::member::{classify, is_one, standing};
use super::order::Standing;
use super::{Registry, heap, space, tree};
use crate::shm::{JOURNAL_EMPTY, NONE, Server, class, flag, space_flag};

/// What is in a zone, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests on all servers.
    pub connections: u64,
    /// Of these, those that found no room in the ledger.
    pub outside: u64,
    /// Ledger entries in use.
    pub ledger: usize,
    /// Workers that have joined and not left, the dead that were not yet noticed included.
    pub workers: usize,
    /// Servers.
    pub servers: usize,
    /// Namespaces.
    pub spaces: usize,
}

impl Registry<'_> {
    /// Adds up what is in the zone.
    pub fn totals(&self) -> Totals {
        let t = &*self.g;
        let servers = || t.servers.iter().filter(|s| s.live != 0);
        Totals {
            connections: servers().map(|s| u64::from(s.conns)).sum(),
            outside: servers().map(|s| u64::from(s.unledgered)).sum(),
            ledger: t.ledger.iter().filter(|e| e.incarnation != 0).count(),
            workers: t.workers.iter().filter(|w| w.incarnation != 0).count(),
            servers: servers().count(),
            spaces: t.spaces.iter().filter(|s| s.live != 0).count(),
        }
    }

    /// Checks that everything derived agrees with what is true.
    ///
    /// # Errors
    ///
    /// What disagrees.
    pub fn check(&self) -> Result<(), String> {
        let t = &*self.g;
        if t.header.dirty != 0 || t.header.journal_target != JOURNAL_EMPTY {
            let (dirty, target) = (t.header.dirty, t.header.journal_target);
            return Err(format!("a repair is due: {dirty}, journal for {target}"));
        }
        let mut conns = vec![0u64; t.servers.len()];
        for (at, e) in t.ledger.iter().enumerate().filter(|(_, e)| e.incarnation != 0) {
            let worker = t.workers.get(e.worker as usize).map(|w| w.incarnation);
            if worker != Some(e.incarnation) || e.count == 0 {
                return Err(format!("ledger entry {at}: worker {worker:?}, count {}", e.count));
            }
            if t.servers[e.server as usize].generation == e.generation {
                conns[e.server as usize] += u64::from(e.count);
            }
        }
        self.check_chains()?;
        let (mut servers, mut spaces) = (0, 0);
        for i in 0..t.spaces.len() as u32 {
            let space = &t.spaces[i as usize];
            if space.live == 0 {
                continue;
            }
            spaces += 1;
            heap::check(t, i)?;
            tree::check(t, i)?;
            let name = space::name_of(space);
            let found = super::SpaceName::new(name.as_bytes()).and_then(|n| self.find_space(n));
            if found.map(|f| f.slot) != Some(i) {
                return Err(format!("namespace {name} is not found"));
            }
            if space.members == 0 && space.flags & space_flag::CONFIGURED == 0 {
                return Err(format!("namespace {name} has no servers"));
            }
            servers += self.check_members(i, &conns)?;
        }
        let live = t.servers.iter().filter(|s| s.live != 0).count();
        if servers != live || live != t.header.servers as usize {
            return Err(format!("{live} live servers, {servers} members, {}", t.header.servers));
        }
        if spaces != t.header.spaces as usize {
            return Err(format!("{spaces} live namespaces, {} counted", t.header.spaces));
        }
        self.check_queue()?;
        self.check_free_lists()
    }

    fn check_members(&self, i: u32, ledger: &[u64]) -> Result<usize, String> {
        let t = &*self.g;
        let space = &t.spaces[i as usize];
        let (mut n, mut prev, mut number) = (0, NONE, 0);
        let mut classes = [0u32; class::COUNT];
        let mut expected_in_heaps = 0;
        let mut at = space.member_head;
        while at != NONE {
            let s: &Server = &t.servers[at as usize];
            let who = super::address::printed(s);
            if s.live == 0 || s.space != i || s.member_prev != prev || s.number <= number {
                return Err(format!("member {who} is not linked rightly"));
            }
            if u64::from(s.conns) != ledger[at as usize] + u64::from(s.unledgered) {
                return Err(format!("{who} counts {}, ledger {}", s.conns, ledger[at as usize]));
            }
            let class = classify(s, is_one(space));
            if s.class != u32::from(class) {
                return Err(format!("{who} is in class {}, belongs in {class}", s.class));
            }
            classes[usize::from(class)] += 1;
            let places = t.slots[at as usize].at.iter().filter(|p| **p != NONE).count();
            let wanted = match standing(s, is_one(space)) {
                Standing::Ready | Standing::Standby => (space.orders & 3).count_ones() as usize,
                Standing::Failed => 1,
                Standing::Out => 0,
            } + usize::from(tree::belongs(t, s));
            if places != wanted {
                return Err(format!("{who} of class {class} is in {places} heaps"));
            }
            expected_in_heaps += wanted;
            if self.find(i, &super::Address::of(s)) != Some(at) {
                return Err(format!("{who} is not found"));
            }
            (n, prev, number, at) = (n + 1, at, s.number, s.member_next);
        }
        self.check_names(i)?;
        let ready = space.ready[0] + space.ready[1];
        if n != space.members || prev != space.member_tail || classes != space.classes {
            return Err(format!("namespace {i}: {n} members, classes {classes:?}"));
        }
        if ready != classes[0] {
            return Err(format!("namespace {i}: {ready} ready, {} counted", classes[0]));
        }
        let in_heaps: u32 = space.heaps.iter().map(|h| h.len).sum();
        if in_heaps as usize != expected_in_heaps {
            return Err(format!("namespace {i}: {in_heaps} in heaps, not {expected_in_heaps}"));
        }
        self.check_fresh(i)?;
        Ok(n as usize)
    }

    /// The addresses of each name of a namespace.
    fn check_names(&self, i: u32) -> Result<(), String> {
        let t = &*self.g;
        let members = || t.servers.iter().enumerate().filter(|(_, s)| s.live != 0 && s.space == i);
        let (mut names, mut listed) = (0, 0);
        for (at, name) in members().filter(|(_, s)| s.is_name()) {
            names += 1;
            let mut next = name.next_address;
            while let Some(s) = t.servers.get(next as usize) {
                let own = s.live != 0 && s.space == i && s.parent as usize == at && !s.is_name();
                if !own || s.pending != 0 || s.port != name.port || listed > t.servers.len() {
                    let (who, name) = (super::address::printed(s), super::address::printed(name));
                    return Err(format!("{who} is not rightly an address of {name}"));
                }
                listed += 1;
                next = s.next_address;
            }
        }
        let of_names = members().filter(|(_, s)| s.is_of_name()).count();
        if names != t.spaces[i as usize].names() || listed != of_names {
            return Err(format!("namespace {i}: {names} names, {listed} of {of_names} addresses"));
        }
        Ok(())
    }

    fn check_fresh(&self, i: u32) -> Result<(), String> {
        let t = &*self.g;
        let space = &t.spaces[i as usize];
        let (mut n, mut prev, mut heard) = (0, NONE, 0);
        let mut at = space.fresh_head;
        while at != NONE {
            let s = &t.servers[at as usize];
            if s.live == 0 || s.space != i || s.fresh_prev != prev || s.heartbeat_mono < heard {
                return Err(format!("namespace {i}: list of the fresh is broken at {at}"));
            }
            (n, prev, heard, at) = (n + 1, at, s.heartbeat_mono, s.fresh_next);
        }
        let due = t
            .servers
            .iter()
            .filter(|s| s.live != 0 && s.space == i)
            .filter(|s| s.flags & (flag::STATIC | flag::EXPIRED) == 0)
            .count();
        if n != due || prev != space.fresh_tail {
            return Err(format!("namespace {i}: {n} fresh, {due} expected"));
        }
        Ok(())
    }

    /// The ledger entries of each worker.
    fn check_chains(&self) -> Result<(), String> {
        let t = &*self.g;
        let mut chained = 0;
        for (slot, worker) in t.workers.iter().enumerate().filter(|(_, w)| w.incarnation != 0) {
            let (mut prev, mut at) = (NONE, worker.ledger_head);
            while let Some(e) = t.ledger.get(at as usize) {
                if e.worker as usize != slot
                    || e.incarnation != worker.incarnation
                    || e.prev != prev
                {
                    return Err(format!("ledger entry {at} is not linked rightly"));
                }
                (prev, at) = (at, e.next);
                chained += 1;
            }
        }
        let used = t.ledger.iter().filter(|e| e.incarnation != 0).count();
        if chained != used {
            return Err(format!("{used} ledger entries in use, {chained} belong to a worker"));
        }
        Ok(())
    }

    fn check_free_lists(&self) -> Result<(), String> {
        let t = &*self.g;
        let count = |mut at: u32, next: &dyn Fn(u32) -> Option<u32>| {
            let mut n = 0;
            // A list that goes round is longer than all the slots there are.
            while let Some(after) = next(at)
                && n <= t.ledger.len()
            {
                n += 1;
                at = after;
            }
            n
        };
        let lists = [
            (
                "servers",
                count(t.header.free_server, &|i| t.servers.get(i as usize).map(|s| s.hash_next)),
                t.servers.iter().filter(|s| s.live == 0 && !s.is_departed()).count(),
            ),
            (
                "namespaces",
                count(t.header.free_space, &|i| t.spaces.get(i as usize).map(|s| s.hash_next)),
                t.spaces.iter().filter(|s| s.live == 0).count(),
            ),
            (
                "ledger",
                count(t.header.free_ledger, &|i| t.ledger.get(i as usize).map(|e| e.next)),
                t.ledger.iter().filter(|e| e.incarnation == 0).count(),
            ),
        ];
        for (what, listed, free) in lists {
            if listed != free {
                return Err(format!("{free} free {what}, {listed} in the list"));
            }
        }
        Ok(())
    }
}
