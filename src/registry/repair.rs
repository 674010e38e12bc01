//! After a crash: everything derived is made anew from what is true.
//!
//! True are the fields of live records and the ledger entries of living workers. Each operation
//! writes them so that a process killed at any instruction leaves either the old or the new truth:
//! a record comes into being and goes with one store of its `live` field, and a change of several
//! fields goes through the header's journal.

use std::sync::atomic::{Ordering, compiler_fence};

use super::member::{append, classify, enter_class, freshen, index, is_one};
use super::worker::{VACANT, is_dead};
use super::{Registry, names, space};
use crate::shm::{Extent, JOURNAL_EMPTY, NONE, dirty, fault, flag, heap as heap_id};

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
        fault::point!("repair.begun");
        self.finish_journal();
        fault::point!("repair.journal");
        let unknown = self.drop_the_dead();
        self.drop_orphans();
        self.drop_nameless();
        self.renew_free_slots();
        self.rebuild_queue();
        fault::point!("repair.freed");

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
                orders: s.orders & 7,
                name_len: s.name_len.min(crate::shm::SPACE_NAME_MAX as u8),
                name: s.name,
                heaps: [Extent::default(); heap_id::COUNT],
                ..space::EMPTY
            };
            space::index(t, slot);
            t.header.spaces += 1;
            fault::point!("repair.space");
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
            s.next_address = NONE;
            t.header.servers += 1;
            index(t, slot);
            append(t, slot);
            fault::point!("repair.server");
        }
        self.relink_ledger(unknown);

        let t = &mut *self.g;
        for &slot in &members {
            names::enlist(t, slot);
        }
        // Who is alone is known when the names are: see `Space::names`.
        members.sort_by_key(|slot| !t.servers[*slot as usize].is_name());
        for &slot in &members {
            let s = &t.servers[slot as usize];
            let alone = is_one(&t.spaces[s.space as usize]);
            let class = classify(s, alone);
            enter_class(t, slot, class);
            fault::point!("repair.class");
        }
        // By heartbeat, so that each is appended at the end of its list.
        members
            .retain(|slot| t.servers[*slot as usize].flags & (flag::STATIC | flag::EXPIRED) == 0);
        members.sort_by_key(|slot| t.servers[*slot as usize].heartbeat_mono);
        for &slot in &members {
            freshen(t, slot);
            fault::point!("repair.fresh");
        }
        for slot in 0..t.header.space_high_water {
            self.drop_if_unused(slot);
        }
        self.rebuild_queue();
        self.find_warming();
        fault::point!("repair.swept");
        before(|| self.g.repaired());
    }

    /// Finishes a change of several fields that was cut short.
    fn finish_journal(&mut self) {
        let t = &mut *self.g;
        let target = t.header.journal_target;
        if let Some(s) = t.servers.get_mut(target as usize) {
            *s = t.header.journal;
        }
        before(|| t.header.journal_target = JOURNAL_EMPTY);
    }

    /// Frees the slots and ledger entries of dead workers. True when one of them had requests that
    /// were not in the ledger: on which servers is not known.
    fn drop_the_dead(&mut self) -> bool {
        let zone = self.g.zone();
        let mut unknown = self.g.header.dirty & dirty::RECOUNT != 0;
        for slot in 0..self.g.workers.len() {
            let worker = self.g.workers[slot];
            if worker.incarnation == 0 || !is_dead(zone, slot) {
                continue;
            }
            if worker.unledgered > 0 {
                // Kept where it outlives this process, which may die before it has counted anew.
                unknown = true;
                before(|| self.g.header.dirty |= dirty::RECOUNT);
            }
            if self.g.header.leader_incarnation == worker.incarnation {
                self.g.header.leader_incarnation = 0;
            }
            self.g.workers[slot] = VACANT;
            fault::point!("repair.vacant");
            zone.release_worker(slot);
        }
        let t = &mut *self.g;
        for entry in t.ledger.iter_mut() {
            let owner = t.workers.get(entry.worker as usize).map_or(0, |w| w.incarnation);
            if entry.incarnation != 0 && (entry.incarnation != owner || entry.count == 0) {
                entry.incarnation = 0;
                fault::point!("repair.ledger");
            }
        }
        unknown
    }

    /// Frees servers whose namespace never came into being, and ends removals.
    fn drop_orphans(&mut self) {
        let t = &mut *self.g;
        for s in t.servers.iter_mut() {
            let homeless = t.spaces.get(s.space as usize).is_none_or(|space| space.live == 0);
            // Or whose removal was cut short: its record has given up what it was.
            if s.live != 0 && (homeless || s.is_departed()) {
                s.live = 0;
            }
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

    /// Gives all free slots a new generation: who died while it freed one may not have got so far,
    /// and a request that is still on what was there must not be counted on what comes there next.
    fn renew_free_slots(&mut self) {
        let t = &mut *self.g;
        for s in t.servers.iter_mut().filter(|s| s.live == 0) {
            s.generation = s.generation.wrapping_add(1);
        }
        for s in t.spaces.iter_mut().filter(|s| s.live == 0) {
            s.generation = s.generation.wrapping_add(1);
        }
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
            fault::point!("repair.linked");
            if let Some(s) = t.servers.get_mut(entry.server as usize)
                && s.live != 0
                && s.generation == entry.generation
            {
                s.conns += entry.count;
            }
        }
    }
}
