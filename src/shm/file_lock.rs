//! Locks on the bytes of a file, between processes that share no memory.
//!
//! Open file description locks: they belong to the open file, not to the process as the older
//! kind does, and the kernel drops them when its last descriptor is closed, so with the process
//! however that ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// An open file whose bytes can be locked. Dropping it drops its locks.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Opens a file, or makes it.
    ///
    /// # Errors
    ///
    /// As for opening any file for writing; a symbolic link is refused.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = || open(path, true);
        match open() {
            // Left by workers of another user, in a directory that is ours now.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                std::fs::remove_file(path).map_err(|_| e)?;
                open().map(Self)
            }
            opened => opened.map(Self),
        }
    }

    /// Opens a file that is there.
    ///
    /// # Errors
    ///
    /// As for [`FileLock::open`].
    pub fn open_existing(path: &Path) -> io::Result<Self> {
        open(path, false).map(Self)
    }

    /// Whether the file is still there under a name: a lock on one that is not says nothing.
    pub fn is_linked(&self) -> bool {
        self.0.metadata().is_ok_and(|m| m.nlink() > 0)
    }

    /// Locks a byte for this open file alone. False: another has it.
    ///
    /// # Errors
    ///
    /// The file system has no locks.
    pub fn try_exclusive(&self, byte: u64) -> io::Result<bool> {
        self.set(libc::F_WRLCK as i16, byte)
    }

    /// Locks a byte in company with others who do so. False: another has it for itself.
    ///
    /// # Errors
    ///
    /// The file system has no locks.
    pub fn try_shared(&self, byte: u64) -> io::Result<bool> {
        self.set(libc::F_RDLCK as i16, byte)
    }

    /// Lets go of a byte.
    ///
    /// # Errors
    ///
    /// The file system has no locks.
    pub fn release(&self, byte: u64) -> io::Result<()> {
        self.set(libc::F_UNLCK as i16, byte).map(drop)
    }

    /// Whether another open file holds a lock on a byte from `first` up to, but not with, `end`.
    ///
    /// # Errors
    ///
    /// The file system has no locks.
    pub fn is_held_by_others(&self, first: u64, end: u64) -> io::Result<bool> {
        if end <= first {
            return Ok(false);
        }
        let mut range = range(libc::F_WRLCK as i16, first, end - first);
        // SAFETY: an open descriptor, and a flock structure that the kernel fills in.
        match unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(range.l_type != libc::F_UNLCK as i16),
        }
    }

    fn set(&self, kind: i16, byte: u64) -> io::Result<bool> {
        let range = range(kind, byte, 1);
        // SAFETY: an open descriptor, and a flock structure that the kernel reads.
        if unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } == 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            e => Err(e),
        }
    }
}

impl Drop for FileLock {
    /// Lets go of all locks at once: closing the file would not, where a process that was forked in
    /// the meantime still has it open.
    fn drop(&mut self) {
        let all = range(libc::F_UNLCK as i16, 0, 0);
        // SAFETY: an open descriptor, and a flock structure that the kernel reads. That it fails
        // leaves what closing does.
        unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_OFD_SETLK, &raw const all) };
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
}

fn range(kind: i16, first: u64, len: u64) -> libc::flock {
    // SAFETY: all of the structure may be zero; open file description locks want l_pid to be.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind;
    range.l_whence = libc::SEEK_SET as i16;
    range.l_start = first as libc::off_t;
    range.l_len = len as libc::off_t;
    range
}
