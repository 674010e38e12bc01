//! What a new configuration brings: its namespaces, its `server` lines, and the servers of the zone
//! that it replaces.

use std::collections::HashMap;

use super::address::Address;
use super::life::is_enabled;
use super::member::EMPTY;
use super::settings::Settings;
use super::space::{SpaceName, name_of};
use super::{Error, Events, Happening, Now, Registry, Rules};
use crate::shm::{NONE, Server, Shared, Tables, fault, flag, reason};

/// A `server` line.
#[derive(Clone, Debug)]
pub struct StaticServer {
    /// Where it listens.
    pub address: Address,
    /// 1 to [`super::WEIGHT_MAX`].
    pub weight: u32,
    /// 0: no limit.
    pub max_conns: u32,
    /// 0: never taken out.
    pub max_fails: u32,
    /// Milliseconds.
    pub fail_timeout_ms: u32,
    /// Only used when no other is eligible.
    pub backup: bool,
    /// Switched off.
    pub down: bool,
    /// Milliseconds in which it grows to its weight, up to [`super::SLOW_START_MAX`]; 0: none.
    pub slow_start_ms: u32,
}

impl Registry<'_> {
    /// Takes over from the zone that this one replaces: its servers, as they are, without the
    /// requests on them, which end where they began.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] when this zone is smaller and not all have room; those that have are here.
    pub fn succeed(&mut self, old: &mut Registry<'_>) -> Result<(), Error> {
        fault::point!("succeed.begun");
        let mut full = None;
        let mut order: Vec<u32> = (0..old.g.header.high_water)
            .filter(|slot| old.g.servers[*slot as usize].live != 0)
            .collect();
        order.sort_unstable_by_key(|slot| old.g.servers[*slot as usize].number);
        // A name comes before its addresses: it has the lower number.
        let mut moved = HashMap::new();
        for slot in order {
            let s = old.g.servers[slot as usize];
            let t: &Tables<'_> = &old.g;
            let name = name_of(&t.spaces[s.space as usize]);
            let Some(name) = SpaceName::new(name.as_bytes()) else { continue };
            match self.make_space(name) {
                Ok(space) => {
                    // Turns count from the virtual time of a zone: here it starts anew.
                    // The counts that this node has told are those of the old zone.
                    let parent = match moved.get(&s.parent) {
                        Some(parent) => *parent,
                        None if s.is_of_name() => continue,
                        None => NONE,
                    };
                    let server =
                        Server { space: space.slot, turn: [0; 2], told_mean: 0, parent, ..s };
                    match self.insert(server) {
                        Some(new) => {
                            self.g.checks[new as usize] = old.g.checks[slot as usize];
                            if s.is_name() {
                                moved.insert(slot, new);
                            }
                        }
                        None => full = Some(Error::Full("server")),
                    }
                    fault::point!("succeed.server");
                }
                Err(e) => full = Some(e),
            }
        }
        self.drop_unused_spaces();
        self.succeed_departed(old);
        self.succeed_in_file(old);
        fault::point!("succeed.done");
        full.map_or(Ok(()), Err)
    }

    /// Makes the zone agree with a new configuration: `spaces` are the namespaces that it names,
    /// `servers` its `server` lines. What it no longer names goes.
    ///
    /// # Errors
    ///
    /// [`Error::Full`]; what has room is done.
    pub fn configure(
        &mut self,
        spaces: &[SpaceName<'_>],
        servers: &[(SpaceName<'_>, StaticServer)],
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) -> Result<(), Error> {
        fault::point!("configure.begun");
        // What the configuration no longer names goes last: cut short, the zone still has all that
        // the old workers know.
        let mut full = None;
        for name in spaces {
            if let Err(e) = self.configure_space(*name) {
                full = Some(e);
            }
            fault::point!("configure.space");
        }
        // No further than records have been used: the rest of the zone has never been touched, and
        // the kernel would have to make all of it now.
        let high = self.g.header.high_water as usize;
        for s in &mut self.g.servers[..high] {
            s.flags &= !flag::SEEN;
        }
        for (name, line) in servers {
            if let Err(e) = self.configure_server(*name, line, now) {
                full = Some(e);
            }
            fault::point!("configure.server");
        }
        for slot in 0..self.g.header.high_water {
            let s = &self.g.servers[slot as usize];
            if s.live == 0 {
                continue;
            }
            if s.flags & (flag::STATIC | flag::SEEN) == flag::STATIC {
                self.say(Happening::Removed, slot, events);
                self.erase(slot);
                // It may be registered at other nodes: all is read anew.
                self.g.header.shared.run = 0;
                fault::point!("configure.removed");
            } else if rules.revives(s, now) {
                self.revive(slot, now, events);
            }
        }
        self.unconfigure_others(spaces);
        self.drop_unused_spaces();
        fault::point!("configure.done");
        full.map_or(Ok(()), Err)
    }

    /// Takes over what Redis is still to be told of servers that have departed, and how far the zone
    /// that this one replaces had come with Redis.
    fn succeed_departed(&mut self, old: &Registry<'_>) {
        let lists = self.g.header.shared;
        self.g.header.shared = Shared {
            queued: lists.queued,
            queue_head: lists.queue_head,
            queue_tail: lists.queue_tail,
            kept_head: lists.kept_head,
            kept_tail: lists.kept_tail,
            // All counts are read anew.
            total_cursor: 0,
            ..old.g.header.shared
        };
        for s in &old.g.servers[..old.g.header.high_water as usize] {
            if s.live == 0 && s.is_departed() && !self.insert_departed(s) {
                break;
            }
        }
    }

    fn configure_server(
        &mut self,
        name: SpaceName<'_>,
        line: &StaticServer,
        now: Now,
    ) -> Result<(), Error> {
        let space = self.make_space(name)?;
        let known = self.find(space.slot, &line.address);
        let mut s = match known {
            Some(slot) => self.g.servers[slot as usize],
            None => Server {
                space: space.slot,
                created_wall: now.wall,
                updated_wall: now.wall,
                started_mono: now.mono,
                ..EMPTY
            },
        };
        // Several upstreams may list the same server: the first line counts.
        if s.flags & flag::SEEN != 0 {
            return Ok(());
        }
        let was_down = s.flags & flag::CONFIGURED_DOWN != 0;
        s.flags &= !(flag::BACKUP | flag::EXPIRED | flag::SILENCED | flag::CONFIGURED_DOWN);
        s.flags |= flag::STATIC | flag::SEEN;
        if line.backup {
            s.flags |= flag::BACKUP;
        }
        // `down` is applied when the line changes, not at each reload: what was switched by hand in
        // between stays so.
        if line.down {
            s.flags |= flag::CONFIGURED_DOWN;
            if !was_down {
                s.flags |= flag::DISABLED;
                s.disabled_reason = reason::CONFIGURED;
                s.disabled_wall = now.wall;
            }
        } else if was_down && s.disabled_reason == reason::CONFIGURED {
            s.flags &= !flag::DISABLED;
        }
        if is_enabled(&s) {
            s.disabled_reason = reason::NONE;
            s.disabled_wall = 0;
        }
        s.weight = line.weight;
        s.max_conns = line.max_conns;
        let settings = Settings {
            max_fails: line.max_fails,
            fail_timeout_ms: line.fail_timeout_ms,
            slow_start_ms: line.slow_start_ms,
            ..Settings::DEFAULT
        };
        settings.apply(&mut s);
        line.address.write(&mut s);
        if known.is_none_or(|slot| self.g.servers[slot as usize].flags & flag::STATIC == 0) {
            s.heartbeat_mono = now.mono;
            s.heartbeat_wall = now.wall;
        }
        if let Some(slot) = known {
            self.unname(slot);
            (s.parent, s.next_address) = (NONE, NONE);
        }
        match known {
            Some(slot) if unchanged(&self.g.servers[slot as usize], &s) => {
                self.g.servers[slot as usize].flags = s.flags;
            }
            Some(slot) => self.adopt(slot, s),
            None => self.insert(s).map(drop).ok_or(Error::Full("server"))?,
        }
        Ok(())
    }
}

/// Whether a `server` line says what it said before.
fn unchanged(old: &Server, new: &Server) -> bool {
    (old.flags | flag::SEEN) == new.flags
        && (old.weight, old.max_conns) == (new.weight, new.max_conns)
        && Settings::of(old) == Settings::of(new)
        && (old.disabled_reason, old.disabled_wall) == (new.disabled_reason, new.disabled_wall)
}
