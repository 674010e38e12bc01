//! What came from other nodes through Redis, taken into the zone.

use super::address::Address;
use super::member::EMPTY;
use super::queue::{age, is_told, stamp_of_age};
use super::settings::Settings;
use super::space::SpaceName;
use super::{Error, Events, Happening, Now, Registry, Rules, names, warm};
use crate::shm::{Server, Shared, changed, flag, pending, reason};

/// A server as Redis has it. Ages are in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The namespace's name, a valid one.
    pub namespace: String,
    /// Where it listens.
    pub address: Address,
    /// Grows with each change, over all servers.
    pub version: u64,
    /// What it is.
    pub state: RecordState,
}

/// A server in Redis is there, or it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordState {
    /// Removed so long ago.
    Removed(u64),
    /// It is there.
    Live(LiveRecord),
}

/// What Redis has of a server that is there. Ages are in milliseconds. A server that was told by nodes
/// alone that don't tell settings has none of a known age.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each is the field of that name in `News`")]
pub struct LiveRecord {
    pub added: u64,
    pub weight: u32,
    pub weight_age: u64,
    pub max_conns: u32,
    pub max_conns_age: u64,
    pub disabled: bool,
    pub draining: bool,
    pub switch_age: u64,
    pub disabled_age: u64,
    pub created_age: u64,
    pub settings: Settings,
    pub settings_age: Option<u64>,
    pub heartbeat_age: u64,
}

/// What is to be done with servers that a snapshot of Redis has not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unseen {
    /// Redis has lost them, or never had them: it is told.
    Tell,
    /// They were removed while this node was away, for longer than removals are remembered. Only
    /// what was registered here since, no longer ago than this many milliseconds, is told.
    Drop(u64),
    /// Everything was wiped on purpose: they go. What was registered since is told.
    Wipe,
}

/// Value of [`Shared::unseen`] in a zone whose servers are older than removals are remembered:
/// [`Unseen::Drop`].
pub const AWAY_TOO_LONG: u32 = 2;

/// Value of [`Shared::unseen`] after a planned wipe: [`Unseen::Wipe`].
pub const WIPED: u32 = 3;

/// Which servers go when everything in Redis was wiped on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wipe {
    /// When it happened, as [`Server::changed`] has it. Who registered later stays.
    at: u64,
    next: u32,
    /// It is through.
    pub done: bool,
}

impl Wipe {
    /// One that happened so many milliseconds ago.
    pub fn new(age: u64, now: Now) -> Self {
        Self { at: stamp_of_age(age, now), next: 0, done: false }
    }
}

impl Registry<'_> {
    /// What this zone and Redis know of each other.
    pub fn shared(&mut self) -> &mut Shared {
        &mut self.g.header.shared
    }

    /// This zone among all that share their servers: random.
    pub fn instance(&self) -> u64 {
        self.g.header.filed.instance
    }

    /// Whether the configuration shares servers, from now on. What was there before is told.
    pub fn share(&mut self, on: bool) {
        let shared = &mut self.g.header.shared;
        let was = std::mem::replace(&mut shared.on, u32::from(on)) != 0;
        if on && was {
            return;
        }
        if !on {
            self.tell_nobody();
            return;
        }
        (shared.run, shared.heard_until, shared.connected) = (0, 0, 0);
        for slot in 0..self.g.header.high_water {
            let s = &self.g.servers[slot as usize];
            if s.live != 0 && is_told(s) {
                self.tell_all(slot);
            }
        }
    }

    /// Frees what is only kept for other nodes.
    fn tell_nobody(&mut self) {
        for slot in 0..self.g.header.high_water {
            let s = &self.g.servers[slot as usize];
            if s.is_departed() {
                self.forget_departed(slot);
            } else if s.live != 0 {
                self.nothing_pending(slot);
                let s = &mut self.g.servers[slot as usize];
                (s.others, s.others_damped, s.told_mean) = (0, 0, 0);
                super::member::reclassify(&mut self.g, slot);
            }
        }
    }

    /// Takes in what Redis has of a server. `Some` is the age of its last change, when another node
    /// made it and this one did not know.
    ///
    /// # Errors
    ///
    /// [`Error::Full`]; [`Error::NoSpace`] when the namespace's name is not valid.
    pub fn take_record(
        &mut self,
        record: &Record,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) -> Result<Option<u64>, Error> {
        let name = SpaceName::new(record.namespace.as_bytes())
            .ok_or_else(|| Error::NoSpace(record.namespace.clone()))?;
        let known = self.find_space(name).and_then(|s| self.find(s.slot, &record.address));
        // Each node has the `server` lines of its own configuration.
        if known.is_some_and(|slot| self.g.servers[slot as usize].flags & flag::STATIC != 0) {
            return Ok(None);
        }
        if let Some(slot) = known.filter(|slot| self.g.servers[*slot as usize].is_of_name()) {
            if matches!(record.state, RecordState::Removed(_)) {
                return Ok(None);
            }
            // It has been registered by itself, elsewhere.
            self.unname(slot);
        }
        let news = known.is_none_or(|s| self.g.servers[s as usize].record_version < record.version);
        let mut last = None;
        match (known, &record.state) {
            (None, RecordState::Removed(_)) => {}
            (Some(slot), RecordState::Removed(ago)) => {
                let s = &self.g.servers[slot as usize];
                // Registered here since: Redis is about to be told, or has lost it.
                let told = s.pending & pending::ADD == 0;
                let unseen = s.flags & flag::UNSEEN != 0;
                let again = if told && !unseen {
                    false
                } else if told && self.believes_redis() {
                    self.registered_since(slot, *ago, now)
                } else {
                    // What is milliseconds apart came in the order in which it is told, and this is
                    // still to be told, or told again of what Redis has lost: Redis says what it makes
                    // of it.
                    age(s.changed[changed::ADD], now) < ago.saturating_add(ALIKE)
                };
                if again && told {
                    self.g.servers[slot as usize].flags &= !flag::UNSEEN;
                    self.tell_all(slot);
                } else if !again {
                    self.say(Happening::Removed, slot, events);
                    self.depart_as_told(slot, *ago, record.version, now);
                    last = Some(*ago);
                }
            }
            (Some(slot), RecordState::Live(live)) => {
                self.take_change(slot, record.version, live, now, events);
                last = Some(last_change(live));
                self.heard_afar(slot, live.heartbeat_age, rules, now, events);
            }
            (None, RecordState::Live(live)) => {
                let printed = record.address.print();
                let left = self.departed_at(name, printed.bytes());
                if left.is_some_and(|left| left >= stamp_of_age(live.added, now)) {
                    return Ok(None);
                }
                let slot = self.insert_record(name, record, live, rules, now)?;
                self.say(Happening::Added, slot, events);
                last = Some(last_change(live));
            }
        }
        Ok(last.filter(|_| news))
    }

    /// Whether a snapshot is being read because Redis knows better than this node.
    fn believes_redis(&self) -> bool {
        matches!(self.g.header.shared.unseen, AWAY_TOO_LONG | WIPED)
    }

    /// Whether a server was registered here clearly later than it was removed as far as Redis knows,
    /// which has then lost something.
    pub(super) fn registered_since(&self, slot: u32, removed_ago: u64, now: Now) -> bool {
        age(self.g.servers[slot as usize].changed[changed::ADD], now) + ALIKE < removed_ago
    }

    fn insert_record(
        &mut self,
        name: SpaceName<'_>,
        record: &Record,
        live: &LiveRecord,
        rules: &Rules,
        now: Now,
    ) -> Result<u32, Error> {
        if !self.has_room() {
            return Err(Error::Full("server"));
        }
        let space = self.make_space(name)?;
        let mut flags = flag::AFAR;
        if rules.ttl > 0 && live.heartbeat_age > rules.ttl {
            flags |= flag::EXPIRED;
        }
        let mut server = Server {
            space: space.slot,
            flags,
            weight: live.weight,
            max_conns: live.max_conns,
            heartbeat_mono: now.mono.saturating_sub(live.heartbeat_age),
            heartbeat_wall: now.wall.saturating_sub(live.heartbeat_age),
            created_wall: now.wall.saturating_sub(live.created_age),
            updated_wall: now.wall.saturating_sub(last_change(live)),
            started_mono: now.mono,
            record_version: record.version,
            changed: [
                stamp_of_age(live.added, now),
                stamp_of_age(live.weight_age, now),
                stamp_of_age(live.max_conns_age, now),
                stamp_of_age(live.switch_age, now),
                stamp_of_age(live.settings_age.unwrap_or(live.added), now),
            ],
            busy_from: now.mono,
            busy_until: now.mono,
            ..EMPTY
        };
        live.settings.apply(&mut server);
        switch(&mut server, live, now);
        if live.created_age < u64::from(server.slow_start_ms) {
            begin(&mut server, live.created_age, now);
        }
        record.address.write(&mut server);
        let slot = self.insert(server).ok_or(Error::Full("server"))?;
        warm::step(&mut self.g, slot, now);
        Ok(slot)
    }

    /// Takes each part that has no later change here.
    fn take_change(
        &mut self,
        slot: u32,
        version: u64,
        live: &LiveRecord,
        now: Now,
        events: &mut Events,
    ) {
        if self.g.servers[slot as usize].flags & flag::UNSEEN != 0 {
            self.tell_lost(slot, live, now);
        }
        const SHOWN: u32 = flag::DISABLED | flag::DRAINING;
        let old = self.g.servers[slot as usize];
        let mut new = Server { record_version: version, ..old };
        new.flags &= !flag::UNSEEN;
        let open = |bit: u32, at: usize, age: u64| {
            old.pending & bit == 0 || old.changed[at] <= stamp_of_age(age, now)
        };
        if open(pending::WEIGHT, changed::WEIGHT, live.weight_age) {
            new.weight = live.weight;
            new.changed[changed::WEIGHT] = stamp_of_age(live.weight_age, now);
        }
        if open(pending::MAX_CONNS, changed::MAX_CONNS, live.max_conns_age) {
            new.max_conns = live.max_conns;
            new.changed[changed::MAX_CONNS] = stamp_of_age(live.max_conns_age, now);
        }
        if open(pending::SWITCH, changed::SWITCH, live.switch_age) {
            switch(&mut new, live, now);
            new.changed[changed::SWITCH] = stamp_of_age(live.switch_age, now);
        }
        if let Some(age) = live.settings_age
            && open(pending::SETTINGS, changed::SETTINGS, age)
        {
            live.settings.apply(&mut new);
            new.changed[changed::SETTINGS] = stamp_of_age(age, now);
        }
        if old.flags & SHOWN != 0 && new.flags & SHOWN == 0 {
            begin(&mut new, live.switch_age, now);
        }
        if old.pending & pending::ADD == 0 {
            new.changed[changed::ADD] = stamp_of_age(live.added, now);
            new.created_wall = now.wall.saturating_sub(live.created_age);
        }
        let differs = (old.weight, old.max_conns) != (new.weight, new.max_conns)
            || (old.flags ^ new.flags) & SHOWN != 0
            || Settings::of(&old) != Settings::of(&new);
        if !differs {
            self.g.servers[slot as usize] = new;
            return;
        }
        new.updated_wall = now.wall.saturating_sub(last_change(live));
        self.follow(slot, &new, names::difference(&old, &new), now);
        self.replace(slot, new);
        self.touch();
        warm::step(&mut self.g, slot, now);
        warm::note(&mut self.g, slot);
        let changed = (old.flags ^ new.flags) & SHOWN;
        if changed & flag::DISABLED != 0 {
            let off = new.flags & flag::DISABLED != 0;
            let what = if off { Happening::Disabled } else { Happening::Enabled };
            self.say(what, slot, events);
        } else if changed & flag::DRAINING != 0 {
            let on = new.flags & flag::DRAINING != 0;
            self.say(if on { Happening::Draining } else { Happening::Enabled }, slot, events);
        }
    }

    /// Has Redis told again what it once knew of a server and has lost: what changed here later than
    /// there. Versions do not say so: after a loss they are given anew.
    fn tell_lost(&mut self, slot: u32, live: &LiveRecord, now: Now) {
        let s = &self.g.servers[slot as usize];
        // What is the same there may have been said earlier, and give way to what came in between.
        let later = |at: usize, age: u64, differs: bool| {
            let theirs = stamp_of_age(age, now) + if differs { 0 } else { ALIKE };
            s.changed[at] >= theirs
        };
        let mut bits = 0;
        if later(changed::WEIGHT, live.weight_age, s.weight != live.weight) {
            bits |= pending::WEIGHT;
        }
        if later(changed::MAX_CONNS, live.max_conns_age, s.max_conns != live.max_conns) {
            bits |= pending::MAX_CONNS;
        }
        let switched = (s.flags & flag::DISABLED != 0, s.flags & flag::DRAINING != 0);
        let differs = switched != (live.disabled, live.draining);
        if later(changed::SWITCH, live.switch_age, differs) {
            bits |= pending::SWITCH;
        }
        // Of a record that has none it is not known how old they are.
        let (age, differs) = match live.settings_age {
            Some(age) => (age, Settings::of(s) != live.settings),
            None => (u64::MAX, Settings::of(s) != Settings::DEFAULT),
        };
        if later(changed::SETTINGS, age, differs) {
            bits |= pending::SETTINGS;
        }
        if later(changed::ADD, live.added, false) {
            bits |= pending::ADD;
        }
        let heard = now.mono.saturating_sub(live.heartbeat_age) + ALIKE;
        if s.flags & flag::AFAR == 0 && s.heartbeat_mono > heard {
            bits |= pending::BEAT;
        }
        self.tell(slot, bits);
    }

    /// Takes a sign of life that came to another node so long ago.
    pub fn take_beat(
        &mut self,
        space: SpaceName<'_>,
        name: &[u8],
        ago: u64,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) {
        if let Some(slot) = self.find_space(space).and_then(|s| self.find_name(s.slot, name)) {
            self.heard_afar(slot, ago, rules, now, events);
        }
    }

    fn heard_afar(&mut self, slot: u32, ago: u64, rules: &Rules, now: Now, events: &mut Events) {
        let s = &self.g.servers[slot as usize];
        // What this node told comes back to it; small differences are not worth a place in the list
        // of heartbeats.
        let margin = if rules.ttl == 0 { 100 } else { (rules.ttl / 20).min(100) };
        let then = now.mono.saturating_sub(ago);
        let silent_flags = flag::EXPIRED | flag::SILENCED;
        let too_old = rules.ttl > 0 && ago > rules.ttl;
        if !is_told(s) || then <= s.heartbeat_mono + margin || too_old {
            return;
        }
        debug_assert!(s.flags & silent_flags == 0 || s.heartbeat_mono <= then);
        let then = Now { mono: then, wall: now.wall.saturating_sub(ago) };
        self.g.servers[slot as usize].flags |= flag::AFAR;
        self.g.servers[slot as usize].pending &= !pending::FORGET;
        if self.g.servers[slot as usize].pending == 0 {
            self.nothing_queued(slot);
        }
        if self.heard_of(slot, then) && self.g.servers[slot as usize].flags & flag::DISABLED == 0 {
            self.say(Happening::Back, slot, events);
        }
    }

    /// Begins a snapshot: marks the next servers, `slots` at most, as not found yet. Where Redis has
    /// lost something it is told again of the departed; where removals have been forgotten nothing
    /// is registered again that is older. Returns whether it is through.
    pub fn mark_unseen(&mut self, next: &mut u32, slots: u32, unseen: Unseen, now: Now) -> bool {
        let end = self.g.header.high_water.min(next.saturating_add(slots));
        for slot in *next..end {
            let s = &mut self.g.servers[slot as usize];
            if s.live != 0 && is_told(s) && unseen == Unseen::Wipe {
                // The wipe has marked those that it meant. The others came since: if Redis has lost
                // something meanwhile, they are told again.
                if s.flags & flag::UNSEEN == 0 {
                    self.tell_all(slot);
                }
            } else if s.live != 0 && is_told(s) {
                s.flags |= flag::UNSEEN;
                if let Unseen::Drop(remembered) = unseen
                    && s.pending & pending::ADD != 0
                    && age(s.changed[changed::ADD], now) >= remembered
                {
                    s.pending &= !pending::ADD;
                    if s.pending == 0 {
                        self.nothing_queued(slot);
                    }
                }
            } else if s.is_departed() && s.pending == 0 && unseen == Unseen::Tell {
                self.requeue_departed(slot);
            }
        }
        *next = end;
        end >= self.g.header.high_water
    }

    /// Ends a snapshot: what of the next servers, `slots` at most, was not in it is told, or goes.
    /// Returns how many went because of a wipe, and whether it is through.
    pub fn settle_unseen(
        &mut self,
        next: &mut u32,
        slots: u32,
        unseen: Unseen,
        now: Now,
        events: &mut Events,
    ) -> (u64, bool) {
        let mut forgotten = 0;
        let end = self.g.header.high_water.min(next.saturating_add(slots));
        for slot in *next..end {
            let s = &mut self.g.servers[slot as usize];
            if s.live == 0 || s.flags & flag::UNSEEN == 0 {
                continue;
            }
            s.flags &= !flag::UNSEEN;
            let s = *s;
            match unseen {
                Unseen::Tell => self.tell_all(slot),
                Unseen::Drop(remembered) => {
                    let fresh = s.pending & pending::ADD != 0
                        && age(s.changed[changed::ADD], now) < remembered;
                    if !fresh {
                        self.say(Happening::Removed, slot, events);
                        self.erase(slot);
                    }
                }
                Unseen::Wipe => {
                    if s.pending & pending::ADD == 0 {
                        self.erase(slot);
                        forgotten += 1;
                    }
                }
            }
        }
        *next = end;
        (forgotten, end >= self.g.header.high_water)
    }

    /// Obeys a planned wipe: nothing that is older is told of the next servers, `slots` at most. They
    /// go when it has been seen which of them are there again: see [`Unseen::Wipe`].
    pub fn wipe(&mut self, wipe: &mut Wipe, slots: u32) {
        let end = self.g.header.high_water.min(wipe.next.saturating_add(slots));
        for slot in wipe.next..end {
            let s = self.g.servers[slot as usize];
            let later = s.changed[changed::ADD] > wipe.at;
            if s.live != 0 && is_told(&s) {
                self.g.servers[slot as usize].record_version = 0;
                if later && s.pending & pending::ADD != 0 {
                    self.g.servers[slot as usize].flags &= !flag::UNSEEN;
                    self.tell_all(slot);
                } else {
                    self.g.servers[slot as usize].flags |= flag::UNSEEN;
                    self.nothing_pending(slot);
                }
            } else if s.is_departed() {
                self.forget_departed(slot);
            }
        }
        wipe.next = end;
        wipe.done = end >= self.g.header.high_water;
    }
}

/// Times that went to Redis and came back may differ by so many milliseconds.
const ALIKE: u64 = 10;

fn last_change(live: &LiveRecord) -> u64 {
    live.weight_age.min(live.max_conns_age).min(live.switch_age).min(live.added)
}

/// Makes a server begin to grow to its weight so long ago.
fn begin(s: &mut Server, ago: u64, now: Now) {
    warm::begin(s, Now { mono: now.mono.saturating_sub(ago), ..now });
}

/// Off, on and draining as Redis has it.
fn switch(s: &mut Server, live: &LiveRecord, now: Now) {
    let was = s.flags;
    s.flags &= !(flag::DISABLED | flag::DRAINING);
    if live.draining {
        s.flags |= flag::DRAINING;
    }
    if live.disabled {
        s.flags |= flag::DISABLED;
        s.disabled_reason = reason::MANUAL;
        s.disabled_wall = now.wall.saturating_sub(live.disabled_age);
    } else if was & flag::DISABLED != 0 || s.flags & flag::SILENCED == 0 {
        s.flags &= !flag::SILENCED;
        s.disabled_reason = reason::NONE;
        s.disabled_wall = 0;
    }
}
