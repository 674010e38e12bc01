//! How the arena is divided.

use std::mem::{align_of, size_of};

use super::records::{Checks, Header, HeapEntry, LedgerEntry, Server, Slots, Space, WorkerRecord};

/// Version of the layout: a zone made by other code is not read, its successor copies from it only
/// when this number is the same.
pub const LAYOUT_VERSION: u32 = 8;

/// The smallest useful arena, in bytes.
pub const MIN_ARENA: usize = 96 * 1024;

/// What a mutex takes, in bytes: two cache lines apart from each other, so that a worker's own
/// mutex never shares a line with the records.
const MUTEX_SIZE: usize = 64;

const _: () = assert!(size_of::<libc::pthread_mutex_t>() <= MUTEX_SIZE);

/// The arena is too small.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{given} bytes are too few, the smallest arena is {MIN_ARENA} bytes")]
pub struct SizeError {
    /// Bytes that there are.
    pub given: usize,
}

/// Offsets and lengths of the tables: computed from the size of the arena alone, so that every
/// process gets the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of the arena in bytes.
    pub size: usize,
    /// Most servers.
    pub servers: usize,
    /// Most namespaces.
    pub spaces: usize,
    /// Most worker processes that can be told apart, old and new together.
    pub workers: usize,
    /// Entries of the heap table.
    pub heap: usize,
    /// Entries of the ledger.
    pub ledger: usize,
    pub(super) lock_at: usize,
    pub(super) worker_locks_at: usize,
    pub(super) workers_at: usize,
    pub(super) spaces_at: usize,
    pub(super) space_index_at: usize,
    pub(super) servers_at: usize,
    pub(super) slots_at: usize,
    pub(super) checks_at: usize,
    pub(super) server_index_at: usize,
    pub(super) heap_at: usize,
    pub(super) ledger_at: usize,
}

/// Heap entries for each server: one in each order, and slack so that a heap seldom has to move.
const HEAP_PER_SERVER: usize = 3;
/// Ledger entries for each server.
const LEDGER_PER_SERVER: usize = 1;
/// Servers for each namespace.
const SERVERS_PER_SPACE: usize = 4;
/// Namespaces, heap and ledger entries that even the smallest zone has.
const SPARE: usize = 32;

impl Layout {
    /// Divides an arena of `size` bytes.
    ///
    /// # Errors
    ///
    /// [`SizeError`] when `size` is below [`MIN_ARENA`].
    pub fn new(size: usize) -> Result<Self, SizeError> {
        if size < MIN_ARENA {
            return Err(SizeError { given: size });
        }

        let workers = (size / (64 * 1024)).clamp(64, 1024);
        let space_cost = size_of::<Space>() + size_of::<u32>();
        let fixed = size_of::<Header>()
            + MUTEX_SIZE * (1 + workers)
            + size_of::<WorkerRecord>() * workers
            + SPARE * (space_cost + size_of::<HeapEntry>() + size_of::<LedgerEntry>())
            // what aligning the tables can cost
            + 11 * align_of::<Server>();

        // Nodes of a tree name servers and each other in 20 bits.
        let servers = ((size - fixed) * SERVERS_PER_SPACE
            / (Self::bytes_per_server() * SERVERS_PER_SPACE))
            .min((1 << 20) - 1);
        let spaces = SPARE + servers / SERVERS_PER_SPACE;
        let heap = SPARE + servers * HEAP_PER_SERVER;
        let ledger = SPARE + servers * LEDGER_PER_SERVER;

        let mut end = 0;
        let mut place = |bytes: usize, align: usize| {
            let at = usize::next_multiple_of(end, align);
            end = at + bytes;
            at
        };

        place(size_of::<Header>(), align_of::<Header>());
        let lock_at = place(MUTEX_SIZE, MUTEX_SIZE);
        let worker_locks_at = place(MUTEX_SIZE * workers, MUTEX_SIZE);
        let workers_at = place(size_of::<WorkerRecord>() * workers, 64);
        let spaces_at = place(size_of::<Space>() * spaces, 64);
        let space_index_at = place(size_of::<u32>() * spaces, 64);
        let servers_at = place(size_of::<Server>() * servers, 64);
        let slots_at = place(size_of::<Slots>() * servers, 64);
        let checks_at = place(size_of::<Checks>() * servers, 64);
        let server_index_at = place(size_of::<u32>() * servers, 64);
        let heap_at = place(size_of::<HeapEntry>() * heap, 64);
        let ledger_at = place(size_of::<LedgerEntry>() * ledger, 64);
        debug_assert!(end <= size, "{end} > {size}");

        Ok(Self {
            size,
            servers,
            spaces,
            workers,
            heap,
            ledger,
            lock_at,
            worker_locks_at,
            workers_at,
            spaces_at,
            space_index_at,
            servers_at,
            slots_at,
            checks_at,
            server_index_at,
            heap_at,
            ledger_at,
        })
    }

    /// What one server takes, with its share of all tables, in bytes.
    pub const fn bytes_per_server() -> usize {
        size_of::<Server>()
            + size_of::<Slots>()
            + size_of::<Checks>()
            + size_of::<u32>()
            + HEAP_PER_SERVER * size_of::<HeapEntry>()
            + LEDGER_PER_SERVER * size_of::<LedgerEntry>()
            + (size_of::<Space>() + size_of::<u32>()).div_ceil(SERVERS_PER_SPACE)
    }

    pub(super) fn worker_lock_at(&self, slot: usize) -> usize {
        debug_assert!(slot < self.workers);
        self.worker_locks_at + slot * MUTEX_SIZE
    }
}
