//! What a thread does with the state file: wait for the disk, so that the event loop need not.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file::{Found, Problem, beside, identity, read, replace, set_aside};
use super::format::{Document, Draft};
use crate::shm::FileLock;

/// The byte that is locked while the file is looked at and replaced.
const TURN: u64 = 0;

/// What is to be done.
#[derive(Debug)]
pub enum Job {
    /// Say which file is there, and whether another nginx uses it.
    Look,
    /// Take the lock, and read the file unless it is the one of this [`identity`]. Ends with
    /// [`Job::Write`] or [`Job::Abort`].
    Begin {
        /// The file that is known.
        known: u64,
    },
    /// Replace the file and let go of the lock.
    Write(Draft),
    /// Let go of the lock.
    Abort,
    /// Free a document, which takes milliseconds for ten thousand servers.
    Discard(Box<Document>),
}

/// What came of it.
#[derive(Debug)]
pub enum Report {
    /// Of [`Job::Look`].
    Looked {
        /// The file's [`identity`]; 0: there is none.
        identity: u64,
        /// Another nginx uses it too.
        others: bool,
    },
    /// Of [`Job::Begin`].
    Began(Began),
    /// Of [`Job::Write`]: the new file's [`identity`].
    Wrote(Result<u64, Failure>),
    /// Of [`Job::Abort`].
    Aborted,
    /// Of [`Job::Discard`].
    Discarded,
}

/// How a change of the file begins.
#[derive(Debug)]
pub enum Began {
    /// Another process has the lock.
    Busy,
    /// There can be no change.
    Failed(Failure),
    /// The lock is taken.
    Ready {
        /// What is there.
        content: Content,
        /// Another nginx uses the file too.
        others: bool,
    },
}

/// What is there.
#[derive(Debug)]
pub enum Content {
    /// No file.
    Missing,
    /// The file that is known, or an older one of this zone.
    Ours,
    /// A file that another nginx wrote, and its [`identity`].
    Foreign(Box<Document>, u64),
    /// Something that can't be used, and where it has been moved. When it could not be moved, the
    /// lock is not held.
    Bad(Problem, io::Result<PathBuf>),
}

/// Something that the system refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Failure {
    what: String,
    why: io::Error,
}

impl Failure {
    fn new(what: &str, path: &Path, why: io::Error) -> Self {
        Self { what: format!("{what} \"{}\" failed", path.display()), why }
    }
}

/// A state file in the hands of one thread.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    instance: u64,
    lock: Option<FileLock>,
    has_turn: bool,
}

impl Keeper {
    /// Nothing is touched yet. `instance`: the zone that is kept there.
    pub fn new(path: PathBuf, instance: u64) -> Self {
        Self { path, instance, lock: None, has_turn: false }
    }

    /// Does one thing.
    pub fn work(&mut self, job: Job) -> Report {
        match job {
            Job::Look => Report::Looked {
                identity: identity(&self.path).unwrap_or(0),
                others: self.lock.as_ref().is_some_and(|lock| has_company(lock, self.instance)),
            },
            Job::Begin { known } => Report::Began(self.begin(known)),
            Job::Write(draft) => {
                let bytes = draft.seal();
                let wrote = match self.has_turn {
                    true => replace(&self.path, &bytes),
                    false => Err(io::Error::other("its lock was lost")),
                };
                self.end();
                Report::Wrote(wrote.map_err(|e| Failure::new("writing", &self.path, e)))
            }
            Job::Abort => {
                self.end();
                Report::Aborted
            }
            Job::Discard(document) => {
                drop(document);
                Report::Discarded
            }
        }
    }

    fn begin(&mut self, known: u64) -> Began {
        match self.take_turn() {
            Ok(true) => {}
            Ok(false) => return Began::Busy,
            Err(failure) => return Began::Failed(failure),
        }
        let content = match identity(&self.path) {
            Some(found) if found == known => Content::Ours,
            _ => match read(&self.path) {
                Found::Missing => Content::Missing,
                Found::Whole(document, _) if document.head.source.instance == self.instance => {
                    Content::Ours
                }
                Found::Whole(document, identity) => Content::Foreign(document, identity),
                Found::Bad(problem) => Content::Bad(problem, set_aside(&self.path)),
            },
        };
        if matches!(content, Content::Bad(_, Err(_))) {
            self.end();
        }
        let others = self.lock.as_ref().is_some_and(|lock| has_company(lock, self.instance));
        Began::Ready { content, others }
    }

    fn take_turn(&mut self) -> Result<bool, Failure> {
        let path = beside(&self.path, ".lock");
        let failed = |e| Failure::new("locking", &path, e);
        if self.lock.as_ref().is_none_or(|lock| !lock.is_linked()) {
            let lock = FileLock::open(&path).map_err(failed)?;
            // That this nginx uses the file; held for as long as this is open.
            lock.try_shared(presence(self.instance)).map_err(failed)?;
            self.lock = Some(lock);
        }
        let Some(lock) = &self.lock else { return Ok(false) };
        self.has_turn = lock.try_exclusive(TURN).map_err(failed)?;
        Ok(self.has_turn)
    }

    fn end(&mut self) {
        self.has_turn = false;
        if self.lock.as_ref().is_some_and(|lock| lock.release(TURN).is_err()) {
            // Closing it does so in any case.
            self.lock = None;
        }
    }
}

/// The byte that all workers of one nginx share, for as long as it uses the file.
fn presence(instance: u64) -> u64 {
    1 + (instance >> 3)
}

/// Whether another nginx than that uses the file.
fn has_company(lock: &FileLock, instance: u64) -> bool {
    let mine = presence(instance);
    let held = |first, end| lock.is_held_by_others(first, end).unwrap_or(false);
    held(1, mine) || held(mine + 1, 1 << 62)
}

/// Before the file is read at a start: another nginx that uses it (the old side of a binary
/// upgrade) sees that it has company and writes what it has. Waits for that, and no longer than
/// `patience`.
pub fn ask_for_latest(path: &Path, instance: u64, patience: Duration) {
    // Without the lock's file nobody else can be there.
    let Ok(lock) = FileLock::open_existing(&beside(path, ".lock")) else { return };
    if !has_company(&lock, instance) || !lock.try_shared(presence(instance)).unwrap_or(false) {
        return;
    }
    let before = identity(path);
    let deadline = Instant::now() + patience;
    while identity(path) == before && has_company(&lock, instance) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}
