//! Sending a reply of JSON.

use std::ptr::null_mut;

use ngx::ffi::{
    NGX_ERROR, ngx_buf_t, ngx_chain_t, ngx_http_output_filter, ngx_http_request_t,
    ngx_http_send_header, ngx_int_t, ngx_list_push, ngx_str_t, ngx_table_elt_t,
};

use super::pool;

const FAILED: ngx_int_t = NGX_ERROR as ngx_int_t;

const fn literal(s: &'static str) -> ngx_str_t {
    ngx_str_t { len: s.len(), data: s.as_ptr().cast_mut() }
}

/// Adds a header. False: out of memory.
fn add(r: *mut ngx_http_request_t, name: &'static str, value: &'static str) -> bool {
    // SAFETY: `r` is the request being answered, its header not sent yet. The rest of the element,
    // different between versions of nginx, is zero.
    unsafe {
        let at = ngx_list_push(&mut (*r).headers_out.headers).cast::<ngx_table_elt_t>();
        let Some(entry) = at.as_mut() else { return false };
        *entry = std::mem::zeroed();
        entry.hash = 1;
        entry.key = literal(name);
        entry.value = literal(value);
        if name == "WWW-Authenticate" {
            // auth_request passes it on from there.
            (*r).headers_out.www_authenticate = at;
        }
    }
    true
}

/// Sends the header of a reply with `status`, the length of the body when it is known, and the
/// headers in `extra`. `Err`: there is no body to send, and the request is to be finalized with this.
pub(crate) fn header(
    r: *mut ngx_http_request_t,
    status: u16,
    length: Option<usize>,
    extra: &[(&'static str, &'static str)],
) -> Result<(), ngx_int_t> {
    // SAFETY: `r` is the request being answered.
    unsafe {
        let out = &mut (*r).headers_out;
        out.status = usize::from(status);
        out.content_length_n = length.map_or(-1, |n| n as i64);
        out.content_type = literal("application/json");
        out.content_type_len = out.content_type.len;
        out.content_type_lowcase = null_mut();
        out.charset = literal("utf-8");
        let all = extra.iter().chain(&[("Cache-Control", "no-store")]);
        if !all.into_iter().all(|(name, value)| add(r, name, value)) {
            return Err(FAILED);
        }
        let rc = ngx_http_send_header(r);
        // NGX_AGAIN says that the socket is full, not that there should be no body.
        let goes_on = rc <= 0 && rc != FAILED && (*r).header_only() == 0;
        if goes_on { Ok(()) } else { Err(rc) }
    }
}

/// Sends `body` with `status` and the headers in `extra`. Returns what the request is to be
/// finalized with.
pub(crate) fn json(
    r: *mut ngx_http_request_t,
    status: u16,
    body: Vec<u8>,
    extra: &[(&'static str, &'static str)],
) -> ngx_int_t {
    if let Err(rc) = header(r, status, Some(body.len()), extra) {
        return rc;
    }
    // SAFETY: `r` is the request being answered; what is sent is kept in its pool.
    unsafe {
        let Some(body) = pool::keep((*r).pool, body) else { return FAILED };
        let body = body.as_ref();

        let Some(buf) = pool::room::<ngx_buf_t>((*r).pool) else { return FAILED };
        buf.write(std::mem::zeroed());
        let b = &mut *buf.as_ptr();
        b.pos = body.as_ptr().cast_mut();
        b.last = b.pos.add(body.len());
        b.start = b.pos;
        b.end = b.last;
        b.set_memory(1);
        b.set_last_buf(u32::from(r == (*r).main));
        b.set_last_in_chain(1);
        let mut chain = ngx_chain_t { buf: b, next: null_mut() };
        ngx_http_output_filter(r, &mut chain)
    }
}
