//! A registry as naive as can be: it scans, counts and sorts. What [`super::history`] compares with.

use std::collections::BTreeMap;

use super::*;

/// A server as the model sees it.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) heard: u64,
    pub(super) weight: u32,
    pub(super) max_conns: u32,
    /// Requests of living workers, and of dead ones whose death nobody has noticed.
    pub(super) conns: u32,
    pub(super) dead: u32,
    pub(super) disabled: bool,
    pub(super) silenced: bool,
    pub(super) draining: bool,
    pub(super) marks: u32,
    pub(super) accessed: u64,
    pub(super) checked: u64,
    pub(super) number: u64,
    pub(super) requests: u64,
    pub(super) fails: u64,
    /// From a `server` line: never silent, can't be removed.
    pub(super) fixed: bool,
    pub(super) backup: bool,
    pub(super) max_fails: u32,
    /// The line says `down`; and that is what switched it off.
    pub(super) down: bool,
    pub(super) down_is_why: bool,
}

impl Model {
    pub(super) fn registered() -> Self {
        Self { weight: 1, max_conns: 1000, max_fails: 1, ..Self::default() }
    }

    pub(super) fn is_silent(&self, rules: &Rules, now: u64) -> bool {
        rules.ttl > 0 && !self.fixed && now.saturating_sub(self.heard) > rules.ttl
    }

    /// A request was sent to it.
    pub(super) fn taken(&mut self, now: u64) {
        self.requests += 1;
        if self.marks > 0 && now.saturating_sub(self.checked) > 10_000 {
            self.checked = now;
        }
    }

    pub(super) fn toggle(&mut self, on: bool) {
        if on {
            (self.disabled, self.silenced, self.draining) = (false, false, false);
            self.down_is_why = false;
        } else {
            self.disabled = true;
        }
    }

    /// A `server` line, in a new configuration.
    pub(super) fn line(&mut self, line: &StaticServer, now: u64) {
        if !self.fixed {
            self.heard = now;
        }
        if line.down && !self.down {
            (self.disabled, self.down_is_why) = (true, true);
        } else if !line.down && self.down && self.down_is_why {
            (self.disabled, self.down_is_why) = (false, false);
        }
        self.down = line.down;
        (self.fixed, self.silenced, self.backup) = (true, false, line.backup);
        (self.weight, self.max_conns) = (line.weight, line.max_conns);
        self.max_fails = line.max_fails;
    }
}

/// All servers, by port.
pub(super) type Models = BTreeMap<u16, Model>;

fn is_eligible(s: &Model, alone: bool, rules: &Rules, now: u64) -> bool {
    !s.disabled
        && !s.silenced
        && !s.is_silent(rules, now)
        && !s.draining
        && s.weight > 0
        && (s.max_conns == 0 || s.conns + s.dead < s.max_conns)
        && (alone
            || s.max_fails == 0
            || s.marks < s.max_fails
            || now.saturating_sub(s.checked) > 10_000)
}

/// Who may be chosen: backups only when there is no other.
pub(super) fn candidates(servers: &Models, tried: &[u64], rules: &Rules, now: u64) -> Vec<u16> {
    let alone = servers.len() == 1;
    let of = |backup: bool| -> Vec<u16> {
        let fits = |s: &Model| {
            s.backup == backup && is_eligible(s, alone, rules, now) && !tried.contains(&s.number)
        };
        servers.iter().filter(|(_, s)| fits(s)).map(|(n, _)| *n).collect()
    };
    let primaries = of(false);
    if primaries.is_empty() { of(true) } else { primaries }
}

/// A request has ended.
pub(super) fn released(servers: &mut Models, n: u16, verdict: Verdict, now: u64) {
    let alone = servers.len() == 1;
    let Some(s) = servers.get_mut(&n) else { return };
    s.conns -= 1;
    match verdict {
        Verdict::Failed => {
            s.fails += 1;
            if alone {
                s.marks = 0;
            } else {
                s.marks += 1;
                (s.accessed, s.checked) = (now, now);
            }
        }
        Verdict::Fine | Verdict::Cut if alone || s.accessed < s.checked => s.marks = 0,
        Verdict::Fine | Verdict::Cut | Verdict::Stale => {}
    }
}

/// The cleanup. Returns whom it forgot.
pub(super) fn sweep(servers: &mut Models, rules: &Rules, now: u64) -> Vec<u16> {
    let mut gone = Vec::new();
    for (n, s) in servers.iter_mut() {
        if s.disabled || !s.is_silent(rules, now) {
            continue;
        }
        let forget = rules.on_expire == OnExpire::Remove
            || (rules.remove_after > 0 && now - s.heard > rules.remove_after);
        if forget {
            gone.push(*n);
        } else {
            s.silenced = true;
        }
    }
    servers.retain(|n, _| !gone.contains(n));
    gone
}
