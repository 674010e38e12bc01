//! A node's part in the registry that many share: what comes next, and what came back.
//!
//! [`Node::step`] moves it on, a slice at a time: it takes the zone's lock for a few microseconds,
//! and says when a [`Job`] is to be done by the thread. What must not be forgotten when this process
//! dies is in the zone ([`Shared`](crate::shm::Shared)); what is here is made anew.
//!
//! ```text
//!   Rest ── due ──► Round ──► Asked ──► Taking ──► Rest
//!                                │         └── whole snapshot read ──► Settling ──► Rest
//!                                ├── another run, or behind ──► Marking ──► Rest
//!                                └── wiped ──► Wiping ──► Rest
//! ```

mod hearing;
mod snapshot;
mod taking;

use std::collections::{HashSet, VecDeque};
use std::mem::replace;
use std::time::{Duration, Instant};

use self::hearing::Hearing;
use super::courier::{Job, Outcome, Report};
use super::exchange::{Answer, Count, Done, Identity, Item, Request};
use crate::registry::{
    AWAY_TOO_LONG, Copied, Events, Network, Now, Registry, Round, Rules, SpaceName, Ticket, Unseen,
    WIPED, Wipe,
};
use crate::shm::{Shared, Zone, random_u64};

/// Milliseconds between the beginnings of two exchanges: what comes in between goes together.
const GAP: u64 = 20;
/// News in one exchange, and servers that are looked at under one hold of the lock.
const SLICE: u32 = 128;
/// Counts in one exchange.
const COUNTS: usize = 500;
/// Records in one answer.
const RECORDS: u32 = 250;
/// Signs of life, and counts, in one answer.
const BEATS: u32 = 1000;
/// What one step may take, checked after each slice.
const TURN: Duration = Duration::from_micros(250);
/// Milliseconds to the next try after a failure: the first time, and at most.
const BACKOFF: (u64, u64) = (50, 3000);
/// Milliseconds between two lines that say for different reasons that Redis can't be used.
const AGAIN: u64 = 30_000;
/// Milliseconds after which servers that had no room are looked for again.
const RETRY: u64 = 60_000;
/// Addresses that are remembered as not allowed.
const REMEMBERED: usize = 1000;

/// What the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the keys; with a cluster in braces.
    pub prefix: String,
    /// The node's name.
    pub name: String,
    /// `redis_interval`, in milliseconds.
    pub interval: u64,
    /// `redis_timeout`, in milliseconds.
    pub timeout: u64,
    /// `redis_tombstone_ttl`, in milliseconds.
    pub tombstone_ttl: u64,
    /// Namespaces of the configuration.
    pub spaces: Vec<String>,
    /// Where Redis is, for the log.
    pub redis: String,
}

/// How important a line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// The operator has to do something.
    Error,
    /// Something is odd.
    Warn,
    /// To know what happened.
    Notice,
}

/// What [`Node::step`] wants.
#[derive(Debug)]
pub enum Next {
    /// The thread is to do this.
    Send(Job),
    /// Another step, in another turn of the event loop.
    Again,
    /// A step in so many milliseconds, or when something is heard or done.
    Wait(u64),
}

enum Phase {
    Rest,
    Round(Round),
    /// The thread has a job, since so long by the monotonic clock.
    Asked(u64),
    Taking {
        done: Box<Done>,
        /// When it was asked.
        asked: u64,
        part: usize,
        at: usize,
    },
    Marking {
        next: u32,
        others: u32,
        epoch: Identity,
        run: Identity,
        unseen: u32,
    },
    Settling(u32),
    Wiping(Wipe, Identity),
    /// Redis is away: what other nodes have is not known any more.
    Forgetting(u32),
}

/// See the file's head.
pub struct Node {
    settings: Settings,
    allow: Vec<Network>,
    id: String,
    phase: Phase,
    /// Something is said to be new.
    hinted: bool,
    /// There was more to be read.
    more: bool,
    /// Monotonic times in milliseconds.
    last_start: u64,
    next_poll: u64,
    next_round: u64,
    next_scan: u64,
    next_try: u64,
    failures: u32,
    /// When the first of these was asked for.
    failing_since: u64,
    backoff: u64,
    /// When the log last said that Redis can't be used, and why.
    complained: (u64, String),
    lease: bool,
    hearing: Hearing,
    /// What other nodes have on servers has been forgotten.
    alone: bool,
    /// All public keys have been looked at, and Redis is to be told.
    scanned: bool,
    /// Servers that went because of a wipe.
    forgotten: u64,
    /// All counts are to be told.
    reset: bool,
    /// All counts are to be told once more: Redis has forgotten some.
    recount: bool,
    /// Nodes have come or gone since the last round.
    at_once: bool,
    /// Redis' clock less the monotonic one, as the quickest of the last answers have it.
    offset: Option<i64>,
    /// Since when that is so, by the monotonic clock.
    offset_since: u64,
    /// The epoch and the run to begin with where Redis has none: others when one may have been begun
    /// with these.
    fresh: (Identity, Identity),
    tickets: Vec<Ticket>,
    counts: VecDeque<(String, u32)>,
    copies: Vec<Copied>,
    means: Vec<(Copied, u32)>,
    /// Servers without room since the last snapshot, and when they are looked for again.
    without_room: u64,
    look_again: u64,
    refused: HashSet<String>,
    lines: Vec<(Level, String)>,
    /// What happened to servers.
    pub events: Events,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.id)
    }
}

impl Node {
    /// A node that goes on where another process, or nobody, has stopped. `instance`: that of its
    /// zone.
    pub fn new(settings: Settings, allow: Vec<Network>, instance: u64) -> Self {
        let id = format!("{}:{instance:016x}", settings.name);
        Self {
            settings,
            allow,
            id,
            phase: Phase::Rest,
            hinted: false,
            more: false,
            last_start: 0,
            next_poll: 0,
            next_round: 0,
            next_scan: 0,
            next_try: 0,
            failures: 0,
            failing_since: 0,
            backoff: 0,
            complained: (0, String::new()),
            lease: false,
            hearing: Hearing::default(),
            alone: false,
            scanned: false,
            forgotten: 0,
            reset: true,
            recount: false,
            at_once: true,
            offset: None,
            offset_since: 0,
            fresh: fresh(),
            tickets: Vec::new(),
            counts: VecDeque::new(),
            copies: Vec::with_capacity(SLICE as usize),
            means: Vec::with_capacity(SLICE as usize),
            without_room: 0,
            look_again: 0,
            refused: HashSet::new(),
            lines: Vec::new(),
            events: Events::with_capacity(SLICE as usize),
        }
    }

    /// Something is said to be new in Redis.
    pub fn hint(&mut self) {
        self.hinted = true;
    }

    /// Its name and incarnation.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Lines for the log.
    pub fn lines(&mut self) -> impl Iterator<Item = (Level, String)> + '_ {
        self.lines.drain(..)
    }

    fn say(&mut self, level: Level, line: String) {
        self.lines.push((level, line));
    }

    /// A slice of what is to be done next. The zone must not be retired.
    pub fn step(&mut self, zone: &Zone, rules: &Rules, now: Now) -> Next {
        match replace(&mut self.phase, Phase::Rest) {
            Phase::Rest => self.rest(zone, now),
            Phase::Round(round) => self.round(round, zone, now),
            Phase::Asked(since) => {
                self.phase = Phase::Asked(since);
                Next::Wait(self.settings.interval)
            }
            Phase::Taking { done, asked, part, at } => {
                self.take(done, asked, part, at, zone, rules, now)
            }
            Phase::Marking { next, others, epoch, run, unseen } => {
                self.mark(next, others, epoch, run, unseen, zone, now)
            }
            Phase::Settling(next) => self.settle(next, zone, now),
            Phase::Wiping(wipe, epoch) => self.wipe(wipe, epoch, zone),
            Phase::Forgetting(next) => self.forget(next, zone),
        }
    }

    fn rest(&mut self, zone: &Zone, now: Now) -> Next {
        if now.mono < self.next_try {
            return Next::Wait(self.next_try - now.mono);
        }
        let Ok(mut registry) = Registry::lock(zone) else { return Next::Wait(1000) };
        registry.forget_old_departed(now);
        let queued = registry.queued();
        if self.look_again > 0 && now.mono >= self.look_again {
            (self.look_again, self.without_room) = (0, 0);
            registry.shared().run = 0;
        }
        let shared = *registry.shared();
        drop(registry);
        let poll = now.mono >= self.next_poll;
        let due = queued > 0 || self.hinted || self.more || poll || !self.counts.is_empty();
        if !due {
            if self.lease && now.mono >= self.next_scan && shared.run != 0 {
                self.phase = Phase::Asked(now.mono);
                let template = Box::new(self.request(&shared));
                let spaces = self.settings.spaces.clone();
                return Next::Send(Job::Scan { template, spaces });
            }
            let next = if self.lease { self.next_poll.min(self.next_scan) } else { self.next_poll };
            return Next::Wait(next.saturating_sub(now.mono).max(1));
        }
        let since = now.mono.saturating_sub(self.last_start);
        if since < GAP && !self.more {
            return Next::Wait(GAP - since);
        }
        self.last_start = now.mono;
        if now.mono >= self.next_round && self.counts.is_empty() {
            self.next_round = now.mono + self.settings.interval;
            let all = replace(&mut self.recount, false) || self.reset;
            let at_once = replace(&mut self.at_once, false);
            let round = Round::new(at_once, all);
            return self.round(round, zone, now);
        }
        self.ask(false, zone, now)
    }

    /// Takes the means of some servers.
    fn round(&mut self, mut round: Round, zone: &Zone, now: Now) -> Next {
        let began = Instant::now();
        while !round.done && began.elapsed() < TURN {
            let Ok(mut registry) = Registry::lock(zone) else { return Next::Wait(1000) };
            registry.take_means(&mut round, SLICE, now, &mut self.means);
            drop(registry);
            let counts = self.means.drain(..).map(|(copied, mean)| (member(&copied), mean));
            self.counts.extend(counts);
        }
        if round.done {
            return self.ask(false, zone, now);
        }
        self.phase = Phase::Round(round);
        Next::Again
    }

    /// What every request says.
    fn request(&self, shared: &Shared) -> Request {
        Request {
            prefix: self.settings.prefix.clone(),
            epoch: Identity(shared.epoch),
            run: Identity(shared.run),
            new_epoch: self.fresh.0,
            new_run: self.fresh.1,
            cursor: shared.cursor,
            beat_cursor: shared.beat_cursor,
            total_cursor: shared.total_cursor,
            snapshot: shared.unseen != 0,
            node_ttl: self.settings.interval * 2,
            tombstone_ttl: self.settings.tombstone_ttl,
            ..Request::default()
        }
    }

    /// The last request of a node that goes: all that fits into one.
    pub fn farewell(&mut self, zone: &Zone, now: Now) -> Option<Job> {
        match self.ask(true, zone, now) {
            Next::Send(Job::Exchange(mut request)) => {
                (request.leaving, request.reset, request.most_records) = (true, false, 0);
                Some(Job::Exchange(request))
            }
            _ => None,
        }
    }

    /// `last`: the node goes.
    fn ask(&mut self, last: bool, zone: &Zone, now: Now) -> Next {
        let Ok(mut registry) = Registry::lock(zone) else { return Next::Wait(1000) };
        let shared = *registry.shared();
        let queued = registry.queued();
        // News have to come in time, and what that is, Redis' clock says: the first question is for
        // that alone.
        let ready = self.offset.is_some() || last;
        if ready {
            registry.copy_queued(SLICE as usize, &mut self.copies);
        }
        drop(registry);

        let mut request = self.request(&shared);
        request.node = Some(self.id.clone());
        request.spaces.clone_from(&self.settings.spaces);
        if let Some(offset) = self.offset {
            let here = now.mono.saturating_add_signed(offset);
            request.sent = Some(here);
            request.deadline = Some(here + self.settings.timeout + 500);
        }
        self.tickets.clear();
        for copied in self.copies.drain(..) {
            let news = copied.news(now);
            self.tickets.push(news.ticket);
            request.news.push(Item::of(&news));
        }
        request.reset = self.reset;
        request.scanned = replace(&mut self.scanned, false);
        for _ in 0..COUNTS.min(self.counts.len()) {
            let Some((member, mean)) = self.counts.pop_front() else { break };
            request.counts.extend([Count::Server(member), Count::Mean(mean)]);
        }
        // All that was removed here is told before anything is read: nothing of it comes back.
        let all_told = ready && queued <= SLICE as usize;
        request.most_records = if all_told { RECORDS } else { 0 };
        request.most_beats = BEATS;
        self.more = !all_told;
        self.hinted = false;
        self.next_poll = now.mono + self.settings.interval / 2;
        self.phase = Phase::Asked(now.mono);
        self.hearing.asked();
        Next::Send(Job::Exchange(Box::new(request)))
    }

    /// The thread has no way to do the job: as if Redis were away.
    pub fn refused(&mut self, why: &str, zone: &Zone, now: Now) {
        self.phase = Phase::Rest;
        if self.failures == 0 {
            self.failing_since = now.mono;
        }
        self.failed(why.to_owned(), zone, now);
    }

    /// Takes what came of a job.
    pub fn reported(&mut self, report: Report, zone: &Zone, now: Now) {
        let Phase::Asked(asked) = replace(&mut self.phase, Phase::Rest) else { return };
        for warning in report.warnings {
            self.say(Level::Warn, warning);
        }
        match report.outcome {
            Err(why) => {
                if self.failures == 0 {
                    self.failing_since = asked;
                }
                self.failed(why, zone, now);
            }
            Ok(Outcome::Scanned(done)) => {
                self.scanned |= done;
                // Somebody may wait for it, to obey a wipe.
                self.more |= done && self.awaits_scan(zone);
                self.next_scan =
                    if done { now.mono + self.settings.interval / 2 } else { now.mono };
            }
            Ok(Outcome::Exchanged(answer)) => {
                self.succeeded(zone, now);
                self.answered(answer, asked, zone, now);
            }
        }
    }

    fn failed(&mut self, why: String, zone: &Zone, now: Now) {
        // What was told of counts, or a run that was begun, may have come there or not.
        self.fresh = fresh();
        self.reset = true;
        self.counts.clear();
        self.next_round = 0;
        self.lease = false;
        self.hearing.failed();
        self.failures += 1;
        let (first, most) = BACKOFF;
        self.backoff = (self.backoff * 2).clamp(first, most);
        // From half of it to one and a half: nodes that lost it together do not come together.
        let jitter = random_u64() % (self.backoff + 1);
        self.next_try = now.mono + self.backoff / 2 + jitter;
        // A connection may end for no reason: the second failure in a row is worth a line.
        if self.failures < 2 {
            return;
        }
        let Ok(mut registry) = Registry::lock(zone) else { return };
        let shared = registry.shared();
        shared.connected = 0;
        // The others take back this node's share after as long.
        if !self.alone && now.mono.saturating_sub(shared.heard_until) > self.settings.interval * 3 {
            self.alone = true;
            self.phase = Phase::Forgetting(0);
        }
        let said = shared.lost_since != 0;
        if !said {
            shared.lost_since = self.failing_since.max(1);
        }
        drop(registry);
        let (when, before) = &self.complained;
        let other = *before != why && now.mono.saturating_sub(*when) >= AGAIN && *when > 0;
        if !said || other {
            let redis = &self.settings.redis;
            let line = format!(
                "Redis {redis} can't be used: {why}; requests go on, changes are kept until it can"
            );
            self.say(Level::Error, line);
            self.complained = (now.mono, why);
        }
    }

    fn succeeded(&mut self, zone: &Zone, now: Now) {
        (self.failures, self.backoff, self.next_try) = (0, 0, 0);
        self.alone = false;
        self.listens();
        let Ok(mut registry) = Registry::lock(zone) else { return };
        let shared = registry.shared();
        shared.connected = 1;
        let (lost, known) = (replace(&mut shared.lost_since, 0), replace(&mut shared.known, 1));
        drop(registry);
        let redis = &self.settings.redis;
        if lost > 0 && known != 0 {
            let ms = now.mono.saturating_sub(lost);
            let line =
                format!("Redis {redis} is used again after {}.{} s", ms / 1000, ms % 1000 / 100);
            self.say(Level::Notice, line);
        } else if known == 0 {
            self.say(Level::Notice, format!("Redis {redis} is used"));
        }
    }

    fn answered(&mut self, answer: Answer, asked: u64, zone: &Zone, now: Now) {
        match answer {
            Answer::Done(done) => {
                self.set_clock(done.now, now);
                self.phase = Phase::Taking { done, asked, part: 0, at: 0 };
            }
            Answer::Late(clock) => {
                self.set_clock(clock, now);
                self.more = true;
                self.told_in_vain();
            }
            Answer::Run { epoch, run, lost, behind, purged } => {
                self.fresh = fresh();
                if behind {
                    self.say(Level::Warn, BEHIND.to_owned());
                } else if lost {
                    let line = "Redis has lost data: the servers that are known here are written \
                                again";
                    self.say(Level::Warn, line.to_owned());
                }
                self.told_in_vain();
                let Ok(mut registry) = Registry::lock(zone) else { return };
                // A start may have found that it was away for too long.
                let away = behind || !lost && purged && registry.shared().unseen == DROP;
                let unseen = match registry.shared().unseen {
                    WIPED => WIPED,
                    _ if away => DROP,
                    _ => TELL,
                };
                drop(registry);
                self.phase = Phase::Marking { next: 0, others: 0, epoch, run, unseen };
            }
            Answer::Behind => {
                self.say(Level::Warn, BEHIND.to_owned());
                self.told_in_vain();
                let Ok(mut registry) = Registry::lock(zone) else { return };
                let (epoch, run) = (registry.shared().epoch, registry.shared().run);
                let (epoch, run) = (Identity(epoch), Identity(run));
                self.phase = Phase::Marking { next: 0, others: 0, epoch, run, unseen: DROP };
            }
            Answer::Wiped { epoch, age, clock } => {
                self.told_in_vain();
                self.phase = Phase::Wiping(Wipe::new(age, self.made(clock, now)), epoch);
            }
            Answer::Foreign(epoch) => {
                let line = "the data in Redis are others than before, and do not say that they \
                            replace these: both are kept";
                self.say(Level::Warn, line.to_owned());
                self.told_in_vain();
                let Ok(mut registry) = Registry::lock(zone) else { return };
                let shared = registry.shared();
                (shared.epoch, shared.run) = (epoch.0, 0);
                self.more = true;
            }
        }
    }

    /// Notes what Redis' clock said when an answer was made that is here now.
    fn set_clock(&mut self, clock: u64, now: Now) {
        let offset = clock as i64 - now.mono as i64;
        // One that says less was longer on its way, or the clock is slower, or was set.
        let most = (self.settings.timeout + 500) as i64;
        let slower = now.mono.saturating_sub(self.offset_since) / 1000;
        match self.offset.map(|best| best - slower as i64) {
            // Never by more than clocks drift: what was said later here must not become earlier.
            Some(best) if (1..most).contains(&(best - offset)) => {
                self.offset = Some(best);
                self.offset_since += slower * 1000;
            }
            _ => (self.offset, self.offset_since) = (Some(offset), now.mono),
        }
    }

    /// When Redis made an answer. What it says of ages is true then.
    fn made(&self, clock: u64, now: Now) -> Now {
        let Some(offset) = self.offset else { return now };
        let here = now.mono.saturating_add_signed(offset);
        let ago = here.saturating_sub(clock).min(now.mono).min(now.wall);
        Now { mono: now.mono - ago, wall: now.wall - ago }
    }

    /// Nothing of what was told has been taken.
    fn told_in_vain(&mut self) {
        self.reset = true;
        self.counts.clear();
        self.next_round = 0;
    }
}

/// Value of [`Shared::unseen`]: what is not in the snapshot that is being read is told.
const TELL: u32 = 1;
/// It is forgotten.
const DROP: u32 = AWAY_TOO_LONG;
const BEHIND: &str = "this node was away from Redis for longer than removals are remembered \
                      (redis_tombstone_ttl): what Redis has counts";
/// Kinds of what an exchange brings.
const PARTS: usize = 4;

/// Identities that nobody has.
fn fresh() -> (Identity, Identity) {
    (Identity(random_u64().max(1)), Identity(random_u64().max(1)))
}

fn member(copied: &Copied) -> String {
    format!("{} {}", copied.namespace(), copied.name())
}
