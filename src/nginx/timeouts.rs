//! Timeouts of one try: nginx itself has those of the location alone.

use std::ptr::null_mut;

use ngx::ffi::{ngx_http_request_t, ngx_http_upstream_conf_t, ngx_msec_t};

use super::pool;

/// What an upstream of a request is set up with: the location's configuration, or a copy of it with
/// other timeouts.
///
/// nginx reads them from `u->conf` whenever it sets a timer, and only reads there. So the upstream gets
/// a copy of its own, as OpenResty's `ngx_http_lua_balancer.c` does it. All else in it, pointers too, is
/// as in the location's.
#[derive(Clone, Copy)]
pub(crate) struct Timeouts {
    /// The location's; null until a try has wanted others.
    location: *mut ngx_http_upstream_conf_t,
    /// In the request's pool.
    copy: *mut ngx_http_upstream_conf_t,
}

impl Timeouts {
    /// Those of the location.
    pub(crate) const OF_LOCATION: Self = Self { location: null_mut(), copy: null_mut() };

    /// Sets those of the next try, in milliseconds: to connect, between two writes, between two reads; 0:
    /// as the location says. To be called for each try of the request's upstream, always with the same
    /// `self`. False: out of memory.
    #[inline]
    pub(crate) fn set(&mut self, r: *mut ngx_http_request_t, ms: [u32; 3]) -> bool {
        (ms == [0; 3] && self.location.is_null()) || self.change(r, ms)
    }

    #[cold]
    fn change(&mut self, r: *mut ngx_http_request_t, ms: [u32; 3]) -> bool {
        // SAFETY: the request is alive and has an upstream, whose configuration is that of the location
        // until it is changed here. That outlives the request, as the copy in the request's pool does.
        unsafe {
            let u = &mut *(*r).upstream;
            if self.location.is_null() {
                self.location = u.conf;
            }
            if ms == [0; 3] {
                u.conf = self.location;
                return true;
            }
            if self.copy.is_null() {
                let Some(copy) = pool::room::<ngx_http_upstream_conf_t>((*r).pool) else {
                    return false;
                };
                copy.as_ptr().copy_from_nonoverlapping(self.location, 1);
                self.copy = copy.as_ptr();
            }
            let (copy, location) = (&mut *self.copy, &*self.location);
            let or =
                |ms: u32, location: ngx_msec_t| if ms > 0 { ms as ngx_msec_t } else { location };
            let [connect, send, read] = ms;
            copy.connect_timeout = or(connect, location.connect_timeout);
            copy.send_timeout = or(send, location.send_timeout);
            copy.read_timeout = or(read, location.read_timeout);
            u.conf = self.copy;
        }
        true
    }
}
