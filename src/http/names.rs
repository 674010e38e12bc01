//! The worker that looks up names.
//!
//! Each worker looks now and then whether it is the elected one. That one asks nginx's resolver for
//! the addresses of all names, again when the time of an answer is up. Nothing here waits: questions
//! are put, and a timer looks what has come.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt::Arguments;
use std::mem::replace;
use std::pin::Pin;

use ngx::ffi::{NGX_LOG_NOTICE, NGX_LOG_WARN};

use super::worker::{Held, now, report};
use super::zone::ZoneConf;
use crate::nginx::log::log;
use crate::nginx::process::{cycle_log, is_exiting};
use crate::nginx::resolve::{Answer, Query, Resolver};
use crate::nginx::timer::{Expired, Timer};
use crate::registry::{Events, Found, NameRef, Registry};

/// Milliseconds between two looks whether this worker has become the elected one.
const LOOK: u64 = 200;
/// Milliseconds between two looks for names that have been registered.
const TICK: u64 = 100;
/// Milliseconds between two looks for answers that are due.
const POLL: u64 = 10;
/// Milliseconds after which an answer is asked for again, whatever it says, at least and at most.
const AGAIN: (u64, u64) = (1000, 3_600_000);
/// The same when there was no such name.
const MISSING: (u64, u64) = (1000, 10_000);
/// The same when there was no answer: the first time, and when it goes on.
const BACKOFF: (u64, u64) = (5000, 30_000);
/// Most questions that are under way at a time.
const ASKED: usize = 32;
/// Slots that are looked at under one hold of the lock, and in one turn of the event loop.
const SLICE: u32 = 128;
const TURN: u32 = 2048;
/// Lines after which one turn of the event loop takes no more answers.
const LINES: usize = 128;
/// How many addresses one line names.
const NAMED: usize = 5;

/// Those who look up the names of this process's zones, for as long as its configuration lasts.
pub(super) struct Namers(Vec<Pin<Box<Timer<Namer>>>>);

impl Namers {
    /// None yet.
    pub(super) const NONE: Self = Self(Vec::new());

    /// Starts one for a zone that this process has joined.
    ///
    /// `conf` and the resolver outlive it: [`Namers::clear`] is called before a configuration goes.
    pub(super) fn start(&mut self, conf: *const ZoneConf, local: Held, resolver: Option<Resolver>) {
        let namer = Namer {
            conf,
            local,
            resolver,
            names: HashMap::new(),
            due: BinaryHeap::new(),
            asked: Vec::new(),
            seen: 0,
            search: None,
            searches: 0,
            said: false,
            events: Events::with_capacity(2 * LINES),
        };
        self.0.push(Timer::start(namer, 1));
    }

    /// Ends them, and takes back what they have asked.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What is remembered of a name between two answers.
#[derive(Default)]
struct Memory {
    /// The search that has found it last.
    search: u64,
    /// Milliseconds to wait after the next failure.
    backoff: u64,
    /// What the log says of it already: that addresses are too many, not allowed, or unspecified,
    /// and that the zone is full.
    said: [bool; 4],
}

/// The names of one zone in the hands of this worker.
struct Namer {
    conf: *const ZoneConf,
    local: Held,
    resolver: Option<Resolver>,
    names: HashMap<NameRef, Memory>,
    /// Those that are to be asked for, and when on the monotonic clock.
    due: BinaryHeap<Reverse<(u64, NameRef)>>,
    asked: Vec<(NameRef, Pin<Box<Query>>)>,
    /// All names of a lower number are known.
    seen: u64,
    /// A search that is not through: the next slot, and what `seen` will be.
    search: Option<(u32, u64)>,
    /// How many searches there have been.
    searches: u64,
    /// The log says that there is no resolver.
    said: bool,
    events: Events,
}

impl Expired for Namer {
    fn expired(&mut self) -> Option<u64> {
        Some(self.step())
    }
}

impl Namer {
    fn conf(&self) -> &ZoneConf {
        // SAFETY: by the contract of `Namers::start`.
        unsafe { &*self.conf }
    }

    fn say(&self, level: u32, what: Arguments<'_>) {
        log(level, cycle_log(), format_args!("registry \"{}\": {what}", self.conf().name));
    }

    /// Does what is to be done now. Returns in how many milliseconds to come again.
    fn step(&mut self) -> u64 {
        if is_exiting() || !self.is_elected() {
            self.rest();
            return LOOK;
        }
        self.find();
        let Some(resolver) = self.resolver else {
            self.miss_resolver();
            return LOOK;
        };
        self.listen();
        self.ask(resolver);
        let mut events = std::mem::take(&mut self.events);
        report(self.conf(), cycle_log(), &mut events);
        self.events = events;
        match (&self.search, self.asked.is_empty()) {
            (Some(_), _) => 1,
            (None, false) => POLL,
            (None, true) => TICK,
        }
    }

    fn is_elected(&self) -> bool {
        let mut hands = self.local.hands();
        let Some(worker) = hands.worker.as_mut() else { return false };
        let Ok(mut registry) = Registry::lock(&self.local.zone) else { return false };
        !registry.is_retired() && registry.elect(worker)
    }

    /// Leaves the names to another worker.
    fn rest(&mut self) {
        self.asked.clear();
        self.names.clear();
        self.due.clear();
        (self.seen, self.search) = (0, None);
    }

    /// Looks for names that are new, when anything has been registered.
    fn find(&mut self) {
        let mut looked_at = 0;
        let mut found = Vec::with_capacity(SLICE as usize);
        let mut through = false;
        while !through && looked_at < TURN {
            let Ok(registry) = Registry::lock(&self.local.zone) else { return };
            let (mut next, number) = match self.search {
                Some(search) => search,
                None if registry.next_number() == self.seen => return,
                None if registry.names() == 0 => {
                    self.seen = registry.next_number();
                    self.names.clear();
                    self.due.clear();
                    return;
                }
                None => (0, registry.next_number()),
            };
            through = registry.find_names(&mut next, SLICE, &mut found);
            drop(registry);
            looked_at += SLICE;
            if through {
                self.seen = number;
            }
            for name in found.drain(..) {
                let due = &mut self.due;
                let memory = self.names.entry(name).or_insert_with(|| {
                    due.push(Reverse((0, name)));
                    Memory::default()
                });
                memory.search = self.searches;
            }
            self.search = (!through).then_some((next, number));
        }
        if through {
            // Names that are gone are forgotten here, or else many that come and go would grow the
            // worker's memory for as long as their answers hold.
            let search = self.searches;
            self.names.retain(|_, memory| memory.search == search);
            let names = &self.names;
            self.due.retain(|Reverse((_, name))| names.contains_key(name));
            self.searches += 1;
        }
    }

    /// Says once that names can't be looked up.
    fn miss_resolver(&mut self) {
        let n = self.names.len();
        self.names.clear();
        self.due.clear();
        if n > 0 && !replace(&mut self.said, true) {
            let names = if n == 1 { "name is" } else { "names are" };
            self.say(
                NGX_LOG_WARN,
                format_args!(
                    "{n} {names} registered and there is no resolver to look up addresses: set \
                     \"resolver\" in http {{ }}"
                ),
            );
        }
    }

    /// Takes the answers that have come.
    fn listen(&mut self) {
        let mut at = 0;
        while at < self.asked.len() && self.events.len() < LINES {
            match self.asked[at].1.as_mut().take() {
                Some(answer) => {
                    let (name, _) = self.asked.swap_remove(at);
                    self.take(name, answer);
                }
                None => at += 1,
            }
        }
    }

    /// Asks for the names whose time has come.
    fn ask(&mut self, resolver: Resolver) {
        let now = now().mono;
        while self.asked.len() < ASKED
            && let Some(Reverse((_, name))) = self.due.peek().filter(|next| next.0.0 <= now)
        {
            let name = *name;
            self.due.pop();
            let Ok(registry) = Registry::lock(&self.local.zone) else { return };
            let copy = registry.copy_name(name);
            drop(registry);
            match copy.as_ref().and_then(|copy| copy.name().rsplit_once(':')) {
                Some((host, _)) => self.asked.push((name, Query::start(resolver, host))),
                None => _ = self.names.remove(&name),
            }
        }
    }

    fn take(&mut self, name: NameRef, answer: Answer) {
        let now = now();
        let mut memory = self.names.remove(&name).unwrap_or_default();
        let (found, after) = match answer {
            Answer::Failed(why) => {
                let (first, most) = BACKOFF;
                let after = memory.backoff.clamp(first, most);
                memory.backoff = after * 2;
                self.lost(name, &why);
                return self.remember(name, memory, now.mono + after);
            }
            Answer::Missing(ttl) => (None, ttl.clamp(MISSING.0, MISSING.1)),
            Answer::Addresses(all, ttl) => {
                (Some(Found::sift(all, &self.conf().allow)), ttl.clamp(AGAIN.0, AGAIN.1))
            }
        };
        memory.backoff = 0;
        let missing = found.is_none();
        let found = found.unwrap_or_default();
        let Ok(mut registry) = Registry::lock(&self.local.zone) else {
            return self.remember(name, memory, now.mono + LOOK);
        };
        let Some(copy) = registry.copy_name(name) else { return };
        let taken = registry.take_addresses(name, &found, now, &mut self.events);
        let back = registry.set_lost(name, false);
        let gone = registry.set_not_found(name, missing) && missing;
        drop(registry);

        let (host, space) = (copy.name(), copy.namespace());
        if back {
            self.say(
                NGX_LOG_NOTICE,
                format_args!("name {host} in namespace \"{space}\" is resolved again"),
            );
        }
        if gone {
            self.say(
                NGX_LOG_WARN,
                format_args!(
                    "name {host} in namespace \"{space}\" is not found, or has no address: it takes \
                     no requests until it has one"
                ),
            );
        }
        self.say_left_out(host, space, &found, &mut memory);
        let full = taken.as_ref().is_err();
        if let Err(e) = taken
            && !memory.said[3]
        {
            self.say(
                NGX_LOG_WARN,
                format_args!("not all addresses of {host} in namespace \"{space}\" are taken: {e}"),
            );
        }
        memory.said[3] = full;
        let after = if full { after.min(BACKOFF.1) } else { after };
        self.remember(name, memory, now.mono + after);
    }

    fn remember(&mut self, name: NameRef, memory: Memory, due: u64) {
        self.names.insert(name, memory);
        self.due.push(Reverse((due, name)));
    }

    /// The resolver has not answered: what it said last goes on.
    fn lost(&self, name: NameRef, why: &str) {
        let Ok(mut registry) = Registry::lock(&self.local.zone) else { return };
        let news = registry.set_lost(name, true);
        let (copy, n) = (registry.copy_name(name), registry.addresses(name));
        drop(registry);
        let Some(copy) = copy.filter(|_| news) else { return };
        let (host, space) = (copy.name(), copy.namespace());
        self.say(
            NGX_LOG_WARN,
            format_args!(
                "name {host} in namespace \"{space}\" can't be resolved ({why}): its last addresses, \
                 {n} of them, are kept"
            ),
        );
    }

    /// Says what of an answer is not taken, once until it is otherwise.
    fn say_left_out(&self, host: &str, space: &str, found: &Found, memory: &mut Memory) {
        let is = [found.over > 0, !found.refused.is_empty(), found.unspecified];
        let said = [memory.said[0], memory.said[1], memory.said[2]];
        let news = |i: usize| is[i] && !said[i];
        let warn = |what: Arguments<'_>| {
            let text = format_args!("name {host} in namespace \"{space}\" {what}");
            self.say(NGX_LOG_WARN, text);
        };
        if news(0) {
            let over = found.over;
            warn(format_args!(
                "has too many addresses: the lowest {} are taken, {over} are left out",
                Found::MOST
            ));
        }
        if news(1) {
            let named: Vec<_> = found.refused.iter().take(NAMED).map(|ip| ip.to_string()).collect();
            let more = match found.refused.len() - named.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let named = named.join(", ");
            warn(format_args!(
                "has addresses that are not in allow_servers and left out: {named}{more}"
            ));
        }
        if news(2) {
            warn(format_args!("has the unspecified address, which is left out"));
        }
        memory.said[..3].copy_from_slice(&is);
    }
}
