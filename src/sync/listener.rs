//! Hears what the other nodes publish.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{Msg, Value, cmd};

use super::endpoint::Endpoint;
use super::error::LinkError;
use super::link::{arbitrary, reach};
use super::stop::Stop;
use super::wire::Wire;

/// Longest message, in bytes. What is published are hints; a longer one is nothing of ours.
const MAX_MESSAGE: usize = 1 << 20;

/// Shortest and longest wait before the next attempt to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// How long a connection must have lived for the shortest wait after it.
const SOUND: Duration = Duration::from_secs(3);

/// A listener that hears nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deaf {
    /// How often in a row it has tried in vain; the end of a connection counts as well.
    pub attempts: u32,
    /// What the last one failed for.
    pub why: String,
}

/// A thread that is subscribed to a channel. Dropping this ends the thread, and does not wait for
/// it; nothing is heard any more then, but for a call that is under way.
#[derive(Debug)]
pub struct Listener {
    stop: Stop,
    trouble: Arc<Mutex<Option<Deaf>>>,
}

impl Listener {
    /// Starts it by `spawn`, which must make a thread of what it is given. `heard` is called with
    /// the payload of each message, and with an empty one whenever the thread has subscribed:
    /// something may have been missed before.
    ///
    /// In a cluster any node will do, because each hears what is published at any other; with
    /// sentinels it is the master. A connection that is silent for five times `timeout` (and for
    /// five seconds at least) is asked for a sign of life.
    ///
    /// # Errors
    ///
    /// That of `spawn`.
    pub fn start(
        endpoint: Endpoint,
        channel: &str,
        timeout: Duration,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>,
        heard: impl Fn(&[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, trouble) = (Stop::new(), Arc::new(Mutex::new(None)));
        let ear = Ear {
            endpoint,
            channel: channel.to_owned(),
            timeout,
            stop: stop.clone(),
            trouble: Arc::clone(&trouble),
            heard,
        };
        spawn(Box::new(move || ear.run()))?;
        Ok(Self { stop, trouble })
    }

    /// Why it hears nothing at present. None: it does, or has not tried yet.
    pub fn trouble(&self) -> Option<Deaf> {
        self.trouble.lock().clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

/// What the thread has.
struct Ear<F> {
    endpoint: Endpoint,
    channel: String,
    timeout: Duration,
    stop: Stop,
    trouble: Arc<Mutex<Option<Deaf>>>,
    heard: F,
}

impl<F: Fn(&[u8])> Ear<F> {
    fn run(&self) {
        let mut wait = BACKOFF.0;
        while !self.stop.is_stopped() {
            let mut since = None;
            let Err(error) = self.listen(&mut since);
            let mut trouble = self.trouble.lock();
            let attempts = trouble.as_ref().map_or(0, |deaf| deaf.attempts).saturating_add(1);
            *trouble = Some(Deaf { attempts, why: error.to_string() });
            drop(trouble);
            if since.is_some_and(|since: Instant| since.elapsed() >= SOUND) {
                wait = BACKOFF.0;
            }
            // From half of it to one and a half: nodes that lost it together do not come together.
            let percent = 50 + (arbitrary() % 101) as u32;
            if self.stop.wait(wait * percent / 100) {
                break;
            }
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// Subscribes and listens until that fails. `since`: when it had subscribed.
    fn listen(&self, since: &mut Option<Instant>) -> Result<Infallible, LinkError> {
        let mut wire = reach(&self.endpoint, self.timeout, &self.stop)?;
        wire.limit(MAX_MESSAGE);
        wire.ask(cmd("SUBSCRIBE").arg(&self.channel))??;
        *self.trouble.lock() = None;
        *since = Some(Instant::now());
        self.tell(b"")?;
        let quiet = self.timeout.max(Duration::from_secs(1)) * 5;
        loop {
            match wire.next(quiet)? {
                Some(value) => self.hear(value)?,
                None => self.check(&mut wire)?,
            }
        }
    }

    /// Asks for a sign of life; anything that comes is one.
    fn check(&self, wire: &mut Wire) -> Result<(), LinkError> {
        wire.send(&cmd("PING"))?;
        match wire.next(self.timeout)? {
            Some(value) => self.hear(value),
            None => Err(LinkError::Timeout { to: wire.to().to_owned(), after: self.timeout }),
        }
    }

    fn hear(&self, value: Value) -> Result<(), LinkError> {
        // Others are answers to PING.
        match Msg::from_owned_value(value) {
            Some(message) => self.tell(message.get_payload_bytes()),
            None => Ok(()),
        }
    }

    fn tell(&self, payload: &[u8]) -> Result<(), LinkError> {
        if self.stop.is_stopped() {
            return Err(LinkError::Stopped);
        }
        (self.heard)(payload);
        Ok(())
    }
}
