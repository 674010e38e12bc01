//! The worker that writes the state file.
//!
//! Each worker looks a few times a second whether it is the one to write and something is unsaved.
//! It copies the servers slice by slice, lets the event loop turn in between, and leaves the disk to
//! a thread. Every change of the file is made under a lock that all nginx with this file share, and
//! begins with a look at what is there: a file that another nginx wrote (a binary upgrade is under
//! way) is read in first, so none of its servers is lost.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;

use ngx::ffi::NGX_LOG_WARN;

use super::core::{Core, TICK};
use crate::http::worker::Held;
use crate::http::zone::ZoneConf;
use crate::nginx::timer::{Expired, Timer};
use crate::nginx::wake::{Wake, Woken};

/// The savers of this process, for as long as its configuration lasts.
pub(in crate::http) struct Savers(Vec<Saver>);

struct Saver {
    // Dropped first: they hold the rest.
    _timer: Pin<Box<Timer<Hand>>>,
    wake: Option<Pin<Box<Wake<Hand>>>>,
    core: Rc<RefCell<Core>>,
}

impl Savers {
    /// None yet.
    pub(in crate::http) const NONE: Self = Self(Vec::new());

    /// Starts one for a zone that this process has joined.
    ///
    /// `conf` outlives it: [`Savers::clear`] is called before a configuration goes.
    pub(in crate::http) fn start(&mut self, conf: *const ZoneConf, local: Held) {
        // SAFETY: alive now, and until `clear`.
        let path = unsafe { (*conf).state_file.clone() };
        let Some(path) = path else { return };
        let core = Rc::new(RefCell::new(Core::new(conf, local, path)));
        let wake = match Wake::start(Hand(Rc::clone(&core))) {
            Ok((wake, waker)) => {
                core.borrow_mut().waker = Some(waker);
                Some(wake)
            }
            Err(e) => {
                // The timer does without, in larger steps.
                let text = format_args!("can't be woken by the thread that writes it: {e}");
                core.borrow().say(NGX_LOG_WARN, text);
                None
            }
        };
        let timer = Timer::start(Hand(Rc::clone(&core)), TICK / 4);
        self.0.push(Saver { _timer: timer, wake, core });
    }

    /// Ends them: what is being written is finished first, unless the disk hangs.
    pub(in crate::http) fn clear(&mut self) {
        for saver in self.0.drain(..) {
            drop(saver.wake);
            saver.core.borrow_mut().stop();
        }
    }

    /// At the end of the process, when it has left its zones: the last one that was in a zone writes
    /// what nobody has written yet.
    pub(in crate::http) fn flush(&mut self) {
        for saver in self.0.drain(..) {
            drop(saver.wake);
            let mut core = saver.core.borrow_mut();
            core.stop();
            core.flush();
        }
    }

    /// Ends the threads, while the process still takes part in its zones.
    pub(in crate::http) fn stop(&mut self) {
        for saver in &self.0 {
            saver.core.borrow_mut().stop();
        }
    }
}

/// What the timer and the wake-up both hold.
struct Hand(Rc<RefCell<Core>>);

impl Expired for Hand {
    fn expired(&mut self) -> Option<u64> {
        let mut core = self.0.borrow_mut();
        core.step();
        Some(if core.is_busy() { 1 } else { TICK })
    }
}

impl Woken for Hand {
    fn woken(&mut self) {
        let mut core = self.0.borrow_mut();
        core.step();
        if core.is_busy()
            && let Some(waker) = &core.waker
        {
            waker.wake();
        }
    }

    fn leaving(&mut self) {
        let mut core = self.0.borrow_mut();
        core.resign();
        core.step();
    }
}
