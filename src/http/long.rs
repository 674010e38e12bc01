//! Answers about many servers, over several turns of the event loop.

use std::ffi::c_void;
use std::ptr::NonNull;

use ngx::ffi::{NGX_DONE, NGX_ERROR, NGX_LOG_ERR, ngx_http_request_t, ngx_int_t};

use super::api::{context, place_of, send, unavailable};
use super::worker::{now, report};
use crate::api::{List, Task};
use crate::nginx::later::Later;
use crate::nginx::log::log;
use crate::nginx::stream::{Next, Stream};
use crate::nginx::{border, pool, reply, request};
use crate::registry::Events;

const FAILED: ngx_int_t = NGX_ERROR as ngx_int_t;

/// Pieces of a list that are made and sent in one turn: with 64 servers each, some 0.1 ms.
const PIECES: usize = 4;

/// A request whose answer takes several turns; in its pool, as this module's context of it.
struct Long {
    later: NonNull<Later>,
    work: Work,
}

enum Work {
    List(List, Stream),
    /// It goes on to its end, whether or not somebody is left to be told.
    Task(Task),
}

/// Sends a list. Returns what the content handler returns.
pub(super) fn list(r: *mut ngx_http_request_t, list: List) -> ngx_int_t {
    if let Err(rc) = reply::header(r, 200, None, &[]) {
        return rc;
    }
    match Stream::begin(r, on_write) {
        Some(stream) => begin(r, Work::List(list, stream)),
        None => FAILED,
    }
}

/// Does the rest of a task and answers. Returns what the content handler returns.
pub(super) fn task(r: *mut ngx_http_request_t, task: Task) -> ngx_int_t {
    begin(r, Work::Task(task))
}

fn begin(r: *mut ngx_http_request_t, work: Work) -> ngx_int_t {
    let Some(later) = Later::new(r, go_on) else { return FAILED };
    let is_task = matches!(work, Work::Task(_));
    // SAFETY: `r` is the request being handled.
    let long = pool::keep(unsafe { (*r).pool }, Long { later, work });
    let Some(long) = long else { return FAILED };
    // SAFETY: the cell is this module's own; the body, which it was needed for, has been read.
    unsafe { *context(r) = long.as_ptr().cast::<c_void>() };
    request::hold(r);
    if is_task {
        request::block(r);
        post(long);
    } else {
        go_on(r);
    }
    NGX_DONE as ngx_int_t
}

fn post(mut long: NonNull<Long>) {
    // SAFETY: both are in the pool of a request that is alive, and nothing else refers to them.
    unsafe { long.as_mut().later.as_mut().post() }
}

unsafe extern "C" fn on_write(r: *mut ngx_http_request_t) {
    go_on(r);
}

/// One turn.
fn go_on(r: *mut ngx_http_request_t) {
    // SAFETY: set in `begin`, which is the only one to make nginx or `Later` call this.
    let Some(mut long) = NonNull::new(unsafe { (*context(r)).cast::<Long>() }) else { return };
    // SAFETY: as in `post`.
    let (later, work) = unsafe {
        let long = long.as_mut();
        (long.later.as_ref(), &mut long.work)
    };
    if later.is_posted() {
        return;
    }
    let is_task = matches!(work, Work::Task(_));
    let turn = border::guard(
        || request::log_of(r),
        Next::End(FAILED),
        || match work {
            Work::List(list, stream) => send_some(r, list, stream),
            Work::Task(task) => do_some(r, task),
        },
    );
    match turn {
        Next::Fill => post(long),
        Next::Wait => {}
        Next::End(rc) => {
            if is_task {
                request::unblock(r);
            }
            request::finalize(r, rc);
        }
    }
}

fn send_some(r: *mut ngx_http_request_t, list: &mut List, stream: &mut Stream) -> Next {
    let Some((zone, local)) = place_of(r) else { return Next::End(FAILED) };
    let mut next = stream.next(r);
    for _ in 0..PIECES {
        if !matches!(next, Next::Fill) {
            break;
        }
        match list.write_piece(&local.zone, &zone.rules, now(), stream.bytes()) {
            Ok(last) => next = stream.send(r, last),
            Err(e) => {
                let name = &zone.name;
                // The status has been sent: that the text ends early is all that can be said.
                log(NGX_LOG_ERR, request::log_of(r), format_args!("registry \"{name}\": {e}"));
                return Next::End(FAILED);
            }
        }
    }
    next
}

fn do_some(r: *mut ngx_http_request_t, task: &mut Task) -> Next {
    let Some((zone, local)) = place_of(r) else { return Next::End(unavailable(r)) };
    let mut events = Events::with_capacity(16);
    let reply = task.step(&local.zone, &zone.rules, now(), &mut events);
    report(zone, request::log_of(r), &mut events);
    match reply {
        None => Next::Fill,
        Some(_) if request::is_broken(r) => Next::End(FAILED),
        Some(reply) => Next::End(send(r, reply)),
    }
}
