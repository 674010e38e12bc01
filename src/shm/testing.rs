//! Zones for tests: real shared memory, and processes that die with it.

use std::ptr::{NonNull, null_mut};

use super::Zone;

/// A zone in shared memory of its own, never unmapped.
///
/// # Panics
///
/// When there is no memory, or `size` is too small.
pub(crate) fn zone(size: usize) -> &'static Zone {
    // SAFETY: a new mapping, aligned to pages, used through the returned handle only.
    let made = unsafe {
        let base = libc::mmap(
            null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(base, libc::MAP_FAILED);
        Zone::create(NonNull::new(base.cast()).unwrap(), size)
    };
    Box::leak(Box::new(made.unwrap()))
}

/// Runs `f` in a process of its own that is then killed, with whatever it holds.
///
/// # Panics
///
/// When the process can't be made, or ends in another way (a panic in `f`, for one).
pub(crate) fn dies_after(f: impl FnOnce()) {
    // SAFETY: the child runs `f` on memory that it shares or has copied and never returns. glibc
    // keeps its allocator usable after a fork.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_ok() {
                libc::kill(libc::getpid(), libc::SIGKILL);
            }
            libc::_exit(1);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
    }
}
