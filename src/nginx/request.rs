//! Reading a request.

use std::net::IpAddr;
use std::slice;

use ngx::ffi::{
    ngx_handle_read_event, ngx_http_block_reading, ngx_http_core_loc_conf_t, ngx_http_core_module,
    ngx_http_finalize_request, ngx_http_request_empty_handler, ngx_http_request_t,
    ngx_http_test_reading, ngx_http_upstream_state_t, ngx_int_t, ngx_list_part_t, ngx_log_t,
    ngx_str_t, ngx_table_elt_t,
};

use super::listen;

/// The log with the request's context.
pub(crate) fn log_of(r: *mut ngx_http_request_t) -> *mut ngx_log_t {
    // SAFETY: a request has a connection for as long as it lives.
    unsafe { (*(*r).connection).log }
}

fn bytes<'a>(s: &ngx_str_t) -> &'a [u8] {
    if s.len == 0 {
        return b"";
    }
    // SAFETY: a request's strings point into its own memory, which outlives its handlers.
    unsafe { slice::from_raw_parts(s.data, s.len) }
}

/// The query string, as sent.
pub(crate) fn query<'a>(r: *mut ngx_http_request_t) -> &'a [u8] {
    // SAFETY: `r` is the request being handled.
    bytes(unsafe { &(*r).args })
}

/// `NGX_HTTP_GET` and so on.
pub(crate) fn method(r: *mut ngx_http_request_t) -> u32 {
    // SAFETY: `r` is the request being handled.
    unsafe { (*r).method as u32 }
}

/// The value of the Content-Type header.
pub(crate) fn content_type<'a>(r: *mut ngx_http_request_t) -> Option<&'a [u8]> {
    // SAFETY: `r` is the request being handled.
    unsafe { (*r).headers_in.content_type.as_ref().map(|h| bytes(&h.value)) }
}

/// The value of the Authorization header.
pub(crate) fn authorization<'a>(r: *mut ngx_http_request_t) -> Option<&'a [u8]> {
    // SAFETY: `r` is the request being handled.
    unsafe { (*r).headers_in.authorization.as_ref().map(|h| bytes(&h.value)) }
}

/// The values of a header that nginx has no field for; `name` in lower case.
pub(crate) fn headers<'a>(
    r: *mut ngx_http_request_t,
    name: &'static [u8],
) -> impl Iterator<Item = &'a [u8]> {
    let mut found = Vec::new();
    // SAFETY: `r` is the request being handled; its list of headers holds elements of this type.
    unsafe {
        let mut part: *const ngx_list_part_t = &raw const (*r).headers_in.headers.part;
        while let Some(p) = part.as_ref() {
            for i in 0..p.nelts {
                let header = &*p.elts.cast::<ngx_table_elt_t>().add(i);
                if header.key.as_bytes().eq_ignore_ascii_case(name) {
                    found.push(bytes(&header.value));
                }
            }
            part = p.next;
        }
    }
    found.into_iter()
}

/// The client's address as nginx sees it; `None` for a unix socket.
pub(crate) fn client(r: *mut ngx_http_request_t) -> Option<IpAddr> {
    // SAFETY: a connection accepted by nginx has its peer's address.
    unsafe { listen::address((*(*r).connection).sockaddr.cast()).map(|a| a.ip()) }
}

/// What follows the location's prefix in the URI; the last part of the path where the location is
/// not a prefix. `None`: the URI is longer than the prefix, but not by a part of a path.
pub(crate) fn below_location<'a>(r: *mut ngx_http_request_t) -> Option<&'a [u8]> {
    // SAFETY: `r` is the request being handled, in a location of the core module.
    unsafe {
        let uri = bytes(&(*r).uri);
        let conf = (*r).loc_conf.add(ngx_http_core_module.ctx_index);
        let location = (*conf).cast::<ngx_http_core_loc_conf_t>();
        let prefix = bytes(&(*location).name);
        let is_prefix = (*location).exact_match() == 0
            && (*location).named() == 0
            && !is_regex(location)
            && uri.len() >= prefix.len()
            && uri[..prefix.len()].eq_ignore_ascii_case(prefix);
        if !is_prefix {
            return uri.rsplit(|b| *b == b'/').next();
        }
        let rest = &uri[prefix.len()..];
        if prefix.ends_with(b"/") || rest.is_empty() {
            return Some(rest);
        }
        rest.strip_prefix(b"/")
    }
}

/// # Safety
///
/// `location` is valid.
#[cfg(ngx_feature = "pcre")]
unsafe fn is_regex(location: *mut ngx_http_core_loc_conf_t) -> bool {
    // SAFETY: by this function's contract.
    unsafe { !(*location).regex.is_null() }
}

/// # Safety
///
/// None: without PCRE there are no regular expressions.
#[cfg(not(ngx_feature = "pcre"))]
unsafe fn is_regex(_: *mut ngx_http_core_loc_conf_t) -> bool {
    false
}

/// Ends a request whose content handler returned `NGX_DONE`.
pub(crate) fn finalize(r: *mut ngx_http_request_t, rc: ngx_int_t) {
    // SAFETY: `r` is alive: its count was raised when its body began to be read.
    unsafe { ngx_http_finalize_request(r, rc) }
}

/// Keeps a request alive, from its content handler on, until it is finalized.
pub(crate) fn hold(r: *mut ngx_http_request_t) {
    // SAFETY: `r` is alive, and so is its main request.
    unsafe { (*(*r).main).set_count((*(*r).main).count() + 1) }
}

/// Keeps a request from being freed, even when its client is gone: as nginx does it for work that
/// a thread does. Nothing is read or written for it meanwhile.
pub(crate) fn block(r: *mut ngx_http_request_t) {
    // SAFETY: `r` is alive, and so is its main request.
    unsafe {
        (*(*r).main).set_blocked((*(*r).main).blocked() + 1);
        (*r).write_event_handler = Some(ngx_http_request_empty_handler);
        if (*r).discard_body() == 0 {
            (*r).read_event_handler = Some(ngx_http_block_reading);
        }
    }
}

/// Has a request ended when its client goes away while nothing is read or written. False: it can't be.
pub(crate) fn watch_client(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: `r` is the request being handled. As ngx_http_limit_req_handler does it.
    unsafe {
        if (*r).discard_body() == 0 {
            if ngx_handle_read_event((*(*r).connection).read, 0) != 0 {
                return false;
            }
            (*r).read_event_handler = Some(ngx_http_test_reading);
        }
        (*r).write_event_handler = Some(ngx_http_request_empty_handler);
    }
    true
}

/// Ends [`block`]: the request is to be finalized now.
pub(crate) fn unblock(r: *mut ngx_http_request_t) {
    // SAFETY: `block` has kept it alive.
    unsafe { (*(*r).main).set_blocked((*(*r).main).blocked() - 1) }
}

/// Whether nothing can be sent any more.
pub(crate) fn is_broken(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: a request has a connection for as long as it lives.
    unsafe { (*(*r).connection).error() != 0 }
}

/// How many tries of upstream servers the request has noted so far.
pub(crate) fn upstream_states(r: *mut ngx_http_request_t) -> usize {
    // SAFETY: the request is alive; the array is null before the first try.
    unsafe { (*r).upstream_states.as_ref().map_or(0, |states| states.nelts) }
}

/// The status of one of these, as `$upstream_status` shows it; 0: none.
pub(crate) fn upstream_status(r: *mut ngx_http_request_t, at: usize) -> usize {
    // SAFETY: as above; its elements are of this type.
    unsafe {
        let Some(states) = (*r).upstream_states.as_ref() else { return 0 };
        states.as_slice::<ngx_http_upstream_state_t>().get(at).map_or(0, |s| s.status)
    }
}
