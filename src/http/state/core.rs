//! One state file in the hands of this worker: what is under way, and what comes next.
//!
//! [`Core::step`] moves it on, a slice at a time. Each change of the file is begun by the thread
//! (the lock is taken, and what is there is looked at), goes on here (another's file is read in, the
//! servers are copied) and is ended by the thread.

use std::mem::replace;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ngx::ffi::{NGX_LOG_ALERT, NGX_LOG_ERR, NGX_LOG_NOTICE};

use super::{Doorkeeper, say_bad};
use crate::http::worker::{Held, now, report};
use crate::http::zone::ZoneConf;
use crate::nginx::log::log;
use crate::nginx::process::{cycle_log, is_exiting};
use crate::nginx::thread::{Panicked, Thread};
use crate::nginx::wake::Waker;
use crate::registry::{Copied, Events, Merge, Registry, Snapshot, Source};
use crate::state::{
    Began, Content, Document, Failure, Head, Job, Keeper, Report, Writer, path_hash,
};

/// Milliseconds between two looks for something unsaved.
pub(super) const TICK: u64 = 200;
/// Milliseconds between two changes of the file: what comes in between goes together.
const SPACING: u64 = 400;
/// Milliseconds between two looks at the file itself.
const LOOK: u64 = 250;
/// Milliseconds, at most, in which two nginx tell each other of heartbeats.
const SHARE: u64 = 10_000;
/// Milliseconds to the next try after a failure: the first time, and at most.
const BACKOFF: (u64, u64) = (500, 8000);
/// Milliseconds after which a lock that another holds is worth a line.
const PATIENCE: u64 = 5000;
/// Milliseconds after which a disk that does not answer is worth a line.
const SLOW: u64 = 10_000;
/// Servers copied or read in under one hold of the lock.
const SLICE: u32 = 128;
/// What one turn of the event loop may take, checked after each slice.
const TURN: Duration = Duration::from_micros(300);
/// How long the end of a process may wait for the disk.
const LAST: Duration = Duration::from_secs(2);

/// What is under way.
enum Phase {
    Rest,
    /// The thread has a job.
    Asked {
        /// Since when, on the monotonic clock.
        since: u64,
        /// That it takes long has been said.
        said: bool,
    },
    Merging {
        document: Box<Document>,
        next: usize,
        merge: Merge,
        identity: u64,
        door: Doorkeeper,
    },
    Copying {
        snapshot: Snapshot,
        writer: Writer,
        /// What is there is the file that is known.
        same: bool,
    },
}

/// What comes next.
enum Next {
    Send(Job),
    /// More of the same, in another turn of the event loop.
    Again,
    Rest,
}

/// See the file's head.
pub(super) struct Core {
    conf: *const ZoneConf,
    local: Held,
    path: PathBuf,
    path_hash: u64,
    pub(super) waker: Option<Waker>,
    thread: Option<Thread<Job, Report>>,
    phase: Phase,
    /// What the file is to say of the zone once it is written: version and content.
    draft: (u64, u64),
    /// Write even when nothing has changed.
    forced: bool,
    /// Another nginx uses the file too.
    others: bool,
    /// Monotonic times in milliseconds.
    next_change: u64,
    next_look: u64,
    next_share: u64,
    busy_since: Option<u64>,
    backoff: u64,
    copies: Vec<Copied>,
    /// Read in, to be freed by the thread.
    spent: Option<Box<Document>>,
    events: Events,
}

impl Core {
    pub(super) fn new(conf: *const ZoneConf, local: Held, path: PathBuf) -> Self {
        Self {
            conf,
            local,
            path_hash: path_hash(&path),
            path,
            waker: None,
            thread: None,
            phase: Phase::Rest,
            draft: (0, 0),
            forced: false,
            others: false,
            next_change: 0,
            next_look: 0,
            next_share: 0,
            busy_since: None,
            backoff: 0,
            copies: Vec::new(),
            spent: None,
            events: Events::with_capacity(SLICE as usize),
        }
    }

    fn conf(&self) -> &ZoneConf {
        // SAFETY: by the contract of `Savers::start`.
        unsafe { &*self.conf }
    }

    pub(super) fn say(&self, level: u32, what: std::fmt::Arguments<'_>) {
        let (name, path) = (&self.conf().name, self.path.display());
        log(level, cycle_log(), format_args!("registry \"{name}\": state file \"{path}\" {what}"));
    }

    /// Steps of its own are left to do.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.phase, Phase::Merging { .. } | Phase::Copying { .. })
    }

    pub(super) fn step(&mut self) {
        while let Some(result) = self.thread.as_ref().and_then(Thread::take) {
            self.result(result);
        }
        match self.advance() {
            Next::Send(job) => self.send(job),
            Next::Again | Next::Rest => {}
        }
    }

    fn send(&mut self, job: Job) {
        if self.thread.is_none() {
            let Some(instance) = self.instance() else { return };
            let mut keeper = Keeper::new(self.path.clone(), instance);
            let work = move |job| keeper.work(job);
            match Thread::start("registry state", self.waker.clone(), work) {
                Ok(thread) => self.thread = Some(thread),
                Err(e) => return self.failed(&format_args!("no thread can be started: {e}")),
            }
        }
        if let (Some(thread), Some(spent)) = (&self.thread, self.spent.take()) {
            thread.send(Job::Discard(spent));
        }
        if self.thread.as_ref().is_some_and(|thread| thread.send(job)) {
            self.phase = Phase::Asked { since: now().mono, said: false };
        } else {
            self.abandon();
        }
    }

    fn instance(&self) -> Option<u64> {
        Registry::lock(&self.local.zone).ok().map(|mut registry| registry.filed().instance)
    }

    /// Drops what is under way, and the thread with the locks that it holds.
    fn abandon(&mut self) {
        self.phase = Phase::Rest;
        self.thread = None;
    }

    fn result(&mut self, result: Result<Report, Panicked>) {
        match result {
            Ok(report) => self.reported(report),
            Err(panic) => {
                self.say(NGX_LOG_ALERT, format_args!("{panic}"));
                self.abandon();
                self.next_change = now().mono + BACKOFF.1;
            }
        }
    }

    fn reported(&mut self, report: Report) {
        if matches!(report, Report::Discarded) {
            return;
        }
        self.phase = Phase::Rest;
        match report {
            Report::Looked { identity, others } => {
                self.others = others;
                let Ok(mut registry) = Registry::lock(&self.local.zone) else { return };
                if registry.filed().identity != identity {
                    self.forced = true;
                }
            }
            Report::Began(Began::Busy) => self.busy(),
            Report::Began(Began::Failed(e)) => self.failed(&e),
            Report::Began(Began::Ready { content, others }) => {
                self.busy_since = None;
                self.others = others;
                self.found(content);
            }
            Report::Wrote(wrote) => self.wrote(wrote),
            Report::Aborted | Report::Discarded => {}
        }
    }

    /// What to do next, or a slice of it.
    fn advance(&mut self) -> Next {
        match self.phase {
            Phase::Asked { since, said } => {
                // It cannot be helped from here: the thread waits in the kernel.
                if !said && now().mono - since > SLOW {
                    self.phase = Phase::Asked { since, said: true };
                    let seconds = SLOW / 1000;
                    self.failed(&format_args!("the disk has not answered for {seconds} s"));
                }
                Next::Rest
            }
            Phase::Rest => self.look_for_work(),
            Phase::Merging { .. } => self.merge(),
            Phase::Copying { .. } => self.copy(),
        }
    }

    fn look_for_work(&mut self) -> Next {
        let now = now().mono;
        let mut hands = self.local.hands();
        let Some(worker) = hands.worker.as_mut() else { return Next::Rest };
        let Ok(mut registry) = Registry::lock(&self.local.zone) else { return Next::Rest };
        let mine = !registry.is_retired() && registry.elect_writer(worker);
        let refused = registry.filed().refused == self.path_hash;
        let unsaved = registry.is_unsaved(self.path_hash);
        let known = match registry.filed() {
            filed if filed.path == self.path_hash => filed.identity,
            _ => 0,
        };
        drop(registry);
        drop(hands);
        if !mine || refused {
            // Another takes the locks that the thread may hold.
            self.thread = None;
            return Next::Rest;
        }
        let hurry = is_exiting();
        let share = self.others && now >= self.next_share && self.conf().rules.ttl > 0;
        if (now >= self.next_change || hurry) && (unsaved || self.forced || share) {
            self.next_change = now + SPACING;
            self.next_look = now + LOOK;
            self.forced |= share;
            return Next::Send(Job::Begin { known });
        }
        if now >= self.next_look {
            self.next_look = now + if self.others { TICK } else { LOOK };
            return Next::Send(Job::Look);
        }
        Next::Rest
    }

    fn busy(&mut self) {
        let now = now().mono;
        self.next_change = now + 50;
        let since = *self.busy_since.get_or_insert(now);
        if now - since >= PATIENCE {
            let seconds = PATIENCE / 1000;
            self.failed(&format_args!(
                "another process has held the lock beside it for {seconds} s"
            ));
        }
    }

    /// Says so once, and tries again later and later.
    fn failed(&mut self, why: &dyn std::fmt::Display) {
        let (first, most) = BACKOFF;
        self.backoff = (self.backoff * 2).clamp(first, most);
        self.next_change = now().mono + self.backoff;
        let Ok(mut registry) = Registry::lock(&self.local.zone) else { return };
        let known = replace(&mut registry.filed().failing, 1) != 0;
        drop(registry);
        if !known {
            self.say(
                NGX_LOG_ERR,
                format_args!("can't be written: {why}; changes are in memory alone until it can"),
            );
        }
    }

    fn found(&mut self, content: Content) {
        match content {
            Content::Missing => self.begin_copy(false),
            Content::Ours => self.begin_copy(true),
            Content::Foreign(document, identity) => {
                let Ok(registry) = Registry::lock(&self.local.zone) else { return self.abandon() };
                let merge = registry.merge(document.head.source, self.path_hash);
                drop(registry);
                let door = Doorkeeper::default();
                self.phase = Phase::Merging { document, next: 0, merge, identity, door };
            }
            Content::Bad(problem, aside) => {
                say_bad(self.conf(), &self.path, &problem, &aside, cycle_log());
                if aside.is_ok() {
                    return self.begin_copy(false);
                }
                if let Ok(mut registry) = Registry::lock(&self.local.zone) {
                    registry.filed().refused = self.path_hash;
                }
            }
        }
    }

    /// Reads in a slice of another's file.
    fn merge(&mut self) -> Next {
        let Phase::Merging { document, mut next, mut merge, identity, mut door } =
            replace(&mut self.phase, Phase::Rest)
        else {
            return Next::Rest;
        };
        let (began, now) = (Instant::now(), now());
        let mut through = false;
        while !through && began.elapsed() < TURN {
            let Ok(mut registry) = Registry::lock(&self.local.zone) else {
                return Next::Send(Job::Abort);
            };
            if registry.is_retired() {
                return Next::Send(Job::Abort);
            }
            // SAFETY: by the contract of `Savers::start`; apart from `self` for the borrow checker.
            let conf = unsafe { &*self.conf };
            let rules = &conf.rules;
            if next == document.servers.len() {
                through = registry.merge_gone(&mut merge, SLICE, &document.keys, &mut self.events);
            }
            let end = document.servers.len().min(next + SLICE as usize);
            for server in &document.servers[next..end] {
                next += 1;
                if door.admits(conf, server) {
                    registry.merge_one(&mut merge, server, rules, now, &mut self.events);
                }
                // To put many heartbeats in their order takes longer than to copy them.
                if began.elapsed() >= TURN {
                    break;
                }
            }
            if through && !merge.has_unsaved() {
                let version = registry.version();
                let path = self.path_hash;
                let filed = registry.filed();
                (filed.version, filed.path) = (version, path);
                (filed.identity, filed.content) = (identity, 0);
            }
        }
        let mut events = std::mem::take(&mut self.events);
        report(self.conf(), cycle_log(), &mut events);
        self.events = events;
        if !through {
            self.phase = Phase::Merging { document, next, merge, identity, door };
            return Next::Again;
        }
        self.spent = Some(document);
        door.report(self.conf(), &self.path, cycle_log());
        if let Some(e) = merge.full() {
            self.say(NGX_LOG_ERR, format_args!("of another nginx could not be read whole: {e}"));
        }
        if merge.has_unsaved() || (self.others && self.forced && now.mono >= self.next_share) {
            self.begin_copy(false);
            return Next::Again;
        }
        self.forced = false;
        Next::Send(Job::Abort)
    }

    fn begin_copy(&mut self, same: bool) {
        let Ok(mut registry) = Registry::lock(&self.local.zone) else { return self.abandon() };
        let snapshot = registry.snapshot();
        let filed = *registry.filed();
        drop(registry);
        let source = Source {
            instance: filed.instance,
            next_number: snapshot.next_number,
            seen: (filed.other != 0).then_some((filed.other, filed.other_next)),
        };
        let head = Head { registry: self.conf().name.clone(), source };
        let writer = Writer::new(&head, self.others);
        self.phase = Phase::Copying { snapshot, writer, same };
    }

    /// Copies a few slices into the file to be.
    fn copy(&mut self) -> Next {
        let Phase::Copying { mut snapshot, mut writer, same } =
            replace(&mut self.phase, Phase::Rest)
        else {
            return Next::Rest;
        };
        let began = Instant::now();
        while !snapshot.done && began.elapsed() < TURN {
            self.copies.reserve(SLICE as usize);
            let Ok(registry) = Registry::lock(&self.local.zone) else {
                return Next::Send(Job::Abort);
            };
            if registry.is_retired() {
                return Next::Send(Job::Abort);
            }
            registry.copy(&mut snapshot, SLICE, &mut self.copies);
            drop(registry);
            for copy in self.copies.drain(..) {
                writer.push(&copy.saved(now()));
            }
        }
        if !snapshot.done {
            self.phase = Phase::Copying { snapshot, writer, same };
            return Next::Again;
        }
        self.copies = Vec::new();
        self.draft = (snapshot.version, writer.content());
        if let Ok(mut registry) = Registry::lock(&self.local.zone) {
            let (path, failing) = (self.path_hash, registry.filed().failing);
            let filed = registry.filed();
            // A server was silent and came back, or was added and removed: nothing to write.
            let known = filed.path == path && filed.content == self.draft.1 && failing == 0;
            if same && known && !self.others {
                filed.version = self.draft.0;
                self.forced = false;
                return Next::Send(Job::Abort);
            }
        }
        Next::Send(Job::Write(writer.finish()))
    }

    fn wrote(&mut self, wrote: Result<u64, Failure>) {
        let identity = match wrote {
            Ok(identity) => identity,
            Err(e) => return self.failed(&e),
        };
        self.forced = false;
        self.backoff = 0;
        self.next_share = now().mono + (self.conf().rules.ttl / 8).clamp(SPACING, SHARE);
        let Ok(mut registry) = Registry::lock(&self.local.zone) else { return };
        let path = self.path_hash;
        let filed = registry.filed();
        (filed.version, filed.content) = self.draft;
        (filed.path, filed.identity) = (path, identity);
        let recovered = replace(&mut filed.failing, 0) != 0;
        drop(registry);
        if recovered {
            self.say(NGX_LOG_NOTICE, format_args!("is written again"));
        }
    }

    /// Leaves the work to those who stay.
    pub(super) fn resign(&self) {
        self.local.resign();
    }

    /// Lets the thread finish what it has, and ends it.
    pub(super) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        for result in thread.stop(LAST) {
            self.result(result);
        }
        self.phase = Phase::Rest;
        self.thread = None;
    }

    /// Writes what is unsaved, here and now, when nobody is left who would. Waits for the disk, but
    /// not for one that hangs.
    pub(super) fn flush(&mut self) {
        let known = {
            let Ok(mut registry) = Registry::lock(&self.local.zone) else { return };
            let filed = *registry.filed();
            let unsaved = registry.is_unsaved(self.path_hash) && !registry.is_retired();
            if !unsaved || filed.refused == self.path_hash || !registry.is_deserted() {
                return;
            }
            if filed.path == self.path_hash { filed.identity } else { 0 }
        };
        let deadline = Instant::now() + LAST;
        let mut job = Job::Begin { known };
        loop {
            // The process ends: nothing waits for this thread any more.
            self.spent = None;
            self.send(job);
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(thread) = &self.thread else { return };
            let Some(result) = thread.wait(left) else {
                return self.failed(&"the disk does not answer");
            };
            if matches!(result, Ok(Report::Began(Began::Busy))) && Instant::now() < deadline {
                // Another nginx is at it, which takes milliseconds.
                std::thread::sleep(Duration::from_millis(5));
                job = Job::Begin { known };
                continue;
            }
            if matches!(result, Ok(Report::Began(Began::Busy))) {
                return self.failed(&"another process holds the lock beside it");
            }
            self.result(result);
            job = loop {
                if !self.is_busy() {
                    return self.stop();
                }
                if let Next::Send(job) = self.advance() {
                    break job;
                }
            };
        }
    }
}
