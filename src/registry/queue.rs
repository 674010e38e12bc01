//! Which servers Redis is still to be told of, and those that have departed.
//!
//! A server with [`pending`] bits stands in a queue, in the order of its first change. One that is
//! removed keeps its slot: first until Redis has been told, then for [`KEEP`], because a failover of
//! Redis may lose the removal, and whoever still knows of it tells again. All of this is only in a
//! zone that shares its servers (`redis`); without, a slot is free at once.

use super::member::journaled;
use super::repair::before;
use super::space::SpaceName;
use super::{Now, Registry};
use crate::shm::{AGES, NONE, SPACE_NAME_MAX, Server, Tables, changed, fault, flag, pending};

/// Milliseconds that a departed server is kept after Redis was told: longer than a replica may lag
/// and a failover may take.
const KEEP: u64 = 60_000;

/// The two lists that a slot can be in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    /// Redis is to be told.
    Queued,
    /// Departed, and Redis knows.
    Kept,
}

fn ends<'t>(t: &'t mut Tables<'_>, list: List) -> (&'t mut u32, &'t mut u32) {
    let shared = &mut t.header.shared;
    match list {
        List::Queued => (&mut shared.queue_head, &mut shared.queue_tail),
        List::Kept => (&mut shared.kept_head, &mut shared.kept_tail),
    }
}

/// Appends a slot that is in neither list.
pub(super) fn append(t: &mut Tables<'_>, slot: u32, list: List) {
    let (head, tail) = ends(t, list);
    let prev = std::mem::replace(tail, slot);
    if prev == NONE {
        *head = slot;
    } else {
        t.servers[prev as usize].queue_next = slot;
    }
    let s = &mut t.servers[slot as usize];
    s.queue_prev = prev;
    s.queue_next = NONE;
    t.header.shared.queued += u32::from(list == List::Queued);
}

fn is_in(t: &mut Tables<'_>, slot: u32, list: List) -> bool {
    t.servers[slot as usize].queue_prev != NONE || *ends(t, list).0 == slot
}

/// Takes a slot out of the list that it is in; nothing happens when it is not.
pub(super) fn remove(t: &mut Tables<'_>, slot: u32, list: List) {
    if !is_in(t, slot, list) {
        return;
    }
    let Server { queue_prev: prev, queue_next: next, .. } = t.servers[slot as usize];
    match prev {
        NONE => *ends(t, list).0 = next,
        prev => t.servers[prev as usize].queue_next = next,
    }
    match next {
        NONE => *ends(t, list).1 = prev,
        next => t.servers[next as usize].queue_prev = prev,
    }
    fault::point!("queue.unlinked");
    let s = &mut t.servers[slot as usize];
    s.queue_prev = NONE;
    s.queue_next = NONE;
    t.header.shared.queued -= u32::from(list == List::Queued);
}

/// Whether other nodes are told of a server, if the zone shares any. Those of `server` lines are each
/// node's own, and so are the addresses that it finds for a name.
pub(super) fn is_told(s: &Server) -> bool {
    s.flags & flag::STATIC == 0 && !s.is_of_name()
}

/// A time on the monotonic clock as [`Server::changed`] has it.
pub(super) fn stamp(mono: u64) -> u64 {
    mono + AGES
}

/// The age in milliseconds of what changed at a stamp.
pub(super) fn age(stamped: u64, now: Now) -> u64 {
    stamp(now.mono).saturating_sub(stamped)
}

/// The stamp of what changed so many milliseconds ago.
pub(super) fn stamp_of_age(age: u64, now: Now) -> u64 {
    stamp(now.mono).saturating_sub(age)
}

/// The bits whose changes have a time of their own.
const STAMPED: [(u32, usize); changed::COUNT] = [
    (pending::ADD, changed::ADD),
    (pending::WEIGHT, changed::WEIGHT),
    (pending::MAX_CONNS, changed::MAX_CONNS),
    (pending::SWITCH, changed::SWITCH),
    (pending::SETTINGS, changed::SETTINGS),
];

/// Notes in the record of a server that departs which namespace it was in.
pub(super) fn set_departed_space(s: &mut Server, name: &[u8; SPACE_NAME_MAX]) {
    s.route.copy_from_slice(&name[..32]);
    s.health_path[..32].copy_from_slice(&name[32..]);
}

/// The name of a departed server's namespace.
pub(super) fn departed_space(s: &Server) -> [u8; SPACE_NAME_MAX] {
    let mut name = [0; SPACE_NAME_MAX];
    name[..32].copy_from_slice(&s.route);
    name[32..].copy_from_slice(&s.health_path[..32]);
    name
}

impl Registry<'_> {
    /// Whether the servers are shared through Redis.
    pub fn shares(&self) -> bool {
        self.g.header.shared.on != 0
    }

    /// A record with a change that happens now: `bits` say which parts are new. It is to be stored,
    /// and then [`Registry::enqueue`]d.
    pub(super) fn news_of(&self, mut s: Server, bits: u32, now: Now) -> Server {
        for (bit, at) in STAMPED {
            if bits & bit != 0 {
                s.changed[at] = stamp(now.mono);
            }
        }
        if self.shares() && is_told(&s) {
            s.pending |= bits;
            s.edition = s.edition.wrapping_add(1);
        }
        s
    }

    /// Puts a server whose record says that something is pending into the queue.
    pub(super) fn enqueue(&mut self, slot: u32) {
        let t = &mut *self.g;
        if t.servers[slot as usize].pending != 0 && !is_in(t, slot, List::Queued) {
            append(t, slot, List::Queued);
        }
    }

    /// Notes that everything about a server is to be told, with the times at which it changed.
    pub(super) fn tell_all(&mut self, slot: u32) {
        let departed = self.g.servers[slot as usize].is_departed();
        let again = pending::REMOVE | pending::AGAIN;
        self.tell(slot, if departed { again } else { pending::ALL });
    }

    /// Notes that parts of a server are to be told, with the times at which they changed.
    pub(super) fn tell(&mut self, slot: u32, bits: u32) {
        if bits != 0 {
            let s = &mut self.g.servers[slot as usize];
            s.pending |= bits;
            s.edition = s.edition.wrapping_add(1);
            self.enqueue(slot);
        }
    }

    /// Notes a sign of life that came to this node.
    pub(super) fn beat(&mut self, slot: u32) {
        let shares = self.shares();
        let s = &mut self.g.servers[slot as usize];
        s.flags &= !flag::AFAR;
        if shares && is_told(s) {
            s.pending = (s.pending & !pending::FORGET) | pending::BEAT;
            s.edition = s.edition.wrapping_add(1);
            fault::point!("queue.beat");
            self.enqueue(slot);
        }
    }

    /// Nothing is to be told of a server any more.
    pub(super) fn nothing_pending(&mut self, slot: u32) {
        remove(&mut self.g, slot, List::Queued);
        self.g.servers[slot as usize].pending = 0;
    }

    /// As [`Registry::nothing_pending`] when the record says already that nothing is.
    pub(super) fn nothing_queued(&mut self, slot: u32) {
        remove(&mut self.g, slot, List::Queued);
    }

    /// Redis is to be told again of a departed server, unless it is there again.
    pub(super) fn requeue_departed(&mut self, slot: u32) {
        let s = self.g.servers[slot as usize];
        let space = departed_space(&s);
        let space = SpaceName::new(super::news::trimmed(&space).as_bytes());
        let there = space.and_then(|name| self.find_space(name)).is_some_and(|space| {
            self.find_name(space.slot, &s.name[..usize::from(s.name_len)]).is_some()
        });
        if there {
            self.forget_departed(slot);
            return;
        }
        remove(&mut self.g, slot, List::Kept);
        self.tell_all(slot);
    }

    /// Removes a server, and tells Redis so when the zone shares its servers.
    pub(super) fn depart(&mut self, slot: u32, now: Now) {
        if !self.shares() || !is_told(&self.g.servers[slot as usize]) {
            self.erase(slot);
            return;
        }
        self.mark_departed(slot, stamp(now.mono), pending::REMOVE);
        self.unlink(slot);
        fault::point!("depart.unlinked");
        self.enqueue(slot);
        fault::point!("depart.queued");
    }

    /// Removes a server that Redis says was removed so long ago, and remembers that.
    pub(super) fn depart_as_told(&mut self, slot: u32, age: u64, version: u64, now: Now) {
        self.nothing_pending(slot);
        self.mark_departed(slot, stamp_of_age(age, now), 0);
        self.unlink(slot);
        self.g.servers[slot as usize].record_version = version;
        append(&mut self.g, slot, List::Kept);
    }

    fn mark_departed(&mut self, slot: u32, stamped: u64, bits: u32) {
        let t = &mut *self.g;
        let mut s = t.servers[slot as usize];
        let name = t.spaces[s.space as usize].name;
        set_departed_space(&mut s, &name);
        s.changed[changed::ADD] = stamped;
        s.pending = bits;
        s.edition = s.edition.wrapping_add(1);
        s.flags |= flag::DEPARTED;
        journaled(t, slot, s);
        fault::point!("depart.marked");
    }

    /// Gives a departed server of another zone, or one from a file, a slot. False: there is none.
    pub(super) fn insert_departed(&mut self, s: &Server) -> bool {
        let t = &mut *self.g;
        let slot = t.header.free_server;
        let Some(free) = t.servers.get_mut(slot as usize) else { return false };
        t.header.free_server = free.hash_next;
        let generation = free.generation;
        *free = Server {
            live: 0,
            flags: s.flags & !flag::DEPARTED,
            generation,
            number: t.header.next_number,
            conns: 0,
            unledgered: 0,
            ..*s
        };
        t.header.next_number += 1;
        t.header.high_water = t.header.high_water.max(slot + 1);
        before(|| t.servers[slot as usize].flags |= flag::DEPARTED);
        let list = if s.pending != 0 { List::Queued } else { List::Kept };
        append(t, slot, list);
        true
    }

    /// Redis has been told of a departed server.
    pub(super) fn keep_departed(&mut self, slot: u32) {
        self.nothing_pending(slot);
        append(&mut self.g, slot, List::Kept);
    }

    /// Frees the slot of a departed server.
    pub(super) fn forget_departed(&mut self, slot: u32) {
        let t = &mut *self.g;
        let list = if t.servers[slot as usize].pending != 0 { List::Queued } else { List::Kept };
        remove(t, slot, list);
        let free = t.header.free_server;
        let s = &mut t.servers[slot as usize];
        s.pending = 0;
        before(|| s.flags &= !flag::DEPARTED);
        fault::point!("depart.forgotten");
        s.hash_next = free;
        t.header.free_server = slot;
    }

    /// Frees the slots of some departed servers that have been kept for long enough.
    pub fn forget_old_departed(&mut self, now: Now) {
        for _ in 0..64 {
            let first = self.g.header.shared.kept_head;
            match self.g.servers.get(first as usize) {
                Some(s) if age(s.changed[changed::ADD], now) > KEEP => self.forget_departed(first),
                _ => return,
            }
        }
    }

    /// Whether there is a free slot, or one that can be had: a departed server that Redis knows of
    /// goes first. Never one that Redis has not been told of: it would come back.
    pub(super) fn has_room(&mut self) -> bool {
        let first = self.g.header.shared.kept_head;
        if self.g.header.free_server == NONE && first != NONE {
            self.forget_departed(first);
        }
        self.g.header.free_server != NONE
    }

    /// When the departed server of that name left this node, as a stamp, while Redis has not been
    /// told. They are few: a snapshot is read only when all removals have been told.
    pub(super) fn departed_at(&self, space: SpaceName<'_>, name: &[u8]) -> Option<u64> {
        let mut at = self.g.header.shared.queue_head;
        let mut found = None;
        while let Some(s) = self.g.servers.get(at as usize) {
            if s.is_departed()
                && s.name.get(..usize::from(s.name_len)) == Some(name)
                && super::news::was_in(s, space.as_str())
            {
                found = found.max(Some(s.changed[changed::ADD]));
            }
            at = s.queue_next;
        }
        found
    }

    /// Makes both lists anew from what the records say.
    pub(super) fn rebuild_queue(&mut self) {
        let t = &mut *self.g;
        let shared = &mut t.header.shared;
        (shared.queue_head, shared.queue_tail) = (NONE, NONE);
        (shared.kept_head, shared.kept_tail) = (NONE, NONE);
        shared.queued = 0;
        for slot in 0..t.header.high_water {
            let s = &mut t.servers[slot as usize];
            s.queue_prev = NONE;
            s.queue_next = NONE;
            if s.live == 0 && !s.is_departed() {
                s.pending = 0;
            }
            let (pending, departed) = (s.pending, s.is_departed());
            if pending != 0 {
                append(t, slot, List::Queued);
            } else if departed {
                append(t, slot, List::Kept);
            }
        }
    }

    /// Checks both lists against the records.
    ///
    /// # Errors
    ///
    /// What disagrees.
    pub(super) fn check_queue(&self) -> Result<(), String> {
        let t = &*self.g;
        let shared = &t.header.shared;
        let walk = |head: u32, tail: u32, queued: bool| {
            let (mut n, mut prev, mut at) = (0usize, NONE, head);
            while let Some(s) = t.servers.get(at as usize) {
                if s.queue_prev != prev || (s.pending != 0) != queued || n > t.servers.len() {
                    return Err(format!("queue: slot {at} is not linked rightly"));
                }
                (n, prev, at) = (n + 1, at, s.queue_next);
            }
            if prev != tail { Err(format!("queue ends with {prev}, not {tail}")) } else { Ok(n) }
        };
        let queued = walk(shared.queue_head, shared.queue_tail, true)?;
        let kept = walk(shared.kept_head, shared.kept_tail, false)?;
        let pending = t.servers.iter().filter(|s| s.pending != 0).count();
        let departed = t.servers.iter().filter(|s| s.is_departed() && s.pending == 0).count();
        if queued != pending || queued != shared.queued as usize || kept != departed {
            let counted = shared.queued;
            return Err(format!(
                "{pending} pending, {queued} queued, {counted} counted; {departed} departed, {kept} kept"
            ));
        }
        if t.servers.iter().any(|s| s.is_departed() && s.live != 0) {
            return Err("a departed server is live".to_owned());
        }
        Ok(())
    }

    /// The namespace of a live server, or of a departed one.
    pub(super) fn space_bytes(&self, s: &Server) -> [u8; SPACE_NAME_MAX] {
        if s.is_departed() { departed_space(s) } else { self.g.spaces[s.space as usize].name }
    }
}
