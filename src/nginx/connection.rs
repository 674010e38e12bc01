//! Upstream connections that are kept between requests.
//!
//! What nginx's `ngx_http_upstream_keepalive_module.c` does to a connection, apart from where it
//! is kept.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::slice;

use ngx::ffi::{
    NGX_PEER_FAILED, ngx_close_connection, ngx_connection_t, ngx_current_msec, ngx_cycle,
    ngx_del_timer, ngx_destroy_pool, ngx_event_t, ngx_handle_read_event, ngx_http_request_t,
    ngx_http_upstream_t, ngx_palloc, ngx_peer_connection_t, ngx_pool_t, ngx_reusable_connection,
    ngx_uint_t,
};

use super::process::{self, cycle_log};

/// What two connections to one server must have in common for the one to do in the place of the
/// other: protocol, TLS context, server name, client certificate and local address.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// The function that writes requests of the protocol: each has its own.
    protocol: usize,
    /// The location's TLS context; 0 without TLS.
    tls: usize,
    flags: u32,
    /// The rest, one after the other, with their lengths.
    bytes: *const u8,
    len: usize,
    hash: u64,
}

/// Bits of [`Shape::flags`].
mod bit {
    pub(super) const TLS: u32 = 1;
    pub(super) const SERVER_NAME: u32 = 1 << 1;
    pub(super) const VERIFY: u32 = 1 << 2;
    pub(super) const TRANSPARENT: u32 = 1 << 3;
    pub(super) const SO_KEEPALIVE: u32 = 1 << 4;
    pub(super) const LOCAL: u32 = 1 << 5;
}

impl Shape {
    /// The shape of the connection that a request is about to use. To be called when the server has
    /// been chosen and `pc` points to it: TLS names may hold variables about it. `None`: out of
    /// memory, or a variable could not be evaluated.
    pub(crate) fn of(r: *mut ngx_http_request_t, pc: &ngx_peer_connection_t) -> Option<Self> {
        // SAFETY: the request is alive and has an upstream; `local` is null or an address made for
        // this request.
        let (u, local) = unsafe { (&mut *(*r).upstream, pc.local.as_ref()) };
        let mut shape = Self {
            protocol: u.create_request.map_or(0, |f| f as usize),
            tls: 0,
            flags: pc.transparent() * bit::TRANSPARENT + pc.so_keepalive() * bit::SO_KEEPALIVE,
            bytes: null_mut(),
            len: 0,
            hash: 0,
        };
        let mut parts = Parts::default();
        if let Some(local) = local {
            shape.flags |= bit::LOCAL;
            // SAFETY: nginx fills an address with its length.
            parts.push(unsafe {
                slice::from_raw_parts(local.sockaddr.cast::<u8>(), local.socklen as usize)
            });
        }
        #[cfg(ngx_feature = "http_ssl")]
        if u.ssl() != 0 {
            tls::describe(r, u, pc, &mut shape, &mut parts)?;
        }
        if parts.count > 0 {
            // SAFETY: the request is alive.
            (shape.bytes, shape.len) = parts.join(unsafe { (*r).pool })?;
        }
        shape.hash = shape.mixed();
        Some(shape)
    }

    /// All of it but the protocol, in memory of its own: what a TLS session belongs to.
    #[cfg(ngx_feature = "http_ssl")]
    pub(crate) fn tls(&self) -> Vec<u8> {
        let mut bytes = self.tls.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&self.flags.to_ne_bytes());
        bytes.extend_from_slice(self.bytes());
        bytes
    }

    /// Equal for equal shapes, and rarely for others.
    #[inline]
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    fn mixed(&self) -> u64 {
        // FNV-1a: one look at the bytes, which are few and mostly none.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for word in [self.protocol as u64, self.tls as u64, u64::from(self.flags)] {
            hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
        }
        for byte in self.bytes() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash
    }

    fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: written by `Parts::join` or `copy`, in the pool of the request or connection
        // that the shape belongs to.
        unsafe { slice::from_raw_parts(self.bytes, self.len) }
    }

    /// The same, its bytes in another pool. `None`: out of memory.
    fn copy(&self, pool: *mut ngx_pool_t) -> Option<Self> {
        if self.len == 0 {
            return Some(*self);
        }
        // SAFETY: the pool is alive; the room is as long as the bytes.
        unsafe {
            let to = ngx_palloc(pool, self.len).cast::<u8>();
            if to.is_null() {
                return None;
            }
            to.copy_from_nonoverlapping(self.bytes, self.len);
            Some(Self { bytes: to, ..*self })
        }
    }
}

impl PartialEq for Shape {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.protocol == other.protocol
            && self.tls == other.tls
            && self.flags == other.flags
            && self.len == other.len
            // memcmp of nothing at a dangling pointer costs 300 ns where it is done by masked loads.
            && (self.len == 0 || self.bytes() == other.bytes())
    }
}

/// Pieces of a shape, before they are put together.
#[derive(Default)]
struct Parts<'a> {
    /// Local address, TLS name, certificate and its key.
    parts: [&'a [u8]; 4],
    count: usize,
}

impl<'a> Parts<'a> {
    fn push(&mut self, part: &'a [u8]) {
        self.parts[self.count] = part;
        self.count += 1;
    }

    /// Each part with its length before it, so that no two lists of parts look the same.
    fn join(&self, pool: *mut ngx_pool_t) -> Option<(*const u8, usize)> {
        let parts = &self.parts[..self.count];
        let len = parts.iter().map(|part| part.len() + size_of::<usize>()).sum();
        // SAFETY: the pool is alive; what is written adds up to `len`.
        unsafe {
            let start = ngx_palloc(pool, len).cast::<u8>();
            if start.is_null() {
                return None;
            }
            let mut at = start;
            for part in parts {
                at.cast::<usize>().write_unaligned(part.len());
                at = at.add(size_of::<usize>());
                at.copy_from_nonoverlapping(part.as_ptr(), part.len());
                at = at.add(part.len());
            }
            Some((start.cast_const(), len))
        }
    }
}

#[cfg(ngx_feature = "http_ssl")]
mod tls {
    use ngx::ffi::{ngx_http_upstream_t, ngx_str_t};

    use super::super::conf::{evaluate, is_variable};
    use super::{NonNull, Parts, Shape, bit, ngx_http_request_t, ngx_peer_connection_t};

    /// Adds what a TLS connection is made with, as `ngx_http_upstream_ssl_init_connection` will
    /// find it.
    pub(super) fn describe(
        r: *mut ngx_http_request_t,
        u: &mut ngx_http_upstream_t,
        pc: &ngx_peer_connection_t,
        shape: &mut Shape,
        parts: &mut Parts<'_>,
    ) -> Option<()> {
        // SAFETY: a request with TLS has a location with a TLS context; `state`, when there is one,
        // is that of this try.
        let conf = unsafe {
            // nginx says so itself only after the server has been chosen, and a name may hold
            // $upstream_addr.
            if let Some(state) = u.state.as_mut() {
                state.peer = pc.name;
            }
            &*u.conf
        };
        shape.tls = conf.ssl as usize;
        shape.flags |= bit::TLS;
        if conf.ssl_server_name == 1 {
            shape.flags |= bit::SERVER_NAME;
        }
        if conf.ssl_verify == 1 {
            shape.flags |= bit::VERIFY;
        }
        if shape.flags & (bit::SERVER_NAME | bit::VERIFY) != 0 {
            parts.push(match NonNull::new(conf.ssl_name) {
                Some(name) => evaluate(r, name)?,
                None => bytes_of(&u.ssl_name),
            });
        }
        let pair = [conf.ssl_certificate, conf.ssl_certificate_key].map(NonNull::new);
        if let [Some(certificate), Some(key)] = pair
            && (is_variable(certificate) || is_variable(key))
        {
            parts.push(evaluate(r, certificate)?);
            parts.push(evaluate(r, key)?);
        }
        Some(())
    }

    fn bytes_of<'a>(s: &ngx_str_t) -> &'a [u8] {
        if s.len == 0 {
            return &[];
        }
        // SAFETY: nginx's own string, in the request's pool or the configuration's.
        unsafe { std::slice::from_raw_parts(s.data, s.len) }
    }
}

/// A connection that may be kept, and what was noted about it; in the connection's own pool.
pub(crate) struct Line<T> {
    connection: *mut ngx_connection_t,
    shape: Shape,
    note: T,
}

/// A [`Line`] of a connection that is open.
pub(crate) struct LineRef<T>(NonNull<Line<T>>);

impl<T> Clone for LineRef<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for LineRef<T> {}

/// How a kept connection may be used again.
#[derive(Clone, Copy)]
pub(crate) struct Reuse {
    /// Requests that one connection serves at most.
    pub(crate) requests: usize,
    /// Milliseconds after which a connection serves no other request.
    pub(crate) time: u64,
}

/// Whether the connection of a request that is done with its server is in a state to serve
/// another.
#[inline]
pub(crate) fn is_fit(
    r: *mut ngx_http_request_t,
    pc: &ngx_peer_connection_t,
    state: ngx_uint_t,
    reuse: &Reuse,
) -> bool {
    // SAFETY: the request is alive and has an upstream; the connection, when there is one, is open,
    // and so are its events. The cycle is the current one.
    unsafe {
        let Some(c) = pc.connection.as_ref() else { return false };
        let u: &ngx_http_upstream_t = &*(*r).upstream;
        let (read, write) = (&mut *c.read, &*c.write);
        if state & NGX_PEER_FAILED as ngx_uint_t != 0
            || read.eof() != 0
            || read.error() != 0
            || read.timedout() != 0
            || write.error() != 0
            || write.timedout() != 0
            || c.requests >= reuse.requests
            || (ngx_current_msec as u64).saturating_sub(c.start_time as u64) > reuse.time
            || u.keepalive() == 0
            || u.request_body_sent() == 0
            || process::is_exiting()
        {
            return false;
        }
        // Bytes after the end of the response would be taken for the next one.
        #[cfg(ngx_feature = "http_ssl")]
        if let Some(ssl) = c.ssl.as_ref()
            && ngx::ffi::SSL_pending(ssl.connection) > 0
        {
            return false;
        }
        // nginx takes connections of clients away at the same mark.
        let cycle = &*ngx_cycle;
        if cycle.free_connection_n <= cycle.connection_n / 16 {
            return false;
        }
        ngx_handle_read_event(read, 0) == 0
    }
}

/// How many connections this worker may have in all.
pub(crate) fn worker_connections() -> usize {
    // SAFETY: the cycle is the current one.
    unsafe { (*ngx_cycle).connection_n }
}

impl<T> LineRef<T> {
    /// Notes a new connection. `None`: out of memory.
    pub(crate) fn new(pc: &ngx_peer_connection_t, shape: &Shape, note: T) -> Option<Self> {
        const { assert!(!std::mem::needs_drop::<T>() && align_of::<T>() <= align_of::<usize>()) };
        // SAFETY: `is_fit` found the connection open; its pool lives as long as it does.
        unsafe {
            let pool = (*pc.connection).pool;
            let shape = shape.copy(pool)?;
            let at = NonNull::new(ngx_palloc(pool, size_of::<Line<T>>()).cast::<Line<T>>())?;
            at.write(Line { connection: pc.connection, shape, note });
            Some(Self(at))
        }
    }

    fn line(&self) -> &Line<T> {
        // SAFETY: lives in the pool of a connection that is open: whoever closes one forgets this.
        unsafe { self.0.as_ref() }
    }

    /// What was noted.
    pub(crate) fn note(&self) -> &T {
        &self.line().note
    }

    /// Whether the connection does for a request with that shape.
    #[inline]
    pub(crate) fn suits(&self, shape: &Shape) -> bool {
        self.line().shape == *shape
    }

    /// Takes the connection from a request that is done with it.
    pub(crate) fn park(self, pc: &mut ngx_peer_connection_t)
    where
        T: Owner,
    {
        pc.connection = null_mut();
        // SAFETY: the connection is open, with both its events, and no longer the request's.
        unsafe {
            let c = &mut *self.line().connection;
            let (read, write) = (&mut *c.read, &mut *c.write);
            read.set_delayed(0);
            // The read timer may go on: see `stirred` and `unpark`.
            if write.timer_set() != 0 {
                ngx_del_timer(write);
            }
            write.handler = Some(nothing);
            read.handler = Some(stirred::<T>);
            c.data = self.0.as_ptr().cast();
            // nginx closes idle connections when the worker is to end.
            c.set_idle(1);
            self.log_to(cycle_log());
        }
    }

    /// Whether nginx may close the connection when the worker's run out.
    pub(crate) fn is_reusable(&self) -> bool {
        // SAFETY: the connection is open.
        unsafe { (*self.line().connection).reusable() != 0 }
    }

    /// Lets nginx close the connection when the worker's run out.
    pub(crate) fn set_reusable(&self) {
        // SAFETY: the connection is open and parked; nginx closes it by its read event's handler.
        unsafe { ngx_reusable_connection(self.line().connection, 1) }
    }

    /// What has come from the server while the connection was not looked at.
    pub(crate) fn has_stirred(&self) -> bool {
        // SAFETY: the connection is open.
        unsafe { (*(*self.line().connection).read).ready() != 0 }
    }

    /// Gives the connection to a request.
    #[inline]
    pub(crate) fn unpark(self, r: *mut ngx_http_request_t, pc: &mut ngx_peer_connection_t) {
        // SAFETY: the connection is open and was parked.
        unsafe {
            let c = &mut *self.line().connection;
            if (*c.read).timer_set() != 0 && !would_stay(r, &*c.read) {
                ngx_del_timer(c.read);
            }
            if c.reusable() != 0 {
                ngx_reusable_connection(c, 0);
            }
            c.set_idle(0);
            c.sent = 0;
            c.data = null_mut();
            self.log_to(pc.log);
        }
        pc.connection = self.line().connection;
        pc.set_cached(1);
    }

    fn log_to(&self, log: *mut ngx::ffi::ngx_log_t) {
        // SAFETY: the connection is open, with its events and its pool.
        unsafe {
            let c = &mut *self.line().connection;
            c.log = log;
            (*c.read).log = log;
            (*c.write).log = log;
            (*c.pool).log = log;
        }
    }

    /// Closes a parked connection.
    pub(crate) fn close(self) {
        // SAFETY: the connection is open; nobody knows of it any more.
        unsafe { close(self.line().connection) }
    }
}

/// Who keeps a connection.
pub(crate) trait Owner: Sized {
    /// The server closed the connection, or sent what nobody asked for, or the worker is to end:
    /// forget the connection. The caller closes it.
    fn lost(line: LineRef<Self>);
}

/// Whether the read timer of the last request on a connection, which is still set, is what nginx
/// will set for this one: then taking it out of nginx's tree and putting it in again is saved.
///
/// nginx leaves a timer as it is when the new time is less than 300 ms from the old one, and sets the
/// read timer when it has sent the whole request: at once, where there is no body. A request may so
/// be cut off 300 ms early: only where that is a hundredth of the timeout or less.
fn would_stay(r: *mut ngx_http_request_t, read: &ngx_event_t) -> bool {
    const NGX_TIMER_LAZY_DELAY: usize = 300;
    // SAFETY: the request is alive and has an upstream with a configuration.
    unsafe {
        let (body, headers) = ((*r).request_body.as_ref(), &(*r).headers_in);
        let bodiless = headers.content_length_n <= 0
            && headers.chunked() == 0
            && body.is_none_or(|body| body.bufs.is_null());
        let timeout = (*(*(*r).upstream).conf).read_timeout;
        let early = ngx_current_msec.wrapping_add(timeout).wrapping_sub(read.timer.key);
        bodiless && early < NGX_TIMER_LAZY_DELAY && early <= timeout / 100
    }
}

unsafe extern "C" fn nothing(_: *mut ngx_event_t) {}

/// Called when something can be read from a parked connection, and by nginx to close it.
unsafe extern "C" fn stirred<T: Owner>(event: *mut ngx_event_t) {
    super::border::guard(cycle_log, (), || {
        // SAFETY: nginx passes the read event of a connection that `park` set this handler for;
        // `data` is the line that was set there.
        unsafe {
            let c = (*event).data.cast::<ngx_connection_t>();
            let Some(line) = NonNull::new((*c).data.cast::<Line<T>>()) else { return };
            if (*c).close() == 0 {
                if (*event).timedout() != 0 {
                    // The read timeout of a request that has long had its response.
                    (*event).set_timedout(0);
                    return;
                }
                let mut byte = 0u8;
                let at = (&raw mut byte).cast::<c_void>();
                let n = libc::recv((*c).fd, at, 1, libc::MSG_PEEK);
                if n < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock
                {
                    (*event).set_ready(0);
                    if ngx_handle_read_event((*c).read, 0) == 0 {
                        return;
                    }
                }
            }
            let line = LineRef(line);
            T::lost(line);
            line.close();
        }
    });
}

/// Looks at a parked connection that has stirred already.
pub(crate) fn look<T: Owner>(line: LineRef<T>) {
    // SAFETY: the connection is open and parked.
    unsafe { stirred::<T>((*line.line().connection).read) }
}

/// Closes a connection, without waiting for what TLS has to say yet.
///
/// # Safety
///
/// The connection is open, and nothing refers to it.
pub(super) unsafe extern "C" fn close(c: *mut ngx_connection_t) {
    // SAFETY: by this function's contract.
    unsafe {
        #[cfg(ngx_feature = "http_ssl")]
        if let Some(ssl) = (*c).ssl.as_mut() {
            use ngx::ffi::{NGX_AGAIN, ngx_int_t, ngx_ssl_shutdown};

            ssl.set_no_wait_shutdown(1);
            ssl.set_no_send_shutdown(1);
            if ngx_ssl_shutdown(c) == NGX_AGAIN as ngx_int_t {
                (*(*c).ssl).handler = Some(close);
                return;
            }
        }
        if !(*c).pool.is_null() {
            ngx_destroy_pool((*c).pool);
        }
        ngx_close_connection(c);
    }
}
