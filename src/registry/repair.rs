//! After a crash: everything derived is made anew from what is true.
//!
//! True are the fields of live records and the ledger entries of living workers. Each operation
//! writes them so that a process killed at any instruction leaves either the old or the new truth:
//! a record comes into being and goes with one store of its `live` field, and a change of several
//! fields goes through the header's journal.

use std::sync::atomic::{Ordering, compiler_fence};

use super::member::{append, classify, enter_class, freshen, index};
use super::worker::{VACANT, is_dead};
use super::{Registry, heap, space};
use crate::shm::{Extent, JOURNAL_EMPTY, NONE, Server, class, flag, heap as heap_id, space_flag};

/// Everything stored so far is in memory before `store` runs, and `store` before what follows. A
/// killed process is seen by others as stopped between two instructions, so it is the compiler
/// alone that must keep the order.
#[inline]
pub(super) fn before(store: impl FnOnce()) {
    compiler_fence(Ordering::SeqCst);
    store();
    compiler_fence(Ordering::SeqCst);
}

impl Registry<'_> {
    /// Rebuilds what is derived, takes back what the dead left, and ends with the zone as if every
    /// change had been made wholly or not at all.
    #[cold]
    pub(super) fn repair(&mut self) {
        self.finish_journal();
        let unknown = self.drop_the_dead();
        self.drop_orphans();

        let t = &mut *self.g;
        t.link_free_lists();
        t.header.heap_used = 0;
        t.header.servers = 0;
        t.header.spaces = 0;

        // Room in the heaps follows from inserting; nothing is kept of the old runs.
        for slot in 0..t.header.space_high_water {
            let s = &mut t.spaces[slot as usize];
            if s.live == 0 {
                continue;
            }
            *s = crate::shm::Space {
                live: 1,
                generation: s.generation,
                flags: s.flags,
                orders: s.orders & 3,
                version: s.version + 1,
                name_len: s.name_len.min(crate::shm::SPACE_NAME_MAX as u32),
                name: s.name,
                heaps: [Extent::default(); heap_id::COUNT],
                ..space::EMPTY
            };
            space::index(t, slot);
            t.header.spaces += 1;
        }
        t.header.version += 1;

        let mut members: Vec<u32> =
            (0..t.header.high_water).filter(|slot| t.servers[*slot as usize].live != 0).collect();
        members.sort_unstable_by_key(|slot| t.servers[*slot as usize].number);
        for &slot in &members {
            let s = &mut t.servers[slot as usize];
            s.conns = if unknown { 0 } else { s.unledgered };
            s.unledgered = s.conns;
            s.turn = [0; 2];
            s.name_len = s.name_len.min(crate::shm::NAME_MAX as u8);
            s.fresh_prev = NONE;
            s.fresh_next = NONE;
            t.header.servers += 1;
            index(t, slot);
            append(t, slot);
        }
        self.relink_ledger(unknown);

        let t = &mut *self.g;
        for &slot in &members {
            let s = &t.servers[slot as usize];
            let alone = t.spaces[s.space as usize].members == 1;
            let class = classify(s, alone);
            enter_class(t, slot, class);
        }
        // By heartbeat, so that each is appended at the end of its list.
        members
            .retain(|slot| t.servers[*slot as usize].flags & (flag::STATIC | flag::EXPIRED) == 0);
        members.sort_by_key(|slot| t.servers[*slot as usize].heartbeat_mono);
        for &slot in &members {
            freshen(t, slot);
        }
        for slot in 0..t.header.space_high_water {
            self.drop_if_unused(slot);
        }
        self.g.repaired();
    }

    /// Finishes a change of several fields that was cut short.
    fn finish_journal(&mut self) {
        let t = &mut *self.g;
        let target = t.header.journal_target;
        if let Some(s) = t.servers.get_mut(target as usize) {
            *s = t.header.journal;
        }
        t.header.journal_target = JOURNAL_EMPTY;
    }

    /// Frees the slots and ledger entries of dead workers. True when one of them had requests that
    /// were not in the ledger: on which servers is not known.
    fn drop_the_dead(&mut self) -> bool {
        let zone = self.g.zone();
        let mut unknown = false;
        for slot in 0..self.g.workers.len() {
            let worker = self.g.workers[slot];
            if worker.incarnation == 0 || !is_dead(zone, slot) {
                continue;
            }
            unknown |= worker.unledgered > 0;
            if self.g.header.leader_incarnation == worker.incarnation {
                self.g.header.leader_incarnation = 0;
            }
            self.g.workers[slot] = VACANT;
            zone.release_worker(slot);
        }
        let t = &mut *self.g;
        for entry in t.ledger.iter_mut() {
            let owner = t.workers.get(entry.worker as usize).map_or(0, |w| w.incarnation);
            if entry.incarnation != 0 && (entry.incarnation != owner || entry.count == 0) {
                entry.incarnation = 0;
            }
        }
        unknown
    }

    /// Frees servers whose namespace never came into being, and ends the generations of all that is
    /// free.
    fn drop_orphans(&mut self) {
        let t = &mut *self.g;
        for s in t.servers.iter_mut() {
            let homeless = t.spaces.get(s.space as usize).is_none_or(|space| space.live == 0);
            if homeless {
                s.live = 0;
            }
            // A removal may have been cut short before the generation moved on: who still has a
            // request on what was here must not take it for the server that comes next.
            if s.live == 0 {
                s.generation = s.generation.wrapping_add(1);
            }
        }
        for space in t.spaces.iter_mut().filter(|space| space.live == 0) {
            space.generation = space.generation.wrapping_add(1);
        }
        // The high-water marks are stored after the records that they cover.
        let used = |live: &mut dyn Iterator<Item = bool>| {
            live.enumerate().filter(|(_, l)| *l).map(|(i, _)| i as u32 + 1).last().unwrap_or(0)
        };
        let servers = used(&mut t.servers.iter().map(|s| s.live != 0));
        let spaces = used(&mut t.spaces.iter().map(|s| s.live != 0));
        t.header.high_water = t.header.high_water.max(servers);
        t.header.space_high_water = t.header.space_high_water.max(spaces);
        let numbers = t.servers.iter().filter(|s| s.live != 0).map(|s| s.number);
        let next = numbers.max().unwrap_or(0) + 1;
        t.header.next_number = t.header.next_number.max(next);
    }

    /// Chains the ledger entries of each worker and adds them up.
    fn relink_ledger(&mut self, unknown: bool) {
        let t = &mut *self.g;
        for worker in t.workers.iter_mut() {
            worker.ledger_head = NONE;
            if unknown {
                worker.unledgered = 0;
            }
        }
        if unknown {
            t.header.recount = t.header.recount.wrapping_add(1);
        }
        for at in 0..t.ledger.len() as u32 {
            let entry = t.ledger[at as usize];
            if entry.incarnation == 0 {
                continue;
            }
            let worker = &mut t.workers[entry.worker as usize];
            let head = std::mem::replace(&mut worker.ledger_head, at);
            t.ledger[at as usize].prev = NONE;
            t.ledger[at as usize].next = head;
            if let Some(next) = t.ledger.get_mut(head as usize) {
                next.prev = at;
            }
            if let Some(s) = t.servers.get_mut(entry.server as usize)
                && s.live != 0
                && s.generation == entry.generation
            {
                s.conns += entry.count;
            }
        }
    }

    /// Checks that everything derived agrees with what is true.
    ///
    /// # Errors
    ///
    /// What disagrees.
    pub fn check(&self) -> Result<(), String> {
        let t = &*self.g;
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
        let (mut servers, mut spaces) = (0, 0);
        for i in 0..t.spaces.len() as u32 {
            let space = &t.spaces[i as usize];
            if space.live == 0 {
                continue;
            }
            spaces += 1;
            heap::check(t, i)?;
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
            let class = classify(s, space.members == 1);
            if s.class != u32::from(class) {
                return Err(format!("{who} is in class {}, belongs in {class}", s.class));
            }
            classes[usize::from(class)] += 1;
            let places = t.slots[at as usize].at.iter().filter(|p| **p != NONE).count();
            let wanted = match class {
                class::READY => space.orders.count_ones() as usize,
                class::FAILED => 1,
                _ => 0,
            };
            if places != wanted {
                return Err(format!("{who} of class {class} is in {places} heaps"));
            }
            expected_in_heaps += wanted;
            if self.find(i, &super::Address::of(s)) != Some(at) {
                return Err(format!("{who} is not found"));
            }
            (n, prev, number, at) = (n + 1, at, s.number, s.member_next);
        }
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

    fn check_free_lists(&self) -> Result<(), String> {
        let t = &*self.g;
        let count = |mut at: u32, next: &dyn Fn(u32) -> Option<u32>| {
            let mut n = 0;
            while let Some(after) = next(at) {
                n += 1;
                at = after;
            }
            n
        };
        let lists = [
            (
                "servers",
                count(t.header.free_server, &|i| t.servers.get(i as usize).map(|s| s.hash_next)),
                t.servers.iter().filter(|s| s.live == 0).count(),
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
