//! The file: read with suspicion, replaced in one step.

use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::format::{Document, ParseError, parse};

/// Longest file that is read or written, in bytes: about a million servers.
pub(super) const LIMIT: u64 = 256 << 20;

/// How many bad files are kept beside the good one.
const KEPT: u32 = 9;

/// FNV-1a, 64 bits: any single byte that changes changes it.
#[derive(Clone, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Its content.
    #[error(transparent)]
    Content(#[from] ParseError),
    /// Longer than any that this module writes.
    #[error("it is longer than {} MiB", LIMIT >> 20)]
    TooLong,
    /// A directory, a device …
    #[error("it is {0}, not a regular file")]
    Kind(&'static str),
    /// The system refused.
    #[error("it can't be read: {0}")]
    Read(io::Error),
}

/// What is at a path.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Missing,
    /// A good file, and its [`identity`].
    Whole(Box<Document>, u64),
    /// Something that can't be used.
    Bad(Problem),
}

/// Reads what is at a path: a regular file of a sensible length and no link. It neither blocks on a
/// fifo nor follows where another user may point.
pub fn read(path: &Path) -> Found {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Found::Missing,
        Err(e) => {
            let kind = fs::symlink_metadata(path).ok().and_then(|m| kind(&m));
            return Found::Bad(kind.map_or(Problem::Read(e), Problem::Kind));
        }
    };
    match contents(file) {
        Ok((bytes, identity)) => match parse(&bytes) {
            Ok(document) => Found::Whole(Box::new(document), identity),
            Err(e) => Found::Bad(e.into()),
        },
        Err(problem) => Found::Bad(problem),
    }
}

fn contents(file: File) -> Result<(Vec<u8>, u64), Problem> {
    let about = file.metadata().map_err(Problem::Read)?;
    if let Some(kind) = kind(&about) {
        return Err(Problem::Kind(kind));
    }
    if about.len() > LIMIT {
        return Err(Problem::TooLong);
    }
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(about.len() as usize + 1)
        .map_err(|_| Problem::Read(io::ErrorKind::OutOfMemory.into()))?;
    // It may grow while it is read.
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(Problem::Read)?;
    if bytes.len() as u64 > LIMIT {
        return Err(Problem::TooLong);
    }
    Ok((bytes, identity_of(&about)))
}

/// `None` for a regular file.
fn kind(about: &fs::Metadata) -> Option<&'static str> {
    let kind = about.file_type();
    Some(match kind {
        _ if kind.is_file() => return None,
        _ if kind.is_dir() => "a directory",
        _ if kind.is_symlink() => "a symbolic link",
        _ if kind.is_fifo() => "a fifo",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    })
}

/// Which file is at a path: another number after each replacement and change, never 0. `None`:
/// nothing that can be read about.
pub fn identity(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|about| identity_of(&about))
}

fn identity_of(about: &fs::Metadata) -> u64 {
    let mut hash = Fnv::default();
    for part in [about.dev(), about.ino(), about.len()] {
        hash.write(&part.to_ne_bytes());
    }
    for part in [about.mtime(), about.mtime_nsec()] {
        hash.write(&part.to_ne_bytes());
    }
    hash.finish().max(1)
}

/// A path in one number, never 0.
pub fn path_hash(path: &Path) -> u64 {
    let mut hash = Fnv::default();
    hash.write(path.as_os_str().as_bytes());
    hash.finish().max(1)
}

/// A file's name with something behind it.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A free name for a file that is kept: `NAME.bad`, then `NAME.bad.2` and so on up to 9; then that
/// of the oldest, which goes.
fn free_name(path: &Path) -> io::Result<PathBuf> {
    let name = |n: u32| match n {
        1 => beside(path, ".bad"),
        n => beside(path, &format!(".bad.{n}")),
    };
    let mut oldest = None;
    for n in 1..=KEPT {
        let name = name(n);
        match fs::symlink_metadata(&name) {
            Ok(about) => {
                let age = (about.mtime(), about.mtime_nsec());
                if about.is_file() && oldest.as_ref().is_none_or(|(oldest, _)| age < *oldest) {
                    oldest = Some((age, name));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(name),
            Err(e) => return Err(e),
        }
    }
    match oldest {
        Some((_, name)) => fs::remove_file(&name).map(|()| name),
        None => Err(io::Error::other("there are too many kept already")),
    }
}

/// Moves a file that can't be used out of the way. Returns where it is now.
///
/// # Errors
///
/// It is where it was.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let name = free_name(path)?;
    fs::rename(path, &name).map(|()| name)
}

/// Gives a good file a second name, which it keeps when it is replaced. Returns that name.
///
/// # Errors
///
/// It has none.
pub fn link_aside(path: &Path) -> io::Result<PathBuf> {
    let name = free_name(path)?;
    fs::hard_link(path, &name).map(|()| name)
}

/// Puts new content at a path, so that after a crash at any moment there is the old one or the
/// new one. Returns the new [`identity`].
///
/// # Errors
///
/// The old content is there, or the new one may be lost when the machine fails.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<u64> {
    let temporary = beside(path, ".tmp");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let done = write(path, &temporary, bytes);
    if done.is_err() {
        // What there is of it is of no use; the next try would remove it as well.
        let _ = fs::remove_file(&temporary);
    }
    done
}

fn write(path: &Path, temporary: &Path, bytes: &[u8]) -> io::Result<u64> {
    if bytes.len() as u64 > LIMIT {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let identity = identity_of(&file.metadata()?);
    fs::rename(temporary, path)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()?;
    Ok(identity)
}
