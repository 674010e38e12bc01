//! Ends what a thread waits for.

use std::fmt;
use std::net::Shutdown;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use socket2::Socket;

/// Tells a thread that waits for Redis to end. One thread waits with it, any other may stop it.
///
/// A socket that the thread is about to use is entered here, and shut down to wake it: it needs
/// not look up from time to time. Only names are resolved to the end.
#[derive(Clone, Default)]
pub struct Stop(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    socket: Weak<Socket>,
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stop").field(&self.is_stopped()).finish()
    }
}

impl Stop {
    /// Nothing is stopped yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops, for good. Does not wait for the thread.
    pub fn stop(&self) {
        let mut state = self.0.state.lock();
        state.stopped = true;
        if let Some(socket) = state.socket.upgrade() {
            // It fails when there is no connection any more, which is as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.0.changed.notify_all();
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.0.state.lock().stopped
    }

    /// Waits for that long. True: it was stopped.
    pub fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut state = self.0.state.lock();
        while !state.stopped {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.stopped
    }

    /// From now on this is the socket to shut down. False: it was stopped already.
    pub(super) fn watch(&self, socket: &Arc<Socket>) -> bool {
        let mut state = self.0.state.lock();
        state.socket = Arc::downgrade(socket);
        !state.stopped
    }
}
