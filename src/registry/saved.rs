//! What outlives a zone: its servers as the state file keeps them, and their way back.
//!
//! Two nginx may write one file in turn, while a new binary takes over from an old one. Whoever
//! finds a file that another wrote reads it in before writing its own: see [`Merge`].

use std::collections::HashSet;

use super::address::Address;
use super::member::EMPTY;
use super::queue::{age, is_told, set_departed_space, stamp_of_age};
use super::settings::Settings;
use super::space::{SpaceName, name_of};
use super::{Error, Events, Happening, Now, Registry, Rules, names};
use crate::shm::{Filed, NEVER_FILED, SPACE_NAME_MAX, Server, changed, flag, pending, reason};

/// Why a server is switched off, as far as that is kept. Silence is not: who comes back from the
/// file has a `heartbeat_ttl` to show up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SwitchedOff {
    /// By hand.
    Manual,
    /// By `down` on its `server` line.
    Configured,
}

/// A server as the state file keeps it. Times in milliseconds since the epoch, 0 for never.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedServer {
    /// The namespace's name, a valid one.
    pub namespace: String,
    /// Where it listens.
    pub address: Address,
    /// Its number in the zone that wrote it.
    pub number: u64,
    /// 0 to [`super::WEIGHT_MAX`].
    pub weight: u32,
    /// 0 to [`super::MAX_CONNS_MAX`].
    pub max_conns: u32,
    /// What else its registration or line said.
    pub settings: Settings,
    /// Switched off.
    pub off: Option<SwitchedOff>,
    /// When it was.
    pub disabled_at: u64,
    /// Finishes its requests.
    pub draining: bool,
    /// From a `server` line.
    pub is_static: bool,
    /// That line said `down`.
    pub down: bool,
    /// First registration.
    pub created_at: u64,
    /// Last change but counts and heartbeats.
    pub updated_at: u64,
    /// Last sign of life on the monotonic clock of this machine, in milliseconds; 0: not told.
    /// Means something only to another nginx that runs at the same time.
    pub heard: u64,
    /// It was removed then, and other nodes have not been told: 0 for a server that is there.
    pub removed_at: u64,
}

/// A server's record, copied while the lock was held.
#[derive(Clone)]
pub struct Copied {
    space: [u8; SPACE_NAME_MAX],
    slot: u32,
    server: Server,
}

impl Copied {
    pub(super) fn new(space: [u8; SPACE_NAME_MAX], slot: u32, server: &Server) -> Self {
        Self { space, slot, server: *server }
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    pub(super) fn slot(&self) -> u32 {
        self.slot
    }

    /// The name of its namespace.
    pub fn namespace(&self) -> &str {
        super::news::trimmed(&self.space)
    }

    /// Its address as printed.
    pub fn name(&self) -> &str {
        super::address::printed(&self.server)
    }

    /// What of it is kept. `now` is this moment on both clocks.
    pub fn saved(&self, now: Now) -> SavedServer {
        let s = &self.server;
        let has = |flag: u32| s.flags & flag != 0;
        let off = has(flag::DISABLED).then_some(match s.disabled_reason {
            reason::CONFIGURED => SwitchedOff::Configured,
            _ => SwitchedOff::Manual,
        });
        SavedServer {
            namespace: self.namespace().to_owned(),
            address: Address::of(s),
            number: s.number,
            weight: s.weight,
            max_conns: s.max_conns,
            settings: Settings::of(s),
            off,
            disabled_at: if off.is_some() { s.disabled_wall } else { 0 },
            draining: has(flag::DRAINING),
            is_static: has(flag::STATIC),
            down: has(flag::CONFIGURED_DOWN),
            created_at: s.created_wall,
            updated_at: s.updated_wall,
            heard: s.heartbeat_mono,
            removed_at: match s.is_departed() {
                true => now.wall.saturating_sub(age(s.changed[changed::ADD], now)).max(1),
                false => 0,
            },
        }
    }
}

/// A walk through all servers of a zone, slice by slice. Who is there from its start to its end is
/// in it once.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    next: u32,
    /// [`Registry::version`] when it began.
    pub version: u64,
    /// Every server that was there when it began has a lower number.
    pub next_number: u64,
    /// It is through.
    pub done: bool,
}

/// Whose file it is that is being read in: see [`Filed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The zone that wrote it.
    pub instance: u64,
    /// [`Snapshot::next_number`] of that.
    pub next_number: u64,
    /// The zone that the writer had read in before, and the next number there.
    pub seen: Option<(u64, u64)>,
}

/// The reading in of a file that another nginx wrote.
///
/// Servers that are there and not here were registered there, unless their number says that they
/// had been read in before: then they were removed here since. Servers that are here and not there
/// were registered here, unless the writer had read them from us: then they were removed there.
/// Numbers and not times tell it, so that no clock has to be right. What differs is decided by the
/// later change.
#[derive(Debug)]
pub struct Merge {
    source: Source,
    read_before: u64,
    gone_below: u64,
    slot: u32,
    expected: u64,
    unsaved: bool,
    full: Option<Error>,
}

impl Merge {
    /// Whether the zone has changes that the file has not.
    pub fn has_unsaved(&self) -> bool {
        self.unsaved
    }

    /// Why not all had room.
    pub fn full(&self) -> Option<&Error> {
        self.full.as_ref()
    }
}

impl Registry<'_> {
    /// What the state file has of this zone.
    pub fn filed(&mut self) -> &mut Filed {
        &mut self.g.header.filed
    }

    /// Whether something is to be written to the file at a path (its hash).
    pub fn is_unsaved(&self, path: u64) -> bool {
        let Filed { version, path: last, .. } = self.g.header.filed;
        version != self.g.header.version || last != path
    }

    /// Whether any configuration has used this zone yet.
    pub fn is_new(&self) -> bool {
        self.g.header.cycle == 0
    }

    /// Begins a walk through all servers.
    pub fn snapshot(&self) -> Snapshot {
        let header = &self.g.header;
        Snapshot { next: 0, version: header.version, next_number: header.next_number, done: false }
    }

    /// Copies the next servers. `slots` places are looked at; `into` should have room for as many.
    pub fn copy(&self, snapshot: &mut Snapshot, slots: u32, into: &mut Vec<Copied>) {
        let high = self.g.header.high_water;
        let end = high.min(snapshot.next.saturating_add(slots));
        for slot in snapshot.next..end {
            let s = &self.g.servers[slot as usize];
            // Who was removed is kept until other nodes have been told. The addresses of a name are
            // found again.
            if (s.live != 0 && !s.is_of_name()) || (s.is_departed() && s.pending != 0) {
                into.push(Copied::new(self.space_bytes(s), slot, s));
            }
        }
        snapshot.next = end;
        snapshot.done = end >= high;
    }

    /// Puts servers from a file into a zone that has none yet, before its configuration is applied.
    /// Each has a `heartbeat_ttl` from now to show up.
    ///
    /// # Errors
    ///
    /// How many of how many had no room.
    pub fn restore(
        &mut self,
        source: Source,
        servers: &[SavedServer],
        now: Now,
    ) -> Result<usize, usize> {
        let mut order: Vec<&SavedServer> = servers.iter().collect();
        order.sort_by_key(|s| s.number);
        let (mut restored, mut without_room) = (0, 0);
        for saved in order {
            if saved.removed_at > 0 {
                self.depart_again(saved, now);
                continue;
            }
            match self.come_back(saved, now) {
                Ok(_) => restored += 1,
                Err(_) => without_room += 1,
            }
        }
        self.drop_unused_spaces();
        self.heard_from(source);
        self.g.header.filed.restored = self.g.header.next_number;
        if without_room > 0 { Err(without_room) } else { Ok(restored) }
    }

    /// Begins to read in what another nginx wrote while this one runs. `path`: the hash of the
    /// file's path.
    pub fn merge(&self, source: Source, path: u64) -> Merge {
        let filed = &self.g.header.filed;
        let again = filed.other == source.instance;
        let wrote = match source.seen {
            Some((instance, next)) if instance == filed.instance => next,
            _ => 0,
        };
        Merge {
            source,
            read_before: if again { filed.other_next } else { 0 },
            gone_below: wrote.max(if again { filed.restored } else { 0 }),
            slot: 0,
            expected: self.g.header.version,
            unsaved: self.is_unsaved(path),
            full: None,
        }
    }

    /// Reads in one server.
    pub fn merge_one(
        &mut self,
        merge: &mut Merge,
        saved: &SavedServer,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) {
        self.resume(merge);
        // Each nginx tells other nodes itself of what was removed there.
        let space = SpaceName::new(saved.namespace.as_bytes()).filter(|_| saved.removed_at == 0);
        let Some(space) = space else { return };
        let known = self.find_space(space).and_then(|s| self.find(s.slot, &saved.address));
        match known {
            Some(slot) if self.g.servers[slot as usize].is_of_name() && saved.is_static => {}
            Some(slot) => {
                // There it has been registered by itself.
                self.unname(slot);
                self.take_over(slot, saved, now);
                self.share_heartbeat(slot, saved.heard, rules, now, events);
            }
            // Each nginx has the `server` lines of its own configuration.
            None if saved.is_static || saved.number < merge.read_before => {}
            None => match self.come_back(saved, now) {
                Ok(slot) => {
                    self.say(Happening::Added, slot, events);
                    self.share_heartbeat(slot, saved.heard, rules, now, events);
                }
                Err(e) => merge.full = Some(e),
            },
        }
        merge.expected = self.g.header.version;
    }

    /// Looks at the next `slots` servers of the zone, when all of the file have been read in: those
    /// that the writer knew and `wrote` has no more are removed. `wrote` holds
    /// [`SavedServer::key`]s. Returns whether it is through.
    pub fn merge_gone(
        &mut self,
        merge: &mut Merge,
        slots: u32,
        wrote: &HashSet<String>,
        events: &mut Events,
    ) -> bool {
        self.resume(merge);
        let high = self.g.header.high_water;
        let end =
            if merge.gone_below == 0 { high } else { high.min(merge.slot.saturating_add(slots)) };
        if merge.gone_below > 0 {
            let mut key = String::new();
            for slot in merge.slot..end {
                let s = &self.g.servers[slot as usize];
                if s.live == 0 || !is_told(s) || s.number >= merge.gone_below {
                    continue;
                }
                key.clear();
                write_key(
                    &mut key,
                    name_of(&self.g.spaces[s.space as usize]),
                    super::address::printed(s),
                );
                if !wrote.contains(&key) {
                    self.say(Happening::Removed, slot, events);
                    self.erase(slot);
                }
            }
        }
        merge.slot = end;
        merge.expected = self.g.header.version;
        let done = end >= high;
        if done {
            self.heard_from(merge.source);
        }
        done
    }

    /// Notes changes that were made between two slices.
    fn resume(&self, merge: &mut Merge) {
        merge.unsaved |= merge.expected != self.g.header.version;
    }

    /// Notes up to where another zone's servers are known here.
    fn heard_from(&mut self, source: Source) {
        if self.g.header.filed.other != source.instance {
            self.g.header.filed.restored = 0;
        }
        self.g.header.filed.other = source.instance;
        self.g.header.filed.other_next = source.next_number;
    }

    /// After [`Registry::succeed`]: the file is that of the zone which this one replaces.
    pub(super) fn succeed_in_file(&mut self, old: &Registry<'_>) {
        let header = &old.g.header;
        self.g.header.filed = Filed {
            instance: self.g.header.filed.instance,
            version: NEVER_FILED,
            other: header.filed.instance,
            other_next: header.next_number,
            restored: 0,
            ..header.filed
        };
    }

    fn come_back(&mut self, saved: &SavedServer, now: Now) -> Result<u32, Error> {
        let name = SpaceName::new(saved.namespace.as_bytes())
            .ok_or_else(|| Error::NoSpace(saved.namespace.clone()))?;
        if !self.has_room() {
            return Err(Error::Full("server"));
        }
        let space = self.make_space(name)?;
        if let Some(slot) = self.find(space.slot, &saved.address) {
            return Ok(slot);
        }
        let changed = stamp_of_age(now.wall.saturating_sub(saved.updated_at), now);
        let created = stamp_of_age(now.wall.saturating_sub(saved.created_at), now);
        let mut server = Server {
            space: space.slot,
            // It was not heard of here.
            flags: if saved.is_static { flag::STATIC } else { flag::AFAR },
            weight: saved.weight,
            max_conns: saved.max_conns,
            heartbeat_mono: now.mono,
            heartbeat_wall: now.wall,
            created_wall: saved.created_at,
            updated_wall: saved.updated_at,
            started_mono: now.mono,
            changed: [created, changed, changed, changed, changed],
            ..EMPTY
        };
        if saved.down {
            server.flags |= flag::CONFIGURED_DOWN;
        }
        saved.settings.apply(&mut server);
        switch(&mut server, saved);
        saved.address.write(&mut server);
        self.insert(server).ok_or(Error::Full("server"))
    }

    /// What was removed before the start, and other nodes have not been told.
    fn depart_again(&mut self, saved: &SavedServer, now: Now) {
        let mut server = Server {
            number: saved.number,
            pending: pending::REMOVE,
            changed: [stamp_of_age(now.wall.saturating_sub(saved.removed_at), now); changed::COUNT],
            ..EMPTY
        };
        let name = saved.namespace.as_bytes();
        if SpaceName::new(name).is_some() {
            let mut space = [0; SPACE_NAME_MAX];
            space[..name.len()].copy_from_slice(name);
            set_departed_space(&mut server, &space);
            saved.address.write(&mut server);
            self.insert_departed(&server);
        }
    }

    /// The later change of a server wins.
    fn take_over(&mut self, slot: u32, saved: &SavedServer, now: Now) {
        let old = self.g.servers[slot as usize];
        if saved.updated_at <= old.updated_wall {
            return;
        }
        let updated_wall = saved.updated_at.min(now.wall);
        let mut new = Server { updated_wall, ..old };
        if old.flags & flag::STATIC == 0 || saved.is_static {
            new.weight = saved.weight;
            new.max_conns = saved.max_conns;
            saved.settings.apply(&mut new);
        }
        switch(&mut new, saved);
        self.follow(slot, &new, names::difference(&old, &new), now);
        self.replace(slot, new);
        self.touch();
    }

    /// Takes a sign of life that came to the other nginx.
    fn share_heartbeat(
        &mut self,
        slot: u32,
        heard: u64,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) {
        let s = &self.g.servers[slot as usize];
        // Small differences are not worth a place in the list of heartbeats.
        let margin = (rules.ttl / 4).min(500);
        let news = heard <= now.mono && heard > s.heartbeat_mono + margin;
        if !news || rules.ttl == 0 || now.mono - heard > rules.ttl || s.flags & flag::STATIC != 0 {
            return;
        }
        let then = Now { mono: heard, wall: now.wall.saturating_sub(now.mono - heard) };
        if self.heard_of(slot, then) && self.g.servers[slot as usize].flags & flag::DISABLED == 0 {
            self.say(Happening::Back, slot, events);
        }
    }
}

/// Off, on and draining as a file has it.
fn switch(server: &mut Server, saved: &SavedServer) {
    server.flags &= !(flag::DISABLED | flag::DRAINING);
    if saved.draining {
        server.flags |= flag::DRAINING;
    }
    let (reason, wall) = match saved.off {
        Some(SwitchedOff::Manual) => (reason::MANUAL, saved.disabled_at),
        Some(SwitchedOff::Configured) => (reason::CONFIGURED, saved.disabled_at),
        None if server.flags & flag::SILENCED != 0 => return,
        None => (reason::NONE, 0),
    };
    if saved.off.is_some() {
        server.flags |= flag::DISABLED;
    }
    server.disabled_reason = reason;
    server.disabled_wall = wall;
}

fn write_key(key: &mut String, namespace: &str, address: &str) {
    key.push_str(namespace);
    key.push(' ');
    key.push_str(address);
}

impl SavedServer {
    /// What tells it from all others: the namespace and the address.
    pub fn key(&self) -> String {
        let mut key = String::new();
        write_key(&mut key, &self.namespace, &self.address.to_string());
        key
    }
}
