//! Robust process-shared mutexes.
//!
//! The kernel gives the lock of a process that dies to the next one that asks and says so
//! (`EOWNERDEAD`); nginx's own mutex and rwlock have no owner that could be found dead.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;

/// A lock could not be taken for a reason that only memory corruption explains.
#[derive(Debug, thiserror::Error)]
#[error("the zone's lock failed: {0}")]
pub struct LockError(#[from] pub io::Error);

/// How a lock was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// Its last holder let go of it.
    Clean,
    /// Its last holder died with it.
    OwnerDied,
}

/// A mutex inside shared memory.
#[repr(transparent)]
pub(super) struct Mutex(UnsafeCell<MaybeUninit<libc::pthread_mutex_t>>);

impl Mutex {
    fn raw(&self) -> *mut libc::pthread_mutex_t {
        self.0.get().cast()
    }

    /// Makes it ready for use, unlocked.
    ///
    /// # Safety
    ///
    /// `self` is in memory that stays mapped while any process may use the lock, and no other
    /// process uses it yet.
    pub(super) unsafe fn init(&self) -> Result<(), LockError> {
        let mut attr = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attr = attr.as_mut_ptr();
        // SAFETY: `attr` is initialised by the first call before any other reads it, and the mutex
        // memory is ours alone by this function's contract.
        unsafe {
            check(libc::pthread_mutexattr_init(attr))?;
            check(libc::pthread_mutexattr_setpshared(attr, libc::PTHREAD_PROCESS_SHARED))?;
            check(libc::pthread_mutexattr_setrobust(attr, libc::PTHREAD_MUTEX_ROBUST))?;
            let done = check(libc::pthread_mutex_init(self.raw(), attr));
            libc::pthread_mutexattr_destroy(attr);
            done
        }
    }

    /// Waits for the lock.
    pub(super) fn lock(&self) -> Result<Acquired, LockError> {
        // SAFETY: a `Mutex` is only reached through a `Zone`, which initialised it or checked that
        // its maker did.
        match unsafe { libc::pthread_mutex_lock(self.raw()) } {
            0 => Ok(Acquired::Clean),
            libc::EOWNERDEAD => self.adopt(),
            e => Err(io::Error::from_raw_os_error(e).into()),
        }
    }

    /// Takes the lock when it is free: `None` when somebody alive holds it.
    pub(super) fn try_lock(&self) -> Result<Option<Acquired>, LockError> {
        // SAFETY: as in `lock`.
        match unsafe { libc::pthread_mutex_trylock(self.raw()) } {
            0 => Ok(Some(Acquired::Clean)),
            libc::EBUSY => Ok(None),
            libc::EOWNERDEAD => self.adopt().map(Some),
            e => Err(io::Error::from_raw_os_error(e).into()),
        }
    }

    /// Goes on with the lock of a dead process: without this its next release would make it
    /// unusable for good.
    fn adopt(&self) -> Result<Acquired, LockError> {
        // SAFETY: as in `lock`; the caller's last call on this mutex returned EOWNERDEAD, so this
        // thread holds it.
        check(unsafe { libc::pthread_mutex_consistent(self.raw()) })?;
        Ok(Acquired::OwnerDied)
    }

    /// Lets go of the lock.
    ///
    /// # Safety
    ///
    /// This thread holds it.
    pub(super) unsafe fn unlock(&self) {
        // SAFETY: as in `lock`; held by this thread by this function's contract.
        let rc = unsafe { libc::pthread_mutex_unlock(self.raw()) };
        debug_assert_eq!(rc, 0);
    }
}

fn check(rc: libc::c_int) -> Result<(), LockError> {
    match rc {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(e).into()),
    }
}
