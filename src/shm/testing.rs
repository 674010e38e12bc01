//! Processes that die with what they hold, for tests.

use super::Zone;

/// A zone of its own.
///
/// # Panics
///
/// When there is no memory, or `size` is too small.
pub(crate) fn zone(size: usize) -> &'static Zone {
    Box::leak(Box::new(Zone::anonymous(size).unwrap()))
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
