//! Answers about many servers, made a slice at a time.
//!
//! A slice is what one turn of the event loop may take: between two of them other requests are
//! served, and the lock is let go more often still. Servers may come and go meanwhile.

use super::list::ListText;
use super::reply::Reply;
use crate::registry::{Cursor, Events, Health, Now, Registry, Rules, SpaceRef, Sweep};
use crate::shm::{LockError, Zone};

/// Servers read or changed under one hold of the lock.
const HOLD: usize = 128;

/// Servers counted, reset or looked at by a cleanup in one slice.
const SLICE: usize = 1024;

/// Log lines that one slice may lead to.
const LINES: usize = 128;

/// Servers in one piece of a list: some 25 kB of text, which is all that a client that does not
/// read makes the worker keep.
const PIECE: usize = 64;

/// Servers that a list is made of in one go, so that its length can be told.
pub(super) const AT_ONCE: usize = 256;

/// The list of a namespace's servers.
#[derive(Debug)]
pub struct List {
    space: SpaceRef,
    cursor: Cursor,
    text: ListText,
}

impl List {
    pub(super) fn new(space: SpaceRef, name: &str, node: Option<&str>) -> Self {
        Self { space, cursor: Cursor::START, text: ListText::new(name, node) }
    }

    /// Appends the next piece of the JSON to `out`: each server as it is at `now`. True: that was
    /// the last one. A namespace that goes meanwhile ends the list.
    ///
    /// # Errors
    ///
    /// [`LockError`]: there is no more to be had.
    pub fn write_piece(
        &mut self,
        zone: &Zone,
        rules: &Rules,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Result<bool, LockError> {
        let mut servers = Vec::with_capacity(PIECE);
        let mut registry = Registry::lock(zone)?;
        registry.read(self.space, &mut self.cursor, PIECE, rules, now, &mut servers);
        let sharing = registry.sharing(now);
        drop(registry);
        self.text.servers(&servers, out);
        if self.cursor.done {
            self.text.end(now.wall, &sharing, out);
        }
        Ok(self.cursor.done)
    }

    /// The whole list as one reply.
    pub(super) fn whole(mut self, zone: &Zone, rules: &Rules, now: Now) -> Result<Reply, Reply> {
        let mut body = Vec::new();
        while !self.write_piece(zone, rules, now, &mut body).map_err(broken)? {}
        Ok(Reply::ok(body))
    }
}

/// Counting or changing all servers of a namespace.
#[derive(Debug)]
pub struct Task {
    space: SpaceRef,
    cursor: Cursor,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Health { found: Health, ready: bool },
    Reset { servers: u64 },
    Cleanup(Sweep),
}

impl Task {
    fn new(space: SpaceRef, kind: Kind) -> Self {
        Self { space, cursor: Cursor::START, kind }
    }

    pub(super) fn health(space: SpaceRef, ready: bool) -> Self {
        Self::new(space, Kind::Health { found: Health::default(), ready })
    }

    pub(super) fn reset(space: SpaceRef) -> Self {
        Self::new(space, Kind::Reset { servers: 0 })
    }

    pub(super) fn cleanup(space: SpaceRef) -> Self {
        Self::new(space, Kind::Cleanup(Sweep::of(space)))
    }

    /// Does the next slice; the reply after the last one.
    pub fn step(
        &mut self,
        zone: &Zone,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) -> Option<Reply> {
        self.try_step(zone, rules, now, events).unwrap_or_else(|e| Some(broken(e)))
    }

    fn try_step(
        &mut self,
        zone: &Zone,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) -> Result<Option<Reply>, LockError> {
        let (space, cursor) = (self.space, &mut self.cursor);
        for _ in 0..SLICE / HOLD {
            let mut registry = Registry::lock(zone)?;
            let done = match &mut self.kind {
                Kind::Health { found, .. } => {
                    registry.count(space, cursor, HOLD, rules, now, found);
                    cursor.done
                }
                Kind::Reset { servers } => {
                    *servers += registry.reset(space, cursor, HOLD);
                    cursor.done
                }
                Kind::Cleanup(sweep) => {
                    registry.sweep(sweep, HOLD as u32, rules, now, events);
                    sweep.done
                }
            };
            drop(registry);
            if done {
                return Ok(Some(self.reply()));
            }
            if events.len() >= LINES {
                break;
            }
        }
        Ok(None)
    }

    fn reply(&self) -> Reply {
        match &self.kind {
            Kind::Health { found, ready } => Reply::health(found, *ready),
            Kind::Reset { servers } => Reply::reset(*servers),
            Kind::Cleanup(sweep) => Reply::cleanup(sweep),
        }
    }
}

pub(super) fn broken(error: LockError) -> Reply {
    Reply::error(500, error.to_string())
}
