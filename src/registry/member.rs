//! Servers as members of a namespace: index, lists, class.

use super::address::Address;
use super::order::{self, Standing, group};
use super::queue::{self, List};
use super::settings::{HealthPath, Settings};
use super::{Now, Registry, chain, health, heap, names, tree, warm};
use crate::shm::{Checks, Key, NONE, Server, Space, Tables, class, fault, flag, heap as heap_id};

fn bucket_of(t: &Tables<'_>, server: &Server) -> usize {
    bucket(t, server.space, &server.name[..usize::from(server.name_len)])
}

fn bucket(t: &Tables<'_>, space: u32, name: &[u8]) -> usize {
    chain::bucket(t.header.secret, &[&space.to_ne_bytes(), name], t.server_index.len())
}

/// Enters a server into the hash table.
pub(super) fn index(t: &mut Tables<'_>, slot: u32) {
    let bucket = bucket_of(t, &t.servers[slot as usize]);
    chain::link(&mut t.server_index[bucket], t.servers, slot);
}

fn unindex(t: &mut Tables<'_>, slot: u32) {
    let bucket = bucket_of(t, &t.servers[slot as usize]);
    chain::unlink(&mut t.server_index[bucket], t.servers, slot);
}

/// Appends a server to the members of its namespace.
pub(super) fn append(t: &mut Tables<'_>, slot: u32) {
    let s = &mut t.servers[slot as usize];
    let space = &mut t.spaces[s.space as usize];
    s.member_prev = space.member_tail;
    s.member_next = NONE;
    match space.member_tail {
        NONE => space.member_head = slot,
        tail => t.servers[tail as usize].member_next = slot,
    }
    space.member_tail = slot;
    space.members += 1;
    space.statics += u32::from(t.servers[slot as usize].flags & flag::STATIC != 0);
}

fn detach(t: &mut Tables<'_>, slot: u32) {
    let Server { member_prev: prev, member_next: next, space, flags, .. } =
        t.servers[slot as usize];
    match prev {
        NONE => t.spaces[space as usize].member_head = next,
        prev => t.servers[prev as usize].member_next = next,
    }
    match next {
        NONE => t.spaces[space as usize].member_tail = prev,
        next => t.servers[next as usize].member_prev = prev,
    }
    let space = &mut t.spaces[space as usize];
    space.members -= 1;
    space.statics -= u32::from(flags & flag::STATIC != 0);
}

/// Whether a namespace has one server and no other. Names do not count, their addresses do.
#[inline]
pub(super) fn is_one(space: &Space) -> bool {
    space.members - space.names() == 1
}

/// Most steps back in the list of those heard of lately.
const REACH: u32 = 256;

/// Puts a server into the list of those heard of lately, by its heartbeat.
///
/// Almost always at the end. Clocks cached by different workers differ by milliseconds, and signs of
/// life from other nodes come later than those from here, so some steps back may be needed. After
/// [`REACH`] of them the server is taken for heard of a little later than it was: else ten thousand
/// that come from Redis at a time would each walk past all others.
pub(super) fn freshen(t: &mut Tables<'_>, slot: u32) {
    let Server { heartbeat_mono, space, parent, .. } = t.servers[slot as usize];
    let mut prev = t.spaces[space as usize].fresh_tail;
    // An address that is new has the heartbeat of its name.
    if let Some(name) = t.servers.get(parent as usize)
        && name.heartbeat_mono == heartbeat_mono
        && (name.fresh_prev != NONE || t.spaces[space as usize].fresh_head == parent)
    {
        prev = parent;
    }
    let mut steps = 0;
    while let Some(s) = t.servers.get(prev as usize)
        && s.heartbeat_mono > heartbeat_mono
    {
        if steps == REACH {
            t.servers[slot as usize].heartbeat_mono = s.heartbeat_mono;
            break;
        }
        prev = s.fresh_prev;
        steps += 1;
    }
    let next = match prev {
        NONE => std::mem::replace(&mut t.spaces[space as usize].fresh_head, slot),
        prev => std::mem::replace(&mut t.servers[prev as usize].fresh_next, slot),
    };
    match next {
        NONE => t.spaces[space as usize].fresh_tail = slot,
        next => t.servers[next as usize].fresh_prev = slot,
    }
    fault::point!("fresh.linked");
    let s = &mut t.servers[slot as usize];
    s.fresh_prev = prev;
    s.fresh_next = next;
}

/// Takes a server out of the list of those heard of lately; nothing happens when it is not in.
pub(super) fn stale(t: &mut Tables<'_>, slot: u32) {
    let Server { fresh_prev: prev, fresh_next: next, space, .. } = t.servers[slot as usize];
    if prev == NONE && t.spaces[space as usize].fresh_head != slot {
        return;
    }
    match prev {
        NONE => t.spaces[space as usize].fresh_head = next,
        prev => t.servers[prev as usize].fresh_next = next,
    }
    match next {
        NONE => t.spaces[space as usize].fresh_tail = prev,
        next => t.servers[next as usize].fresh_prev = prev,
    }
    fault::point!("stale.unlinked");
    let s = &mut t.servers[slot as usize];
    s.fresh_prev = NONE;
    s.fresh_next = NONE;
}

/// The class that a server's fields put it in. `alone`: it is its namespace's only server, which
/// ignores `max_fails`, as a stock upstream's only server does.
pub(super) fn classify(s: &Server, alone: bool) -> u8 {
    let has = |flags: u32| s.flags & flags != 0;
    if s.is_name() {
        if s.next_address == NONE { class::UNRESOLVED } else { class::NAME }
    } else if has(flag::DISABLED) {
        class::DISABLED
    } else if has(flag::SILENCED | flag::EXPIRED) {
        class::EXPIRED
    } else if has(flag::UNHEALTHY) {
        class::UNHEALTHY
    } else {
        classify_present(s, alone)
    }
}

/// The class of a server that is neither switched off nor silent nor unhealthy; of another, the one
/// that it would have then.
fn classify_present(s: &Server, alone: bool) -> u8 {
    let has = |flags: u32| s.flags & flags != 0;
    if has(flag::DRAINING) {
        class::DRAINING
    } else if s.weight == 0 {
        class::WEIGHT_ZERO
    } else if !alone && s.max_fails > 0 && s.fail_marks >= s.max_fails && !has(flag::RETRY) {
        class::FAILED
    } else if s.max_conns > 0 && on_all_nodes(s) >= s.max_conns {
        class::AT_MAX
    } else {
        class::READY
    }
}

/// Where a server stands in the heaps, by the class that it is in.
pub(super) fn standing(s: &Server, alone: bool) -> Standing {
    match s.class as u8 {
        class::READY => Standing::Ready,
        class::FAILED => Standing::Failed,
        class::EXPIRED | class::UNHEALTHY => match classify_present(s, alone) {
            class::READY => Standing::Standby,
            class::FAILED => Standing::Failed,
            _ => Standing::Out,
        },
        _ => Standing::Out,
    }
}

/// Puts a server that is expired or unhealthy where a panic finds it, if it may be chosen then.
fn stand_by(t: &mut Tables<'_>, slot: u32) {
    let s = &t.servers[slot as usize];
    let space = s.space;
    let now = standing(s, is_one(&t.spaces[space as usize]));
    let is_failed = t.slots[slot as usize].at[heap::cell(heap_id::RETRY)] != NONE;
    if is_failed && now != Standing::Failed {
        heap::remove(t, space, heap_id::RETRY, slot);
    }
    match (now, order::stands(t, slot)) {
        (Standing::Standby, true) => order::rank(t, slot),
        (Standing::Standby, false) => order::enter(t, slot),
        (_, true) => order::leave(t, slot),
        (_, false) => {}
    }
    if now == Standing::Failed {
        let key = retry_key(&t.servers[slot as usize]);
        match is_failed {
            true => heap::update(t, space, heap_id::RETRY, slot, key),
            false => heap::insert(t, space, heap_id::RETRY, slot, key),
        }
    }
}

/// Requests on a server, from all nodes: this one's exactly, the mean of the others'.
#[inline]
pub(super) fn on_all_nodes(s: &Server) -> u32 {
    s.conns.saturating_add((s.others + 128) >> 8)
}

/// Counts a server into its class and puts it where that class belongs.
pub(super) fn enter_class(t: &mut Tables<'_>, slot: u32, class: u8) {
    sort_in(t, slot, class);
    tree::enter(t, slot);
}

fn sort_in(t: &mut Tables<'_>, slot: u32, class: u8) {
    let s = &mut t.servers[slot as usize];
    s.class = u32::from(class);
    let group = group(s);
    let space = &mut t.spaces[s.space as usize];
    space.classes[usize::from(class)] += 1;
    match class {
        class::READY => {
            space.ready[group as usize] += 1;
            order::enter(t, slot);
        }
        class::FAILED => {
            let (key, space) = (retry_key(s), s.space);
            heap::insert(t, space, heap_id::RETRY, slot, key);
        }
        class::EXPIRED | class::UNHEALTHY => stand_by(t, slot),
        _ => {}
    }
}

fn leave_class(t: &mut Tables<'_>, slot: u32) {
    let s = &t.servers[slot as usize];
    let (class, group, at) = (s.class as u8, group(s), s.space);
    let space = &mut t.spaces[at as usize];
    space.classes[usize::from(class)] -= 1;
    match class {
        class::READY => {
            space.ready[group as usize] -= 1;
            if space.classes[usize::from(class::READY)] == 0 {
                space.common_weight = NONE;
            }
            order::leave(t, slot);
        }
        class::FAILED => heap::remove(t, at, heap_id::RETRY, slot),
        class::EXPIRED | class::UNHEALTHY => {
            order::leave(t, slot);
            heap::remove(t, at, heap_id::RETRY, slot);
        }
        _ => {}
    }
}

/// Moves a server to the class that its fields now put it in; renews its rank when it stays ready.
#[inline]
pub(super) fn reclassify(t: &mut Tables<'_>, slot: u32) {
    let s = &t.servers[slot as usize];
    let class = classify(s, is_one(&t.spaces[s.space as usize]));
    if u32::from(class) != s.class {
        leave_class(t, slot);
        fault::point!("class.left");
        enter_class(t, slot, class);
        fault::point!("class.entered");
    } else if class == class::READY {
        order::rank(t, slot);
    } else if class == class::FAILED {
        // It failed once more while resting: the rest starts again.
        let (key, space) = (retry_key(s), s.space);
        heap::update(t, space, heap_id::RETRY, slot, key);
    } else if class == class::EXPIRED || class == class::UNHEALTHY {
        stand_by(t, slot);
    }
}

/// When a failed server may be tried again; as in stock, not before `now - checked > fail_timeout`.
fn retry_key(s: &Server) -> Key {
    Key { major: s.checked_mono + u64::from(s.fail_timeout_ms) + 1, minor: s.number }
}

/// Writes a record in one go: cut short, the change is finished by the repair. Returns whether the
/// weight is another one.
pub(super) fn journaled(t: &mut Tables<'_>, slot: u32, new: Server) -> bool {
    let reweighed = t.servers[slot as usize].weight != new.weight;
    t.header.journal = new;
    fault::point!("journal.written");
    super::repair::before(|| t.header.journal_target = slot);
    fault::point!("journal.marked");
    #[cfg(any(fault, test))]
    {
        // A copy is many instructions; here it is cut in two.
        t.servers[slot as usize].weight = new.weight;
        t.servers[slot as usize].flags = new.flags;
        fault::point!("journal.half");
    }
    t.servers[slot as usize] = new;
    fault::point!("journal.copied");
    super::repair::before(|| t.header.journal_target = crate::shm::JOURNAL_EMPTY);
    fault::point!("journal.empty");
    reweighed
}

impl Registry<'_> {
    /// The slot of a server.
    pub(super) fn find(&self, space: u32, address: &Address) -> Option<u32> {
        self.find_name(space, address.print().bytes())
    }

    /// The slot of a server by its printed address.
    pub(super) fn find_name(&self, space: u32, name: &[u8]) -> Option<u32> {
        let t = &*self.g;
        let mut at = t.server_index[bucket(t, space, name)];
        while let Some(s) = t.servers.get(at as usize) {
            if s.space == space && s.name.get(..usize::from(s.name_len)) == Some(name) {
                return Some(at);
            }
            at = s.hash_next;
        }
        None
    }

    /// Takes a free record and makes it `server`, with a number of its own.
    pub(super) fn insert(&mut self, server: Server) -> Option<u32> {
        let t = &mut *self.g;
        let slot = t.header.free_server;
        let free = t.servers.get_mut(slot as usize)?;
        t.header.free_server = free.hash_next;
        fault::point!("add.slot");
        let initial = match server.is_name() {
            true => 0,
            false => health::initial_flags(t.spaces[server.space as usize].flags),
        };
        t.checks[slot as usize] = Checks::default();
        *free = Server {
            live: 0,
            generation: free.generation,
            number: t.header.next_number,
            flags: server.flags & !flag::DEPARTED | initial,
            conns: 0,
            unledgered: 0,
            queue_prev: NONE,
            queue_next: NONE,
            next_address: NONE,
            ..server
        };
        t.header.next_number += 1;
        t.header.high_water = t.header.high_water.max(slot + 1);
        fault::point!("add.written");
        super::repair::before(|| t.servers[slot as usize].live = 1);
        fault::point!("add.live");

        t.header.servers += 1;
        index(t, slot);
        fault::point!("add.indexed");
        append(t, slot);
        fault::point!("add.member");
        if server.flags & (flag::STATIC | flag::EXPIRED) == 0 {
            freshen(t, slot);
        }
        fault::point!("add.fresh");
        let alone = is_one(&t.spaces[server.space as usize]);
        let class = classify(&t.servers[slot as usize], alone);
        enter_class(t, slot, class);
        fault::point!("add.classed");
        names::link(t, slot);
        if !alone && !server.is_name() {
            self.company_changed(server.space);
        }
        warm::note(&mut self.g, slot);
        self.touch();
        self.enqueue(slot);
        Some(slot)
    }

    /// Frees a server's record. Requests on it go on; their release finds the generation changed.
    pub(super) fn erase(&mut self, slot: u32) {
        self.nothing_pending(slot);
        self.unlink(slot);
    }

    /// Takes a server out of its namespace, and frees its record unless that says that it is kept.
    pub(super) fn unlink(&mut self, slot: u32) {
        self.drop_addresses(slot);
        let t = &mut *self.g;
        let s = &t.servers[slot as usize];
        let (space, is_name) = (s.space, s.is_name());
        names::unlink(t, slot);
        super::repair::before(|| t.servers[slot as usize].live = 0);
        fault::point!("remove.dead");
        leave_class(t, slot);
        tree::leave(t, slot);
        fault::point!("remove.declassed");
        stale(t, slot);
        fault::point!("remove.stale");
        detach(t, slot);
        fault::point!("remove.detached");
        unindex(t, slot);
        fault::point!("remove.unindexed");
        let free = t.header.free_server;
        let s = &mut t.servers[slot as usize];
        s.generation = s.generation.wrapping_add(1);
        if !s.is_departed() {
            s.hash_next = free;
            t.header.free_server = slot;
        }
        t.header.servers -= 1;
        fault::point!("remove.freed");
        self.touch();
        if !is_name {
            self.company_changed(space);
        }
        self.drop_if_unused(space);
    }

    /// Replaces the fields of a record in one go: cut short, the change is finished by the repair.
    pub(super) fn replace(&mut self, slot: u32, new: Server) {
        let t = &mut *self.g;
        let reweighed = journaled(t, slot, new);
        reclassify(t, slot);
        if reweighed {
            tree::enter(t, slot);
        }
    }

    /// As [`Registry::replace`] for a change that may move the server between lists: from the
    /// registered to the static ones, from the primaries to the backups.
    pub(super) fn adopt(&mut self, slot: u32, new: Server) {
        let t = &mut *self.g;
        leave_class(t, slot);
        tree::leave(t, slot);
        stale(t, slot);
        fault::point!("adopt.left");
        let space = new.space as usize;
        t.spaces[space].statics -= u32::from(t.servers[slot as usize].flags & flag::STATIC != 0);
        t.spaces[space].statics += u32::from(new.flags & flag::STATIC != 0);
        let new = Server { fresh_prev: NONE, fresh_next: NONE, ..new };
        journaled(t, slot, new);
        // What a `server` line makes of it is not for other nodes.
        queue::remove(t, slot, List::Queued);
        t.servers[slot as usize].pending = 0;
        if new.flags & (flag::STATIC | flag::EXPIRED) == 0 {
            freshen(t, slot);
        }
        fault::point!("adopt.fresh");
        let class = classify(&t.servers[slot as usize], is_one(&t.spaces[space]));
        enter_class(t, slot, class);
        self.touch();
    }

    /// A namespace's only server ignores `max_fails`: who is alone is looked at anew when servers
    /// come or go.
    fn company_changed(&mut self, space: u32) {
        let s = &self.g.spaces[space as usize];
        let mut left = s.members - s.names();
        if left > 2 {
            return;
        }
        let mut next = s.member_head;
        while let Some(s) = self.g.servers.get(next as usize).filter(|_| left > 0) {
            let (at, is_name) = (next, s.is_name());
            next = s.member_next;
            if !is_name {
                reclassify(&mut self.g, at);
                left -= 1;
            }
        }
    }

    /// A sign of life: moves the server to the end of the fresh ones and ends what silence did.
    /// True when it had been known as expired.
    pub(super) fn heard_of(&mut self, slot: u32, now: Now) -> bool {
        self.addresses_heard_of(slot, now);
        let t = &mut *self.g;
        let s = &mut t.servers[slot as usize];
        if s.flags & flag::STATIC == 0 && s.flags & (flag::EXPIRED | flag::SILENCED) != 0 {
            let heard = Server { heartbeat_wall: now.wall, heartbeat_mono: now.mono, ..*s };
            self.end_silence(slot, heard, now);
            return true;
        }
        s.heartbeat_wall = now.wall;
        s.heartbeat_mono = now.mono;
        fault::point!("heartbeat.noted");
        if s.flags & flag::STATIC != 0 {
            return false;
        }
        stale(t, slot);
        fault::point!("heartbeat.stale");
        freshen(t, slot);
        false
    }

    /// Ends what silence did to a server, whose record is to become `s`.
    pub(super) fn end_silence(&mut self, slot: u32, mut s: Server, now: Now) {
        if s.flags & flag::SILENCED != 0 && s.flags & flag::DISABLED == 0 {
            s.disabled_reason = crate::shm::reason::NONE;
            s.disabled_wall = 0;
            s.updated_wall = now.wall;
        }
        // In a panic it has had requests all the time.
        if s.flags & flag::DISABLED == 0 && !self.in_panic(s.space) {
            warm::begin(&mut s, now);
        }
        s.flags &= !(flag::EXPIRED | flag::SILENCED);
        let t = &mut *self.g;
        stale(t, slot);
        let Server { fresh_prev, fresh_next, .. } = t.servers[slot as usize];
        let reweighed = journaled(t, slot, Server { fresh_prev, fresh_next, ..s });
        freshen(t, slot);
        reclassify(t, slot);
        if reweighed {
            tree::enter(t, slot);
        }
        warm::note(t, slot);
        self.touch();
    }
}

/// A record with nothing in it.
pub(super) const EMPTY: Server = Server {
    live: 0,
    generation: 0,
    number: 0,
    flags: 0,
    class: class::READY as u32,
    conns: 0,
    unledgered: 0,
    weight: 1,
    max_conns: 0,
    heartbeat_mono: 0,
    space: NONE,
    fail_marks: 0,
    turn: [0; 2],
    requests: 0,
    fails: 0,
    served_mono: 0,
    accessed_mono: 0,
    checked_mono: 0,
    max_fails: Settings::DEFAULT.max_fails,
    fail_timeout_ms: Settings::DEFAULT.fail_timeout_ms,
    hash_next: NONE,
    member_prev: NONE,
    member_next: NONE,
    fresh_prev: NONE,
    fresh_next: NONE,
    family: 0,
    name_len: 0,
    port: 0,
    ip: [0; 16],
    name: [0; crate::shm::NAME_MAX],
    disabled_reason: 0,
    warmth: 0,
    heartbeat_wall: 0,
    created_wall: 0,
    updated_wall: 0,
    disabled_wall: 0,
    pending: 0,
    queue_prev: NONE,
    queue_next: NONE,
    edition: 0,
    told_mean: 0,
    others: 0,
    others_damped: 0,
    record_version: 0,
    changed: [0; crate::shm::changed::COUNT],
    busy: 0,
    busy_from: 0,
    busy_until: 0,
    slow_start_ms: Settings::DEFAULT.slow_start_ms,
    started_mono: 0,
    bytes: [0; 2],
    responses: [0; 5],
    route: [0; 32],
    label: [0; 8],
    next_address: NONE,
    parent: NONE,
    timeouts_ms: Settings::DEFAULT.timeouts_ms,
    health_path: HealthPath::NONE.bytes(),
};
