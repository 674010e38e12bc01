//! Timers that do not keep a worker from shutting down.

use std::marker::PhantomPinned;
use std::mem::{offset_of, zeroed};
use std::pin::Pin;

use ngx::ffi::{ngx_add_timer, ngx_del_timer, ngx_event_t};

use super::border;
use super::process::cycle_log;

/// A timer that calls `T::expired`, again and again as long as that says when.
pub(crate) struct Timer<T: Expired> {
    event: ngx_event_t,
    // nginx's debug log reads `((ngx_connection_t *) ev->data)->fd`, the fourth word.
    looks_like_a_connection: [usize; 4],
    state: T,
    _pinned: PhantomPinned,
}

/// What a timer does.
pub(crate) trait Expired {
    /// The time has come. Returns in how many milliseconds to come again.
    fn expired(&mut self) -> Option<u64>;
}

impl<T: Expired> Timer<T> {
    /// Starts a timer.
    pub(crate) fn start(state: T, first_ms: u64) -> Pin<Box<Self>> {
        let mut timer = Box::pin(Self {
            // SAFETY: all of ngx_event_t may be zero: no handler, no timer set.
            event: unsafe { zeroed() },
            looks_like_a_connection: [usize::MAX; 4],
            state,
            _pinned: PhantomPinned,
        });
        // SAFETY: the timer is pinned, and Drop takes the event out of nginx's tree before the
        // memory goes.
        unsafe {
            let this = timer.as_mut().get_unchecked_mut();
            this.event.handler = Some(Self::handler);
            this.event.log = cycle_log();
            this.event.data = (&raw mut this.looks_like_a_connection).cast();
            this.event.set_cancelable(1);
            ngx_add_timer(&mut this.event, first_ms as _);
        }
        timer
    }

    unsafe extern "C" fn handler(event: *mut ngx_event_t) {
        // SAFETY: nginx calls this with the event armed above, which is a field of a pinned Timer.
        let this = unsafe { &mut *event.byte_sub(offset_of!(Self, event)).cast::<Self>() };
        let again = border::guard(cycle_log, Some(1000), || this.state.expired());
        if let Some(ms) = again {
            // SAFETY: the event has fired, so it is not in the tree.
            unsafe { ngx_add_timer(&mut this.event, ms as _) };
        }
    }
}

impl<T: Expired> Drop for Timer<T> {
    fn drop(&mut self) {
        if self.event.timer_set() != 0 {
            // SAFETY: armed by us and in the tree, as `timer_set` says.
            unsafe { ngx_del_timer(&mut self.event) };
        }
    }
}
