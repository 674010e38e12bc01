//! `drain` with `wait`: an answer that comes when the server has finished its requests.
//!
//! They end in any worker, which tells nobody: so the zone is asked again and again.

use std::ffi::c_void;
use std::ptr::NonNull;

use ngx::ffi::{NGX_DONE, NGX_ERROR, ngx_http_request_t, ngx_int_t};

use super::api::{context, place_of, send, unavailable};
use super::worker::now;
use crate::api::Wait;
use crate::nginx::later::Later;
use crate::nginx::{border, pool, process, request};

const FAILED: ngx_int_t = NGX_ERROR as ngx_int_t;

/// Milliseconds between two looks: each takes the lock for less than a microsecond.
const INTERVAL: usize = 25;

/// A request that waits; in its pool, as this module's context of it.
struct Waiting {
    later: NonNull<Later>,
    wait: Wait,
}

/// Answers when it is time to. Returns what the content handler returns.
pub(super) fn begin(r: *mut ngx_http_request_t, wait: Wait) -> ngx_int_t {
    let Some(later) = Later::new(r, look) else { return FAILED };
    // SAFETY: `r` is the request being handled.
    let waiting = pool::keep(unsafe { (*r).pool }, Waiting { later, wait });
    let Some(mut waiting) = waiting else { return FAILED };
    if !request::watch_client(r) {
        return FAILED;
    }
    // SAFETY: the cell is this module's own; the body, which it was needed for, has been read.
    unsafe { *context(r) = waiting.as_ptr().cast::<c_void>() };
    request::hold(r);
    // SAFETY: made just now, in the pool of a request that is alive.
    unsafe { waiting.as_mut().later.as_mut().after(INTERVAL) };
    NGX_DONE as ngx_int_t
}

fn look(r: *mut ngx_http_request_t) {
    // SAFETY: set in `begin`, which is the only one to make `Later` call this.
    let Some(mut waiting) = NonNull::new(unsafe { (*context(r)).cast::<Waiting>() }) else {
        return;
    };
    // SAFETY: both are in the pool of a request that is alive, and nothing else refers to them.
    let Waiting { later, wait } = unsafe { waiting.as_mut() };
    let done = border::guard(
        || request::log_of(r),
        Some(FAILED),
        || {
            let Some((_, local)) = place_of(r) else { return Some(unavailable(r)) };
            // A worker that is told to end has its clients answered first.
            let reply = wait.look(&local.zone, now(), process::is_exiting());
            reply.map(|reply| send(r, reply))
        },
    );
    match done {
        Some(rc) => request::finalize(r, rc),
        // SAFETY: as above.
        None => unsafe { later.as_mut().after(INTERVAL) },
    }
}
