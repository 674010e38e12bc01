//! What happened to servers, for the log.
//!
//! Nothing is logged while the lock is held: what is to be said is collected here and said after.

use std::fmt;

use super::Trouble;
use super::address::printed;
use super::space::name_of;
use crate::shm::{NAME_MAX, SPACE_NAME_MAX, Server, Space};

/// A change in a server's life that an operator wants to read about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// Registered.
    Added,
    /// Deregistered, or gone from the configuration.
    Removed,
    /// Forgotten by the cleanup.
    Forgotten,
    /// Switched on by hand.
    Enabled,
    /// Switched off by hand.
    Disabled,
    /// Finishes its requests.
    Draining,
    /// Silent for longer than `heartbeat_ttl`.
    Expired,
    /// No longer expired: heard of again, or `heartbeat_ttl` has grown.
    Back,
    /// Its health checks failed.
    Unhealthy,
    /// They pass again.
    Healthy,
    /// Not of a server: too many of the namespace's are out at once.
    Panic,
    /// Not of a server: no longer.
    Calm,
}

/// Something that happened, with the names it happened to.
#[derive(Clone, Copy)]
pub struct Event {
    /// What.
    pub what: Happening,
    /// Milliseconds since the last heartbeat.
    pub silent_ms: u64,
    /// Why the last health check failed.
    pub trouble: Option<Trouble>,
    /// How many health checks in a row ended the same way.
    pub row: u16,
    space: [u8; SPACE_NAME_MAX],
    space_len: u8,
    server: [u8; NAME_MAX],
    server_len: u8,
    /// The name that it is an address of; empty when it is of none.
    of: [u8; NAME_MAX],
    of_len: u8,
    /// Of how many servers how many are out.
    out: (u32, u32),
}

impl Event {
    pub(super) fn new(what: Happening, space: &Space, server: &Server, silent_ms: u64) -> Self {
        Self {
            what,
            silent_ms,
            trouble: None,
            row: 0,
            space: space.name,
            space_len: name_of(space).len() as u8,
            server: server.name,
            server_len: printed(server).len() as u8,
            of: [0; NAME_MAX],
            of_len: 0,
            out: (0, 0),
        }
    }

    /// The same of an address of a name.
    pub(super) fn of_name(self, name: &Server) -> Self {
        Self { of: name.name, of_len: printed(name).len() as u8, ..self }
    }

    /// Of `of` servers of a namespace `out` are expired or unhealthy.
    pub(super) fn panic(begins: bool, space: &Space, out: u32, of: u32) -> Self {
        Self {
            what: if begins { Happening::Panic } else { Happening::Calm },
            silent_ms: 0,
            trouble: None,
            row: 0,
            space: space.name,
            space_len: name_of(space).len() as u8,
            server: [0; NAME_MAX],
            server_len: 0,
            of: [0; NAME_MAX],
            of_len: 0,
            out: (out, of),
        }
    }

    /// Whether an operator should know.
    pub fn is_alarming(&self) -> bool {
        matches!(self.what, Happening::Panic | Happening::Unhealthy)
    }

    /// The namespace.
    pub fn space(&self) -> &str {
        std::str::from_utf8(&self.space[..usize::from(self.space_len)]).unwrap_or_default()
    }

    /// The server's address.
    pub fn server(&self) -> &str {
        std::str::from_utf8(&self.server[..usize::from(self.server_len)]).unwrap_or_default()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {}", self.what, self.space(), self.server())
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            Happening::Added => "added",
            Happening::Removed => "removed",
            Happening::Forgotten => "removed",
            Happening::Enabled => "enabled",
            Happening::Disabled => "disabled",
            Happening::Draining => "draining",
            Happening::Expired => "expired",
            Happening::Back => "back",
            Happening::Unhealthy => "unhealthy",
            Happening::Healthy => "healthy",
            Happening::Panic | Happening::Calm => {
                let (out, of) = self.out;
                write!(
                    f,
                    "{out} of {of} servers are expired or unhealthy in namespace \"{}\": ",
                    self.space()
                )?;
                return f.write_str(match self.what {
                    Happening::Panic => {
                        "more than panic_threshold, requests go to all of them until it falls"
                    }
                    _ => "no more than panic_threshold, requests go to the others alone",
                });
            }
        };
        write!(f, "server {} {what} in namespace \"{}\"", self.server(), self.space())?;
        if self.of_len > 0 {
            let name = &self.of[..usize::from(self.of_len)];
            write!(f, ", an address of {}", std::str::from_utf8(name).unwrap_or_default())?;
        }
        match self.what {
            Happening::Expired | Happening::Forgotten => {
                let (s, ms) = (self.silent_ms / 1000, self.silent_ms % 1000);
                write!(f, ", silent for {s}.{ms:03} s")
            }
            Happening::Unhealthy => {
                let checks = if self.row == 1 { "check" } else { "checks" };
                match self.trouble {
                    Some(trouble) => write!(f, ": {trouble}, {} {checks} failed", self.row),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// A list of events with room made before the lock is taken.
#[derive(Default, Debug)]
pub struct Events(Vec<Event>);

impl Events {
    /// An empty list with room for `n` without allocating.
    pub fn with_capacity(n: usize) -> Self {
        Self(Vec::with_capacity(n))
    }

    pub(super) fn push(&mut self, event: Event) {
        self.0.push(event);
    }

    /// Takes out all there are, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.0.drain(..)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
