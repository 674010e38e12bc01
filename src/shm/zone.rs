//! A zone: the typed view of an arena.

use std::io::{self, Read};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::slice;

use super::fault;
use super::layout::{LAYOUT_VERSION, Layout, SizeError};
use super::lock::{Acquired, LockError, Mutex};
use super::records::{
    Checks, Filed, Header, HeapEntry, JOURNAL_EMPTY, LedgerEntry, NEVER_FILED, NONE, Server,
    Shared, Slots, Space, WorkerRecord, dirty,
};

/// "ngxureg" and the kind of file.
const MAGIC: u64 = u64::from_le_bytes(*b"ngxureg\0");

/// The arena holds no zone that this code can use.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The arena is too small.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Not made by this module.
    #[error("the shared memory holds no registry")]
    Magic,
    /// Made by another version of this module.
    #[error("the registry has layout {found}, this module reads layout {LAYOUT_VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// Its lock could not be made.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// A zone in shared memory, as this process sees it.
#[derive(Debug)]
pub struct Zone {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: all access to the records goes through `lock`, which excludes threads as well as
// processes; the rest of the handle never changes.
unsafe impl Send for Zone {}
// SAFETY: as above.
unsafe impl Sync for Zone {}

impl Zone {
    /// Makes an empty zone.
    ///
    /// # Errors
    ///
    /// [`OpenError::Size`] when `len` is too small, [`OpenError::Lock`] when a mutex can't be made.
    ///
    /// # Safety
    ///
    /// `base` points to `len` writable bytes, aligned to 64, that stay mapped while the returned
    /// handle (or any handle to the same arena in another process) is used, and nobody else uses
    /// them yet.
    pub unsafe fn create(base: NonNull<u8>, len: usize) -> Result<Self, OpenError> {
        let layout = Layout::new(len)?;
        let zone = Self { base, layout };

        // SAFETY: the arena is ours alone by this function's contract; zero is a valid value of
        // every record.
        unsafe {
            base.as_ptr().write_bytes(0, len);
            zone.mutex(layout.lock_at).init()?;
            for slot in 0..layout.workers {
                zone.mutex(layout.worker_lock_at(slot)).init()?;
            }
        }

        let mut guard = zone.lock()?;
        let t = &mut *guard;
        *t.header = Header {
            magic: MAGIC,
            layout_version: LAYOUT_VERSION,
            size: len as u64,
            secret: random_u64(),
            next_number: 1,
            next_incarnation: 1,
            journal_target: JOURNAL_EMPTY,
            leader_slot: NONE,
            filed: Filed { instance: random_u64().max(1), version: NEVER_FILED, ..t.header.filed },
            shared: Shared {
                nodes: 1,
                queue_head: NONE,
                queue_tail: NONE,
                kept_head: NONE,
                kept_tail: NONE,
                ..t.header.shared
            },
            ..*t.header
        };
        t.link_free_lists();
        drop(guard);

        Ok(zone)
    }

    /// Makes an empty zone in memory of its own, shared with the processes that this one forks, and
    /// never unmapped: for tests and measurements without nginx.
    ///
    /// # Errors
    ///
    /// As for [`Zone::create`]; no memory is reported as [`OpenError::Lock`] with the reason.
    pub fn anonymous(len: usize) -> Result<Self, OpenError> {
        // SAFETY: a new mapping, aligned to pages, that is never unmapped and that only the
        // returned handle knows.
        unsafe {
            let base = libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            match NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED) {
                Some(base) => Self::create(base, len),
                None => Err(LockError(io::Error::last_os_error()).into()),
            }
        }
    }

    /// Opens a zone that `create` made, in this process or another, in the first of `len` bytes.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when there is none, or one of another layout.
    ///
    /// # Safety
    ///
    /// As for [`Zone::create`], save that others may use the arena through handles of their own.
    pub unsafe fn open(base: NonNull<u8>, len: usize) -> Result<Self, OpenError> {
        if len < size_of::<Header>() {
            return Err(SizeError { given: len }.into());
        }
        // SAFETY: `len` is at least the header's size; these fields are written once, before the
        // arena is shared.
        let (magic, version, size) = unsafe {
            let header = base.cast::<Header>().as_ptr();
            (
                (&raw const (*header).magic).read(),
                (&raw const (*header).layout_version).read(),
                (&raw const (*header).size).read() as usize,
            )
        };
        if magic != MAGIC || size > len {
            return Err(OpenError::Magic);
        }
        if version != LAYOUT_VERSION {
            return Err(OpenError::Version { found: version });
        }
        Ok(Self { base, layout: Layout::new(size)? })
    }

    /// Where the arena is: the same for all handles of one process to it.
    pub fn base(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// How the arena is divided.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Waits for the zone's lock.
    ///
    /// # Errors
    ///
    /// [`LockError`], which means that the memory is damaged.
    #[inline]
    pub fn lock(&self) -> Result<Guard<'_>, LockError> {
        let acquired = self.mutex(self.layout.lock_at).lock()?;
        fault::point!("lock.taken");
        // SAFETY: the lock is held until the guard is dropped.
        let tables = unsafe { self.tables() };
        Ok(Guard { zone: self, acquired, tables, held_by_this_thread: PhantomData })
    }

    /// Takes the mutex that a worker holds for life: `None` while that worker lives.
    ///
    /// It stays taken until [`Zone::release_worker`] or the end of this process.
    ///
    /// # Errors
    ///
    /// [`LockError`], which means that the memory is damaged.
    pub fn claim_worker(&self, slot: usize) -> Result<Option<Acquired>, LockError> {
        self.mutex(self.layout.worker_lock_at(slot)).try_lock()
    }

    /// Lets go of what [`Zone::claim_worker`] took.
    pub fn release_worker(&self, slot: usize) {
        // SAFETY: callers release only what `claim_worker` gave to this thread; unlocking a robust
        // mutex held by another fails with EPERM and changes nothing.
        unsafe { self.mutex(self.layout.worker_lock_at(slot)).unlock() }
    }

    fn mutex(&self, at: usize) -> &Mutex {
        // SAFETY: the layout keeps the mutexes inside the arena, aligned to 64 and apart from all
        // records; `Mutex` has interior mutability and any bit pattern is valid for it.
        unsafe { self.base.add(at).cast::<Mutex>().as_ref() }
    }

    /// # Safety
    ///
    /// The zone's lock is held by this thread for as long as the tables live, and no other tables
    /// of it exist.
    #[inline]
    unsafe fn tables(&self) -> Tables<'_> {
        let l = &self.layout;
        // SAFETY: the layout gives each table its own aligned place inside the arena; the records
        // are plain integers, so whatever is there is valid; exclusive by this function's
        // contract.
        unsafe {
            Tables {
                header: self.base.cast().as_mut(),
                workers: self.table(l.workers_at, l.workers),
                spaces: self.table(l.spaces_at, l.spaces),
                space_index: self.table(l.space_index_at, l.spaces),
                servers: self.table(l.servers_at, l.servers),
                slots: self.table(l.slots_at, l.servers),
                checks: self.table(l.checks_at, l.servers),
                server_index: self.table(l.server_index_at, l.servers),
                heap: self.table(l.heap_at, l.heap),
                ledger: self.table(l.ledger_at, l.ledger),
            }
        }
    }

    /// # Safety
    ///
    /// As for `tables`; `at` and `len` come from the layout for records of type `T`.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "shared memory under a lock, see the contract")]
    unsafe fn table<T>(&self, at: usize, len: usize) -> &mut [T] {
        // SAFETY: by this function's contract.
        unsafe { slice::from_raw_parts_mut(self.base.add(at).cast::<T>().as_ptr(), len) }
    }
}

/// All records of a zone, while its lock is held.
pub struct Tables<'a> {
    /// The head.
    pub header: &'a mut Header,
    /// Worker processes.
    pub workers: &'a mut [WorkerRecord],
    /// Namespaces.
    pub spaces: &'a mut [Space],
    /// Hash chains of namespaces.
    pub space_index: &'a mut [u32],
    /// Servers.
    pub servers: &'a mut [Server],
    /// Where each server stands in the heaps.
    pub slots: &'a mut [Slots],
    /// What health checks found about each server.
    pub checks: &'a mut [Checks],
    /// Hash chains of servers.
    pub server_index: &'a mut [u32],
    /// The entries of all heaps.
    pub heap: &'a mut [HeapEntry],
    /// Who has how many requests where.
    pub ledger: &'a mut [LedgerEntry],
}

impl Tables<'_> {
    /// Empties what is derived and chains every slot that is not in use.
    pub fn link_free_lists(&mut self) {
        self.space_index.fill(NONE);
        self.server_index.fill(NONE);
        self.slots.fill(Slots { at: [NONE; 4] });

        let mut next = NONE;
        for (i, space) in self.spaces.iter_mut().enumerate().rev() {
            if space.live == 0 {
                space.hash_next = next;
                next = i as u32;
            }
        }
        self.header.free_space = next;

        next = NONE;
        for (i, server) in self.servers.iter_mut().enumerate().rev() {
            if server.live == 0 && !server.is_departed() {
                server.hash_next = next;
                next = i as u32;
            }
        }
        self.header.free_server = next;

        next = NONE;
        for (i, entry) in self.ledger.iter_mut().enumerate().rev() {
            if entry.incarnation == 0 {
                entry.next = next;
                next = i as u32;
            }
        }
        self.header.free_ledger = next;
    }
}

/// The lock of a zone, held; its records.
pub struct Guard<'a> {
    zone: &'a Zone,
    acquired: Acquired,
    tables: Tables<'a>,
    // A mutex is released by the thread that took it: neither `Send` nor `Sync`.
    held_by_this_thread: PhantomData<*mut ()>,
}

impl<'a> Guard<'a> {
    /// The zone that is locked.
    pub fn zone(&self) -> &'a Zone {
        self.zone
    }

    /// Whether the last holder died or panicked with the lock: what is derived must be rebuilt
    /// before anything is read.
    pub fn needs_repair(&self) -> bool {
        self.acquired == Acquired::OwnerDied || self.tables.header.dirty != 0
    }

    /// Called when everything derived has been rebuilt.
    pub fn repaired(&mut self) {
        self.acquired = Acquired::Clean;
        self.tables.header.dirty = 0;
    }
}

impl<'a> Deref for Guard<'a> {
    type Target = Tables<'a>;
    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.tables
    }
}

impl DerefMut for Guard<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.tables
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        // A panic in the middle of a change is like a death: the next holder repairs.
        if self.acquired == Acquired::OwnerDied || std::thread::panicking() {
            self.tables.header.dirty |= dirty::DERIVED;
        }
        fault::point!("lock.release");
        // SAFETY: the guard was made with the lock held by this thread, which it can't leave.
        unsafe { self.zone.mutex(self.zone.layout.lock_at).unlock() }
    }
}

/// A number that nobody can guess: a key for the hash tables, an identity.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    match read {
        Ok(()) => u64::from_ne_bytes(bytes),
        // No device (a bare chroot): the address of a local and the time are still hard to guess.
        Err(_) => {
            let time = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.as_nanos() as u64);
            time ^ ((&raw const bytes) as u64).rotate_left(32)
        }
    }
}
