//! Work of a request that goes on in the next turn of the event loop, or in a while.

use std::mem::{offset_of, zeroed};
use std::ptr::{NonNull, null_mut};

use ngx::ffi::{
    ngx_add_timer, ngx_del_timer, ngx_delete_posted_event, ngx_event_t, ngx_http_log_ctx_t,
    ngx_http_request_t, ngx_http_run_posted_requests, ngx_post_event, ngx_posted_next_events,
};

use super::{pool, request};

/// Milliseconds after which the event comes in any case, which it never does: it is posted. But a
/// worker that is to exit does so when no timer is left, whatever has been posted.
const KEEPS_THE_WORKER: usize = 10_000;

/// An event that calls a function for a request, once for each time that it is posted. It goes
/// with the request.
pub(crate) struct Later {
    event: ngx_event_t,
    request: *mut ngx_http_request_t,
    call: fn(*mut ngx_http_request_t),
}

impl Later {
    /// Makes one in the request's pool. `None`: out of memory.
    pub(crate) fn new(
        r: *mut ngx_http_request_t,
        call: fn(*mut ngx_http_request_t),
    ) -> Option<NonNull<Self>> {
        // SAFETY: all of ngx_event_t may be zero: not posted, no timer set.
        let event = unsafe { zeroed() };
        // SAFETY: `r` is the request being handled.
        let later = pool::keep(unsafe { (*r).pool }, Self { event, request: r, call })?;
        // SAFETY: made just now; values in a pool stay where they are.
        unsafe {
            let event = &raw mut (*later.as_ptr()).event;
            (*event).data = r.cast();
            (*event).log = request::log_of(r);
            (*event).handler = Some(Self::handler);
        }
        Some(later)
    }

    /// Whether the call is still to come.
    pub(crate) fn is_posted(&self) -> bool {
        self.event.posted() != 0
    }

    /// Has the function called in the next turn, once.
    pub(crate) fn post(&mut self) {
        // SAFETY: the event stays where it is, in the request's pool, and leaves nginx's queue and
        // tree before the pool goes.
        unsafe {
            ngx_post_event(&raw mut self.event, &raw mut ngx_posted_next_events);
            if self.event.timer_set() == 0 {
                ngx_add_timer(&raw mut self.event, KEEPS_THE_WORKER);
            }
        }
    }

    /// Has the function called once, in so many milliseconds.
    pub(crate) fn after(&mut self, ms: usize) {
        // SAFETY: as in `post`.
        unsafe { ngx_add_timer(&raw mut self.event, ms) }
    }

    fn cancel(&mut self) {
        // SAFETY: posted and armed by us, as the flags say.
        unsafe {
            if self.event.posted() != 0 {
                ngx_delete_posted_event(&raw mut self.event);
                self.event.set_posted(0);
            }
            if self.event.timer_set() != 0 {
                ngx_del_timer(&raw mut self.event);
            }
        }
    }

    unsafe extern "C" fn handler(event: *mut ngx_event_t) {
        // SAFETY: nginx calls this with the event posted above, which is a field of a Later; its
        // request lives, for else it would have been dropped. After the call it may be gone; the
        // connection is there, if only to say that it is destroyed.
        unsafe {
            let this = event.byte_sub(offset_of!(Self, event)).cast::<Self>();
            (*this).cancel();
            let (r, call) = ((*this).request, (*this).call);
            let c = (*r).connection;
            let log = (*(*c).log).data.cast::<ngx_http_log_ctx_t>();
            if !log.is_null() {
                (*log).current_request = r;
            }
            call(r);
            ngx_http_run_posted_requests(c);
        }
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        self.cancel();
        self.request = null_mut();
    }
}
