//! The life of a server: registered, heard of, switched off and on, drained, removed.

use super::address::{Address, printed};
use super::member::EMPTY;
use super::settings::{HealthPath, Settings};
use super::space::{SpaceName, SpaceRef};
use super::{Error, Event, Events, Happening, Now, Registry, warm};
use crate::shm::{Server, fault, flag, pending, reason};

/// What the cleanup does with a server that expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnExpire {
    /// It stays, switched off until its next heartbeat.
    Disable,
    /// It is forgotten.
    Remove,
}

/// What `add` does with a server that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDuplicate {
    /// It is a heartbeat, and changes the parameters that are given.
    Refresh,
    /// It is refused.
    Reject,
}

/// The settings of a registry that its rules need; times in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// `heartbeat_ttl`; 0: servers never expire.
    pub ttl: u64,
    /// `on_expire`.
    pub on_expire: OnExpire,
    /// `remove_after`; 0: silent servers are never forgotten.
    pub remove_after: u64,
    /// `on_duplicate`.
    pub on_duplicate: OnDuplicate,
    /// `panic_threshold` in percent; 0: off.
    pub panic_threshold: u32,
    /// `slow_start` of servers that don't say theirs; 0: none.
    pub slow_start: u64,
}

impl Rules {
    /// The rules of a namespace: with its own `slow_start`, in milliseconds, if `slow_starts` has one.
    pub fn of_space(&self, slow_starts: &[(String, u64)], name: &str) -> Self {
        let own = slow_starts.iter().find(|(space, _)| space == name);
        Self { slow_start: own.map_or(self.slow_start, |(_, ms)| *ms), ..*self }
    }

    /// Whether a server has been silent for longer than the TTL.
    ///
    /// One that was heard of last by another node is silent only as far as this node knows what the
    /// others heard: while Redis is away its time stands still, and begins anew afterwards.
    #[inline]
    pub(super) fn silent(&self, s: &Server, afar: Afar, now: Now) -> bool {
        let silence = if s.flags & flag::AFAR == 0 {
            now.mono.saturating_sub(s.heartbeat_mono)
        } else if s.flags & flag::EXPIRED == 0 {
            now.mono.min(afar.until).saturating_sub(s.heartbeat_mono.max(afar.resumed))
        } else {
            now.mono.min(afar.until).saturating_sub(s.heartbeat_mono)
        };
        self.ttl > 0 && s.flags & flag::STATIC == 0 && silence > self.ttl
    }

    /// Whether a server that was known as expired is clearly not so by these rules: the TTL has
    /// grown. The margin is for the clocks of workers, which are milliseconds apart: none is to
    /// take back what another has just found.
    pub(super) fn revives(&self, s: &Server, now: Now) -> bool {
        let silent_flags = flag::EXPIRED | flag::SILENCED;
        let margin = (self.ttl / 2).min(1000);
        s.flags & silent_flags != 0
            && (self.ttl == 0 || now.mono.saturating_sub(s.heartbeat_mono) + margin <= self.ttl)
    }
}

/// What this node knows of signs of life that came to other nodes. Monotonic milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Afar {
    /// Up to when it knows all of them.
    pub(super) until: u64,
    /// Since when it has known them without a gap.
    pub(super) resumed: u64,
}

/// What an `add` says.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The server.
    pub address: Address,
    /// 0 to [`super::WEIGHT_MAX`]; not given: 1, or as it is.
    pub weight: Option<u32>,
    /// 0 to [`super::MAX_CONNS_MAX`]; not given: 1000, or as it is.
    pub max_conns: Option<u32>,
    /// 0 to [`super::MAX_FAILS_MAX`], 0: never taken out for failures; not given: 1, or as it is.
    pub max_fails: Option<u32>,
    /// 0 to [`super::FAIL_TIMEOUT_MAX`] milliseconds; not given: 10 s, or as it is.
    pub fail_timeout_ms: Option<u32>,
    /// 0 to [`super::SLOW_START_MAX`] milliseconds; not given: [`Rules::slow_start`], or as it is.
    pub slow_start_ms: Option<u32>,
    /// 0 to [`super::TIMEOUT_MAX`] milliseconds, 0: as the location says; not given: 0, or as they
    /// are. Indexed by [`timeout`](crate::shm::timeout).
    pub timeouts_ms: [Option<u32>; 3],
    /// Not given: [`HealthPath::NONE`], or as it is.
    pub health_path: Option<HealthPath>,
}

impl Registration {
    /// Of a server of which nothing more is said.
    pub fn of(address: Address) -> Self {
        Self {
            address,
            weight: None,
            max_conns: None,
            max_fails: None,
            fail_timeout_ms: None,
            slow_start_ms: None,
            timeouts_ms: [None; 3],
            health_path: None,
        }
    }

    /// The server with what is said of it; the rest stays as it is.
    fn apply(&self, s: Server) -> Server {
        let was = Settings::of(&s);
        let settings = Settings {
            max_fails: self.max_fails.unwrap_or(was.max_fails),
            fail_timeout_ms: self.fail_timeout_ms.unwrap_or(was.fail_timeout_ms),
            slow_start_ms: self.slow_start_ms.unwrap_or(was.slow_start_ms),
            timeouts_ms: std::array::from_fn(|i| self.timeouts_ms[i].unwrap_or(was.timeouts_ms[i])),
            health_path: self.health_path.unwrap_or(was.health_path),
        };
        let mut new = Server {
            weight: self.weight.unwrap_or(s.weight),
            max_conns: self.max_conns.unwrap_or(s.max_conns),
            ..s
        };
        settings.apply(&mut new);
        new
    }

    /// Whether it says any of the [`Settings`].
    fn says_settings(&self) -> bool {
        self.max_fails.is_some()
            || self.fail_timeout_ms.is_some()
            || self.slow_start_ms.is_some()
            || self.timeouts_ms.iter().any(Option::is_some)
            || self.health_path.is_some()
    }
}

/// Whether two servers differ in nothing that a registration says.
fn same_settings(a: &Server, b: &Server) -> bool {
    let of = |s: &Server| (s.weight, s.max_conns, Settings::of(s));
    of(a) == of(b)
}

/// A server after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Weight.
    pub weight: u32,
    /// Limit of requests.
    pub max_conns: u32,
    /// Not switched off, by hand or by silence.
    pub enabled: bool,
    /// Requests on it now, from all nodes.
    pub conns: u32,
}

impl Change {
    fn of(s: &Server) -> Self {
        let conns = super::member::on_all_nodes(s);
        Self { weight: s.weight, max_conns: s.max_conns, enabled: is_enabled(s), conns }
    }
}

/// A server that drains, while somebody waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    slot: u32,
    number: u64,
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Requests on it now, from all nodes.
    Draining(u32),
    /// Somebody has ended the drain.
    Enabled,
    /// It was removed.
    Gone,
}

/// Not switched off, neither by hand nor for silence.
pub(super) fn is_enabled(s: &Server) -> bool {
    s.flags & (flag::DISABLED | flag::SILENCED) == 0
}

/// What a registration that does not say it means.
const MAX_CONNS: u32 = 1000;

impl Registry<'_> {
    /// Registers a server, or takes the sign of life of a known one.
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`] under `on_duplicate reject`, [`Error::Full`], [`Error::Retired`].
    pub fn add(
        &mut self,
        space: SpaceName<'_>,
        registration: &Registration,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) -> Result<Change, Error> {
        self.writable()?;
        let known =
            self.find_space(space).and_then(|space| self.find(space.slot, &registration.address));
        if let Some(slot) = known {
            // An address of a name is not registered yet.
            let own = self.unname(slot);
            if rules.on_duplicate == OnDuplicate::Reject && !own {
                return Err(Error::Duplicate(registration.address.to_string()));
            }
            self.hear(slot, now, events);
            let old = self.g.servers[slot as usize];
            let new = registration.apply(old);
            // What is as it was here may be otherwise on other nodes by now, and this was said last.
            let mut bits = if own { pending::ALL } else { pending::ADD };
            if registration.weight.is_some() {
                bits |= pending::WEIGHT;
            }
            if registration.max_conns.is_some() {
                bits |= pending::MAX_CONNS;
            }
            if registration.says_settings() {
                bits |= pending::SETTINGS;
            }
            if same_settings(&new, &old) {
                self.confirm(slot, bits, now);
            } else {
                self.change(slot, Server { updated_wall: now.wall, ..new }, bits, now);
                warm::step(&mut self.g, slot, now);
            }
            return Ok(Change::of(&self.g.servers[slot as usize]));
        }

        if !self.has_room() {
            return Err(Error::Full("server"));
        }
        let space = self.make_space(space)?;
        let mut server = Server {
            space: space.slot,
            heartbeat_mono: now.mono,
            heartbeat_wall: now.wall,
            created_wall: now.wall,
            updated_wall: now.wall,
            ..registration.apply(Server {
                max_conns: MAX_CONNS,
                slow_start_ms: rules.slow_start as u32,
                ..EMPTY
            })
        };
        warm::begin(&mut server, now);
        registration.address.write(&mut server);
        let server = self.news_of(server, pending::ALL, now);
        let slot = self.insert(server).ok_or(Error::Full("server"))?;
        self.say(Happening::Added, slot, events);
        Ok(Change::of(&self.g.servers[slot as usize]))
    }

    /// Deregisters a server. Requests on it go on.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Static`], [`Error::OfName`], [`Error::Retired`].
    pub fn remove(
        &mut self,
        space: Option<SpaceRef>,
        address: &Address,
        now: Now,
        events: &mut Events,
    ) -> Result<(), Error> {
        let slot = self.own(space, address)?;
        if self.g.servers[slot as usize].flags & flag::STATIC != 0 {
            return Err(Error::Static(address.to_string()));
        }
        self.say(Happening::Removed, slot, events);
        self.depart(slot, now);
        Ok(())
    }

    /// Takes a server's sign of life.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::OfName`], [`Error::Retired`].
    pub fn refresh(
        &mut self,
        space: Option<SpaceRef>,
        address: &Address,
        now: Now,
        events: &mut Events,
    ) -> Result<Change, Error> {
        let slot = self.own(space, address)?;
        self.hear(slot, now, events);
        Ok(Change::of(&self.g.servers[slot as usize]))
    }

    /// Switches a server on or off by hand. Switching on also ends a drain.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Retired`].
    pub fn toggle(
        &mut self,
        space: Option<SpaceRef>,
        address: &Address,
        enable: bool,
        now: Now,
        events: &mut Events,
    ) -> Result<Change, Error> {
        let slot = self.known(space, address)?;
        let mut s = self.g.servers[slot as usize];
        let before = s.flags;
        if enable {
            s.flags &= !(flag::DISABLED | flag::SILENCED | flag::DRAINING);
            if s.flags != before {
                warm::begin(&mut s, now);
            }
            s.disabled_reason = reason::NONE;
            s.disabled_wall = 0;
        } else {
            s.flags |= flag::DISABLED;
            if before & flag::DISABLED == 0 {
                s.disabled_reason = reason::MANUAL;
                s.disabled_wall = now.wall;
            }
        }
        if s.flags != before {
            s.updated_wall = now.wall;
            self.change(slot, s, pending::SWITCH, now);
            warm::note(&mut self.g, slot);
            self.say(if enable { Happening::Enabled } else { Happening::Disabled }, slot, events);
        } else {
            self.confirm(slot, pending::SWITCH, now);
        }
        Ok(Change::of(&self.g.servers[slot as usize]))
    }

    /// Sets a server's weight.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Retired`].
    pub fn set_weight(
        &mut self,
        space: Option<SpaceRef>,
        address: &Address,
        weight: u32,
        now: Now,
    ) -> Result<Change, Error> {
        let slot = self.known(space, address)?;
        let old = self.g.servers[slot as usize];
        if old.weight != weight {
            let new = Server { weight, updated_wall: now.wall, ..old };
            self.change(slot, new, pending::WEIGHT, now);
        } else {
            self.confirm(slot, pending::WEIGHT, now);
        }
        Ok(Change::of(&self.g.servers[slot as usize]))
    }

    /// Gives a server no new requests; those on it finish. Returns also how to see when they have: by
    /// [`Registry::look`].
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Retired`].
    pub fn drain(
        &mut self,
        space: Option<SpaceRef>,
        address: &Address,
        now: Now,
        events: &mut Events,
    ) -> Result<(Watch, Change), Error> {
        let slot = self.known(space, address)?;
        let old = self.g.servers[slot as usize];
        if old.flags & flag::DRAINING == 0 {
            let flags = old.flags | flag::DRAINING;
            let new = Server { flags, updated_wall: now.wall, ..old };
            self.change(slot, new, pending::SWITCH, now);
            self.say(Happening::Draining, slot, events);
        } else {
            self.confirm(slot, pending::SWITCH, now);
        }
        let watch = Watch { slot, number: old.number };
        let conns = self.carried(slot);
        Ok((watch, Change { conns, ..Change::of(&self.g.servers[slot as usize]) }))
    }

    /// What has become of a server that was drained.
    pub fn look(&self, watch: Watch) -> Watched {
        match self.g.servers.get(watch.slot as usize) {
            Some(s) if s.live == 0 || s.number != watch.number => Watched::Gone,
            Some(s) if s.flags & flag::DRAINING == 0 => Watched::Enabled,
            Some(_) => Watched::Draining(self.carried(watch.slot)),
            None => Watched::Gone,
        }
    }

    /// Notes that something was said that is so already: other nodes may have heard otherwise, and
    /// what was said last counts.
    fn confirm(&mut self, slot: u32, bits: u32, now: Now) {
        // The settings of an address that differ from its name's were set there on purpose.
        self.follow(slot, &{ self.g.servers[slot as usize] }, bits & !pending::ADD, now);
        if self.shares() {
            self.g.servers[slot as usize] = self.news_of(self.g.servers[slot as usize], bits, now);
            self.enqueue(slot);
        }
    }

    /// Makes a change that other nodes are to be told of; `bits` say what is new.
    fn change(&mut self, slot: u32, new: Server, bits: u32, now: Now) {
        let new = self.news_of(new, bits, now);
        self.follow(slot, &new, bits, now);
        self.replace(slot, new);
        self.enqueue(slot);
        self.touch();
    }

    /// Clears a server's statistics and failure marks, never its in-flight count.
    pub(super) fn reset_one(&mut self, slot: u32) {
        let s = self.g.servers[slot as usize];
        let flags = s.flags & !flag::RETRY;
        self.replace(
            slot,
            Server {
                requests: 0,
                fails: 0,
                fail_marks: 0,
                accessed_mono: 0,
                checked_mono: 0,
                flags,
                ..s
            },
        );
        fault::point!("reset.server");
    }

    /// The rules as they are for this zone: in one that a reload has replaced time stands still.
    /// Heartbeats go to its successor, so silence here says nothing about a server, and requests
    /// that are still under way may need another one.
    pub(super) fn in_force(&self, rules: &Rules) -> Rules {
        if self.is_retired() { Rules { ttl: 0, ..*rules } } else { *rules }
    }

    /// No changes to a zone that a reload has replaced.
    pub(super) fn writable(&self) -> Result<(), Error> {
        if self.is_retired() { Err(Error::Retired) } else { Ok(()) }
    }

    fn known(&self, space: Option<SpaceRef>, address: &Address) -> Result<u32, Error> {
        self.writable()?;
        space
            .filter(|space| self.is_current(*space))
            .and_then(|space| self.find(space.slot, address))
            .ok_or_else(|| Error::NotFound(address.to_string()))
    }

    /// As [`Registry::known`], but not an address of a name.
    fn own(&self, space: Option<SpaceRef>, address: &Address) -> Result<u32, Error> {
        let slot = self.known(space, address)?;
        match self.g.servers.get(self.g.servers[slot as usize].parent as usize) {
            Some(name) => Err(Error::OfName(address.to_string(), printed(name).to_owned())),
            None => Ok(slot),
        }
    }

    /// What is known of signs of life at other nodes.
    #[inline]
    pub(super) fn afar(&self) -> Afar {
        let shared = &self.g.header.shared;
        let until = if shared.on != 0 { shared.heard_until } else { u64::MAX };
        Afar { until, resumed: shared.resumed }
    }

    fn hear(&mut self, slot: u32, now: Now, events: &mut Events) {
        self.beat(slot);
        if self.heard_of(slot, now) && self.g.servers[slot as usize].flags & flag::DISABLED == 0 {
            self.say(Happening::Back, slot, events);
        }
    }

    pub(super) fn say(&self, what: Happening, slot: u32, events: &mut Events) {
        let s = &self.g.servers[slot as usize];
        debug_assert!(!printed(s).is_empty());
        let event = Event::new(what, &self.g.spaces[s.space as usize], s, 0);
        events.push(match self.g.servers.get(s.parent as usize) {
            Some(name) => event.of_name(name),
            None => event,
        });
    }
}
