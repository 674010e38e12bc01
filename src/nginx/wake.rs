//! A way for a thread to wake the event loop, and for nginx to say that this worker is leaving.
//!
//! An eventfd in a connection of ours: `ngx_notify` belongs to nginx's thread pools. The connection
//! is idle, so `ngx_close_idle_connections` calls it when a graceful shutdown begins; modules are
//! told in no other way.

use std::fs::File;
use std::io::{self, Write};
use std::marker::PhantomPinned;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::ptr::null_mut;
use std::sync::Arc;

use ngx::ffi::{
    ngx_close_connection, ngx_connection_t, ngx_event_t, ngx_get_connection, ngx_handle_read_event,
};

use super::border;
use super::process::cycle_log;

/// What is called.
pub(crate) trait Woken {
    /// A [`Waker`] was used, once or more.
    fn woken(&mut self);
    /// This worker begins to shut down: new work is for others.
    fn leaving(&mut self);
}

/// Wakes the event loop; from any thread, for as long as it likes.
#[derive(Clone)]
pub(crate) struct Waker(Arc<File>);

impl Waker {
    /// Has [`Woken::woken`] called in a turn of the event loop to come.
    pub(crate) fn wake(&self) {
        // Fails only when the counter is about to overflow: then it is not 0, and wakes.
        let _ = (&*self.0).write(&1u64.to_ne_bytes());
    }
}

/// The event loop's end.
pub(crate) struct Wake<T: Woken> {
    connection: *mut ngx_connection_t,
    state: T,
    _pinned: PhantomPinned,
}

impl<T: Woken> Wake<T> {
    /// Takes one of nginx's connections.
    ///
    /// # Errors
    ///
    /// There is none left, or no file descriptor.
    pub(crate) fn start(state: T) -> io::Result<(Pin<Box<Self>>, Waker)> {
        // SAFETY: takes no memory; the result is checked, and owned from then on.
        let fd = unsafe {
            match libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        let waker = Waker(Arc::new(File::from(fd.try_clone()?)));
        // SAFETY: in the thread of the event loop, after it has been set up.
        let connection = unsafe { ngx_get_connection(fd.as_raw_fd(), cycle_log()) };
        if connection.is_null() {
            return Err(io::Error::other("worker_connections are not enough"));
        }
        // The connection closes it from here on.
        let _ = fd.into_raw_fd();
        let mut wake = Box::pin(Self { connection, state, _pinned: PhantomPinned });
        // SAFETY: nginx gave a connection with both events; it points back to a pinned value whose
        // Drop closes it.
        let added = unsafe {
            let c = &mut *connection;
            c.data = (&raw mut *wake.as_mut().get_unchecked_mut()).cast();
            (*c.read).handler = Some(Self::handler);
            (*c.read).log = c.log;
            (*c.write).log = c.log;
            c.set_idle(1);
            ngx_handle_read_event(c.read, 0)
        };
        if added != 0 {
            return Err(io::Error::other("the event loop does not take it"));
        }
        Ok((wake, waker))
    }

    unsafe extern "C" fn handler(event: *mut ngx_event_t) {
        // SAFETY: nginx calls this with the read event of the connection above, which points to a
        // value that is alive until the connection is closed.
        let (this, leaving) = unsafe {
            let c = &mut *(*event).data.cast::<ngx_connection_t>();
            let leaving = c.close() != 0;
            if leaving {
                // Once is enough. It stays open for what is still to be done.
                c.set_close(0);
                c.set_idle(0);
            } else {
                let mut count = 0u64;
                libc::read(c.fd, (&raw mut count).cast(), size_of::<u64>());
                (*event).set_ready(0);
                ngx_handle_read_event(event, 0);
            }
            (&mut *c.data.cast::<Self>(), leaving)
        };
        border::guard(cycle_log, (), || {
            if leaving {
                this.state.leaving();
            } else {
                this.state.woken();
            }
        });
    }
}

impl<T: Woken> Drop for Wake<T> {
    fn drop(&mut self) {
        // SAFETY: opened in `start`, closed only here.
        unsafe {
            (*self.connection).data = null_mut();
            ngx_close_connection(self.connection);
        }
    }
}
