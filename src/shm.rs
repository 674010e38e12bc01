//! The zone: fixed-size records in a piece of shared memory, and the lock that guards them.
//!
//! This room knows bytes, not meaning. [`Zone`] turns a pointer and a length into typed tables,
//! [`Guard`] hands them out while the lock is held, and [`crate::registry`] decides what they say.
//! Records refer to each other by index, never by address, and a reader checks the generation of
//! what it finds: a slot is used again, a `(slot, generation)` pair is not.

pub mod fault;
mod file_lock;
mod layout;
mod lock;
mod records;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod zone;

pub use file_lock::FileLock;
pub use layout::{LAYOUT_VERSION, Layout, MIN_ARENA, SizeError};
pub use lock::{Acquired, LockError};
pub use records::{AGES, Filed, Header, JOURNAL_EMPTY, NEVER_FILED, Shared, WARMING};
pub use records::{
    Checks, Extent, HEALTH_PATH_MAX, HeapEntry, Key, LedgerEntry, NAME_MAX, NONE, SPACE_NAME_MAX,
    Server, Slots, Space, WorkerRecord, changed, class, dirty, flag, heap, pending, reason,
    space_flag, timeout,
};
pub use zone::{Guard, OpenError, Tables, Zone, random_u64};
