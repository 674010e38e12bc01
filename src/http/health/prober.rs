//! Who makes the checks: each worker those that fall to it, on its event loop.

use std::cell::RefCell;
use std::ffi::CString;
use std::pin::Pin;
use std::rc::Rc;

use ngx::ffi::NGX_LOG_WARN;

use super::CheckConf;
use crate::health::{Talk, Verdict};
use crate::http::peer::socket_address;
use crate::http::worker::{Held, now, report};
use crate::http::zone::ZoneConf;
use crate::nginx::connection::worker_connections;
use crate::nginx::dial::{Caller, Calls, Dress, End, Step};
use crate::nginx::log::log;
use crate::nginx::process::{self, cycle_log};
use crate::nginx::timer::{Expired, Timer};
use crate::registry::{CheckRules, Claim, Duty, Registry, Target, Trouble};

/// Servers that are looked at under one hold of the lock.
const SLICE: u32 = 128;

/// Servers that are looked at in one tick at least: all of a small zone.
const LOOKS: u32 = 1024;

/// Ticks in which all servers of a large zone are looked at once.
const TICKS_A_ROUND: u32 = 10;

/// Most checks that a worker has under way; a quarter of its connections if that is less.
const MOST: usize = 1024;

/// Checks that a tick may begin at least.
const BURST: usize = 16;

/// How late a turn of the event loop has to be, in milliseconds, to be told of at all.
const STALL: u64 = 20;

/// The checks of this process, of all its registries.
pub(crate) struct Probers(Vec<Pin<Box<Timer<Prober>>>>);

impl Probers {
    pub(crate) const NONE: Self = Self(Vec::new());

    /// Begins with those of a registry, if it has any.
    pub(crate) fn start(&mut self, conf: *const ZoneConf, local: Held, checks: Vec<CheckConf>) {
        let Some(interval) = checks.iter().map(|c| c.rules.interval).min() else { return };
        let tick = (interval / 4).clamp(5, 100);
        let prober = Prober {
            conf,
            local,
            rules: checks.iter().map(|c| c.rules).collect(),
            checks,
            calls: Calls::new(),
            claims: Vec::new(),
            at: 0,
            interval,
            tick,
            stalls: Rc::new(RefCell::new(Stalls::new(tick))),
        };
        self.0.push(Timer::start(prober, tick));
    }

    /// Ends them all.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// One registry's checks, as a timer's work.
struct Prober {
    conf: *const ZoneConf,
    local: Held,
    checks: Vec<CheckConf>,
    rules: Vec<CheckRules>,
    calls: Calls<Probe>,
    claims: Vec<Claim>,
    /// Where the next walk begins.
    at: u32,
    /// The shortest of all.
    interval: u64,
    tick: u64,
    stalls: Rc<RefCell<Stalls>>,
}

impl Expired for Prober {
    fn expired(&mut self) -> Option<u64> {
        self.stalls.borrow_mut().tick(now().mono);
        if process::is_exiting() {
            self.local.resign();
            return None;
        }
        self.claim();
        for claim in std::mem::take(&mut self.claims) {
            self.call(claim);
        }
        Some(self.tick)
    }
}

impl Prober {
    /// Claims what is due.
    fn claim(&mut self) {
        let most = MOST.min(worker_connections() / 4).max(1);
        let free = most.saturating_sub(self.calls.len());
        let zone = &self.local.zone;
        let (share, all) = {
            let hands = self.local.hands();
            let Some(worker) = hands.worker.as_ref() else { return };
            let Ok(registry) = Registry::lock(zone) else { return };
            let Some(share) = registry.share_of_checks(worker) else { return };
            (share, registry.servers())
        };
        // Twice of what would do if they were spread evenly: so many that are new at a time, or late
        // after a standstill, do not hold up the requests of this worker.
        let even = all as u64 * self.tick / (self.interval * u64::from(share.of())).max(1);
        let room = free.min(BURST + 2 * even as usize);
        let looks = LOOKS.max(all as u32 / TICKS_A_ROUND);
        let duty = Duty { share, rules: &self.rules, most: room };
        let mut looked_at = 0;
        while looked_at < looks {
            let Ok(mut registry) = Registry::lock(zone) else { break };
            let next = registry.claim_checks(self.at, SLICE, &duty, now(), &mut self.claims);
            looked_at += SLICE;
            match next {
                // No room for the next.
                Some(next) if self.claims.len() >= room => {
                    self.at = next;
                    break;
                }
                Some(next) => self.at = next,
                None => {
                    self.at = 0;
                    break;
                }
            }
        }
    }

    /// Makes a check.
    fn call(&self, claim: Claim) {
        let conf = &self.checks[claim.rule];
        let to = socket_address(&Target {
            port: conf.check.port.unwrap_or(claim.target.port),
            ..claim.target
        });
        let peer = String::from_utf8_lossy(claim.target.name());
        let (talk, first) = Talk::open(&conf.check, &peer, claim.path());
        let tls = conf.tls.map(|context| Dress { context, name: server_name(conf) });
        let probe = Probe {
            conf: self.conf,
            local: self.local,
            claim,
            rules: conf.rules,
            talk,
            first,
            verdict: None,
            stalls: Rc::clone(&self.stalls),
        };
        self.calls.start(&to, tls, conf.rules.timeout, probe);
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let left = self.calls.abandon();
        if let Ok(mut registry) = Registry::lock(&self.local.zone) {
            for probe in left {
                registry.repeat_check(&probe.claim);
            }
        }
    }
}

/// The name that a TLS server is asked for: SNI knows no addresses.
fn server_name(conf: &CheckConf) -> Option<CString> {
    let host = conf.check.host.as_deref()?;
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_name = name.parse::<std::net::IpAddr>().is_err() && !name.starts_with('[');
    CString::new(name).ok().filter(|_| is_name && !name.is_empty())
}

/// One check.
struct Probe {
    conf: *const ZoneConf,
    local: Held,
    claim: Claim,
    rules: CheckRules,
    talk: Talk,
    /// What is sent first.
    first: Vec<u8>,
    verdict: Option<Verdict>,
    stalls: Rc<RefCell<Stalls>>,
}

impl Probe {
    fn step(&mut self, verdict: Option<Verdict>) -> Step {
        self.verdict = verdict;
        if verdict.is_some() { Step::Over } else { Step::On }
    }
}

impl Caller for Probe {
    fn connected(&mut self, out: &mut Vec<u8>) -> Step {
        out.append(&mut self.first);
        let verdict = self.talk.connected();
        self.step(verdict)
    }

    fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Step {
        let verdict = self.talk.received(bytes, out);
        self.step(verdict)
    }

    fn over(mut self, end: End) {
        let result = match end {
            End::Over => self.verdict.unwrap_or(Err(Trouble::Closed)),
            End::Closed => self.talk.closed(),
            End::Refused => Err(Trouble::Refused),
            End::Unreachable => Err(Trouble::Unreachable),
            End::Tls => Err(Trouble::Tls),
            End::Timeout => Err(Trouble::Timeout),
            End::Leaving => return self.repeat(),
            End::Broken => return self.put_off("worker_connections are not enough"),
            End::NoPort => return self.put_off("no local port is free"),
        };
        let now = now();
        if let Err(trouble) = result
            && self.stalls.borrow().spoil(&self.claim, &self.rules, trouble, now.mono)
        {
            return self.repeat();
        }
        // SAFETY: a prober ends its calls before the configuration that they belong to goes.
        let conf = unsafe { &*self.conf };
        let mut hands = self.local.hands();
        if let Ok(mut registry) = Registry::lock(&self.local.zone) {
            registry.judge(&self.claim, result, &self.rules, now, &mut hands.events);
        }
        report(conf, cycle_log(), &mut hands.events);
    }
}

impl Probe {
    /// The check can't be made now, and not for the server's reasons.
    fn put_off(&self, why: &str) {
        self.repeat();
        // SAFETY: as in `over`.
        let conf = unsafe { &*self.conf };
        let Some(untold) = conf.complains(now().mono) else { return };
        let name = &conf.name;
        let what = match untold {
            0 => "a health check is".to_owned(),
            n => format!("{} health checks are", n + 1),
        };
        let message = format_args!("registry \"{name}\": {what} put off: {why}");
        log(NGX_LOG_WARN, cycle_log(), message);
    }

    fn repeat(&self) {
        if let Ok(mut registry) = Registry::lock(&self.local.zone) {
            registry.repeat_check(&self.claim);
        }
    }
}

/// When the event loop stood still lately: what came in that time was not looked at, and servers
/// may have given up waiting for us.
struct Stalls {
    tick: u64,
    last: u64,
    /// When each ended, and how long it was; a ring.
    lately: [(u64, u64); 8],
    next: usize,
}

impl Stalls {
    fn new(tick: u64) -> Self {
        Self { tick, last: now().mono, lately: [(0, 0); 8], next: 0 }
    }

    fn tick(&mut self, now: u64) {
        let late = now.saturating_sub(self.last + self.tick);
        self.last = now;
        if late >= STALL {
            self.lately[self.next] = (now, late);
            self.next = (self.next + 1) % self.lately.len();
        }
    }

    /// Whether a failure says more about this worker than about the server: it was found too late, or
    /// after the worker had not looked for a good part of the time that the server had.
    ///
    /// A server that does not answer is told from a worker that does not listen even where the worker
    /// stands still again and again: it is enough that it looked for half of the time, and at its end.
    fn spoil(&self, claim: &Claim, rules: &CheckRules, trouble: Trouble, now: u64) -> bool {
        let much = (rules.timeout / 4).clamp(STALL, 500);
        let end_of_time = claim.begun() + rules.timeout;
        let is_late = now > end_of_time + much;
        let stands = now > self.last + self.tick + much;
        let stood = self.lately.iter().filter(|(end, _)| *end > claim.begun());
        let spoiled = if trouble == Trouble::Timeout {
            let lost: u64 = stood.clone().map(|(end, len)| *len.min(&(end - claim.begun()))).sum();
            lost > rules.timeout / 2 || stood.clone().any(|(end, _)| *end >= end_of_time)
        } else {
            stood.clone().any(|(_, len)| *len > much)
        };
        is_late || stands || spoiled
    }
}
