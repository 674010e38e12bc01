//! Health checks: which server is to be checked when and by whom, and what a result makes of it.
//!
//! All workers walk through the servers, and each checks those that fall to it. What was claimed is
//! noted under the lock, so however they disagree for a moment about who has which, no server is
//! checked by two at a time. When a check is due follows from the server's number and the monotonic
//! clock: nothing has to be planned, handed over or remembered when workers come and go.

use super::flight::Target;
use super::settings::{HealthPath, Settings};
use super::space::SpaceName;
use super::{Event, Events, Happening, Now, Registry, Trouble, Worker, warm};
use crate::balance::mix;
use crate::shm::{Checks, Server, class, fault, flag, space_flag};

/// How long after its `timeout` a check that nobody has ended is taken for lost: milliseconds.
const LOST: u64 = 1000;

/// Most rules that a zone can tell apart.
pub const CHECK_RULES_MAX: usize = (u16::MAX >> space_flag::CHECK_SHIFT) as usize;

/// What is thought of a server that has not been checked yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Initial {
    /// It is healthy until its checks fail.
    Up,
    /// It is unhealthy until as many checks have passed as for any other.
    Down,
    /// It is out until its first check, which decides.
    Probe,
}

/// When servers are checked, and how many results count. Times in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckRules {
    /// Between two checks of a server; not 0.
    pub interval: u64,
    /// Each check is later by a random part of this; at most `interval`.
    pub jitter: u64,
    /// How long a check may take.
    pub timeout: u64,
    /// After how many failures in a row a server is unhealthy.
    pub fails: u16,
    /// After how many passes in a row it is healthy again.
    pub passes: u16,
    /// What is thought of it before.
    pub initial: Initial,
    /// A server that has served within `interval` is not checked.
    pub idle: bool,
}

/// Which rules apply to the namespaces: by their place in the list that is given to
/// [`Registry::claim_checks`]. `None`: no checks.
#[derive(Debug, Default)]
pub struct CheckPlan<'a> {
    /// Where nothing else is said.
    pub default: Option<(usize, Initial)>,
    /// Namespaces for which it is.
    pub spaces: Vec<(SpaceName<'a>, Option<(usize, Initial)>)>,
}

/// A worker's part of the checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    rank: u32,
    of: u32,
}

impl Share {
    /// Among how many workers the checks are shared.
    pub fn of(&self) -> u32 {
        self.of
    }
}

/// What a worker asks for when it looks for checks.
#[derive(Clone, Copy, Debug)]
pub struct Duty<'a> {
    /// Its part of them.
    pub share: Share,
    /// The rules of all namespaces, as [`CheckPlan`] numbers them.
    pub rules: &'a [CheckRules],
    /// Most checks that it takes.
    pub most: usize,
}

/// A check that is to be made, by whoever has this.
#[derive(Clone, Copy)]
pub struct Claim {
    /// The server's slot.
    pub slot: u32,
    /// The server's number.
    number: u64,
    begun: u64,
    /// By which rules.
    pub rule: usize,
    /// Where the server is.
    pub target: Target,
    path: HealthPath,
}

impl Claim {
    /// What to ask for instead of what the rules say.
    pub fn path(&self) -> Option<&str> {
        Some(self.path.as_str()).filter(|path| !path.is_empty())
    }

    /// Monotonic milliseconds when the check began.
    pub fn begun(&self) -> u64 {
        self.begun
    }
}

/// What a namespace's flags say of its rules.
fn bits(rules: Option<(usize, Initial)>) -> u16 {
    let Some((rule, initial)) = rules else { return 0 };
    let initial = match initial {
        Initial::Up => 0,
        Initial::Down => space_flag::INITIAL_DOWN,
        Initial::Probe => space_flag::INITIAL_PROBE,
    };
    initial | ((rule.min(CHECK_RULES_MAX - 1) as u16 + 1) << space_flag::CHECK_SHIFT)
}

const BITS: u16 =
    u16::MAX << space_flag::CHECK_SHIFT | space_flag::INITIAL_DOWN | space_flag::INITIAL_PROBE;

/// The place of a namespace's rules in their list.
pub(super) fn rule_of(space_flags: u16) -> Option<usize> {
    usize::from(space_flags >> space_flag::CHECK_SHIFT).checked_sub(1)
}

/// The flags of a server that is new in a namespace.
pub(super) fn initial_flags(space_flags: u16) -> u32 {
    match space_flags & (space_flag::INITIAL_DOWN | space_flag::INITIAL_PROBE) {
        0 => 0,
        _ => flag::UNHEALTHY,
    }
}

/// When a server is to be checked next, on the monotonic clock.
///
/// Servers have places of their own within the interval, by their numbers. So they are spread over
/// it however they came, and stay spread when a check was late.
fn due(checks: &Checks, number: u64, rules: &CheckRules) -> u64 {
    let Checks { begun_mono: begun, ended_mono: ended, .. } = *checks;
    if begun == 0 {
        return 0;
    }
    if begun > ended {
        return begun + rules.timeout + LOST;
    }
    let interval = rules.interval.max(1);
    let place = mix(number) % interval;
    let past = (begun % interval + interval - place) % interval;
    let turn = begun - past + interval;
    let due = turn + mix(number ^ turn) % (rules.jitter + 1);
    // One that was late, or the first, may stand right before a place.
    if due < begun + (interval - rules.jitter.min(interval)) / 2 { due + interval } else { due }
}

/// Whether a server need not be checked, because it has just served.
fn has_served(s: &Server, checks: &Checks, rules: &CheckRules, now: Now) -> bool {
    rules.idle
        && s.served_mono != 0
        && checks.row >= 0
        && s.flags & flag::UNHEALTHY == 0
        && u64::from((now.mono as u32).wrapping_sub(s.served_mono)) < rules.interval
}

impl Registry<'_> {
    /// Notes which checks a new configuration has for which namespaces. What checks found stays
    /// where there are checks, and is forgotten where there are none any more. `is_first`: the
    /// servers in the zone come from a file, and none was checked yet.
    pub fn configure_checks(&mut self, plan: &CheckPlan<'_>, is_first: bool) {
        let default = bits(plan.default);
        self.g.header.checks = default.into();
        for space in &mut self.g.spaces[..] {
            if space.live != 0 {
                space.flags = space.flags & !BITS | default;
            }
        }
        for (name, rules) in &plan.spaces {
            // When there is no room for it `configure` says so.
            if let Ok(space) = self.configure_space(*name) {
                let space = &mut self.g.spaces[space.slot as usize];
                space.flags = space.flags & !BITS | bits(*rules);
            }
        }
        fault::point!("checks.spaces");
        for slot in 0..self.g.header.high_water {
            let s = self.g.servers[slot as usize];
            if s.live == 0 {
                continue;
            }
            let space_flags = self.g.spaces[s.space as usize].flags;
            let flags = match rule_of(space_flags) {
                None => s.flags & !flag::UNHEALTHY,
                Some(_) if is_first && !s.is_name() => s.flags | initial_flags(space_flags),
                Some(_) => continue,
            };
            if rule_of(space_flags).is_none() {
                self.g.checks[slot as usize] = Checks::default();
            }
            if flags != s.flags {
                self.replace(slot, Server { flags, ..s });
                self.touch();
                fault::point!("checks.server");
            }
        }
    }

    /// A worker's part of the checks; `None`: it makes none, because it is of an older
    /// configuration or on its way out.
    pub fn share_of_checks(&self, worker: &Worker) -> Option<Share> {
        let incarnation = worker.incarnation();
        let cycle = self.g.header.cycle;
        let mut share = Share { rank: 0, of: 0 };
        let mut takes_part = false;
        for w in &self.g.workers[..] {
            if w.incarnation == 0 || w.cycle != cycle || w.leaving != 0 {
                continue;
            }
            if w.incarnation == incarnation {
                takes_part = true;
                share.rank = share.of;
            }
            share.of += 1;
        }
        takes_part.then_some(share)
    }

    /// Looks at `slots` servers from `from` on, and claims the checks that are due and fall to this
    /// duty, as long as there is room. Returns where to go on; `None`: that was the
    /// last server.
    pub fn claim_checks(
        &mut self,
        from: u32,
        slots: u32,
        duty: &Duty<'_>,
        now: Now,
        into: &mut Vec<Claim>,
    ) -> Option<u32> {
        let t = &mut *self.g;
        let high = t.header.high_water;
        let end = high.min(from.saturating_add(slots));
        if t.header.retired != 0 {
            return None;
        }
        for slot in from..end {
            let s = &t.servers[slot as usize];
            if s.live == 0 || s.flags & flag::DISABLED != 0 || s.is_name() {
                continue;
            }
            let Some((rule, known)) = rule_of(t.spaces[s.space as usize].flags)
                .and_then(|rule| Some((rule, duty.rules.get(rule)?)))
            else {
                continue;
            };
            let checks = &mut t.checks[slot as usize];
            let due = due(checks, s.number, known);
            // Whose share it is nobody knows for sure when a worker has just died.
            let since = match slot % duty.share.of == duty.share.rank {
                true => due,
                false => due.max(s.started_mono) + known.interval / 2 + LOST,
            };
            if now.mono < since || has_served(s, checks, known, now) {
                continue;
            }
            if into.len() >= duty.most {
                return Some(slot);
            }
            // One that begins in the millisecond in which another ended is under way all the same.
            checks.ended_mono = checks.ended_mono.min(now.mono.saturating_sub(1));
            checks.begun_mono = now.mono;
            fault::point!("checks.claimed");
            let mut target = Target::NONE;
            target.point_at(s);
            let (number, begun, path) = (s.number, now.mono, Settings::of(s).health_path);
            into.push(Claim { slot, number, begun, rule, target, path });
        }
        (end < high).then_some(end)
    }

    /// The server of a claim, when the check is still that of whoever has it.
    fn claimed(&self, claim: &Claim) -> Option<Server> {
        let s = self.g.servers.get(claim.slot as usize)?;
        let is_same = s.live != 0 && s.number == claim.number;
        (is_same && self.g.checks[claim.slot as usize].begun_mono == claim.begun).then_some(*s)
    }

    /// A check came to nothing, for reasons that are not the server's: it is to be made again.
    pub fn repeat_check(&mut self, claim: &Claim) {
        if self.claimed(claim).is_some() {
            self.g.checks[claim.slot as usize].begun_mono = 0;
        }
    }

    /// A check has ended. Nothing happens when the server is gone, or another worker has taken the
    /// check for lost.
    pub fn judge(
        &mut self,
        claim: &Claim,
        result: Result<(), Trouble>,
        rules: &CheckRules,
        now: Now,
        events: &mut Events,
    ) {
        let Some(s) = self.claimed(claim).filter(|_| !self.is_retired()) else { return };
        let space_flags = self.g.spaces[s.space as usize].flags;
        if rule_of(space_flags).is_none() {
            return;
        }
        let checks = &mut self.g.checks[claim.slot as usize];
        let is_first = checks.checks == 0;
        let row = match result {
            Ok(()) => checks.row.max(0).saturating_add(1),
            Err(_) => checks.row.min(0).saturating_sub(1),
        };
        *checks = Checks {
            ended_mono: now.mono.max(claim.begun),
            checks: checks.checks.saturating_add(1),
            fails: checks.fails.saturating_add(result.is_err().into()),
            latency_ms: u32::try_from(now.mono.saturating_sub(claim.begun)).unwrap_or(u32::MAX),
            row,
            trouble: result.err().map_or(0, Trouble::to_code),
            ..*checks
        };
        fault::point!("checks.noted");

        let decides = is_first && rules.initial == Initial::Probe;
        let is_out = s.flags & flag::UNHEALTHY != 0;
        let many = row.unsigned_abs();
        match result {
            Ok(()) if is_out && (many >= rules.passes || decides) => {
                let mut new = Server { flags: s.flags & !flag::UNHEALTHY, ..s };
                // In a panic, and while it was silent, others decided what it got.
                if s.class == u32::from(class::UNHEALTHY) && !self.in_panic(s.space) {
                    warm::begin(&mut new, now);
                }
                self.turn(claim.slot, new);
                self.say_health(Happening::Healthy, claim.slot, None, many, events);
            }
            Err(trouble) if !is_out && (many >= rules.fails || decides) => {
                self.turn(claim.slot, Server { flags: s.flags | flag::UNHEALTHY, ..s });
                self.say_health(Happening::Unhealthy, claim.slot, Some(trouble), many, events);
            }
            // It was taken for unhealthy, and now it is known.
            Err(trouble) if is_out && is_first => {
                self.say_health(Happening::Unhealthy, claim.slot, Some(trouble), many, events);
            }
            _ => {}
        }
    }

    /// Makes a server healthy or unhealthy.
    fn turn(&mut self, slot: u32, new: Server) {
        self.replace(slot, new);
        warm::note(&mut self.g, slot);
        self.touch();
    }

    fn say_health(
        &self,
        what: Happening,
        slot: u32,
        trouble: Option<Trouble>,
        row: u16,
        events: &mut Events,
    ) {
        let s = &self.g.servers[slot as usize];
        let mut event = Event::new(what, &self.g.spaces[s.space as usize], s, 0);
        (event.trouble, event.row) = (trouble, row);
        events.push(event);
    }

    /// What a request's good answer says of a server's health.
    #[inline]
    pub(super) fn note_served(s: &mut Server, now: Now) {
        // 0 is for never.
        s.served_mono = (now.mono as u32).max(1);
    }
}

/// What checks found about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckView {
    /// How many have ended.
    pub checks: u32,
    /// How many of these failed.
    pub fails: u32,
    /// How many passed in a row, or, below 0, failed.
    pub consecutive: i16,
    /// When the last one ended, in milliseconds since the epoch; 0: none has.
    pub last_check: u64,
    /// Why it failed.
    pub last_error: Option<Trouble>,
    /// Milliseconds that it took.
    pub latency_ms: u32,
}

impl CheckView {
    pub(super) fn new(checks: &Checks, now: Now) -> Self {
        Self {
            checks: checks.checks,
            fails: checks.fails,
            consecutive: checks.row,
            last_check: match checks.checks {
                0 => 0,
                _ => now.wall.saturating_sub(now.mono.saturating_sub(checks.ended_mono)),
            },
            last_error: Trouble::from_code(checks.trouble),
            latency_ms: checks.latency_ms,
        }
    }
}
