//! Rules of a server's life, each as a sentence; crashes; and random histories against a model.

mod crash;
mod draw;
mod fuzz;
mod health;
mod history;
mod life;
mod model;
mod names;
mod panic;
mod points;
mod remote;
mod requests;
mod saved;
mod warm;

use std::net::Ipv4Addr;

use super::*;
use crate::balance::{Consistent, Hash, LeastConn, Policy, Random, RandomTwo, RoundRobin};
use crate::shm::Zone;
use crate::shm::testing::zone;

const RULES: Rules = Rules {
    ttl: 30_000,
    on_expire: OnExpire::Disable,
    remove_after: 0,
    on_duplicate: OnDuplicate::Refresh,
    panic_threshold: 0,
    slow_start: 0,
};

const CHECKS: CheckRules = CheckRules {
    interval: 5000,
    jitter: 0,
    timeout: 2000,
    fails: 3,
    passes: 2,
    initial: Initial::Up,
    idle: false,
};

/// A registry with one namespace, a worker, and a clock.
struct Bench {
    zone: &'static Zone,
    worker: Worker,
    rules: Rules,
    checks: CheckRules,
    now: Now,
    events: Events,
    /// How often a number was drawn.
    draws: u64,
}

fn space() -> SpaceName<'static> {
    SpaceName::new(b"backend").unwrap()
}

fn address(n: u16) -> Address {
    Address::Inet(Ipv4Addr::new(10, 0, 0, 1).into(), n)
}

impl Bench {
    fn new() -> Self {
        Self::sized(1 << 20)
    }

    fn sized(size: usize) -> Self {
        let zone = zone(size);
        let worker = Registry::lock(zone).unwrap().join(1);
        Self {
            zone,
            worker,
            rules: RULES,
            checks: CHECKS,
            now: Now { mono: 1_000_000, wall: 1_700_000_000_000 },
            events: Events::default(),
            draws: 0,
        }
    }

    fn registry(&self) -> Registry<'static> {
        Registry::lock(self.zone).unwrap()
    }

    fn passes(&mut self, ms: u64) {
        self.now.mono += ms;
        self.now.wall += ms;
    }

    /// Tells all that is to be told to a Redis that takes it.
    fn tell(&mut self) {
        let mut copies = Vec::new();
        let mut registry = self.registry();
        registry.copy_queued(1000, &mut copies);
        for copy in copies {
            let ticket = copy.news(self.now).ticket;
            registry.told(ticket, Outcome::Done, 1, self.now, &mut self.events);
        }
    }

    /// Has all servers checked.
    fn check_servers(&mut self, initial: Initial) {
        self.checks = CheckRules { initial, ..self.checks };
        let plan = CheckPlan { default: Some((0, initial)), ..CheckPlan::default() };
        self.registry().configure_checks(&plan, false);
    }

    /// The checks that are due, this worker's and those that nobody makes.
    fn due(&mut self) -> Vec<Claim> {
        let mut claims = Vec::new();
        let share = self.registry().share_of_checks(&self.worker).unwrap();
        let duty = Duty { share, rules: &[self.checks], most: 1000 };
        let now = self.now;
        let mut at = Some(0);
        while let Some(from) = at {
            at = self.registry().claim_checks(from, 3, &duty, now, &mut claims);
        }
        claims
    }

    fn judge(&mut self, claim: &Claim, result: Result<(), Trouble>) {
        let (rules, now) = (self.checks, self.now);
        self.registry().judge(claim, result, &rules, now, &mut self.events);
    }

    /// Every check that is due ends like this.
    fn judge_all(&mut self, result: Result<(), Trouble>) {
        for claim in self.due() {
            self.judge(&claim, result);
        }
    }

    fn found(&self) -> Option<SpaceRef> {
        self.registry().find_space(space())
    }

    fn add_with(
        &mut self,
        n: u16,
        weight: Option<u32>,
        max_conns: Option<u32>,
    ) -> Result<Change, Error> {
        let registration = Registration { weight, max_conns, ..Registration::of(address(n)) };
        self.registry().add(space(), &registration, &self.rules, self.now, &mut self.events)
    }

    fn add(&mut self, n: u16) {
        self.add_with(n, None, None).unwrap();
    }

    fn refresh(&mut self, n: u16) -> Result<Change, Error> {
        let found = self.found();
        self.registry().refresh(found, &address(n), self.now, &mut self.events)
    }

    fn toggle(&mut self, n: u16, enable: bool) {
        let found = self.found();
        self.registry().toggle(found, &address(n), enable, self.now, &mut self.events).unwrap();
    }

    fn remove(&mut self, n: u16) -> Result<(), Error> {
        let found = self.found();
        self.registry().remove(found, &address(n), self.now, &mut self.events)
    }

    fn sweep(&mut self) -> Sweep {
        let mut sweep = Sweep::default();
        while !sweep.done {
            self.registry().sweep(&mut sweep, 3, &self.rules, self.now, &mut self.events);
        }
        sweep
    }

    fn take_by(&mut self, policy: &dyn Policy, tried: &[u64]) -> Result<(Flight, u16), Nobody> {
        self.draws += 1;
        self.take_with(policy, Some(crate::balance::mix(self.draws)), tried)
    }

    fn take_with(
        &mut self,
        policy: &dyn Policy,
        seed: Option<u64>,
        tried: &[u64],
    ) -> Result<(Flight, u16), Nobody> {
        let Some(space) = self.found() else {
            return Err(Nobody { no_namespace: true, ..Nobody::default() });
        };
        let choice = Choice { space, policy, tried, warm: &[], seed, again: None };
        let mut target = Target::NONE;
        let (flight, _) = Registry::lock(self.zone).unwrap().take(
            &mut self.worker,
            &choice,
            &self.rules,
            self.now,
            &mut target,
            &mut self.events,
        )?;
        Ok((flight, target.port))
    }

    fn take(&mut self) -> Result<(Flight, u16), Nobody> {
        self.take_by(&LeastConn, &[])
    }

    /// The port that one request goes to, which ends at once.
    fn serve(&mut self) -> Option<u16> {
        let (flight, port) = self.take().ok()?;
        self.release(flight, Verdict::Fine);
        Some(port)
    }

    fn release(&mut self, flight: Flight, verdict: Verdict) -> Released {
        Registry::lock(self.zone).unwrap().release(&mut self.worker, flight, verdict, self.now)
    }

    fn views(&self) -> Vec<ServerView> {
        let mut views = Vec::new();
        let Some(found) = self.found() else { return views };
        let mut cursor = Cursor::START;
        while !cursor.done {
            self.registry().read(found, &mut cursor, 2, &self.rules, self.now, &mut views);
        }
        views
    }

    fn view(&self, n: u16) -> ServerView {
        self.views().into_iter().find(|v| v.port == n).unwrap()
    }

    fn health(&self) -> Health {
        let mut health = Health::default();
        let Some(found) = self.found() else { return health };
        let mut cursor = Cursor::START;
        while !cursor.done {
            self.registry().count(found, &mut cursor, 2, &self.rules, self.now, &mut health);
        }
        health
    }

    fn happened(&mut self) -> Vec<(Happening, String)> {
        self.events.drain().map(|e| (e.what, e.server().to_owned())).collect()
    }

    #[track_caller]
    fn check(&self) {
        if let Err(e) = self.registry().check() {
            panic!("{e}");
        }
    }
}
