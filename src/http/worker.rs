//! From configuration to processes: what a new cycle changes, workers joining and leaving, and the
//! cleanup's timer.

use std::cell::{Cell, RefCell, RefMut};
use std::ops::Deref;
use std::pin::Pin;
use std::ptr::{NonNull, null};

use ngx::ffi::{NGX_LOG_INFO, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_cycle_t, ngx_int_t, ngx_log_t};

use super::health::Probers;
use super::keepalive::{self, Keeper};
use super::main_conf::MainConf;
use super::names::Namers;
use super::state::{self, Savers};
use super::sync::Talkers;
use super::zone::{self, ZoneConf};
use crate::nginx::log::log;
use crate::nginx::process::{self, cycle_log};
use crate::nginx::resolve::Resolver;
use crate::nginx::timer::{Expired, Timer};
use crate::nginx::{border, shm};
use crate::registry::{Events, Now, Registry, SpaceName, StaticServer, Sweep, Worker};
use crate::shm::Zone;
#[cfg(fault)]
use crate::shm::fault;

/// Servers that the cleanup looks at under one hold of the lock.
const SLICE: u32 = 128;

/// Servers that the cleanup looks at in one turn of the event loop.
const TURN: u32 = 2048;

/// Lines that the cleanup logs in one turn of the event loop.
const LINES: usize = 128;

/// This process's part in one zone. Freed when the process ends: requests that outlive their
/// configuration may still look at it.
pub(crate) struct Local {
    pub(super) zone: Zone,
    hands: RefCell<Hands>,
    attached: Cell<bool>,
}

/// A [`Local`], held until the process ends.
#[derive(Clone, Copy)]
pub(super) struct Held(NonNull<Local>);

impl Deref for Held {
    type Target = Local;
    fn deref(&self) -> &Local {
        // SAFETY: made in `join`, freed in `exit_process` after the last use.
        unsafe { self.0.as_ref() }
    }
}

/// What is needed to change the zone.
pub(crate) struct Hands {
    /// `None` when this process has left the zone.
    pub(super) worker: Option<Worker>,
    pub(super) events: Events,
}

impl Local {
    /// Whether this process takes part in the zone.
    #[inline]
    pub(super) fn is_attached(&self) -> bool {
        self.attached.get()
    }

    /// What is needed to change the zone; for the length of a callback.
    #[inline]
    pub(super) fn hands(&self) -> RefMut<'_, Hands> {
        self.hands.borrow_mut()
    }

    /// Leaves what this process was elected for to those who stay.
    pub(super) fn resign(&self) {
        if let Some(worker) = self.hands().worker.as_mut()
            && let Ok(mut registry) = Registry::lock(&self.zone)
        {
            registry.resign(worker);
        }
    }

    fn detach(&self) {
        self.attached.set(false);
        if let Some(worker) = self.hands().worker.take()
            && let Ok(mut registry) = Registry::lock(&self.zone)
        {
            registry.leave(worker);
        }
    }
}

thread_local! {
    /// The zones that this process takes part in, and the timers of its configuration.
    static PROCESS: RefCell<Process> = const { RefCell::new(Process { locals: Vec::new(), timers: Vec::new(), keepers: Vec::new(), savers: Savers::NONE, talkers: Talkers::NONE, probers: Probers::NONE, namers: Namers::NONE }) };
}

struct Process {
    locals: Vec<Held>,
    timers: Vec<Pin<Box<Timer<Cleanup>>>>,
    keepers: Vec<Pin<Box<Timer<Keeper>>>>,
    savers: Savers,
    talkers: Talkers,
    probers: Probers,
    namers: Namers,
}

/// Now, as of this turn of the event loop.
#[inline]
pub(super) fn now() -> Now {
    let (mono, wall) = process::clocks();
    Now { mono, wall }
}

/// Logs what happened.
#[inline]
pub(super) fn report(zone: &ZoneConf, to: *mut ngx_log_t, events: &mut Events) {
    if !events.is_empty() {
        report_all(zone, to, events);
    }
}

#[cold]
fn report_all(zone: &ZoneConf, to: *mut ngx_log_t, events: &mut Events) {
    for event in events.drain() {
        let level = if event.is_alarming() { NGX_LOG_WARN } else { NGX_LOG_NOTICE };
        log(level, to, format_args!("registry \"{}\": {event}", zone.name));
    }
}

/// Called in the master (or only) process when a new configuration has taken hold: from here on
/// nothing of it can fail, so now its zones are changed.
pub(super) unsafe extern "C" fn init_module(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    border::guard(cycle_log, (), || {
        // SAFETY: nginx passes the new cycle.
        let (log_to, old) = unsafe { ((*cycle).log, (*cycle).old_cycle) };
        let main = MainConf::of_cycle(cycle);
        if process::is_test() {
            for zone in main.map_or(&[][..], |main| &main.zones) {
                state::check(zone, cycle, log_to);
            }
            return;
        }
        #[cfg(fault)]
        {
            fault::set_role(fault::MASTER);
            fault::share();
        }
        if let Some(main) = main {
            for zone in &main.zones {
                state::prepare(zone, cycle, log_to);
                renew(main, zone, old, log_to);
            }
        }
        // With `master_process off` a reload runs in the process that handles requests, and calls
        // no init_process.
        if process::is_single() && PROCESS.with_borrow(|p| !p.locals.is_empty()) {
            attach(cycle);
        }
    });
    0
}

/// Makes a zone agree with the new configuration.
fn renew(main: &MainConf, conf: &ZoneConf, old: *const ngx_cycle_t, log_to: *mut ngx_log_t) {
    let Some(zone) = conf.open() else { return };
    let old = shm::find(old, conf.shm_name().as_bytes());
    let predecessor = old.and_then(zone::open).filter(|p| p.base() != zone.base());
    if old.is_some_and(|old| shm::is_mapped(old) && zone::open(old).is_none()) {
        let name = &conf.name;
        log(
            NGX_LOG_WARN,
            log_to,
            format_args!(
                "registry \"{name}\": the old zone was made by another version of this module and \
                 can't be read: servers have to register again"
            ),
        );
    }

    let spaces = main.spaces(conf);
    let mut statics: Vec<(SpaceName<'_>, StaticServer)> = Vec::new();
    for upstream in &main.upstreams {
        // SAFETY: the pointers are those of this configuration's upstreams.
        let upstream = unsafe { &**upstream };
        if let Some(name) = upstream.fixed().filter(|_| upstream.uses(conf)) {
            let rules = conf.rules.of_space(&conf.slow_starts, name.as_str());
            let slow_start_ms = rules.slow_start as u32;
            let lines =
                upstream.statics.iter().map(|s| StaticServer { slow_start_ms, ..s.clone() });
            statics.extend(lines.map(|line| (name, line)));
        }
    }

    let mut events = Events::default();
    let name = &conf.name;
    let complain = |e: &dyn std::fmt::Display| {
        log(NGX_LOG_WARN, log_to, format_args!("registry \"{name}\": {e}"));
    };
    let mut registry = match Registry::lock(&zone) {
        Ok(registry) => registry,
        Err(e) => return complain(&e),
    };
    if let Some(predecessor) = &predecessor {
        match Registry::lock(predecessor) {
            Ok(mut old) => {
                if let Err(e) = registry.succeed(&mut old) {
                    complain(&e);
                }
                old.retire();
                let n = registry.servers();
                log(
                    NGX_LOG_NOTICE,
                    log_to,
                    format_args!("registry \"{name}\": {n} servers moved to the new zone"),
                );
            }
            Err(e) => complain(&e),
        }
    }
    // A file that could not be used is looked at again.
    registry.filed().refused = 0;
    let is_first = registry.is_new() && predecessor.is_none();
    if is_first {
        state::load(conf, &mut registry, log_to);
    }
    registry.next_cycle();
    registry.configure_checks(&main.checks(conf).1, is_first);
    if let Err(e) = registry.configure(&spaces, &statics, &conf.rules, now(), &mut events) {
        complain(&e);
    }
    registry.share(conf.redis.endpoint.is_some());
    drop(registry);
    report(conf, log_to, &mut events);
}

/// Called in each process when it starts.
pub(super) unsafe extern "C" fn init_process(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    border::guard(cycle_log, (), || {
        if process::handles_requests() {
            #[cfg(fault)]
            fault::set_role(fault::WORKER);
            attach(cycle);
        }
    });
    0
}

/// Joins the zones of a cycle, leaves those that are not in it, and starts its timers.
fn attach(cycle: *const ngx_cycle_t) {
    let zones: &[Box<ZoneConf>] =
        MainConf::of_cycle(cycle).map_or(&[], |main| main.zones.as_slice());
    PROCESS.with_borrow_mut(|process| {
        process.timers.clear();
        process.keepers.clear();
        process.savers.clear();
        process.talkers.clear();
        process.probers.clear();
        process.namers.clear();
        let opened: Vec<_> = zones.iter().map(|conf| conf.open()).collect();
        process.locals.retain(|local| {
            let stays = opened.iter().flatten().any(|z| z.base() == local.zone.base());
            if !stays {
                local.detach();
            }
            stays
        });
        for (conf, zone) in zones.iter().zip(opened) {
            let Some(zone) = zone else { continue };
            let known = process.locals.iter().copied().find(|l| l.zone.base() == zone.base());
            let local = known.or_else(|| {
                let local = join(conf, zone)?;
                process.locals.push(local);
                Some(local)
            });
            conf.local.set(local.map_or(null(), |local| local.0.as_ptr()));
            if let Some(local) = local {
                let cleanup = Cleanup {
                    conf: &raw const **conf,
                    local,
                    sweep: None,
                    events: Events::with_capacity(LINES),
                };
                process.timers.push(Timer::start(cleanup, conf.cleanup_interval));
                let keeper = Keeper::open(local, MainConf::pools(cycle, conf));
                process.keepers.extend(keeper.map(|k| Timer::start(k, keepalive::TICK)));
                process.savers.start(&raw const **conf, local);
                let main = MainConf::of_cycle(cycle);
                let checks = main.map_or(Vec::new(), |main| main.checks(conf).0);
                process.probers.start(&raw const **conf, local, checks);
                let spaces = main.map_or(Vec::new(), |main| main.spaces(conf));
                let spaces = spaces.iter().map(|space| space.as_str().to_owned()).collect();
                process.talkers.start(&raw const **conf, local, spaces);
                process.namers.start(&raw const **conf, local, Resolver::of_cycle(cycle));
            }
        }
    });
}

fn join(conf: &ZoneConf, zone: Zone) -> Option<Held> {
    let worker = match Registry::lock(&zone) {
        Ok(mut registry) => {
            // The master starts this worker in the place of one that died.
            let dead = registry.reap();
            let worker = registry.join(process::pid());
            drop(registry);
            report_dead(conf, dead);
            if worker.incarnation() == 0 {
                let (name, most) = (&conf.name, zone.layout().workers);
                log(
                    NGX_LOG_WARN,
                    cycle_log(),
                    format_args!(
                        "registry \"{name}\": {most} workers, old and new, are all that it can tell \
                         apart: if this one is killed, its requests stay counted; \
                         give the registry a larger size"
                    ),
                );
            }
            worker
        }
        Err(e) => {
            let name = &conf.name;
            log(NGX_LOG_WARN, cycle_log(), format_args!("registry \"{name}\": {e}"));
            return None;
        }
    };
    Some(Held(NonNull::from(Box::leak(Box::new(Local {
        zone,
        hands: RefCell::new(Hands { worker: Some(worker), events: Events::with_capacity(16) }),
        attached: Cell::new(true),
    })))))
}

fn report_dead(conf: &ZoneConf, dead: usize) {
    if dead > 0 {
        let (name, workers) = (&conf.name, if dead == 1 { "worker" } else { "workers" });
        log(
            NGX_LOG_NOTICE,
            cycle_log(),
            format_args!("registry \"{name}\": took back the requests of {dead} dead {workers}"),
        );
    }
}

/// Called in each process when it ends in good order.
pub(super) unsafe extern "C" fn exit_process(cycle: *mut ngx_cycle_t) {
    border::guard(cycle_log, (), || {
        for conf in MainConf::of_cycle(cycle).map_or(&[][..], |main| &main.zones) {
            conf.local.set(null());
        }
        PROCESS.with_borrow_mut(|process| {
            process.timers.clear();
            process.keepers.clear();
            process.probers.clear();
            process.savers.stop();
            process.talkers.hang_up();
            process.namers.clear();
            for local in &process.locals {
                local.detach();
            }
            process.talkers.farewell();
            process.savers.flush();
            for local in process.locals.drain(..) {
                // SAFETY: made in `join`. No event is handled after this hook, so no request looks
                // at it again; the configuration's pointers were cleared above.
                drop(unsafe { Box::from_raw(local.0.as_ptr()) });
            }
        });
    });
}

/// The cleanup of one zone, as a timer's work.
struct Cleanup {
    conf: *const ZoneConf,
    local: Held,
    /// A sweep that is not through.
    sweep: Option<Sweep>,
    events: Events,
}

impl Expired for Cleanup {
    fn expired(&mut self) -> Option<u64> {
        // SAFETY: timers are stopped before the configuration that they belong to goes.
        let conf = unsafe { &*self.conf };
        let mut hands = self.local.hands();
        let worker = hands.worker.as_mut()?;
        let mut registry = match Registry::lock(&self.local.zone) {
            Ok(registry) => registry,
            Err(_) => return Some(conf.cleanup_interval),
        };
        if process::is_exiting() {
            registry.resign(worker);
            return None;
        }

        let mut sweep = match self.sweep.take() {
            Some(sweep) => sweep,
            None => {
                let dead = registry.reap();
                registry.restate(worker);
                let elected = registry.elect(worker);
                report_dead(conf, dead);
                if !elected {
                    return Some(conf.cleanup_interval);
                }
                Sweep::default()
            }
        };
        drop(registry);

        let mut looked_at = 0;
        while !sweep.done && looked_at < TURN && self.events.len() < LINES {
            let Ok(mut registry) = Registry::lock(&self.local.zone) else { break };
            registry.sweep(&mut sweep, SLICE, &conf.rules, now(), &mut self.events);
            looked_at += SLICE;
        }
        report(conf, cycle_log(), &mut self.events);
        if !sweep.done {
            self.sweep = Some(sweep);
            return Some(1);
        }
        if sweep.removed + sweep.disabled > 0 {
            let (name, Sweep { disabled, removed, .. }) = (&conf.name, sweep);
            log(
                NGX_LOG_INFO,
                cycle_log(),
                format_args!(
                    "registry \"{name}\": cleanup: {disabled} disabled, {removed} removed"
                ),
            );
        }
        Some(conf.cleanup_interval)
    }
}
