//! Reading a request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::slice;

use ngx::ffi::{
    ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_http_finalize_request, ngx_http_request_t,
    ngx_int_t, ngx_log_t, ngx_str_t,
};

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
    unsafe {
        (*r).headers_in
            .content_type
            .as_ref()
            .map(|h| bytes(&h.value))
    }
}

/// The client's address as nginx sees it; `None` for a unix socket.
pub(crate) fn client(r: *mut ngx_http_request_t) -> Option<IpAddr> {
    // SAFETY: a connection accepted by nginx has the peer's address; its family says which of the
    // structures it is.
    unsafe {
        let address = (*(*r).connection).sockaddr.cast::<libc::sockaddr>();
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let v4 = address.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()).into())
            }
            libc::AF_INET6 => {
                let v6 = address.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
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
