//! Reading a request's body, up to a limit, into memory.
//!
//! nginx's buffered reading would write any length to disk and answer errors with a page of HTML
//! by itself. Here the body comes in pieces (as with `proxy_request_buffering off`), is counted,
//! and every end of it comes back to the caller.

use std::slice;

use ngx::ffi::{
    NGX_AGAIN, NGX_HTTP_SPECIAL_RESPONSE, ngx_buf_t, ngx_chain_t, ngx_http_block_reading,
    ngx_http_discard_request_body, ngx_http_read_client_request_body,
    ngx_http_read_unbuffered_request_body, ngx_http_request_t, ngx_int_t,
};

/// How reading ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// All of it is there.
    Whole,
    /// More than the limit.
    TooLong,
    /// With this HTTP status: a timeout, a malformed chunk.
    Status(u16),
    /// The client is gone, or memory is.
    Broken,
}

/// A request whose body is read: keeps what has come so far.
pub(crate) trait Reader {
    /// What has come so far.
    fn bytes(&mut self) -> &mut Vec<u8>;
    /// The most to read.
    const LIMIT: usize;
    /// The reader that belongs to a request.
    fn of<'a>(r: *mut ngx_http_request_t) -> Option<&'a mut Self>;
    /// Called once, when reading has ended.
    fn ended(r: *mut ngx_http_request_t, how: Ended);
}

/// Whether the client announced a body longer than `limit`.
pub(crate) fn announced_over(r: *mut ngx_http_request_t, limit: usize) -> bool {
    // SAFETY: `r` is the request being handled.
    unsafe { (*r).headers_in.content_length_n > limit as i64 }
}

/// Drops a body that nobody wants. The connection goes on when that works.
pub(crate) fn discard(r: *mut ngx_http_request_t) {
    // SAFETY: `r` is the request being handled, whose body was not read.
    unsafe {
        if ngx_http_discard_request_body(r) != 0 {
            (*r).set_keepalive(0);
        }
    }
}

/// Reads the body of `r` for `R`. `Err`: the status with which it can't begin; otherwise
/// `R::ended` is or will be called, and the content handler returns `NGX_DONE`.
pub(crate) fn read<R: Reader>(r: *mut ngx_http_request_t) -> Result<(), Ended> {
    // SAFETY: called from a content handler for its request, once.
    let rc = unsafe {
        (*r).set_request_body_no_buffering(1);
        ngx_http_read_client_request_body(r, Some(started::<R>))
    };
    if rc >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
        // SAFETY: the connection's input is in an unknown place.
        unsafe { (*r).set_keepalive(0) };
        return Err(Ended::Status(rc as u16));
    }
    Ok(())
}

unsafe extern "C" fn started<R: Reader>(r: *mut ngx_http_request_t) {
    // SAFETY: nginx calls this for the request given to ngx_http_read_client_request_body.
    unsafe {
        (*r).read_event_handler = Some(readable::<R>);
        readable::<R>(r);
    }
}

unsafe extern "C" fn readable<R: Reader>(r: *mut ngx_http_request_t) {
    if let Some(how) = go_on::<R>(r) {
        // SAFETY: `r` is alive until `ended` finalizes it. Nothing more is read for us.
        unsafe {
            (*r).read_event_handler = Some(ngx_http_block_reading);
            if how != Ended::Whole {
                (*r).set_keepalive(0);
            }
        }
        R::ended(r, how);
    }
}

/// Takes what is there; `None`: more will come.
fn go_on<R: Reader>(r: *mut ngx_http_request_t) -> Option<Ended> {
    loop {
        let Some(reader) = R::of(r) else { return Some(Ended::Broken) };
        let bytes = reader.bytes();
        // SAFETY: `request_body` belongs to `r`; buffers are consumed as ngx_http_upstream does
        // with unbuffered bodies: `pos` moves to `last`, and the chain is taken out.
        unsafe {
            if let Some(body) = (*r).request_body.as_mut() {
                let chain = body.bufs;
                // A body that was there before us belongs to others too (`mirror`): it is only
                // read. One that comes in pieces is ours, and its buffers are used again.
                let ours = (*r).reading_body() != 0;
                if ours {
                    body.bufs = std::ptr::null_mut();
                }
                if !take(chain, bytes, R::LIMIT, ours) {
                    return Some(if bytes.len() > R::LIMIT {
                        Ended::TooLong
                    } else {
                        Ended::Broken
                    });
                }
            }
            if (*r).reading_body() == 0 {
                return Some(Ended::Whole);
            }
            let rc = ngx_http_read_unbuffered_request_body(r);
            if rc >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
                return Some(Ended::Status(rc as u16));
            }
            if rc < 0 && rc != NGX_AGAIN as ngx_int_t {
                return Some(Ended::Broken);
            }
            let came = (*r).request_body.as_ref().is_some_and(|body| !body.bufs.is_null());
            if rc == NGX_AGAIN as ngx_int_t && !came {
                return None;
            }
        }
    }
}

/// Copies a chain's bytes. False when they are more than the limit or can't be read.
///
/// # Safety
///
/// `chain` is null or a chain of the request's body.
unsafe fn take(
    mut chain: *mut ngx_chain_t,
    bytes: &mut Vec<u8>,
    limit: usize,
    consume: bool,
) -> bool {
    // SAFETY: by this function's contract the links and their buffers are alive.
    unsafe {
        while let Some(link) = chain.as_mut() {
            if let Some(buf) = link.buf.as_mut() {
                if buf.in_file() != 0 {
                    if !take_file(buf, bytes, limit) {
                        return false;
                    }
                } else if buf.pos < buf.last {
                    let len = buf.last.offset_from_unsigned(buf.pos);
                    if bytes.len() + len > limit {
                        // One over the limit is enough to tell.
                        bytes.resize(limit + 1, 0);
                        return false;
                    }
                    bytes.extend_from_slice(slice::from_raw_parts(buf.pos, len));
                    if consume {
                        buf.pos = buf.last;
                    }
                }
            }
            chain = link.next;
        }
    }
    true
}

/// As `take` for a buffer in a temporary file: another module has read the body before us.
///
/// # Safety
///
/// `buf` is a buffer of the request's body, in a file.
unsafe fn take_file(buf: &mut ngx_buf_t, bytes: &mut Vec<u8>, limit: usize) -> bool {
    let len = (buf.file_last - buf.file_pos).max(0) as usize;
    if bytes.len() + len > limit {
        bytes.resize(limit + 1, 0);
        return false;
    }
    let start = bytes.len();
    bytes.resize(start + len, 0);
    let mut done = 0;
    while done < len {
        // SAFETY: the descriptor is that of the body's open temporary file; the target is as long
        // as is read.
        let n = unsafe {
            libc::pread(
                (*buf.file).fd,
                bytes[start + done..].as_mut_ptr().cast(),
                len - done,
                buf.file_pos + done as i64,
            )
        };
        if n <= 0 {
            return false;
        }
        done += n as usize;
    }
    true
}
