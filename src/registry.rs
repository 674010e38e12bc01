//! The domain: namespaces and servers, their life, and who carries how many requests.
//!
//! A [`Registry`] is a zone with its lock held. Every rule of a server's life is a method here or
//! in one of the files beside; time comes in as an argument and log lines go out as [`Events`], so
//! that each rule can be tested without sleeping and without nginx.
//!
//! What is *true* in a zone are the fields of live records and the ledger. Everything else (hash
//! chains, lists, heaps, classes, in-flight sums) is *derived* from them and rebuilt by
//! [`Registry::lock`] when the last holder of the lock died: see the file `repair`.

#![forbid(unsafe_code)]

mod address;
mod chain;
mod check;
mod event;
mod flight;
mod health;
mod heap;
mod life;
mod means;
mod member;
mod names;
mod network;
mod news;
mod order;
mod panic;
mod queue;
mod remote;
mod repair;
mod saved;
mod settings;
mod space;
mod statics;
mod sweep;
#[cfg(test)]
mod tests;
mod tree;
mod trouble;
mod view;
mod warm;
mod worker;

pub use address::{Address, AddressError, Host, parse_host};
pub use check::Totals;
pub use event::{Event, Events, Happening};
pub use flight::{Choice, Flight, Nobody, Released, Target, Verdict};
pub use health::{CHECK_RULES_MAX, CheckPlan, CheckRules, CheckView, Claim, Duty, Initial, Share};
pub use life::{Afar, Change, OnDuplicate, OnExpire, Registration, Rules, Watch, Watched};
pub use means::Round;
pub use names::{Found, NameRef};
pub use network::{Network, NetworkError};
pub use news::{News, Outcome, Ticket, What};
pub use order::{Group, Order, Pick, Ready};
pub use remote::{AWAY_TOO_LONG, LiveRecord, Record, RecordState, Unseen, WIPED, Wipe};
pub use saved::{Copied, Merge, SavedServer, Snapshot, Source, SwitchedOff};
pub use settings::{HealthPath, Settings};
pub use space::{SpaceName, SpaceRef};
pub use statics::StaticServer;
pub use sweep::Sweep;
pub use trouble::Trouble;
pub use view::{Cursor, Health, ServerView, Sharing, State};
pub use worker::Worker;

use crate::shm::{Guard, LockError, Zone, fault};

/// Now, on both clocks, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock: all rules run on it.
    pub mono: u64,
    /// Since the epoch: only shown.
    pub wall: u64,
}

/// Heaviest server.
pub const WEIGHT_MAX: u32 = 65_535;

/// Highest limit on the requests of one server.
pub const MAX_CONNS_MAX: u32 = i32::MAX as u32;

/// Longest time in which a server grows to its weight: an hour, in milliseconds.
pub const SLOW_START_MAX: u32 = 3_600_000;

/// Highest number of failures after which a server rests.
pub const MAX_FAILS_MAX: u32 = i32::MAX as u32;

/// Longest time for which a failure counts, and a server rests: a day, in milliseconds.
pub const FAIL_TIMEOUT_MAX: u32 = 86_400_000;

/// Longest timeout of requests to a server: a day, in milliseconds.
pub const TIMEOUT_MAX: u32 = 86_400_000;

/// Why a change was not made. Nothing is half done: the zone is as it was.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No server of that address in the namespace.
    #[error("Server not found: {0}")]
    NotFound(String),
    /// No such namespace.
    #[error("Namespace not found: {0}")]
    NoSpace(String),
    /// `on_duplicate reject` and the server is known.
    #[error("Server already exists: {0}")]
    Duplicate(String),
    /// Only the configuration can remove it.
    #[error("Server is defined in the configuration and can't be removed: {0}; disable it instead")]
    Static(String),
    /// It goes with its name.
    #[error("Server {0} is an address of the name {1}: remove or refresh that instead")]
    OfName(String, String),
    /// No free record.
    #[error("The zone is full: no room for another {0}; give the registry a larger size")]
    Full(&'static str),
    /// A reload is replacing the zone; the new workers take changes.
    #[error("The configuration is being reloaded; try again")]
    Retired,
}

/// A zone with its lock held.
pub struct Registry<'z> {
    g: Guard<'z>,
}

impl<'z> Registry<'z> {
    /// Takes the zone's lock, and repairs the zone first when its last holder died with it.
    ///
    /// # Errors
    ///
    /// [`LockError`] when the lock is damaged.
    #[inline]
    pub fn lock(zone: &'z Zone) -> Result<Self, LockError> {
        let mut registry = Self { g: zone.lock()? };
        if registry.g.needs_repair() {
            registry.repair();
        }
        Ok(registry)
    }

    /// Whether a successor has taken over: see [`Error::Retired`].
    pub fn is_retired(&self) -> bool {
        self.g.header.retired != 0
    }

    /// Marks the zone as replaced by another.
    pub fn retire(&mut self) {
        self.g.header.retired = 1;
        fault::point!("succeed.retired");
    }

    /// Servers in the zone.
    pub fn servers(&self) -> usize {
        self.g.header.servers as usize
    }

    /// Grows with every change but counts and heartbeats.
    pub fn version(&self) -> u64 {
        self.g.header.version
    }
}
