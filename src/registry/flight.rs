//! A request's way through the zone: a server is taken, and given back exactly once.

use super::member::is_one;
use super::order::{Group, Order, Pick, Ready, charge};
use super::space::SpaceRef;
use super::{Event, Events, Happening, Now, Registry, Rules, Worker, member, warm};
use crate::balance::{Policy, Seed};
use crate::idle::ServerKey;
use crate::shm::{HeapEntry, NAME_MAX, NONE, Server, class, fault, flag, heap as heap_id};

/// Most expired servers that one choice takes out of rotation in passing.
const DROPS_A_CHOICE: usize = 8;

/// Most failed servers that one choice lets be tried again.
const RETRIES_A_CHOICE: usize = 8;

/// Most servers looked at from the freshest down when the orders are still full of expired ones.
const FRESHEST: usize = 1024;

/// What is asked for.
#[derive(Debug)]
pub struct Choice<'a> {
    /// The namespace.
    pub space: SpaceRef,
    /// How to choose.
    pub policy: &'a dyn Policy,
    /// Numbers of the servers already tried for this request, in rising order.
    pub tried: &'a [u64],
    /// Servers that come first among equals, if the policy says so: those with connections open to
    /// them.
    pub warm: &'a [ServerKey],
    /// What a policy draws by, as [`Policy::seed`] says: a random number, or the digest of the
    /// request's key. `None`: there is no key, or nothing is drawn.
    pub seed: Option<u64>,
    /// A server whose kept connection turned out dead: it is taken again, if it still may be.
    pub again: Option<Flight>,
}

/// A request on its way: what [`Registry::release`] needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// The server's number.
    pub number: u64,
    server: u32,
    generation: u32,
    entry: u32,
}

impl Flight {
    /// The server's slot: small, and used again when the server is gone.
    pub fn slot(&self) -> u32 {
        self.server
    }
}

/// Where to connect to.
#[derive(Clone, Copy)]
pub struct Target {
    /// Address family: 4, 6, or 1 for a unix socket.
    pub family: u8,
    /// Port in host order.
    pub port: u16,
    /// The address; the first four bytes for IPv4.
    pub ip: [u8; 16],
    /// Length of the printed address.
    pub name_len: u8,
    /// The address as printed, `host:port` or `unix:path`.
    pub name: [u8; NAME_MAX],
    /// Milliseconds to wait for it, 0: as the location says. Indexed by
    /// [`timeout`](crate::shm::timeout).
    pub timeouts_ms: [u32; 3],
}

impl Target {
    /// Nowhere.
    pub const NONE: Self = Self {
        family: 0,
        port: 0,
        ip: [0; 16],
        name_len: 0,
        name: [0; NAME_MAX],
        timeouts_ms: [0; 3],
    };

    /// The address as printed.
    pub fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.name_len)]
    }

    /// Makes it that of a server. Copies no more than is there.
    #[inline]
    pub(super) fn point_at(&mut self, s: &Server) {
        self.family = s.family;
        self.port = s.port;
        self.ip = s.ip;
        self.timeouts_ms = s.timeouts_ms;
        self.name_len = s.name_len;
        let len = usize::from(s.name_len).min(NAME_MAX);
        self.name[..len].copy_from_slice(&s.name[..len]);
    }
}

/// Why no server was given: how many servers were left out for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nobody {
    /// Silent for longer than `heartbeat_ttl`.
    pub expired: u32,
    /// Switched off.
    pub disabled: u32,
    /// Failed their health checks.
    pub unhealthy: u32,
    /// Failed `max_fails` times.
    pub failed: u32,
    /// Finishing what they have.
    pub draining: u32,
    /// Of weight 0.
    pub weight_zero: u32,
    /// With `max_conns` requests.
    pub at_max_conns: u32,
    /// Names that have no address.
    pub unresolved: u32,
    /// Tried before for the same request.
    pub tried: u32,
    /// The namespace is gone.
    pub no_namespace: bool,
}

impl std::fmt::Display for Nobody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.no_namespace {
            return f.write_str("no such namespace");
        }
        let reasons = [
            (self.expired, "expired"),
            (self.disabled, "disabled"),
            (self.unhealthy, "unhealthy"),
            (self.failed, "failed"),
            (self.draining, "draining"),
            (self.weight_zero, "weight 0"),
            (self.at_max_conns, "at max_conns"),
            (self.unresolved, "unresolved"),
            (self.tried, "tried"),
        ];
        let mut sep = "";
        for (n, reason) in reasons {
            if n > 0 {
                write!(f, "{sep}{n} {reason}")?;
                sep = ", ";
            }
        }
        if sep.is_empty() { f.write_str("it has no servers") } else { Ok(()) }
    }
}

/// How a request ended, as far as the server is to blame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It answered.
    Fine,
    /// It was given up before it answered: the client went.
    Cut,
    /// What stock nginx calls failed: connect error, timeout, 500, 503 …
    Failed,
    /// A kept connection was dead when it was used: says nothing about the server.
    Stale,
}

/// What [`Registry::release`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Released {
    /// It was the namespace's only server: there is nobody else to try.
    pub alone: bool,
    /// This failure took the server out of rotation for `fail_timeout`.
    pub failed: bool,
    /// The server goes on taking requests, now or later: a connection to it is worth keeping.
    pub stays: bool,
}

impl Registry<'_> {
    /// Chooses a server and counts a request on it. Returns how it is to be given back, where it
    /// is, and how many servers could be tried in all (this one included).
    ///
    /// # Errors
    ///
    /// [`Nobody`] with the reasons.
    pub fn take(
        &mut self,
        worker: &mut Worker,
        choice: &Choice<'_>,
        rules: &Rules,
        now: Now,
        target: &mut Target,
        events: &mut Events,
    ) -> Result<(Flight, usize), Nobody> {
        self.restate(worker);
        if !self.is_current(choice.space) {
            return Err(Nobody { no_namespace: true, ..Nobody::default() });
        }
        let rules = &self.in_force(rules);
        let space = choice.space.slot;
        self.keep_order(space, choice.policy.order());
        if choice.policy.seed() != Seed::Nothing {
            self.keep_tree(space);
        }
        self.rewind(space);

        let dropped = self.drop_expired(space, rules, now, events);
        self.retry_failed(space, now);
        self.warm_up(now);
        let mut panic = self.mind_panic(space, rules, events);

        let again = choice.again.and_then(|flight| self.still_ready(space, flight));
        let mut pick = match again {
            Some(server) => Some(Pick { server, order: None }),
            None => self.pick(choice, panic, dropped, rules, now, events),
        };
        // Those that it has found to be silent may have been too many.
        if pick.is_none() && !panic && self.mind_panic(space, rules, events) {
            panic = true;
            pick = self.pick(choice, panic, dropped, rules, now, events);
        }
        let Some(Pick { server, order }) = pick else {
            return Err(self.nobody(space, choice.tried));
        };

        let eligible = self.eligible(space, choice.policy.order(), panic);
        self.count_time(server, now);
        let entry = self.book(worker, server);
        fault::point!("take.booked");
        let t = &mut *self.g;
        // A turn is for a request, not for a try: else a server that fails again and again would be
        // the first that each request goes to.
        if let Some(order) = order
            && choice.tried.is_empty()
        {
            charge(t, server, order);
            fault::point!("take.charged");
        }
        let s = &mut t.servers[server as usize];
        s.requests += 1;
        // Stock: the first request after a pause of fail_timeout is a check of its own, and a
        // success of it wipes out older failures.
        if s.fail_marks > 0
            && now.mono.saturating_sub(s.checked_mono) > u64::from(s.fail_timeout_ms)
        {
            s.checked_mono = now.mono;
        }
        s.flags &= !flag::RETRY;
        let flight = Flight { number: s.number, server, generation: s.generation, entry };
        target.point_at(s);
        warm::step(t, server, now);
        member::reclassify(t, server);
        fault::point!("take.ranked");

        Ok((flight, eligible))
    }

    /// How many servers could be tried.
    fn eligible(&self, space: u32, order: Order, panic: bool) -> usize {
        let ready = self.g.spaces[space as usize].ready;
        let standby = match panic {
            // Their heap has the backups and no others beside them.
            true => {
                let backups = super::heap::entries(&self.g, space, order.heap(Group::Backup));
                backups.len() - ready[Group::Backup as usize] as usize
            }
            false => 0,
        };
        (ready[0] + ready[1]) as usize + standby
    }

    /// Gives back what [`Registry::take`] gave: exactly once for each.
    pub fn release(
        &mut self,
        worker: &mut Worker,
        flight: Flight,
        verdict: Verdict,
        now: Now,
    ) -> Released {
        self.restate(worker);
        self.count_time(flight.server, now);
        self.unbook(worker, flight.entry, flight.server, flight.generation);
        fault::point!("release.unbooked");
        let t = &mut *self.g;
        let s = &mut t.servers[flight.server as usize];
        if s.live == 0 || s.generation != flight.generation {
            return Released::default();
        }
        let alone = is_one(&t.spaces[s.space as usize]);
        let mut failed = false;
        let was_out = !alone && s.max_fails > 0 && s.fail_marks >= s.max_fails;
        match verdict {
            Verdict::Failed => {
                s.fails = s.fails.saturating_add(1);
                if alone {
                    s.fail_marks = 0;
                } else {
                    s.fail_marks = s.fail_marks.saturating_add(1);
                    s.accessed_mono = now.mono;
                    s.checked_mono = now.mono;
                    s.flags &= !flag::RETRY;
                    failed = s.max_fails > 0 && s.fail_marks >= s.max_fails;
                }
            }
            Verdict::Fine | Verdict::Cut => {
                if verdict == Verdict::Fine {
                    Self::note_served(s, now);
                }
                // Stock nginx tells these two not apart.
                if alone || s.accessed_mono < s.checked_mono {
                    s.fail_marks = 0;
                }
            }
            Verdict::Stale => {}
        }
        if was_out && s.fail_marks == 0 {
            warm::begin(s, now);
            warm::note(t, flight.server);
        }
        fault::point!("release.marked");
        warm::step(t, flight.server, now);
        member::reclassify(t, flight.server);
        Released { alone, failed, stays: self.takes_requests(flight.server) }
    }

    /// Whether the server is there and goes on taking requests, now or later: connections to it are
    /// worth keeping.
    pub fn keeps_connections(&self, slot: u32, number: u64) -> bool {
        let server = self.g.servers.get(slot as usize);
        server.is_some_and(|s| s.live != 0 && s.number == number && self.takes_requests(slot))
    }

    /// Not one that was switched off, drains, or is silent.
    fn takes_requests(&self, slot: u32) -> bool {
        let s = &self.g.servers[slot as usize];
        match s.class as u8 {
            class::DISABLED | class::DRAINING => false,
            class::EXPIRED => self.in_panic(s.space) && s.flags & flag::DRAINING == 0,
            _ => true,
        }
    }

    /// The server of an earlier flight, if it may still be chosen.
    fn still_ready(&self, space: u32, flight: Flight) -> Option<u32> {
        let s = self.g.servers.get(flight.server as usize)?;
        (s.live != 0
            && s.generation == flight.generation
            && s.space == space
            && (s.class == u32::from(class::READY)
                || (self.in_panic(space) && super::order::stands(&self.g, flight.server))))
        .then_some(flight.server)
    }

    fn pick(
        &mut self,
        choice: &Choice<'_>,
        panic: bool,
        dropped: usize,
        rules: &Rules,
        now: Now,
        events: &mut Events,
    ) -> Option<Pick> {
        let space = choice.space.slot;
        for group in [Group::Primary, Group::Backup] {
            loop {
                let Choice { tried, warm, seed, .. } = *choice;
                let ready = Ready { t: &self.g, space, group, tried, warm, panic, seed };
                let Some(pick) = choice.policy.pick(&ready) else { break };
                let server = pick.server;
                if panic || !self.is_silent(server, rules, now) {
                    return Some(pick);
                }
                // Many expired at once and the drops of this choice are used up. The freshest
                // servers stand at the end of a list: one of them will do until the timer has
                // taken out the rest.
                if dropped >= DROPS_A_CHOICE {
                    if let Some(fresh) = self.freshest(choice, group, rules, now) {
                        return Some(Pick { server: fresh, order: Some(choice.policy.order()) });
                    }
                    if self.g.spaces[space as usize].statics == 0
                        && !self.shares()
                        && self.all_silent(space, rules, now)
                    {
                        // All of them at once: only the counts don't say so yet.
                        return self.would_panic(space, rules).then_some(pick);
                    }
                }
                self.expire(server, now, events);
            }
        }
        None
    }

    /// Whether a server has been silent for longer than the TTL. The clock is asked, not the timer.
    pub(super) fn is_silent(&self, server: u32, rules: &Rules, now: Now) -> bool {
        let s = &self.g.servers[server as usize];
        rules.silent(s, self.afar(), now)
    }

    fn all_silent(&self, space: u32, rules: &Rules, now: Now) -> bool {
        match self.g.spaces[space as usize].fresh_tail {
            NONE => true,
            tail => self.is_silent(tail, rules, now),
        }
    }

    /// Takes out of rotation the oldest of those heard of, if they have expired. Returns how many.
    fn drop_expired(&mut self, space: u32, rules: &Rules, now: Now, events: &mut Events) -> usize {
        let mut dropped = 0;
        while dropped < DROPS_A_CHOICE {
            let oldest = self.g.spaces[space as usize].fresh_head;
            if oldest == NONE || !self.is_silent(oldest, rules, now) {
                break;
            }
            self.expire(oldest, now, events);
            dropped += 1;
        }
        dropped
    }

    /// Notes that a server is silent.
    pub(super) fn expire(&mut self, server: u32, now: Now, events: &mut Events) {
        let t = &mut *self.g;
        member::stale(t, server);
        fault::point!("expire.stale");
        let s = &mut t.servers[server as usize];
        s.flags |= flag::EXPIRED;
        fault::point!("expire.flagged");
        let silent = now.mono.saturating_sub(s.heartbeat_mono);
        let space = s.space;
        // An address has the heartbeat of its name, of which this is said.
        if s.flags & flag::DISABLED == 0 && !s.is_of_name() {
            events.push(Event::new(
                Happening::Expired,
                &t.spaces[space as usize],
                &t.servers[server as usize],
                silent,
            ));
        }
        member::reclassify(t, server);
        self.touch();
    }

    /// Makes ready the failed servers whose rest is over.
    fn retry_failed(&mut self, space: u32, now: Now) {
        for _ in 0..RETRIES_A_CHOICE {
            let t = &mut *self.g;
            let Some(&HeapEntry { key, server, .. }) =
                super::heap::entries(t, space, heap_id::RETRY).first()
            else {
                return;
            };
            if key.major > now.mono {
                return;
            }
            t.servers[server as usize].flags |= flag::RETRY;
            member::reclassify(t, server);
        }
    }

    /// The best by the policy's order among the freshest servers.
    fn freshest(&self, choice: &Choice<'_>, wanted: Group, rules: &Rules, now: Now) -> Option<u32> {
        let mut at = self.g.spaces[choice.space.slot as usize].fresh_tail;
        let mut best: Option<(u32, u64)> = None;
        let (afar, shares) = (self.afar(), self.shares());
        for _ in 0..FRESHEST {
            let Some(s) = self.g.servers.get(at as usize) else { break };
            // Where some are heard of by other nodes, the order is not that of silence.
            if rules.silent(s, afar, now) {
                if shares {
                    at = s.fresh_prev;
                    continue;
                }
                break;
            }
            if s.class == u32::from(class::READY)
                && super::order::group(s) == wanted
                && choice.tried.binary_search(&s.number).is_err()
            {
                let load = super::order::load(s);
                if best.is_none_or(|(_, least)| load < least) {
                    best = Some((at, load));
                }
            }
            at = s.fresh_prev;
        }
        best.map(|(server, _)| server)
    }

    /// Counts why nobody was eligible, from the counts that are kept.
    fn nobody(&self, at: u32, tried: &[u64]) -> Nobody {
        let space = &self.g.spaces[at as usize];
        let n = |class: u8| space.classes[usize::from(class)];
        let tried = match self.in_panic(at) {
            true => tried.len() as u32,
            false => n(class::READY).min(tried.len() as u32),
        };
        Nobody {
            // Those still held ready are silent as well: this choice had no drops left for them.
            expired: (n(class::EXPIRED) + n(class::READY)).saturating_sub(tried),
            disabled: n(class::DISABLED),
            unhealthy: n(class::UNHEALTHY),
            failed: n(class::FAILED),
            draining: n(class::DRAINING),
            weight_zero: n(class::WEIGHT_ZERO),
            at_max_conns: n(class::AT_MAX),
            unresolved: n(class::UNRESOLVED),
            tried,
            no_namespace: false,
        }
    }
}
