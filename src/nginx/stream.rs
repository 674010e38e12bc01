//! A response that is made piece by piece, as the client takes it.

use std::mem::zeroed;
use std::ptr::{NonNull, null_mut};

use ngx::ffi::{
    NGX_ERROR, NGX_HTTP_REQUEST_TIME_OUT, ngx_add_timer, ngx_buf_t, ngx_chain_t, ngx_del_timer,
    ngx_handle_write_event, ngx_http_core_loc_conf_t, ngx_http_core_module,
    ngx_http_discarded_request_body_handler, ngx_http_output_filter, ngx_http_request_t,
    ngx_http_test_reading, ngx_int_t,
};

use super::pool;

/// A response's only buffer: it is filled again when all of it has been taken, so a client that
/// does not read costs no more than that.
pub(crate) struct Stream {
    /// In the request's pool, apart: nginx changes it while we are called by nginx.
    buf: NonNull<ngx_buf_t>,
    bytes: Vec<u8>,
}

/// What is to be done next.
pub(crate) enum Next {
    /// The buffer is free.
    Fill,
    /// The client has to read first: nginx will call the request's handler of write events.
    Wait,
    /// The request is to be finalized with this.
    End(ngx_int_t),
}

/// Room for a piece without growing, in bytes; not a limit.
const ROOM: usize = 32 * 1024;

const FAILED: Next = Next::End(NGX_ERROR as ngx_int_t);

impl Stream {
    /// Makes `r`, whose header has been sent, one whose content is sent by `on_write`, which nginx
    /// calls when there is room. `None`: out of memory.
    pub(crate) fn begin(
        r: *mut ngx_http_request_t,
        on_write: unsafe extern "C" fn(*mut ngx_http_request_t),
    ) -> Option<Self> {
        // SAFETY: `r` is the request being handled. As ngx_http_set_write_handler does it. All of
        // ngx_buf_t may be zero: a buffer without bytes.
        unsafe {
            let buf = pool::room::<ngx_buf_t>((*r).pool)?;
            buf.write(zeroed());
            (*r).read_event_handler = Some(if (*r).discard_body() != 0 {
                ngx_http_discarded_request_body_handler
            } else {
                ngx_http_test_reading
            });
            (*r).write_event_handler = Some(on_write);
            Some(Self { buf, bytes: Vec::new() })
        }
    }

    /// Sends what is left of the last piece.
    pub(crate) fn next(&mut self, r: *mut ngx_http_request_t) -> Next {
        // SAFETY: `r` is alive, its header sent.
        unsafe {
            let c = (*r).connection;
            let active = (*c).data == r.cast();
            if active && (*(*c).write).timedout() != 0 {
                (*c).set_timedout(1);
                return Next::End(NGX_HTTP_REQUEST_TIME_OUT as ngx_int_t);
            }
            let waits = (*r).buffered() != 0 || (*c).buffered() != 0 || !(*r).postponed.is_null();
            if waits && ngx_http_output_filter(r, null_mut()) == NGX_ERROR as ngx_int_t {
                return FAILED;
            }
            self.wait(r)
        }
    }

    /// The buffer's bytes, none: to be filled. Only after [`Next::Fill`].
    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.is_taken());
        self.bytes.clear();
        self.bytes.reserve(ROOM);
        &mut self.bytes
    }

    /// Sends what [`Stream::bytes`] was filled with.
    pub(crate) fn send(&mut self, r: *mut ngx_http_request_t, last: bool) -> Next {
        if self.bytes.is_empty() {
            return Next::Fill;
        }
        // SAFETY: `r` is alive, its header sent; the buffer lives in its pool, and the bytes are
        // not touched before nginx has moved `pos` to `last`.
        unsafe {
            let b = self.buf.as_ptr();
            (*b).start = self.bytes.as_mut_ptr();
            (*b).pos = (*b).start;
            (*b).last = (*b).start.add(self.bytes.len());
            (*b).end = (*b).last;
            (*b).set_temporary(1);
            // Otherwise filters might keep it for more to come.
            (*b).set_flush(1);
            (*b).set_last_buf(u32::from(last && r == (*r).main));
            (*b).set_last_in_chain(u32::from(last));
            let mut chain = ngx_chain_t { buf: b, next: null_mut() };
            let rc = ngx_http_output_filter(r, &mut chain);
            if last || rc == NGX_ERROR as ngx_int_t {
                return Next::End(rc);
            }
            self.wait(r)
        }
    }

    fn is_taken(&self) -> bool {
        // SAFETY: it is in the pool of a request that is alive.
        unsafe { (*self.buf.as_ptr()).pos == (*self.buf.as_ptr()).last }
    }

    /// # Safety
    ///
    /// `r` is alive.
    unsafe fn wait(&self, r: *mut ngx_http_request_t) -> Next {
        // SAFETY: by this function's contract; as ngx_http_writer does it.
        unsafe {
            let c = (*r).connection;
            // A subrequest whose turn has not come is called when it has.
            let active = (*c).data == r.cast();
            let wev = (*c).write;
            if self.is_taken() {
                if active && (*wev).timer_set() != 0 && (*wev).delayed() == 0 {
                    ngx_del_timer(wev);
                }
                return Next::Fill;
            }
            if !active {
                return Next::Wait;
            }
            let conf = (*(*(*r).main).loc_conf.add(ngx_http_core_module.ctx_index))
                .cast::<ngx_http_core_loc_conf_t>();
            if (*wev).delayed() == 0 {
                ngx_add_timer(wev, (*conf).send_timeout);
            }
            if ngx_handle_write_event(wev, (*conf).send_lowat) != 0 {
                return FAILED;
            }
            Next::Wait
        }
    }
}
