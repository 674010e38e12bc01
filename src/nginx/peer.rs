//! An upstream connection's peer: its address and its TLS session.

use std::mem::zeroed;
use std::sync::atomic::{AtomicU32, Ordering};

use ngx::ffi::{ngx_palloc, ngx_peer_connection_t, ngx_pool_t, ngx_str_t, sockaddr, socklen_t};

/// A socket address and its length.
#[derive(Clone, Copy)]
pub(crate) struct SocketAddress {
    bytes: Bytes,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(C)]
union Bytes {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    unix: libc::sockaddr_un,
}

impl SocketAddress {
    pub(crate) fn v4(ip: [u8; 4], port: u16) -> Self {
        // SAFETY: zero is a valid sockaddr_in.
        let mut v4: libc::sockaddr_in = unsafe { zeroed() };
        v4.sin_family = libc::AF_INET as _;
        v4.sin_port = port.to_be();
        v4.sin_addr.s_addr = u32::from_ne_bytes(ip);
        Self { bytes: Bytes { v4 }, len: size_of::<libc::sockaddr_in>() }
    }

    pub(crate) fn v6(ip: [u8; 16], port: u16) -> Self {
        // SAFETY: zero is a valid sockaddr_in6.
        let mut v6: libc::sockaddr_in6 = unsafe { zeroed() };
        v6.sin6_family = libc::AF_INET6 as _;
        v6.sin6_port = port.to_be();
        v6.sin6_addr.s6_addr = ip;
        Self { bytes: Bytes { v6 }, len: size_of::<libc::sockaddr_in6>() }
    }

    pub(crate) fn unix(path: &[u8]) -> Self {
        // SAFETY: zero is a valid sockaddr_un.
        let mut unix: libc::sockaddr_un = unsafe { zeroed() };
        unix.sun_family = libc::AF_UNIX as _;
        // The last byte stays zero.
        let len = path.len().min(unix.sun_path.len() - 1);
        for (to, from) in unix.sun_path[..len].iter_mut().zip(path) {
            *to = *from as _;
        }
        Self { bytes: Bytes { unix }, len: size_of::<libc::sockaddr_un>() }
    }

    /// As nginx takes it, which only reads it; for as long as this lives.
    pub(crate) fn as_raw(&self) -> (*mut sockaddr, socklen_t) {
        ((&raw const self.bytes).cast_mut().cast(), self.len as socklen_t)
    }

    /// Makes the address one that stock `keepalive` has no pooled connection for, and that
    /// `connect` takes for the same. The pool compares addresses byte by byte; the kernel reads
    /// neither the padding of a sockaddr_in, nor the flow label (which TCP sends only when asked
    /// to), nor what follows the zero byte of a path. Each time other bytes, because the pool keeps
    /// the new connection under them.
    pub(crate) fn pass_the_pool(&mut self) {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let mark = LAST.fetch_add(1, Ordering::Relaxed) | 1 << 31;
        // SAFETY: all three begin with the family, which says which of them was written.
        unsafe {
            match i32::from(self.bytes.v4.sin_family) {
                libc::AF_INET => self.bytes.v4.sin_zero[..4].copy_from_slice(&mark.to_ne_bytes()),
                libc::AF_INET6 => self.bytes.v6.sin6_flowinfo = mark,
                _ => {
                    let path = &mut self.bytes.unix.sun_path;
                    let end = path.iter().position(|c| *c == 0).unwrap_or(path.len()) + 1;
                    for (to, from) in path.iter_mut().skip(end).zip(mark.to_ne_bytes()) {
                        *to = from as _;
                    }
                }
            }
        }
    }
}

/// Points a connection to an address. The address and its printed form go into a piece of the
/// request's pool of their own: nginx goes on showing the names of earlier tries in
/// `$upstream_addr`. False: out of memory.
pub(crate) fn point(
    pc: &mut ngx_peer_connection_t,
    pool: *mut ngx_pool_t,
    address: &SocketAddress,
    printed: &[u8],
) -> bool {
    let SocketAddress { bytes, len } = address;
    let room = len.next_multiple_of(align_of::<ngx_str_t>());
    // SAFETY: `pool` is that of the request that `pc` belongs to; what is written is laid out in the
    // piece one after the other, each at its alignment.
    unsafe {
        let at = ngx_palloc(pool, size_of::<ngx_str_t>() + room + printed.len()).cast::<u8>();
        if at.is_null() {
            return false;
        }
        let name = at.cast::<ngx_str_t>();
        let sockaddr_at = at.add(size_of::<ngx_str_t>());
        let text = sockaddr_at.add(room);
        sockaddr_at.copy_from_nonoverlapping((&raw const *bytes).cast(), *len);
        text.copy_from_nonoverlapping(printed.as_ptr(), printed.len());
        name.write(ngx_str_t { len: printed.len(), data: text });
        pc.sockaddr = sockaddr_at.cast::<sockaddr>();
        pc.socklen = *len as socklen_t;
        pc.name = name;
    }
    true
}

/// Whether a connection that failed was one from a pool, died before anything came from it, and
/// did not time out: the server closed it while it was idle, which says nothing about the server.
pub(crate) fn went_stale(pc: &ngx_peer_connection_t, bytes_received: u64) -> bool {
    if pc.cached() == 0 || bytes_received > 0 {
        return false;
    }
    // SAFETY: while a failed try is given back its connection, if there is one, is still open.
    unsafe {
        let Some(c) = pc.connection.as_ref() else { return false };
        (*c.read).timedout() == 0 && (*c.write).timedout() == 0
    }
}

/// TLS sessions to be resumed.
#[cfg(ngx_feature = "http_ssl")]
pub(crate) mod session {
    use std::collections::HashMap;

    use ngx::ffi::{
        SSL_SESSION, SSL_SESSION_free, ngx_int_t, ngx_peer_connection_t, ngx_ssl_get_session,
        ngx_ssl_set_session,
    };

    /// The last session with each server, in this worker, as stock nginx keeps them without a
    /// `zone` line. As many at most as the zone has slots for servers.
    #[derive(Default)]
    pub(crate) struct Sessions(HashMap<u32, Session>);

    struct Session {
        number: u64,
        /// What it was made with: resumed with another client certificate or without the check of
        /// the server's, it would carry the one's identity, and the other's trust, over.
        made_with: Vec<u8>,
        raw: *mut SSL_SESSION,
    }

    impl Drop for Session {
        fn drop(&mut self) {
            // SAFETY: this owns the reference that ngx_ssl_get_session took.
            unsafe { SSL_SESSION_free(self.raw) }
        }
    }

    impl Sessions {
        /// Offers the session kept for the server to a new connection.
        pub(crate) fn resume(
            &self,
            pc: &mut ngx_peer_connection_t,
            slot: u32,
            number: u64,
            made_with: &[u8],
        ) -> ngx_int_t {
            match self.0.get(&slot) {
                // SAFETY: the session is alive; nginx takes its own reference.
                Some(s) if s.number == number && s.made_with == made_with => unsafe {
                    ngx_ssl_set_session(pc.connection, s.raw)
                },
                _ => 0,
            }
        }

        /// Keeps the session of a connection for the next one.
        pub(crate) fn save(
            &mut self,
            pc: &mut ngx_peer_connection_t,
            slot: u32,
            number: u64,
            made_with: Vec<u8>,
        ) {
            // SAFETY: nginx calls this with a connection that has finished its handshake.
            let raw = unsafe { ngx_ssl_get_session(pc.connection) };
            if !raw.is_null() {
                self.0.insert(slot, Session { number, made_with, raw });
            }
        }
    }
}
