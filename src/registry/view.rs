//! What a reader sees: copies of servers, taken a slice at a time.

use super::address::printed;
use super::health::{CheckView, rule_of};
use super::life::{Afar, is_enabled};
use super::member::{is_one, on_all_nodes, standing};
use super::order::Standing;
use super::space::{SpaceRef, name_of};
use super::{Now, Registry, Rules};
use crate::shm::{NAME_MAX, NONE, Server, class, flag, reason};

/// Servers that a walk steps over under one hold of the lock while it looks for its place.
const SEARCH: usize = 1024;

/// A server's state in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Takes requests, or would if it had not `max_conns` of them.
    Up,
    /// Takes no new ones.
    Draining,
    /// Switched off.
    Down,
    /// Failed its checks, or `max_fails` requests.
    Unhealthy,
    /// Silent.
    Expired,
    /// A name that has no address.
    Unresolved,
}

impl State {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Draining => "draining",
            State::Down => "down",
            State::Unhealthy => "unhealthy",
            State::Expired => "expired",
            State::Unresolved => "unresolved",
        }
    }
}

/// A server as it was at one moment. Times in milliseconds since the epoch, 0 for never.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is the field of that name in the API's table")]
pub struct ServerView {
    /// The printed address, in place: no memory is asked for while the lock is held.
    name: [u8; NAME_MAX],
    name_len: u8,
    /// The same of the name that it is an address of; empty when it is of none.
    of: [u8; NAME_MAX],
    of_len: u8,
    pub port: u16,
    pub connections: u32,
    pub local_connections: u32,
    pub weight: u32,
    pub max_conns: u32,
    pub enabled: bool,
    pub is_active: bool,
    pub state: State,
    pub last_heartbeat: u64,
    /// Milliseconds, by the monotonic clock.
    pub time_since_heartbeat: u64,
    pub created_at: u64,
    pub updated_at: u64,
    pub disabled_at: u64,
    pub disabled_reason: Option<&'static str>,
    pub requests: u64,
    pub fails: u64,
    /// From a `server` line.
    pub is_static: bool,
    /// Only used when no other is eligible.
    pub backup: bool,
    /// May be chosen now.
    pub eligible: bool,
    /// What health checks found; `None`: there are none.
    pub health: Option<CheckView>,
}

impl ServerView {
    fn new(s: &Server, of: Option<&Server>, rules: &Rules, afar: Afar, now: Now) -> Self {
        let silent = rules.silent(s, afar, now);
        let ready = s.class == u32::from(class::READY);
        Self {
            name: s.name,
            name_len: printed(s).len() as u8,
            of: of.map_or([0; NAME_MAX], |of| of.name),
            of_len: of.map_or(0, |of| printed(of).len() as u8),
            port: s.port,
            connections: on_all_nodes(s),
            local_connections: s.conns,
            weight: s.weight,
            max_conns: s.max_conns,
            enabled: is_enabled(s),
            is_active: !silent,
            state: state(s, silent),
            last_heartbeat: s.heartbeat_wall,
            time_since_heartbeat: now.mono.saturating_sub(s.heartbeat_mono),
            created_at: s.created_wall,
            updated_at: s.updated_wall,
            disabled_at: s.disabled_wall,
            disabled_reason: match s.disabled_reason {
                reason::MANUAL => Some("manual"),
                reason::HEARTBEAT_TIMEOUT => Some("heartbeat_timeout"),
                reason::CONFIGURED => Some("configuration"),
                _ => None,
            },
            requests: s.requests,
            fails: s.fails.into(),
            is_static: s.flags & flag::STATIC != 0,
            backup: s.flags & flag::BACKUP != 0,
            eligible: ready && !silent,
            health: None,
        }
    }

    /// The address, `host:port`, or `unix:` and a path.
    pub fn addr(&self) -> &str {
        std::str::from_utf8(&self.name[..usize::from(self.name_len)]).unwrap_or_default()
    }

    /// The name, `host:port`, that it is an address of.
    pub fn of_name(&self) -> Option<&str> {
        let name = std::str::from_utf8(&self.of[..usize::from(self.of_len)]).unwrap_or_default();
        (!name.is_empty()).then_some(name)
    }

    /// The address without its port, and without brackets.
    pub fn host(&self) -> &str {
        let addr = self.addr();
        match addr.rsplit_once(':') {
            Some((host, _)) if self.port > 0 => {
                host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
            }
            // A unix socket has no port.
            _ => addr,
        }
    }
}

fn state(s: &Server, silent: bool) -> State {
    let has = |flags: u32| s.flags & flags != 0;
    if has(flag::DISABLED) {
        State::Down
    } else if silent || has(flag::SILENCED) {
        State::Expired
    } else if has(flag::UNHEALTHY) || s.class == u32::from(class::FAILED) {
        State::Unhealthy
    } else if has(flag::DRAINING) {
        State::Draining
    } else if s.class == u32::from(class::UNRESOLVED) {
        State::Unresolved
    } else {
        State::Up
    }
}

/// What `health` says of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of that name in the API's table")]
pub struct Health {
    pub total_servers: u64,
    pub enabled_servers: u64,
    pub active_servers: u64,
    pub expired_servers: u64,
    /// Servers that may be chosen now.
    pub eligible: u64,
}

/// How this node and Redis stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Redis answers.
    pub connected: bool,
    /// The last time when all that is in Redis was known here, in milliseconds since the epoch; 0:
    /// never.
    pub last_sync: u64,
    /// Milliseconds that the last change at another node took to come here; without Redis, since the
    /// last time.
    pub lag: u64,
    /// Servers that Redis is still to be told of.
    pub pending: u64,
    /// Nodes that take part, this one included.
    pub nodes: u64,
}

/// Where a walk through a namespace's servers stands, in the order of their numbers.
///
/// It stays right when servers come and go between two slices: none that stays is left out or seen
/// twice.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    /// The highest number seen.
    seen: u64,
    /// The record that the walk came to last, and the number that it had then.
    slot: u32,
    number: u64,
    /// The walk is through.
    pub done: bool,
}

impl Cursor {
    /// Before the first server.
    pub const START: Self = Self { seen: 0, slot: NONE, number: 0, done: false };
}

impl Registry<'_> {
    /// Calls `f` with the slots of the next servers, `slice` at most. It may be none though the walk
    /// is not through: when the server that it came to last is gone it looks for its place from the
    /// first one on, and that search is cut into slices too.
    fn walk(
        &mut self,
        space: SpaceRef,
        cursor: &mut Cursor,
        slice: usize,
        mut f: impl FnMut(&mut Self, u32),
    ) {
        if !self.is_current(space) {
            cursor.done = true;
            return;
        }
        let mut next = match self.g.servers.get(cursor.slot as usize) {
            Some(s) if s.live != 0 && s.number == cursor.number => s.member_next,
            _ => self.g.spaces[space.slot as usize].member_head,
        };
        let mut left = slice;
        for _ in 0..slice.max(SEARCH) {
            let Some(s) = self.g.servers.get(next as usize).filter(|_| left > 0) else { break };
            let (at, after) = (next, s.member_next);
            (cursor.slot, cursor.number) = (at, s.number);
            if s.number > cursor.seen {
                cursor.seen = s.number;
                left -= 1;
                f(self, at);
            }
            next = after;
        }
        cursor.done = next == NONE;
    }

    /// Copies the next servers of a namespace, `slice` at most.
    pub fn read(
        &mut self,
        space: SpaceRef,
        cursor: &mut Cursor,
        slice: usize,
        rules: &Rules,
        now: Now,
        into: &mut Vec<ServerView>,
    ) {
        let rules = &self.in_force(rules);
        self.walk(space, cursor, slice, |r, slot| {
            let s = &r.g.servers[slot as usize];
            let of = r.g.servers.get(s.parent as usize);
            let view = ServerView::new(s, of, rules, r.afar(), now);
            let rule = rule_of(r.g.spaces[space.slot as usize].flags).filter(|_| !s.is_name());
            let health = rule.map(|_| CheckView::new(&r.g.checks[slot as usize], now));
            into.push(ServerView { health, ..view });
        });
    }

    /// Counts the next servers of a namespace, `slice` at most.
    pub fn count(
        &mut self,
        space: SpaceRef,
        cursor: &mut Cursor,
        slice: usize,
        rules: &Rules,
        now: Now,
        health: &mut Health,
    ) {
        let rules = &self.in_force(rules);
        self.walk(space, cursor, slice, |r, slot| {
            let s = &r.g.servers[slot as usize];
            // Its addresses are counted instead.
            if s.class == u32::from(class::NAME) {
                return;
            }
            let silent = rules.silent(s, r.afar(), now);
            let enabled = is_enabled(s);
            let by_hand = s.flags & flag::DISABLED != 0;
            // The failed whose rest is over are ready for the next request that comes.
            let rested = s.class == u32::from(class::FAILED)
                && now.mono.saturating_sub(s.checked_mono) > u64::from(s.fail_timeout_ms);
            health.total_servers += 1;
            health.enabled_servers += u64::from(enabled);
            health.active_servers += u64::from(enabled && !silent);
            health.expired_servers += u64::from(silent && !by_hand);
            let alone = is_one(&r.g.spaces[s.space as usize]);
            let in_orders = match standing(s, alone) {
                Standing::Ready => true,
                Standing::Standby => r.in_panic(s.space),
                Standing::Failed | Standing::Out => false,
            };
            let silent = silent && !r.in_panic(s.space);
            health.eligible += u64::from(!silent && (rested || in_orders));
        });
    }

    /// Clears statistics and failure marks of the next servers, `slice` at most. Returns of how
    /// many.
    pub fn reset(&mut self, space: SpaceRef, cursor: &mut Cursor, slice: usize) -> u64 {
        let mut n = 0;
        self.walk(space, cursor, slice, |r, slot| {
            r.reset_one(slot);
            n += u64::from(r.g.servers[slot as usize].class != u32::from(class::NAME));
        });
        n
    }

    /// How this node and Redis stand.
    pub fn sharing(&self, now: Now) -> Sharing {
        let shared = &self.g.header.shared;
        let connected = shared.connected != 0;
        Sharing {
            connected,
            last_sync: shared.synced_wall,
            lag: match (connected, shared.synced_wall) {
                (true, _) | (_, 0) => shared.lag,
                (false, last) => now.wall.saturating_sub(last),
            },
            pending: shared.queued.into(),
            nodes: shared.nodes.into(),
        }
    }

    /// How many servers a namespace has.
    pub fn members(&self, space: SpaceRef) -> usize {
        if !self.is_current(space) {
            return 0;
        }
        self.g.spaces[space.slot as usize].members as usize
    }

    /// One line about a namespace, for debugging.
    pub fn describe(&self, space: SpaceRef) -> String {
        let s = &self.g.spaces[space.slot as usize];
        format!("{}: {} servers, classes {:?}", name_of(s), s.members, s.classes)
    }
}
