//! A thread of our own, for what would block the event loop.
//!
//! It never calls nginx, its log included, and takes no signals: nginx's handlers belong to the
//! thread of the event loop.

use std::any::Any;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::border::text_of;
use super::wake::Waker;

/// Jobs, and results, that may wait.
const ROOM: usize = 16;

/// Bytes of its stack.
const STACK: usize = 512 * 1024;

/// A thread that does one job after the other.
pub(crate) struct Thread<J, R> {
    shared: Arc<Shared<J, R>>,
    handle: Option<JoinHandle<()>>,
}

struct Shared<J, R> {
    state: Mutex<State<J, R>>,
    changed: Condvar,
}

struct State<J, R> {
    jobs: VecDeque<J>,
    results: VecDeque<Result<R, Panicked>>,
    /// It is to end after the jobs that it has.
    stop: bool,
    ended: bool,
}

/// A job panicked; the thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("internal error: {0}")]
pub(crate) struct Panicked(String);

impl Panicked {
    fn new(panic: &(dyn Any + Send)) -> Self {
        Self(text_of(panic).to_owned())
    }
}

impl<J: Send + 'static, R: Send + 'static> Thread<J, R> {
    /// Starts it. `work` does a job; `waker` is woken after each.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub(crate) fn start(
        name: &str,
        waker: Option<Waker>,
        mut work: impl FnMut(J) -> R + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                jobs: VecDeque::with_capacity(ROOM),
                results: VecDeque::with_capacity(ROOM),
                stop: false,
                ended: false,
            }),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let run = move || {
            while let Some(job) = theirs.next() {
                let result = catch_unwind(AssertUnwindSafe(|| work(job)));
                let failed = result.is_err();
                theirs.done(result.map_err(|panic| Panicked::new(&*panic)));
                if let Some(waker) = &waker {
                    waker.wake();
                }
                if failed {
                    break;
                }
            }
            // What the work holds (locks) goes before anybody is told that it has ended.
            drop(work);
            theirs.state.lock().ended = true;
            theirs.changed.notify_all();
        };
        stay_loaded();
        let handle =
            signals_blocked(|| Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run))?;
        Ok(Self { shared, handle: Some(handle) })
    }

    /// Gives it a job. False: too many wait, or it has ended.
    pub(crate) fn send(&self, job: J) -> bool {
        let mut state = self.shared.state.lock();
        if state.ended || state.stop || state.jobs.len() + state.results.len() >= ROOM {
            return false;
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.changed.notify_all();
        true
    }

    /// What came of the oldest job that is done.
    pub(crate) fn take(&self) -> Option<Result<R, Panicked>> {
        self.shared.state.lock().results.pop_front()
    }

    /// As [`Thread::take`], but waits for it, no longer than `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> Option<Result<R, Panicked>> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        while state.results.is_empty() && !state.ended {
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.results.pop_front()
    }

    /// Lets it end when it has done the jobs that it has, and waits for that, but no longer than
    /// `patience`: a disk that hangs must not hang the worker. Returns the last results.
    pub(crate) fn stop(mut self, patience: Duration) -> Vec<Result<R, Panicked>> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        state.stop = true;
        self.shared.changed.notify_all();
        while !state.ended {
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        let ended = state.ended;
        let results = state.results.drain(..).collect();
        drop(state);
        if let Some(handle) = self.handle.take().filter(|_| ended) {
            // It cannot panic: the work's panics are caught.
            let _ = handle.join();
        }
        results
    }
}

impl<J, R> Drop for Thread<J, R> {
    /// It ends by itself when it has done what it has.
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_all();
    }
}

impl<J, R> Shared<J, R> {
    fn next(&self) -> Option<J> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.stop {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    fn done(&self, result: Result<R, Panicked>) {
        self.state.lock().results.push_back(result);
        self.changed.notify_all();
    }
}

/// Starts a thread that takes no signals and runs `work` once.
///
/// # Errors
///
/// The system gives no thread.
pub(crate) fn spawn(name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    stay_loaded();
    let run = move || {
        // A panic ends the thread and nothing else; who started it does without.
        let _ = catch_unwind(AssertUnwindSafe(work));
    };
    let builder = Builder::new().name(name.to_owned()).stack_size(STACK);
    signals_blocked(|| builder.spawn(run)).map(drop)
}

/// Keeps this module's code mapped for as long as the process lives: nginx unloads modules when it
/// frees a cycle, also at the end of a worker, and a thread that nobody waits for may still run it.
fn stay_loaded() {
    let here = stay_loaded as fn() as *const c_void;
    // SAFETY: `dladdr` fills the structure when it returns other than 0; the name is that of the
    // loaded object, which is opened once more, with a mark, and never closed.
    unsafe {
        let mut about = MaybeUninit::<libc::Dl_info>::zeroed();
        if libc::dladdr(here, about.as_mut_ptr()) != 0 {
            let name = about.assume_init().dli_fname;
            if !name.is_null() {
                libc::dlopen(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
            }
        }
    }
}

/// Runs `f` with all signals blocked: a thread that it starts keeps them so.
fn signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call fills `all`; the second reads it and fills `before`, for this thread
    // alone.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) == 0
    };
    let out = f();
    if blocked {
        // SAFETY: `before` was filled by the call that succeeded.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), null_mut()) };
    }
    out
}
