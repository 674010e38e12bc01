//! Connections of our own making: opened, talked through and closed on the event loop.
//!
//! What `ngx_http_upstream.c` does with a connection, without a request: nothing here waits, and
//! nothing keeps a worker from shutting down.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::CString;
use std::mem::zeroed;
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;

use ngx::ffi::{
    NGX_AGAIN, NGX_DECLINED, NGX_LOG_ALERT, ngx_add_timer, ngx_connection_t, ngx_cycle,
    ngx_event_connect_peer, ngx_event_get_peer, ngx_event_t, ngx_handle_read_event,
    ngx_handle_write_event, ngx_int_t, ngx_log_t, ngx_peer_connection_t, ngx_post_event,
    ngx_posted_next_events, ngx_str_t, ngx_uint_t,
};

use super::border;
use super::connection::close;
use super::peer::SocketAddress;
use super::process::cycle_log;

/// Bytes that are read at a time.
const PIECE: usize = 16 * 1024;

/// Pieces that are read in one turn of the event loop: a fast server must not hold it.
const PIECES: usize = 4;

const OK: ngx_int_t = 0;
const AGAIN: ngx_int_t = NGX_AGAIN as ngx_int_t;
const DECLINED: ngx_int_t = NGX_DECLINED as ngx_int_t;

/// Whether a talk goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It does.
    On,
    /// The caller has what it wanted to know.
    Over,
}

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The caller said so.
    Over,
    /// The other side closed the connection, or broke it.
    Closed,
    /// Nobody listens there.
    Refused,
    /// There is no way there.
    Unreachable,
    /// The TLS handshake failed.
    Tls,
    /// It took longer than it may.
    Timeout,
    /// This worker is to end.
    Leaving,
    /// All local ports that could be used are in use.
    NoPort,
    /// For other reasons of our own.
    Broken,
}

/// Who calls.
pub(crate) trait Caller {
    /// The connection is made. What is put into `out` is sent.
    fn connected(&mut self, out: &mut Vec<u8>) -> Step;
    /// Bytes have come. What is put into `out` is sent.
    fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Step;
    /// It is over, and the connection closed.
    fn over(self, end: End);
}

/// The calls of one kind that are under way.
pub(crate) struct Calls<T: Caller>(Rc<Shared<T>>);

struct Shared<T: Caller> {
    all: RefCell<HashSet<NonNull<Call<T>>>>,
    /// nginx says of each connection that fails why, at level `error`. Whether that is worth a line is
    /// for the caller to know.
    log: ngx_log_t,
}

struct Call<T: Caller> {
    connection: *mut ngx_connection_t,
    shared: Rc<Shared<T>>,
    phase: Phase,
    tls: Option<Dress>,
    out: Vec<u8>,
    sent: usize,
    caller: T,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Shaking,
    Talking,
}

/// How a connection is to be encrypted.
#[derive(Clone)]
pub(crate) struct Dress {
    #[cfg_attr(not(ngx_feature = "http_ssl"), expect(dead_code))]
    pub(crate) context: tls::Context,
    /// The server's name, for SNI.
    #[cfg_attr(not(ngx_feature = "http_ssl"), expect(dead_code))]
    pub(crate) name: Option<CString>,
}

impl<T: Caller> Calls<T> {
    /// None yet.
    pub(crate) fn new() -> Self {
        // SAFETY: there is a current cycle, whose log is copied; what it points to lives as long as
        // the configuration, as this does.
        let mut log = unsafe { *cycle_log() };
        log.log_level = NGX_LOG_ALERT as ngx_uint_t;
        log.handler = None;
        Self(Rc::new(Shared { all: RefCell::default(), log }))
    }

    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.0.all.borrow().len()
    }

    /// Gives up all that are under way.
    pub(crate) fn abandon(&self) -> Vec<T> {
        let all = std::mem::take(&mut *self.0.all.borrow_mut());
        // SAFETY: each is in the set as long as it is alive.
        all.into_iter().map(|call| unsafe { *Box::from_raw(call.as_ptr()) }.end()).collect()
    }

    /// Calls somebody. It is over when [`Caller::over`] is called, which may be before this returns.
    pub(crate) fn start(&self, to: &SocketAddress, tls: Option<Dress>, timeout_ms: u64, caller: T) {
        let call = Call {
            connection: null_mut(),
            shared: Rc::clone(&self.0),
            phase: Phase::Connecting,
            tls,
            out: Vec::new(),
            sent: 0,
            caller,
        };
        let call = NonNull::from(Box::leak(Box::new(call)));
        self.0.all.borrow_mut().insert(call);
        // SAFETY: just made.
        let end = unsafe { open(call, to, timeout_ms) };
        finish_if(call, end);
    }
}

impl<T: Caller> Drop for Calls<T> {
    fn drop(&mut self) {
        debug_assert!(self.0.all.borrow().is_empty(), "somebody has to be told");
        self.abandon();
    }
}

/// # Safety
///
/// The call is alive and has no connection yet.
unsafe fn open<T: Caller>(
    call: NonNull<Call<T>>,
    to: &SocketAddress,
    timeout_ms: u64,
) -> Option<End> {
    // SAFETY: the cycle is the current one. The address outlives the function of nginx's that reads
    // it, and so does `name`; a zeroed peer is what ngx_memzero leaves in C. The connection is
    // ours, with both its events, and is closed before the call goes.
    unsafe {
        // nginx keeps as many for clients, and complains loudly when the last is taken.
        let cycle = &*ngx_cycle;
        if cycle.free_connection_n <= cycle.connection_n / 16 {
            return Some(End::Broken);
        }
        let this = &mut *call.as_ptr();
        let mut name = ngx_str_t { len: 0, data: null_mut() };
        let mut pc: ngx_peer_connection_t = zeroed();
        (pc.sockaddr, pc.socklen) = to.as_raw();
        pc.name = &mut name;
        pc.get = Some(ngx_event_get_peer);
        pc.log = (&raw const this.shared.log).cast_mut();
        let rc = ngx_event_connect_peer(&mut pc);
        if rc == DECLINED {
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
            // Of IPv6 it may also say that there is no address to come from, and so no way.
            let is_ipv4 = i32::from((*pc.sockaddr).sa_family) == libc::AF_INET;
            if errno == libc::EADDRNOTAVAIL && is_ipv4 {
                return Some(End::NoPort);
            }
            return Some(end_of(errno));
        }
        if rc != OK && rc != AGAIN || pc.connection.is_null() {
            return Some(End::Broken);
        }
        let c = &mut *pc.connection;
        this.connection = c;
        c.data = call.as_ptr().cast();
        // nginx tells idle connections when the worker is to end.
        c.set_idle(1);
        (*c.read).handler = Some(readable::<T>);
        (*c.write).handler = Some(writable::<T>);
        (*c.read).set_cancelable(1);
        ngx_add_timer(c.read, timeout_ms as _);
        if rc == OK { this.connected() } else { None }
    }
}

/// What a failed connect says.
fn end_of(errno: i32) -> End {
    match errno {
        libc::ECONNREFUSED | libc::ENOENT | libc::EAGAIN => End::Refused,
        libc::ECONNRESET | libc::EPIPE => End::Closed,
        _ => End::Unreachable,
    }
}

fn finish_if<T: Caller>(call: NonNull<Call<T>>, end: Option<End>) {
    let Some(end) = end else { return };
    border::guard(cycle_log, (), || {
        let at = call;
        // SAFETY: it has not ended before: then its events would be gone.
        let call = *unsafe { Box::from_raw(at.as_ptr()) };
        call.shared.all.borrow_mut().remove(&at);
        call.end().over(end);
    });
}

impl<T: Caller> Call<T> {
    /// Closes the connection.
    fn end(self) -> T {
        if !self.connection.is_null() {
            // SAFETY: open, and nobody's but this call's.
            unsafe { close(self.connection) }
        }
        self.caller
    }

    /// The connection may have been made.
    fn connected(&mut self) -> Option<End> {
        let mut errno: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the connection is open; the kernel writes an integer.
        let rc = unsafe {
            let (fd, at) = ((*self.connection).fd, (&raw mut errno).cast());
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, at, &mut len)
        };
        if rc != 0 || errno != 0 {
            return Some(end_of(errno));
        }
        #[cfg(ngx_feature = "http_ssl")]
        if self.tls.is_some() {
            return self.shake();
        }
        self.talk()
    }

    /// The connection is ready to be used.
    fn talk(&mut self) -> Option<End> {
        self.phase = Phase::Talking;
        if self.caller.connected(&mut self.out) == Step::Over {
            return Some(End::Over);
        }
        if let Some(end) = self.flush() {
            return Some(end);
        }
        // SAFETY: the connection is open.
        let is_ready = unsafe { (*(*self.connection).read).ready() != 0 };
        if is_ready { self.listen() } else { None }
    }

    /// Sends what there is to be sent.
    fn flush(&mut self) -> Option<End> {
        while self.sent < self.out.len() {
            // SAFETY: the connection is open, and nginx has set its functions.
            unsafe {
                let c = self.connection;
                let left = &mut self.out[self.sent..];
                let Some(send) = (*c).send else { return Some(End::Broken) };
                match send(c, left.as_mut_ptr(), left.len()) {
                    n if n > 0 => self.sent += n as usize,
                    n if n == AGAIN => {
                        let rc = ngx_handle_write_event((*c).write, 0);
                        return (rc != OK).then_some(End::Broken);
                    }
                    _ => return Some(End::Closed),
                }
            }
        }
        self.out.clear();
        self.sent = 0;
        None
    }

    /// Reads what has come.
    fn listen(&mut self) -> Option<End> {
        let mut buffer = [0u8; PIECE];
        for _ in 0..PIECES {
            // SAFETY: the connection is open, and nginx has set its functions.
            let n = unsafe {
                let c = self.connection;
                let recv = (*c).recv?;
                recv(c, buffer.as_mut_ptr(), buffer.len())
            };
            match n {
                n if n > 0 => {
                    let said = self.caller.received(&buffer[..n as usize], &mut self.out);
                    if said == Step::Over {
                        return Some(End::Over);
                    }
                    if let Some(end) = self.flush() {
                        return Some(end);
                    }
                }
                n if n == AGAIN => {
                    // SAFETY: as above.
                    let rc = unsafe { ngx_handle_read_event((*self.connection).read, 0) };
                    return (rc != OK).then_some(End::Broken);
                }
                _ => return Some(End::Closed),
            }
        }
        // SAFETY: the event is that of an open connection; closing it takes it out of the queue.
        unsafe { ngx_post_event((*self.connection).read, &raw mut ngx_posted_next_events) };
        None
    }

    /// Called for the read event.
    fn readable(&mut self) -> Option<End> {
        // SAFETY: the connection is open.
        let (leaving, timedout) = unsafe {
            let c = &*self.connection;
            (c.close() != 0, (*c.read).timedout() != 0)
        };
        match self.phase {
            _ if leaving => Some(End::Leaving),
            _ if timedout => Some(End::Timeout),
            // An error wakes both events, and the other may not come.
            Phase::Connecting => self.refused(),
            Phase::Shaking => None,
            Phase::Talking => self.listen(),
        }
    }

    /// Called for the write event.
    fn writable(&mut self) -> Option<End> {
        match self.phase {
            Phase::Connecting => self.connected(),
            Phase::Shaking => None,
            Phase::Talking => self.flush(),
        }
    }

    /// Whether a connection that is not made yet has failed already.
    fn refused(&mut self) -> Option<End> {
        // SAFETY: the connection is open.
        let is_made = unsafe { (*(*self.connection).write).ready() != 0 };
        if is_made { self.connected() } else { None }
    }
}

unsafe extern "C" fn readable<T: Caller>(event: *mut ngx_event_t) {
    // SAFETY: the handler of an event of a call's connection.
    unsafe { stirred::<T>(event, Call::readable) }
}

unsafe extern "C" fn writable<T: Caller>(event: *mut ngx_event_t) {
    // SAFETY: as above.
    unsafe { stirred::<T>(event, Call::writable) }
}

/// # Safety
///
/// nginx calls with an event of a connection that `open` made, whose `data` is the call.
unsafe fn stirred<T: Caller>(event: *mut ngx_event_t, f: fn(&mut Call<T>) -> Option<End>) {
    // SAFETY: by this function's contract; the reference ends before the call does.
    let call = unsafe { (*(*event).data.cast::<ngx_connection_t>()).data.cast::<Call<T>>() };
    let Some(call) = NonNull::new(call) else { return };
    // SAFETY: as above.
    let end = border::guard(cycle_log, Some(End::Broken), || f(unsafe { &mut *call.as_ptr() }));
    finish_if(call, end);
}

#[cfg(not(ngx_feature = "http_ssl"))]
pub(crate) mod tls {
    /// There is none in this nginx.
    #[derive(Clone, Copy)]
    pub(crate) enum Context {}
}

#[cfg(ngx_feature = "http_ssl")]
pub(crate) mod tls {
    use std::ffi::c_void;
    use std::mem::zeroed;
    use std::ptr::{NonNull, null_mut};

    use ngx::ffi::{
        NGX_SSL_CLIENT, NGX_SSL_TLSv1_2, NGX_SSL_TLSv1_3, SSL_CTRL_SET_TLSEXT_HOSTNAME, SSL_ctrl,
        ngx_conf_t, ngx_connection_t, ngx_create_pool, ngx_pool_cleanup_add, ngx_ssl_cleanup_ctx,
        ngx_ssl_create, ngx_ssl_create_connection, ngx_ssl_handshake, ngx_ssl_t, ngx_uint_t,
    };

    use super::super::pool;
    use super::{AGAIN, Call, Caller, End, OK, Phase, border, cycle_log, finish_if};
    use super::{readable, writable};

    /// `TLSEXT_NAMETYPE_host_name`, a macro of OpenSSL's.
    const HOST_NAME: i64 = 0;

    /// What connections are encrypted with; in the configuration's pool.
    #[derive(Clone, Copy)]
    pub(crate) struct Context(NonNull<ngx_ssl_t>);

    impl Context {
        /// One that checks no certificate, as `proxy_ssl_verify off` does. `None`: nginx has logged
        /// why.
        pub(crate) fn new(cf: *mut ngx_conf_t) -> Option<Self> {
            // SAFETY: nginx passes a valid configuration; zero is what ngx_pcalloc leaves in C. The
            // context is freed with the pool that it is in.
            unsafe {
                let at = pool::room::<ngx_ssl_t>((*cf).pool)?;
                at.write(zeroed());
                (*at.as_ptr()).log = (*cf).log;
                let protocols = (NGX_SSL_TLSv1_2 | NGX_SSL_TLSv1_3) as ngx_uint_t;
                if ngx_ssl_create(at.as_ptr(), protocols, null_mut()) != OK {
                    return None;
                }
                let cleanup = ngx_pool_cleanup_add((*cf).pool, 0).as_mut();
                let Some(cleanup) = cleanup else {
                    ngx_ssl_cleanup_ctx(at.as_ptr().cast());
                    return None;
                };
                cleanup.handler = Some(ngx_ssl_cleanup_ctx);
                cleanup.data = at.as_ptr().cast::<c_void>();
                Some(Self(at))
            }
        }
    }

    impl<T: Caller> Call<T> {
        /// Begins the handshake.
        pub(super) fn shake(&mut self) -> Option<End> {
            let dress = self.tls.as_ref()?;
            // SAFETY: the connection is open and has no pool yet; what is made in it goes with it.
            unsafe {
                let c = &mut *self.connection;
                c.pool = ngx_create_pool(256, c.log);
                if c.pool.is_null() {
                    return Some(End::Broken);
                }
                let flags = NGX_SSL_CLIENT as ngx_uint_t;
                if ngx_ssl_create_connection(dress.context.0.as_ptr(), c, flags) != OK {
                    return Some(End::Broken);
                }
                if let Some(name) = &dress.name {
                    let at = name.as_ptr().cast_mut().cast();
                    let set = SSL_CTRL_SET_TLSEXT_HOSTNAME as i32;
                    if SSL_ctrl((*c.ssl).connection.cast(), set, HOST_NAME, at) == 0 {
                        return Some(End::Broken);
                    }
                }
                self.phase = Phase::Shaking;
                match ngx_ssl_handshake(c) {
                    AGAIN => {
                        (*c.ssl).handler = Some(shaken::<T>);
                        None
                    }
                    OK => self.talk(),
                    _ => Some(End::Tls),
                }
            }
        }

        fn shaken(&mut self) -> Option<End> {
            // SAFETY: the connection is open.
            unsafe {
                let c = &mut *self.connection;
                (*c.read).handler = Some(readable::<T>);
                (*c.write).handler = Some(writable::<T>);
                if (*c.read).timedout() != 0 {
                    return Some(End::Timeout);
                }
                if (*c.ssl).handshaked() == 0 {
                    return Some(End::Tls);
                }
            }
            self.talk()
        }
    }

    /// Called when the handshake has ended, one way or the other.
    unsafe extern "C" fn shaken<T: Caller>(c: *mut ngx_connection_t) {
        // SAFETY: nginx passes the connection of a call.
        let Some(call) = NonNull::new(unsafe { (*c).data.cast::<Call<T>>() }) else { return };
        let end = border::guard(cycle_log, Some(End::Broken), || {
            // SAFETY: it is alive until it ends.
            unsafe { (*call.as_ptr()).shaken() }
        });
        finish_if(call, end);
    }
}
