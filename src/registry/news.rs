//! What Redis is told of servers, and what comes of it.

use super::address::Address;
use super::queue::{age, departed_space};
use super::saved::Copied;
use super::settings::Settings;
use super::{Event, Events, Happening, Now, Registry};
use crate::shm::{Server, changed, flag, pending};

/// Which change of a server this is about: [`Registry::told`] finds out whether another came since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    slot: u32,
    number: u64,
    edition: u32,
}

/// What kind of news it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// It was registered, or a part of it has changed.
    Change,
    /// It gave a sign of life, and that is all.
    Beat,
    /// It was removed.
    Remove {
        /// So many milliseconds ago.
        ago: u64,
        /// Redis was told before, and has lost it: of a registration that was as good as at the same
        /// time nobody knows any more which came first.
        again: bool,
    },
    /// It has been silent for so long that it is to be forgotten, unless Redis knows of a later sign
    /// of life.
    Forget,
}

/// What is new of a server. Ages are in milliseconds; `None` where nothing changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// For [`Registry::told`].
    pub ticket: Ticket,
    /// The namespace's name.
    pub namespace: String,
    /// The server.
    pub address: Address,
    /// What it is.
    pub what: What,
    /// It was registered then.
    pub added: Option<u64>,
    /// 0 to [`super::WEIGHT_MAX`].
    pub weight: u32,
    /// The weight was set then.
    pub weight_age: Option<u64>,
    /// 0 to [`super::MAX_CONNS_MAX`].
    pub max_conns: u32,
    /// The limit was set then.
    pub max_conns_age: Option<u64>,
    /// Switched off by hand.
    pub disabled: bool,
    /// Finishes its requests.
    pub draining: bool,
    /// It was switched, or drained, then.
    pub switch_age: Option<u64>,
    /// What else its registration said.
    pub settings: Settings,
    /// Some of that was said then.
    pub settings_age: Option<u64>,
    /// Weight, limit, switch and settings are so old, news or not: for a Redis that has lost the
    /// server.
    pub ages: [u64; 4],
    /// It was registered for the first time then.
    pub created_age: u64,
    /// It was switched off then.
    pub disabled_age: u64,
    /// Its last sign of life.
    pub heartbeat_age: u64,
    /// That came through Redis, so Redis knows better.
    pub heard_afar: bool,
}

/// What Redis made of news.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is in Redis, or something later is.
    Done,
    /// Redis has no such server, and the news was no registration.
    Unknown,
    /// It was removed so many milliseconds ago, later than it was registered as far as Redis knows.
    Removed(u64),
    /// Redis knows of a later sign of life.
    Alive,
}

impl Copied {
    /// What Redis is to be told of it.
    pub fn news(&self, now: Now) -> News {
        let s = self.server();
        let bits = s.pending;
        let of = |bit: u32, at: usize| (bits & bit != 0).then(|| age(s.changed[at], now));
        let heartbeat_age = now.mono.saturating_sub(s.heartbeat_mono);
        let what = if s.is_departed() {
            let again = bits & pending::AGAIN != 0;
            What::Remove { ago: age(s.changed[changed::ADD], now), again }
        } else if bits & !pending::BEAT == 0 {
            What::Beat
        } else if bits == pending::FORGET {
            What::Forget
        } else {
            What::Change
        };
        News {
            ticket: self.ticket(),
            namespace: self.namespace().to_owned(),
            address: Address::of(s),
            what,
            added: of(pending::ADD, changed::ADD),
            weight: s.weight,
            weight_age: of(pending::WEIGHT, changed::WEIGHT),
            max_conns: s.max_conns,
            max_conns_age: of(pending::MAX_CONNS, changed::MAX_CONNS),
            disabled: s.flags & flag::DISABLED != 0,
            draining: s.flags & flag::DRAINING != 0,
            switch_age: of(pending::SWITCH, changed::SWITCH),
            settings: Settings::of(s),
            settings_age: of(pending::SETTINGS, changed::SETTINGS),
            ages: [changed::WEIGHT, changed::MAX_CONNS, changed::SWITCH, changed::SETTINGS]
                .map(|at| age(s.changed[at], now)),
            created_age: now.wall.saturating_sub(s.created_wall),
            disabled_age: match s.disabled_wall {
                0 => 0,
                wall => now.wall.saturating_sub(wall),
            },
            heartbeat_age,
            heard_afar: s.flags & flag::AFAR != 0,
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket { slot: self.slot(), number: self.server().number, edition: self.server().edition }
    }
}

impl Registry<'_> {
    /// How many servers Redis is still to be told of.
    pub fn queued(&self) -> usize {
        self.g.header.shared.queued as usize
    }

    /// Copies the first of the queue, `most` at most, without taking them out of it.
    pub fn copy_queued(&self, most: usize, into: &mut Vec<Copied>) {
        let mut at = self.g.header.shared.queue_head;
        for _ in 0..most {
            let Some(s) = self.g.servers.get(at as usize) else { return };
            into.push(Copied::new(self.space_bytes(s), at, s));
            at = s.queue_next;
        }
    }

    /// Notes what Redis made of news of a server; `version`: that of its record there. True: it has
    /// changed again, and stays in the queue.
    pub fn told(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        version: u64,
        now: Now,
        events: &mut Events,
    ) -> bool {
        let Some(s) = self.g.servers.get(ticket.slot as usize) else { return false };
        if s.number != ticket.number || (s.live == 0 && !s.is_departed()) {
            return false;
        }
        let s = *s;
        let version = version.max(s.record_version);
        self.g.servers[ticket.slot as usize].record_version = version;
        if s.edition != ticket.edition {
            return true;
        }
        if s.is_departed() {
            if s.pending != 0 {
                self.keep_departed(ticket.slot);
            }
            return false;
        }
        match outcome {
            Outcome::Removed(ago) if self.registered_since(ticket.slot, ago, now) => {
                self.tell_all(ticket.slot);
            }
            Outcome::Removed(ago) => {
                self.say(Happening::Removed, ticket.slot, events);
                self.depart_as_told(ticket.slot, ago, version, now);
            }
            Outcome::Done if s.pending == pending::FORGET => {
                let silent = now.mono.saturating_sub(s.heartbeat_mono);
                let space = &self.g.spaces[s.space as usize];
                events.push(Event::new(Happening::Forgotten, space, &s, silent));
                self.depart_as_told(ticket.slot, 0, version, now);
            }
            Outcome::Done | Outcome::Alive => self.nothing_pending(ticket.slot),
            // It will be seen whether the snapshot has it.
            Outcome::Unknown if s.flags & flag::UNSEEN != 0 => self.nothing_pending(ticket.slot),
            // Redis has lost it: unknown is not gone.
            Outcome::Unknown => self.tell_all(ticket.slot),
        }
        false
    }
}

/// The name of a departed server's namespace, or of a live one's.
pub(super) fn trimmed(name: &[u8]) -> &str {
    let len = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    std::str::from_utf8(&name[..len]).unwrap_or_default()
}

/// Whether a departed server was in that namespace.
pub(super) fn was_in(s: &Server, namespace: &str) -> bool {
    trimmed(&departed_space(s)) == namespace
}
