//! The worker that keeps in touch with Redis.
//!
//! Each worker looks now and then whether it is the elected one. That one has two threads: one that
//! asks Redis, and one that listens for hints of other nodes. Everything that touches the zone is
//! done here, on the event loop, slice by slice.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ngx::ffi::{NGX_LOG_ALERT, NGX_LOG_ERR, NGX_LOG_NOTICE, NGX_LOG_WARN};

use super::conf::RedisConf;
use crate::http::worker::{Held, now, report};
use crate::http::zone::ZoneConf;
use crate::nginx::log::log;
use crate::nginx::process::{cycle_log, is_exiting};
use crate::nginx::thread::{self, Thread};
use crate::nginx::timer::{Expired, Timer};
use crate::nginx::wake::{Wake, Waker, Woken};
use crate::registry::Registry;
use crate::sync::{self, Courier, Endpoint, Level, Listener, Next, Node, Settings, Stop};

/// Milliseconds between two looks for changes that other workers have made.
const POLL: u64 = 10;
/// Milliseconds between two looks whether this worker has become the elected one.
const LOOK: u64 = 200;
/// How long the end of the last process may wait for Redis.
const LAST: Duration = Duration::from_millis(300);

/// The talkers of this process, for as long as its configuration lasts.
pub(in crate::http) struct Talkers(Vec<Talker>);

struct Talker {
    // Dropped first: they hold the rest.
    _timer: Pin<Box<Timer<Hand>>>,
    wake: Option<Pin<Box<Wake<Hand>>>>,
    core: Rc<RefCell<Core>>,
}

impl Talkers {
    /// None yet.
    pub(in crate::http) const NONE: Self = Self(Vec::new());

    /// Starts one for a zone that this process has joined. `spaces`: namespaces of the configuration.
    ///
    /// `conf` outlives it: [`Talkers::clear`] is called before a configuration goes.
    pub(in crate::http) fn start(
        &mut self,
        conf: *const ZoneConf,
        local: Held,
        spaces: Vec<String>,
    ) {
        // SAFETY: alive now, and until `clear`.
        let redis = unsafe { &(*conf).redis };
        let Some(endpoint) = redis.endpoint.clone() else { return };
        let core = Rc::new(RefCell::new(Core::new(conf, local, endpoint, redis, spaces)));
        let wake = match Wake::start(Hand(Rc::clone(&core))) {
            Ok((wake, waker)) => {
                core.borrow_mut().waker = Some(waker);
                Some(wake)
            }
            Err(e) => {
                // The timer does without, in larger steps.
                let text = format_args!("can't be woken by the thread that talks to Redis: {e}");
                core.borrow().say(NGX_LOG_WARN, text);
                None
            }
        };
        let timer = Timer::start(Hand(Rc::clone(&core)), 1);
        self.0.push(Talker { _timer: timer, wake, core });
    }

    /// Ends them. Nobody waits for Redis: what a thread has begun, it drops.
    pub(in crate::http) fn clear(&mut self) {
        for talker in self.0.drain(..) {
            drop(talker.wake);
            talker.core.borrow_mut().hang_up();
        }
    }

    /// Ends the threads, while the process still takes part in its zones.
    pub(in crate::http) fn hang_up(&mut self) {
        for talker in &self.0 {
            talker.core.borrow_mut().hang_up();
        }
    }

    /// At the end of the process, when it has left its zones: the last one that was in a zone says
    /// what nobody has said yet, and that the node goes.
    pub(in crate::http) fn farewell(&mut self) {
        for talker in self.0.drain(..) {
            drop(talker.wake);
            let mut core = talker.core.borrow_mut();
            core.hang_up();
            core.farewell();
        }
    }
}

/// A zone's talk with Redis in the hands of this worker.
struct Core {
    conf: *const ZoneConf,
    local: Held,
    endpoint: Endpoint,
    settings: Settings,
    waker: Option<Waker>,
    line: Option<Line>,
}

/// What the elected worker has.
struct Line {
    node: Node,
    thread: Thread<sync::Job, sync::Report>,
    listener: Option<Listener>,
    heard: Arc<AtomicBool>,
    /// Ends what the thread waits for.
    stop: Stop,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

impl Core {
    fn new(
        conf: *const ZoneConf,
        local: Held,
        endpoint: Endpoint,
        redis: &RedisConf,
        spaces: Vec<String>,
    ) -> Self {
        let settings = Settings {
            prefix: redis.prefix(),
            name: redis.node().unwrap_or_default().to_owned(),
            interval: redis.interval(),
            timeout: redis.timeout(),
            tombstone_ttl: redis.tombstone_ttl(),
            spaces,
            redis: endpoint.to_string(),
        };
        Self { conf, local, endpoint, settings, waker: None, line: None }
    }

    fn conf(&self) -> &ZoneConf {
        // SAFETY: by the contract of `Talkers::start`.
        unsafe { &*self.conf }
    }

    fn say(&self, level: u32, what: std::fmt::Arguments<'_>) {
        log(level, cycle_log(), format_args!("registry \"{}\": {what}", self.conf().name));
    }

    /// Whether this worker is the one to talk.
    fn is_elected(&self) -> bool {
        let mut hands = self.local.hands();
        let Some(worker) = hands.worker.as_mut() else { return false };
        let Ok(mut registry) = Registry::lock(&self.local.zone) else { return false };
        !registry.is_retired() && registry.elect(worker)
    }

    /// Does what is to be done now. Returns in how many milliseconds to come again, 0 for the next
    /// turn of the event loop.
    fn step(&mut self) -> u64 {
        if is_exiting() || !self.is_elected() {
            self.hang_up();
            return LOOK;
        }
        if self.line.is_none() {
            match self.pick_up() {
                Ok(line) => self.line = Some(line),
                Err(e) => {
                    self.say(NGX_LOG_ERR, format_args!("no thread to talk to Redis: {e}"));
                    return 5000;
                }
            }
        }
        // SAFETY: by the contract of `Talkers::start`; apart from `self` for the borrow checker.
        let conf = unsafe { &*self.conf };
        let Some(line) = self.line.as_mut() else { return LOOK };
        let (zone, now) = (&self.local.zone, now());
        let mut broken = None;
        line.node.hears(line.listener.as_ref().and_then(Listener::trouble));
        while let Some(result) = line.thread.take() {
            match result {
                Ok(report) => line.node.reported(report, zone, now),
                Err(panic) => broken = Some(panic),
            }
        }
        if line.heard.swap(false, Ordering::Relaxed) {
            line.node.hint();
        }
        let next = match line.node.step(zone, &conf.rules, now) {
            Next::Send(job) => {
                if !line.thread.send(job) && broken.is_none() {
                    line.node.refused("the thread that talks to it has ended", zone, now);
                }
                POLL
            }
            Next::Again => 0,
            Next::Wait(ms) => ms.clamp(1, POLL),
        };
        report(conf, cycle_log(), &mut line.node.events);
        let lines: Vec<_> = line.node.lines().collect();
        for (level, text) in lines {
            let level = match level {
                Level::Error => NGX_LOG_ERR,
                Level::Warn => NGX_LOG_WARN,
                Level::Notice => NGX_LOG_NOTICE,
            };
            self.say(level, format_args!("{text}"));
        }
        if let Some(panic) = broken {
            self.say(NGX_LOG_ALERT, format_args!("{panic}"));
            self.hang_up();
            return 5000;
        }
        next
    }

    fn pick_up(&self) -> std::io::Result<Line> {
        let instance = Registry::lock(&self.local.zone).map_or(1, |registry| registry.instance());
        let node = Node::new(self.settings.clone(), self.conf().allow.clone(), instance);
        let stop = Stop::new();
        let thread = self.thread(&stop)?;
        let heard = Arc::new(AtomicBool::new(false));
        let (flag, waker, id) = (Arc::clone(&heard), self.waker.clone(), node.id().to_owned());
        let channel = format!("{}:sync:changes", self.settings.prefix);
        let timeout = Duration::from_millis(self.settings.timeout);
        let listener = Listener::start(
            self.endpoint.clone(),
            &channel,
            timeout,
            |work| thread::spawn("registry ear", work),
            move |payload| {
                if payload != id.as_bytes()
                    && !flag.swap(true, Ordering::Relaxed)
                    && let Some(waker) = &waker
                {
                    waker.wake();
                }
            },
        );
        if let Err(e) = &listener {
            let text = format_args!("no thread to hear of changes in Redis, they come later: {e}");
            self.say(NGX_LOG_WARN, text);
        }
        Ok(Line { node, thread, listener: listener.ok(), heard, stop })
    }

    fn thread(&self, stop: &Stop) -> std::io::Result<Thread<sync::Job, sync::Report>> {
        let timeout = Duration::from_millis(self.settings.timeout);
        let mut courier = Courier::new(self.endpoint.clone(), timeout, stop.clone());
        Thread::start("registry redis", self.waker.clone(), move |job| courier.work(job))
    }

    /// Leaves the talk to another worker.
    fn hang_up(&mut self) {
        self.line = None;
    }

    /// Tells Redis what is still to be told, and that this node goes; not when Redis is away.
    fn farewell(&mut self) {
        let zone = &self.local.zone;
        let instance = {
            let Ok(mut registry) = Registry::lock(zone) else { return };
            let deserted = registry.is_deserted() && !registry.is_retired();
            if !deserted || registry.shared().connected == 0 {
                return;
            }
            registry.instance()
        };
        let mut node = Node::new(self.settings.clone(), self.conf().allow.clone(), instance);
        let Some(job) = node.farewell(zone, now()) else { return };
        let stop = Stop::new();
        let Ok(thread) = self.thread(&stop) else { return };
        if thread.send(job) {
            // What comes of it is of use to nobody any more.
            thread.wait(LAST);
        }
        stop.stop();
    }
}

/// What the timer and the wake-up both hold.
struct Hand(Rc<RefCell<Core>>);

impl Expired for Hand {
    fn expired(&mut self) -> Option<u64> {
        Some(self.0.borrow_mut().step().max(1))
    }
}

impl Woken for Hand {
    fn woken(&mut self) {
        let mut core = self.0.borrow_mut();
        if core.step() == 0
            && let Some(waker) = &core.waker
        {
            waker.wake();
        }
    }

    fn leaving(&mut self) {
        let mut core = self.0.borrow_mut();
        core.local.resign();
        core.hang_up();
    }
}
