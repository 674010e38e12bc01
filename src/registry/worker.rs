//! Worker processes: which live, who leads, and what they carry.

use std::collections::HashMap;

use super::repair::before;
use super::{Registry, member};
use crate::shm::{LedgerEntry, NONE, WorkerRecord, Zone, dirty, fault};

/// This process's part in a zone: its slot, and where its ledger entries are.
///
/// The worker holds a mutex of its own for as long as it lives; that the mutex can be taken proves
/// it dead, which a process id, used again by the kernel, does not.
#[derive(Debug)]
pub struct Worker {
    /// [`NONE`] when the zone has no slot left: the worker counts outside the ledger then.
    slot: u32,
    incarnation: u64,
    cycle: u64,
    /// The ledger entry of each server, as a hint to be checked.
    entries: Vec<u32>,
    /// Requests that found no room in the ledger, by slot and generation of the server.
    outside: HashMap<(u32, u32), u32>,
    recount: u32,
}

impl Worker {
    /// A process that reads and changes servers but sends them no requests.
    pub fn spectator() -> Self {
        Self {
            slot: NONE,
            incarnation: 0,
            cycle: 0,
            entries: Vec::new(),
            outside: HashMap::new(),
            recount: 0,
        }
    }

    /// Its incarnation; 0 when it has no slot.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

impl Registry<'_> {
    /// Joins the zone. What dead workers left is the caller's to take back before, see
    /// [`Registry::reap`].
    pub fn join(&mut self, pid: u32) -> Worker {
        let zone = self.g.zone();
        let mut worker = Worker {
            entries: vec![NONE; self.g.servers.len()],
            recount: self.g.header.recount,
            cycle: self.g.header.cycle,
            ..Worker::spectator()
        };
        for slot in 0..self.g.workers.len() {
            if self.g.workers[slot].incarnation != 0 {
                continue;
            }
            // Free slots are unlocked; one that can't be taken is left alone.
            if !matches!(zone.claim_worker(slot), Ok(Some(_))) {
                continue;
            }
            fault::point!("join.claimed");
            let incarnation = self.g.header.next_incarnation;
            self.g.header.next_incarnation += 1;
            self.g.workers[slot] = WorkerRecord {
                incarnation,
                cycle: self.g.header.cycle,
                ledger_head: NONE,
                unledgered: 0,
                pid,
                leaving: 0,
            };
            fault::point!("join.recorded");
            worker.slot = slot as u32;
            worker.incarnation = incarnation;
            break;
        }
        worker
    }

    /// Leaves the zone: takes back the counts that are still there and frees the slot.
    pub fn leave(&mut self, mut worker: Worker) {
        self.resign(&worker);
        fault::point!("leave.resigned");
        // What a death has made others drop is not there to be taken back.
        self.restate(&mut worker);
        let lost: Vec<_> = worker.outside.into_iter().collect();
        for ((server, generation), count) in lost {
            self.uncount_outside(worker.slot, server, generation, count);
            fault::point!("leave.outside");
        }
        if worker.slot != NONE {
            let zone = self.g.zone();
            self.clear_worker(worker.slot);
            fault::point!("leave.vacant");
            zone.release_worker(worker.slot as usize);
        }
    }

    /// Takes back what dead workers left. Returns how many there were.
    pub fn reap(&mut self) -> usize {
        let zone = self.g.zone();
        let mut dead = 0;
        for slot in 0..self.g.workers.len() {
            if self.g.workers[slot].incarnation == 0 || !is_dead(zone, slot) {
                continue;
            }
            fault::point!("reap.found");
            self.clear_worker(slot as u32);
            fault::point!("reap.vacant");
            zone.release_worker(slot);
            dead += 1;
        }
        dead
    }

    fn clear_worker(&mut self, slot: u32) {
        let WorkerRecord { incarnation, unledgered, .. } = self.g.workers[slot as usize];
        let mut at = self.g.workers[slot as usize].ledger_head;
        while let Some(&entry) = self.g.ledger.get(at as usize) {
            if entry.incarnation != incarnation {
                break;
            }
            self.free_entry(at);
            fault::point!("reap.entry");
            self.settle(entry.server, entry.generation, entry.count);
            fault::point!("reap.settled");
            at = entry.next;
        }
        if unledgered > 0 {
            self.recount();
        }
        self.g.workers[slot as usize] = VACANT;
        if self.g.header.leader_incarnation == incarnation {
            self.g.header.leader_incarnation = 0;
        }
    }

    /// Takes `count` requests off a server, if it is still the one that they were given to.
    fn settle(&mut self, server: u32, generation: u32, count: u32) {
        let Some(s) = self.g.servers.get_mut(server as usize) else { return };
        if s.live != 0 && s.generation == generation {
            s.conns = s.conns.saturating_sub(count);
            member::reclassify(&mut self.g, server);
        }
    }

    /// Drops all counts that are not in the ledger: who of the dead had them is not known. The
    /// living state theirs again, see [`Registry::restate`].
    fn recount(&mut self) {
        before(|| self.g.header.dirty |= dirty::RECOUNT);
        fault::point!("recount.begun");
        for slot in 0..self.g.header.high_water {
            let s = &mut self.g.servers[slot as usize];
            if s.live != 0 && s.unledgered > 0 {
                s.conns = s.conns.saturating_sub(s.unledgered);
                s.unledgered = 0;
                member::reclassify(&mut self.g, slot);
                fault::point!("recount.half");
            }
        }
        for worker in &mut self.g.workers[..] {
            worker.unledgered = 0;
        }
        fault::point!("recount.counted");
        self.g.header.recount = self.g.header.recount.wrapping_add(1);
        before(|| self.g.header.dirty &= !dirty::RECOUNT);
    }

    /// States this worker's counts outside the ledger again after [`Registry::recount`].
    #[inline]
    pub fn restate(&mut self, worker: &mut Worker) {
        if worker.recount != self.g.header.recount {
            self.restate_all(worker);
        }
    }

    #[cold]
    fn restate_all(&mut self, worker: &mut Worker) {
        worker.recount = self.g.header.recount;
        let mine: Vec<_> = worker.outside.iter().map(|(k, n)| (*k, *n)).collect();
        for ((server, generation), count) in mine {
            self.count_outside(worker.slot, server, generation, count);
            fault::point!("restate.one");
        }
    }

    // Wherever a process dies while it counts outside the ledger, its own record says that it had
    // such requests: it is the first to grow and the last to shrink.

    fn count_outside(&mut self, worker: u32, server: u32, generation: u32, count: u32) {
        if let Some(w) = self.g.workers.get_mut(worker as usize) {
            before(|| w.unledgered += count);
        }
        let s = &mut self.g.servers[server as usize];
        if s.live != 0 && s.generation == generation {
            s.unledgered += count;
            s.conns += count;
            member::reclassify(&mut self.g, server);
        }
    }

    fn uncount_outside(&mut self, worker: u32, server: u32, generation: u32, count: u32) {
        let s = &mut self.g.servers[server as usize];
        if s.live != 0 && s.generation == generation {
            s.unledgered = s.unledgered.saturating_sub(count);
        }
        self.settle(server, generation, count);
        if let Some(w) = self.g.workers.get_mut(worker as usize) {
            before(|| w.unledgered = w.unledgered.saturating_sub(count));
        }
    }

    /// Books one request of `worker` on `server`. Returns the ledger entry, [`NONE`] when the
    /// ledger is full: the request is counted all the same. The server's rank is the caller's to
    /// renew.
    pub(super) fn book(&mut self, worker: &mut Worker, server: u32) -> u32 {
        let generation = self.g.servers[server as usize].generation;
        let hint = worker.entries.get(server as usize).copied().unwrap_or(NONE);
        if let Some(e) = self.g.ledger.get_mut(hint as usize)
            && e.incarnation == worker.incarnation
            && e.server == server
            && e.generation == generation
            && worker.slot != NONE
        {
            e.count += 1;
            fault::point!("book.again");
            self.g.servers[server as usize].conns += 1;
            return hint;
        }

        let at = self.g.header.free_ledger;
        if worker.slot == NONE || at as usize >= self.g.ledger.len() {
            *worker.outside.entry((server, generation)).or_insert(0) += 1;
            if let Some(w) = self.g.workers.get_mut(worker.slot as usize) {
                before(|| w.unledgered += 1);
            }
            fault::point!("book.outside");
            let s = &mut self.g.servers[server as usize];
            s.unledgered += 1;
            s.conns += 1;
            return NONE;
        }

        let t = &mut *self.g;
        let head = t.workers[worker.slot as usize].ledger_head;
        t.header.free_ledger = t.ledger[at as usize].next;
        fault::point!("book.popped");
        t.ledger[at as usize] = LedgerEntry {
            incarnation: worker.incarnation,
            server,
            generation,
            count: 1,
            worker: worker.slot,
            prev: NONE,
            next: head,
        };
        fault::point!("book.written");
        if let Some(next) = t.ledger.get_mut(head as usize) {
            next.prev = at;
        }
        t.workers[worker.slot as usize].ledger_head = at;
        fault::point!("book.chained");
        t.servers[server as usize].conns += 1;
        worker.entries[server as usize] = at;
        at
    }

    /// Takes back what [`Registry::book`] booked. The server's rank is the caller's to renew.
    pub(super) fn unbook(&mut self, worker: &mut Worker, entry: u32, server: u32, generation: u32) {
        match self.g.ledger.get_mut(entry as usize) {
            Some(e) => {
                let mine = e.incarnation == worker.incarnation
                    && e.server == server
                    && e.generation == generation;
                debug_assert!(mine && e.count > 0, "a request released twice");
                if !mine {
                    return;
                }
                e.count -= 1;
                if e.count == 0 {
                    fault::point!("unbook.last");
                    self.free_entry(entry);
                }
            }
            None => {
                let Some(n) = worker.outside.get_mut(&(server, generation)) else { return };
                *n -= 1;
                if *n == 0 {
                    worker.outside.remove(&(server, generation));
                }
                let s = &mut self.g.servers[server as usize];
                if s.live != 0 && s.generation == generation {
                    s.unledgered = s.unledgered.saturating_sub(1);
                }
                fault::point!("unbook.outside");
                if let Some(w) = self.g.workers.get_mut(worker.slot as usize) {
                    before(|| w.unledgered = w.unledgered.saturating_sub(1));
                }
            }
        }
        fault::point!("unbook.counted");
        let s = &mut self.g.servers[server as usize];
        if s.live != 0 && s.generation == generation {
            s.conns = s.conns.saturating_sub(1);
        }
    }

    fn free_entry(&mut self, at: u32) {
        let t = &mut *self.g;
        let LedgerEntry { prev, next, worker, .. } = t.ledger[at as usize];
        match t.ledger.get_mut(prev as usize) {
            Some(p) => p.next = next,
            None => t.workers[worker as usize].ledger_head = next,
        }
        if let Some(n) = t.ledger.get_mut(next as usize) {
            n.prev = prev;
        }
        fault::point!("entry.unlinked");
        t.ledger[at as usize].incarnation = 0;
        fault::point!("entry.freed");
        t.ledger[at as usize].next = t.header.free_ledger;
        t.header.free_ledger = at;
    }

    /// Whether `worker` is the one that runs the timers' work. When nobody alive of its own or a
    /// newer configuration is, it becomes that.
    pub fn elect(&mut self, worker: &Worker) -> bool {
        if worker.slot == NONE || self.g.workers[worker.slot as usize].leaving != 0 {
            return false;
        }
        let leader = self.g.header.leader_incarnation;
        if leader == worker.incarnation {
            return true;
        }
        if leader != 0 {
            let slot = self.g.header.leader_slot as usize;
            let current = self.g.workers.get(slot).is_some_and(|l| {
                l.incarnation == leader && l.leaving == 0 && l.cycle >= worker.cycle
            });
            if current && !is_held_by_the_dead(self.g.zone(), slot) {
                return false;
            }
        }
        self.g.header.leader_incarnation = worker.incarnation;
        fault::point!("elect.half");
        self.g.header.leader_slot = worker.slot;
        true
    }

    /// Whether `worker` is the one that writes the state file: the elected one; among those on their
    /// way out, when nobody stays, the first.
    pub fn elect_writer(&mut self, worker: &Worker) -> bool {
        if self.elect(worker) {
            return true;
        }
        if worker.slot == NONE || self.g.workers[worker.slot as usize].leaving == 0 {
            return false;
        }
        let zone = self.g.zone();
        let mine = worker.slot as usize;
        (0..self.g.workers.len()).filter(|slot| *slot != mine).all(|slot| {
            let other = self.g.workers[slot];
            other.incarnation == 0
                || (other.leaving != 0 && slot > mine)
                || is_held_by_the_dead(zone, slot)
        })
    }

    /// Whether no living worker takes part in the zone any more.
    pub fn is_deserted(&self) -> bool {
        let zone = self.g.zone();
        (0..self.g.workers.len())
            .all(|slot| self.g.workers[slot].incarnation == 0 || is_held_by_the_dead(zone, slot))
    }

    /// Gives up the leadership and stands for no election again.
    pub fn resign(&mut self, worker: &Worker) {
        if worker.slot == NONE {
            return;
        }
        self.g.workers[worker.slot as usize].leaving = 1;
        if self.g.header.leader_incarnation == worker.incarnation {
            self.g.header.leader_incarnation = 0;
        }
    }

    /// Process id of the elected worker.
    pub fn leader_pid(&self) -> Option<u32> {
        let header = &self.g.header;
        let leader = self.g.workers.get(header.leader_slot as usize)?;
        (leader.incarnation == header.leader_incarnation && leader.incarnation != 0)
            .then_some(leader.pid)
    }

    /// Notes that a newer configuration uses the zone from now on.
    pub fn next_cycle(&mut self) {
        self.g.header.cycle += 1;
        fault::point!("cycle.next");
    }
}

/// A slot nobody uses.
pub(super) const VACANT: WorkerRecord =
    WorkerRecord { incarnation: 0, cycle: 0, ledger_head: NONE, unledgered: 0, pid: 0, leaving: 0 };

/// Whether the worker of a slot in use has died; its mutex is then held by this process, to be
/// released when the slot is cleared.
pub(super) fn is_dead(zone: &Zone, slot: usize) -> bool {
    matches!(zone.claim_worker(slot), Ok(Some(_)))
}

/// As [`is_dead`], but leaves the slot to be reaped.
fn is_held_by_the_dead(zone: &Zone, slot: usize) -> bool {
    let dead = is_dead(zone, slot);
    if dead {
        zone.release_worker(slot);
    }
    dead
}
