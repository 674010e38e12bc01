//! `registry_keepalive`: the module's own pool of connections to servers.
//!
//! Each worker has a pool for each upstream. Stock `keepalive` looks for a connection by walking
//! all that it keeps, and closes none when a server leaves; this one finds them by server, and
//! knows of the servers.

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_void};
use std::ptr::NonNull;

use ngx::ffi::{ngx_command_t, ngx_conf_t, ngx_http_request_t, ngx_peer_connection_t, ngx_uint_t};

use super::settings::MAX_TIME;
use super::upstream::UpstreamConf;
use super::worker::{Held, now};
use crate::idle::{Idle, Limits, ServerKey, Ticket};
use crate::nginx::border;
use crate::nginx::conf::{self, Place};
use crate::nginx::connection::{self, LineRef, Owner, Reuse, Shape};
use crate::nginx::timer::Expired;
use crate::registry::{Flight, Registry};

/// Milliseconds between two looks for connections that have timed out or whose server is gone.
pub(super) const TICK: u64 = 500;

/// The share of a worker's connections that may be idle ones here without nginx being allowed at once
/// to take them for others.
const MANY: usize = 8;

/// Servers that are looked up under one hold of the lock.
const SLICE: usize = 128;

/// Servers that are looked up in one turn of the event loop.
const TURN: usize = 2048;

/// Most idle connections of one worker and upstream.
const MAX_CONNECTIONS: u64 = 1_000_000;

/// Most servers with idle connections that a choice is told of.
const WARM: usize = 8;

/// A pool of connections; of one worker and one upstream.
pub(super) struct Pool {
    pub(super) place: Place,
    reuse: Reuse,
    idle: RefCell<Idle<LineRef<Note>>>,
    /// Whether connections are kept: in a process that handles requests, as long as the upstream's
    /// configuration is in use.
    open: Cell<bool>,
}

/// What is known of a connection.
pub(super) struct Note {
    pool: *const Pool,
    ticket: Cell<Ticket>,
}

impl Owner for Note {
    fn lost(line: LineRef<Self>) {
        let note = line.note();
        // SAFETY: the pool outlives the connections that it keeps: it is emptied before it goes.
        let pool = unsafe { &*note.pool };
        pool.idle.borrow_mut().remove(note.ticket.get());
    }
}

/// A request's connection, as far as the pool is concerned.
#[derive(Clone, Copy)]
pub(super) struct Hold {
    shape: Shape,
    /// Where the connection comes from the pool.
    line: Option<LineRef<Note>>,
}

impl Hold {
    /// The connection comes from the pool.
    pub(super) fn is_kept(&self) -> bool {
        self.line.is_some()
    }
}

fn key(flight: Flight) -> ServerKey {
    ServerKey { slot: flight.slot(), number: flight.number }
}

impl Pool {
    /// Looks for a connection to the server that was chosen, and connects `pc` with it. `fresh`:
    /// only a new connection will do. `None`: this request's connection can't be kept.
    pub(super) fn take(
        &self,
        r: *mut ngx_http_request_t,
        pc: &mut ngx_peer_connection_t,
        flight: Flight,
        fresh: bool,
    ) -> Option<Hold> {
        if !self.open.get() {
            return None;
        }
        let shape = Shape::of(r, pc)?;
        if fresh {
            return Some(Hold { shape, line: None });
        }
        let suits = |line: LineRef<Note>| line.suits(&shape);
        let line = self.idle.borrow_mut().take(key(flight), shape.hash(), now().mono, suits);
        if let Some(line) = line {
            line.unpark(r, pc);
        }
        Some(Hold { shape, line })
    }

    /// Keeps the connection of a request that is done with its server, if it may serve another.
    pub(super) fn put(
        &self,
        r: *mut ngx_http_request_t,
        pc: &mut ngx_peer_connection_t,
        flight: Flight,
        hold: &Hold,
        state: ngx_uint_t,
    ) {
        if !self.open.get() || !connection::is_fit(r, pc, state, &self.reuse) {
            return;
        }
        let key = key(flight);
        loop {
            // A statement of its own: closing a connection can lead back here.
            let out = self.idle.borrow_mut().crowded_out(key);
            match out {
                Some(line) => line.close(),
                None => break,
            }
        }
        let note = || Note { pool: self, ticket: Cell::new(Ticket::NONE) };
        let Some(line) = hold.line.or_else(|| LineRef::new(pc, &hold.shape, note())) else {
            return;
        };
        line.park(pc);
        let mut idle = self.idle.borrow_mut();
        line.note().ticket.set(idle.put(key, hold.shape.hash(), line, now().mono));
        if idle.len() > connection::worker_connections() / MANY {
            line.set_reusable();
        }
        drop(idle);
        if line.has_stirred() {
            connection::look(line);
        }
    }

    /// The servers of the connections that were used last.
    pub(super) fn warmest(&self) -> Vec<ServerKey> {
        self.idle.borrow().warmest().take(WARM).collect()
    }

    fn close_all(&self) {
        loop {
            let out = self.idle.borrow_mut().oldest();
            let Some(line) = out else { break };
            line.close();
        }
    }

    fn close_timed_out(&self) {
        let now = now().mono;
        loop {
            let out = self.idle.borrow_mut().timed_out(now);
            let Some(line) = out else { break };
            line.close();
        }
    }

    /// Lets nginx take the connections that have been idle for a while when the worker's run out.
    /// Not at once, as long as they are few: most are used again before, and this has a price.
    fn lend(&self) {
        let then = now().mono.saturating_sub(TICK);
        let idle = self.idle.borrow();
        let new: Vec<_> = idle.since(then).take_while(|line| !line.is_reusable()).collect();
        // nginx takes the one first that was lent first.
        for line in new.into_iter().rev() {
            line.set_reusable();
        }
    }

    fn close_to(&self, server: ServerKey) {
        loop {
            let out = self.idle.borrow_mut().any_to(server);
            let Some(line) = out else { break };
            line.close();
        }
    }
}

/// `registry_keepalive CONNECTIONS [timeout=60s] [requests=1000] [time=1h] [per_server=N];`
pub(super) unsafe extern "C" fn cmd_set_keepalive(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    upstream: *mut c_void,
) -> *mut c_char {
    border::guard(
        || conf::conf_log(cf),
        conf::ERROR,
        || {
            // SAFETY: nginx passes what `create_conf` made for this upstream.
            let upstream = unsafe { &mut *upstream.cast::<UpstreamConf>() };
            if upstream.keepalive.is_some() {
                return conf::DUPLICATE;
            }
            match read(cf) {
                Ok(pool) => {
                    upstream.keepalive = Some(pool);
                    super::upstream::register(cf, upstream).err().unwrap_or(conf::OK)
                }
                Err(outcome) => outcome,
            }
        },
    )
}

fn read(cf: *mut ngx_conf_t) -> Result<Pool, conf::Outcome> {
    const KNOWN: &str = "timeout=TIME, requests=NUMBER, time=TIME or per_server=NUMBER";
    let [_, connections, parameters @ ..] = conf::words(cf) else { return Err(conf::ERROR) };
    let Some(connections) = number(conf::text(connections), MAX_CONNECTIONS) else {
        return Err(conf::refuse(
            cf,
            format_args!(
                "invalid number of connections \"{connections}\" in \"registry_keepalive\": \
                 it may be 1 to {MAX_CONNECTIONS}"
            ),
        ));
    };
    let mut limits =
        Limits { connections: connections as u32, per_server: connections as u32, timeout: 60_000 };
    let mut reuse = Reuse { requests: 1000, time: 3_600_000 };
    let mut seen: Vec<&str> = Vec::new();
    for word in parameters {
        let (name, value) = conf::text(word).and_then(|w| w.split_once('=')).unwrap_or_default();
        if seen.contains(&name) {
            return Err(conf::refuse(cf, format_args!("duplicate parameter \"{word}\"")));
        }
        seen.push(name);
        let (fits, may_be) = match name {
            "timeout" => (time(value).map(|ms| limits.timeout = ms), "a time such as 60s"),
            "time" => (time(value).map(|ms| reuse.time = ms), "a time such as 1h"),
            "requests" => (
                number(Some(value), u64::from(u32::MAX)).map(|n| reuse.requests = n as usize),
                "1 or more",
            ),
            "per_server" => (
                number(Some(value), u64::from(limits.connections))
                    .map(|n| limits.per_server = n as u32),
                "1 to the number of connections",
            ),
            _ => {
                return Err(conf::refuse(
                    cf,
                    format_args!("invalid parameter \"{word}\": it may be {KNOWN}"),
                ));
            }
        };
        if fits.is_none() {
            return Err(conf::refuse(
                cf,
                format_args!("invalid parameter \"{word}\": {name} may be {may_be}"),
            ));
        }
    }
    Ok(Pool {
        place: conf::place(cf),
        reuse,
        idle: RefCell::new(Idle::new(limits)),
        open: Cell::new(false),
    })
}

fn number(text: Option<&str>, most: u64) -> Option<u64> {
    let text = text.filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?;
    text.parse().ok().filter(|n| (1..=most).contains(n))
}

fn time(text: &str) -> Option<u64> {
    conf::time_of(text).filter(|ms| (1..=MAX_TIME).contains(ms))
}

/// Closes what has been idle for too long and what leads to servers that take no requests any
/// more, in all upstreams of one registry. Its end is that of the pools.
pub(super) struct Keeper {
    local: Held,
    pools: Vec<NonNull<Pool>>,
    /// The zone's version when all pools were last compared with it.
    seen: u64,
    /// A comparison that is not through: version, pool and slot to go on with.
    under_way: Option<(u64, usize, u32)>,
}

impl Keeper {
    /// Opens the pools; `None` when there is none.
    pub(super) fn open<'a>(local: Held, pools: impl Iterator<Item = &'a Pool>) -> Option<Self> {
        let pools: Vec<_> = pools.map(NonNull::from).collect();
        let keeper = Self { local, pools, seen: 0, under_way: None };
        for pool in keeper.pools() {
            pool.open.set(true);
        }
        (!keeper.pools.is_empty()).then_some(keeper)
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        // SAFETY: the pools are in configurations, which outlive the timers of the processes that
        // use them.
        self.pools.iter().map(|pool| unsafe { pool.as_ref() })
    }

    /// Compares the pools with the zone, as far as one turn goes. True: to be gone on with.
    fn compare(&mut self) -> bool {
        let (version, mut from_pool, mut from_slot) = match self.under_way.take() {
            Some(at) => at,
            None => {
                let Ok(registry) = Registry::lock(&self.local.zone) else { return false };
                let version = registry.version();
                if version == self.seen {
                    return false;
                }
                (version, 0, 0)
            }
        };
        let mut looked_at = 0;
        while let Some(pool) = self.pools.get(from_pool) {
            // SAFETY: as in `pools`.
            let pool = unsafe { pool.as_ref() };
            loop {
                if looked_at >= TURN {
                    self.under_way = Some((version, from_pool, from_slot));
                    return true;
                }
                let some: Vec<_> = pool.idle.borrow().servers(from_slot).take(SLICE).collect();
                let Some(last) = some.last() else { break };
                from_slot = last.slot + 1;
                looked_at += some.len();
                let Ok(registry) = Registry::lock(&self.local.zone) else { return false };
                let gone = |s: &&ServerKey| !registry.keeps_connections(s.slot, s.number);
                let gone: Vec<_> = some.iter().filter(gone).collect();
                drop(registry);
                for server in gone {
                    pool.close_to(*server);
                }
            }
            from_pool += 1;
            from_slot = 0;
        }
        self.seen = version;
        false
    }
}

impl Expired for Keeper {
    fn expired(&mut self) -> Option<u64> {
        for pool in self.pools() {
            pool.close_timed_out();
            pool.lend();
        }
        Some(if self.compare() { 1 } else { TICK })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        for pool in self.pools() {
            pool.open.set(false);
            pool.close_all();
        }
    }
}
