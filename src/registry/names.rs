//! Names as servers: what a resolver finds for one are servers of their own.
//!
//! A name's record is its registration: heartbeats, weight, on and off, drain and removal go to it. It
//! is never chosen itself. Each of its addresses has a record too, whose `parent` is the name's slot,
//! with the settings and the heartbeat of the name. Names are shared and saved as any server is,
//! addresses are not: each node asks its own resolver.

use std::net::IpAddr;

use super::address::Address;
use super::member::{self, EMPTY};
use super::repair::before;
use super::saved::Copied;
use super::settings::Settings;
use super::{Error, Events, Happening, Network, Now, Registry, warm};
use crate::shm::{NONE, Server, Space, Tables, fault, flag, pending, reason};

/// What `toggle`, `drain` and silence switch.
const SWITCH: u32 = flag::DISABLED | flag::SILENCED | flag::DRAINING;

/// A name as it was found: valid while its number is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NameRef {
    slot: u32,
    number: u64,
}

/// What a resolver found for a name, and what of it becomes servers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// The lowest in the order of addresses, so that all nodes take the same; [`Found::MOST`] at
    /// most.
    pub taken: Vec<IpAddr>,
    /// How many there are besides.
    pub over: usize,
    /// Those that `allow_servers` does not let in.
    pub refused: Vec<IpAddr>,
    /// 0.0.0.0 or :: was among them.
    pub unspecified: bool,
}

impl Found {
    /// Most addresses of one name that become servers.
    pub const MOST: usize = 64;

    /// Takes what may become a server. `allow`: as [`Network::admit`] takes it.
    pub fn sift(mut all: Vec<IpAddr>, allow: &[Network]) -> Self {
        for ip in &mut all {
            *ip = ip.to_canonical();
        }
        all.sort_unstable();
        all.dedup();
        let before = all.len();
        all.retain(|ip| !ip.is_unspecified());
        let unspecified = all.len() < before;
        let (mut taken, refused): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|ip| Network::admit_ip(allow, *ip));
        let over = taken.len().saturating_sub(Self::MOST);
        taken.truncate(Self::MOST);
        Self { taken, over, refused, unspecified }
    }
}

/// Enters an address into the list of its name; nothing happens to another server.
pub(super) fn enlist(t: &mut Tables<'_>, slot: u32) {
    let parent = t.servers[slot as usize].parent;
    if let Some(name) = t.servers.get_mut(parent as usize) {
        let first = std::mem::replace(&mut name.next_address, slot);
        t.servers[slot as usize].next_address = first;
    }
}

/// The same when the name is in its class already.
pub(super) fn link(t: &mut Tables<'_>, slot: u32) {
    enlist(t, slot);
    let parent = t.servers[slot as usize].parent;
    if parent != NONE {
        fault::point!("names.linked");
        member::reclassify(t, parent);
    }
}

/// Takes an address out of the list of its name; nothing happens to another server.
pub(super) fn unlink(t: &mut Tables<'_>, slot: u32) {
    let Server { parent, next_address: next, .. } = t.servers[slot as usize];
    if parent == NONE {
        return;
    }
    let mut at = parent;
    while let Some(s) = t.servers.get_mut(at as usize) {
        if s.next_address == slot {
            s.next_address = next;
            break;
        }
        at = s.next_address;
    }
    t.servers[slot as usize].next_address = NONE;
    fault::point!("names.unlinked");
    member::reclassify(t, parent);
}

/// Which parts of a name have changed, as [`Registry::follow`] takes it.
pub(super) fn difference(old: &Server, new: &Server) -> u32 {
    let mut bits = 0;
    if settings(old) != settings(new) {
        bits |= pending::ADD;
    }
    if (old.flags ^ new.flags) & SWITCH != 0 {
        bits |= pending::SWITCH;
    }
    bits
}

/// What an address has of its name, beside its being on or off.
fn settings(s: &Server) -> (u32, u32, Settings) {
    (s.weight, s.max_conns, Settings::of(s))
}

fn with_settings(mut s: Server, name: &Server) -> Server {
    (s.weight, s.max_conns) = (name.weight, name.max_conns);
    Settings::of(name).apply(&mut s);
    s
}

/// Makes an address as much on or off as its name is.
fn switched(mut s: Server, name: &Server, now: Now) -> Server {
    let was = s.flags;
    s.flags = (s.flags & !SWITCH) | (name.flags & SWITCH);
    s.disabled_reason = name.disabled_reason;
    s.disabled_wall = name.disabled_wall;
    if was & SWITCH != 0 && s.flags & SWITCH == 0 {
        warm::begin(&mut s, now);
    }
    s
}

impl Registry<'_> {
    /// How many names there are.
    pub fn names(&self) -> u32 {
        let spaces = &self.g.spaces[..self.g.header.space_high_water as usize];
        spaces.iter().filter(|s| s.live != 0).map(Space::names).sum()
    }

    /// Every name and server registered from now on has this number or a higher one.
    pub fn next_number(&self) -> u64 {
        self.g.header.next_number
    }

    /// Finds the names among the next slots of the zone, `slots` at most. Returns whether it is
    /// through.
    pub fn find_names(&self, next: &mut u32, slots: u32, into: &mut Vec<NameRef>) -> bool {
        let high = self.g.header.high_water;
        let end = high.min(next.saturating_add(slots));
        for slot in *next..end {
            let s = &self.g.servers[slot as usize];
            if s.live != 0 && s.is_name() {
                into.push(NameRef { slot, number: s.number });
            }
        }
        *next = end;
        end >= high
    }

    /// The name's record; `None`: it has gone.
    pub fn copy_name(&self, name: NameRef) -> Option<Copied> {
        let s = self.named(name)?;
        Some(Copied::new(self.space_bytes(s), name.slot, s))
    }

    fn named(&self, name: NameRef) -> Option<&Server> {
        let s = self.g.servers.get(name.slot as usize)?;
        (s.live != 0 && s.is_name() && s.number == name.number).then_some(s)
    }

    /// How many addresses a name has.
    pub fn addresses(&self, name: NameRef) -> usize {
        let mut n = 0;
        let mut at = self.named(name).map_or(NONE, |s| s.next_address);
        while let Some(s) = self.g.servers.get(at as usize) {
            n += 1;
            at = s.next_address;
        }
        n
    }

    /// Takes what was found for a name: new addresses are added, those that are no more are removed,
    /// and those that stay keep everything. An address that is there in another way stays what it is.
    ///
    /// # Errors
    ///
    /// [`Error::Full`]: not all had room; [`Error::Retired`].
    pub fn take_addresses(
        &mut self,
        name: NameRef,
        found: &Found,
        now: Now,
        events: &mut Events,
    ) -> Result<(), Error> {
        self.writable()?;
        let Some(&Server { port, space, next_address, .. }) = self.named(name) else {
            return Ok(());
        };
        let mut at = next_address;
        while let Some(s) = self.g.servers.get(at as usize) {
            let (slot, Address::Inet(ip, _)) = (at, Address::of(s)) else { break };
            at = s.next_address;
            if !found.taken.contains(&ip) {
                self.say(Happening::Removed, slot, events);
                self.erase(slot);
                fault::point!("names.removed");
            }
        }
        for ip in &found.taken {
            let address = Address::Inet(*ip, port);
            if self.find(space, &address).is_some() {
                continue;
            }
            if !self.has_room() {
                return Err(Error::Full("server"));
            }
            let server = self.address_of(name.slot, &address, now);
            let slot = self.insert(server).ok_or(Error::Full("server"))?;
            self.say(Happening::Added, slot, events);
            fault::point!("names.added");
        }
        Ok(())
    }

    /// A new record for an address of a name.
    fn address_of(&self, parent: u32, address: &Address, now: Now) -> Server {
        let name = &self.g.servers[parent as usize];
        let new = Server {
            space: name.space,
            parent,
            flags: name.flags & (flag::EXPIRED | flag::AFAR),
            heartbeat_mono: name.heartbeat_mono,
            heartbeat_wall: name.heartbeat_wall,
            created_wall: now.wall,
            updated_wall: now.wall,
            ..EMPTY
        };
        let mut new = switched(with_settings(new, name), name, now);
        warm::begin(&mut new, now);
        address.write(&mut new);
        new
    }

    /// Calls `f` with the slots of a name's addresses; with none when it is no name.
    fn each_address(&mut self, slot: u32, mut f: impl FnMut(&mut Self, u32)) {
        let s = &self.g.servers[slot as usize];
        let mut at = if s.is_name() { s.next_address } else { NONE };
        while let Some(s) = self.g.servers.get(at as usize) {
            let next = s.next_address;
            f(self, at);
            at = next;
        }
    }

    /// Makes a change of a name that of its addresses. It is made there first: cut short, the name is
    /// as before, and whoever says it again makes the change again. `bits` say which parts.
    pub(super) fn follow(&mut self, slot: u32, name: &Server, bits: u32, now: Now) {
        if bits & (pending::ADD | pending::WEIGHT | pending::MAX_CONNS | pending::SWITCH) == 0 {
            return;
        }
        self.each_address(slot, |r, at| {
            let old = r.g.servers[at as usize];
            let mut new = old;
            if bits & pending::ADD != 0 {
                new = with_settings(new, name);
            }
            if bits & pending::WEIGHT != 0 {
                new.weight = name.weight;
            }
            if bits & pending::MAX_CONNS != 0 {
                new.max_conns = name.max_conns;
            }
            if bits & pending::SWITCH != 0 {
                new = switched(new, name, now);
            }
            if difference(&old, &new) == 0 {
                return;
            }
            new.updated_wall = now.wall;
            r.replace(at, new);
            warm::note(&mut r.g, at);
            warm::step(&mut r.g, at, now);
            fault::point!("names.follows");
        });
    }

    /// A sign of life of a name is one of its addresses.
    pub(super) fn addresses_heard_of(&mut self, slot: u32, now: Now) {
        let afar = self.g.servers[slot as usize].flags & flag::AFAR;
        self.each_address(slot, |r, at| {
            let s = &mut r.g.servers[at as usize];
            s.flags = (s.flags & !flag::AFAR) | afar;
            r.heard_of(at, now);
        });
    }

    /// The cleanup switches off a name that is silent.
    pub(super) fn silence_addresses(&mut self, slot: u32, now: Now) {
        self.each_address(slot, |r, at| {
            let s = r.g.servers[at as usize];
            if s.flags & (flag::DISABLED | flag::SILENCED) == 0 {
                let flags = s.flags | flag::SILENCED;
                let (disabled_wall, updated_wall) = (now.wall, now.wall);
                let disabled_reason = reason::HEARTBEAT_TIMEOUT;
                r.replace(at, Server { flags, disabled_reason, disabled_wall, updated_wall, ..s });
            }
        });
    }

    /// Requests from all nodes on a server, or on the addresses of a name.
    pub(super) fn carried(&self, slot: u32) -> u32 {
        let s = &self.g.servers[slot as usize];
        if !s.is_name() {
            return member::on_all_nodes(s);
        }
        let (mut sum, mut at) = (0u32, s.next_address);
        while let Some(s) = self.g.servers.get(at as usize) {
            sum = sum.saturating_add(member::on_all_nodes(s));
            at = s.next_address;
        }
        sum
    }

    /// Removes the addresses of a name that is about to go.
    pub(super) fn drop_addresses(&mut self, slot: u32) {
        self.each_address(slot, |r, at| {
            r.erase(at);
            fault::point!("names.dropped");
        });
    }

    /// Makes an address of a name a server of its own, which the name has no part in any more.
    /// Nothing happens to another server. Returns whether it was one.
    pub(super) fn unname(&mut self, slot: u32) -> bool {
        let t = &mut *self.g;
        if !t.servers[slot as usize].is_of_name() {
            return false;
        }
        unlink(t, slot);
        before(|| t.servers[slot as usize].parent = NONE);
        fault::point!("names.own");
        true
    }

    /// After a crash: frees addresses whose name is gone.
    pub(super) fn drop_nameless(&mut self) {
        let t = &mut *self.g;
        for slot in 0..t.servers.len() {
            let s = &t.servers[slot];
            let (live, of_name, parent, space) = (s.live, s.is_of_name(), s.parent, s.space);
            let named = || {
                let name = t.servers.get(parent as usize);
                name.is_some_and(|n| n.live != 0 && n.is_name() && n.space == space)
            };
            if live != 0 && of_name && !named() {
                t.servers[slot].live = 0;
            }
        }
    }

    /// Notes that the resolver has not answered about a name, or that it has. True: that is news.
    pub fn set_lost(&mut self, name: NameRef, lost: bool) -> bool {
        self.set_mark(name, flag::LOST, lost)
    }

    /// Notes that there is no such name, or that there is. True: that is news.
    pub fn set_not_found(&mut self, name: NameRef, missing: bool) -> bool {
        self.set_mark(name, flag::NOT_FOUND, missing)
    }

    fn set_mark(&mut self, name: NameRef, mark: u32, on: bool) -> bool {
        if self.named(name).is_none() {
            return false;
        }
        let s = &mut self.g.servers[name.slot as usize];
        let was = s.flags & mark != 0;
        s.flags = if on { s.flags | mark } else { s.flags & !mark };
        was != on
    }
}
