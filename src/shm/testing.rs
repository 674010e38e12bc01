//! Processes that die with what they hold, for tests.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

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
    let child = fork(|| {
        f();
        // SAFETY: a process may always kill itself.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
    wait(child);
}

/// Runs `f` in a process of its own and kills it after some time, wherever it then is. `f` must go
/// on for longer than that.
///
/// # Panics
///
/// As for [`dies_after`].
pub(crate) fn killed_after(time: Duration, f: impl FnOnce()) {
    let child = fork(f);
    std::thread::sleep(time);
    // SAFETY: our own child, which has not been waited for.
    unsafe { libc::kill(child, libc::SIGKILL) };
    wait(child);
}

/// Runs `f` in a process of its own. True when it killed itself, false when it came to its end.
///
/// # Panics
///
/// When the process can't be made, or ends in another way (a panic in `f`, for one).
pub(crate) fn is_killed_in(f: impl FnOnce()) -> bool {
    const DONE: i32 = 77;
    let child = fork(|| {
        f();
        // SAFETY: a process may always end itself; nothing of the parent's is run down.
        unsafe { libc::_exit(DONE) };
    });
    let mut status = 0;
    // SAFETY: our own child, which has not been waited for.
    unsafe { assert_eq!(libc::waitpid(child, &mut status, 0), child) };
    let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
    assert!(killed || libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == DONE);
    killed
}

/// A word that this process shares with those that it forks.
///
/// # Panics
///
/// When there is no memory.
pub(crate) fn shared_word() -> &'static AtomicU64 {
    // SAFETY: a new mapping that stays; zero is a valid value.
    unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            size_of::<AtomicU64>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert!(memory != libc::MAP_FAILED);
        &*memory.cast()
    }
}

fn fork(f: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child runs `f` on memory that it shares or has copied and never returns. glibc
    // keeps its allocator usable after a fork.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            libc::_exit(1);
        }
        child
    }
}

fn wait(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: our own child, which has not been waited for.
    unsafe { assert_eq!(libc::waitpid(child, &mut status, 0), child) };
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
}
