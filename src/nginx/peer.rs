//! An upstream connection's peer: its address and its TLS session.

use std::mem::{size_of, zeroed};

use ngx::ffi::{ngx_peer_connection_t, sockaddr, socklen_t};

/// A socket address in a request's pool: nginx keeps a pointer to it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) union SocketAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    unix: libc::sockaddr_un,
    // Room for one byte more than any of them: see `past_the_pool`.
    room: [u64; 16],
}

impl SocketAddress {
    pub(crate) fn v4(ip: [u8; 4], port: u16) -> (Self, socklen_t) {
        // SAFETY: zero is a valid sockaddr_in.
        let mut a: libc::sockaddr_in = unsafe { zeroed() };
        a.sin_family = libc::AF_INET as _;
        a.sin_port = port.to_be();
        a.sin_addr.s_addr = u32::from_ne_bytes(ip);
        (Self { v4: a }, size_of::<libc::sockaddr_in>() as _)
    }

    pub(crate) fn v6(ip: [u8; 16], port: u16) -> (Self, socklen_t) {
        // SAFETY: zero is a valid sockaddr_in6.
        let mut a: libc::sockaddr_in6 = unsafe { zeroed() };
        a.sin6_family = libc::AF_INET6 as _;
        a.sin6_port = port.to_be();
        a.sin6_addr.s6_addr = ip;
        (Self { v6: a }, size_of::<libc::sockaddr_in6>() as _)
    }

    pub(crate) fn unix(path: &[u8]) -> (Self, socklen_t) {
        // SAFETY: zero is a valid sockaddr_un.
        let mut a: libc::sockaddr_un = unsafe { zeroed() };
        a.sun_family = libc::AF_UNIX as _;
        // The last byte stays zero.
        let len = path.len().min(a.sun_path.len() - 1);
        for (to, from) in a.sun_path[..len].iter_mut().zip(path) {
            *to = *from as _;
        }
        (Self { unix: a }, size_of::<libc::sockaddr_un>() as _)
    }

    /// A pointer as nginx's structures want it.
    pub(crate) fn as_ptr(&mut self) -> *mut sockaddr {
        (&raw mut *self).cast()
    }
}

/// A length under which stock `keepalive` finds no pooled connection to the address, and which
/// `connect` takes all the same. The pool compares addresses by their bytes and lengths; the kernel
/// ignores what follows an IP address, and the end of a unix path is its zero byte.
pub(crate) fn past_the_pool(len: socklen_t) -> socklen_t {
    if len as usize == size_of::<libc::sockaddr_un>() { len - 1 } else { len + 1 }
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
        ) -> ngx_int_t {
            match self.0.get(&slot) {
                // SAFETY: the session is alive; nginx takes its own reference.
                Some(s) if s.number == number => unsafe {
                    ngx_ssl_set_session(pc.connection, s.raw)
                },
                _ => 0,
            }
        }

        /// Keeps the session of a connection for the next one.
        pub(crate) fn save(&mut self, pc: &mut ngx_peer_connection_t, slot: u32, number: u64) {
            // SAFETY: nginx calls this with a connection that has finished its handshake.
            let raw = unsafe { ngx_ssl_get_session(pc.connection) };
            if !raw.is_null() {
                self.0.insert(slot, Session { number, raw });
            }
        }
    }
}
