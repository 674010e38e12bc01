//! What a registration says of a server besides its weight and its limit of requests.

use super::{FAIL_TIMEOUT_MAX, MAX_FAILS_MAX, SLOW_START_MAX, TIMEOUT_MAX};
use crate::shm::{HEALTH_PATH_MAX, Server};

/// Carried together: from a registration, a `server` line, a file or another node into the record, and
/// back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// 0 to [`MAX_FAILS_MAX`]; 0: never taken out for failures.
    pub max_fails: u32,
    /// Milliseconds for which a failure counts and the server then rests, up to [`FAIL_TIMEOUT_MAX`].
    pub fail_timeout_ms: u32,
    /// Milliseconds in which it grows to its weight, up to [`SLOW_START_MAX`]; 0: it has it at once.
    pub slow_start_ms: u32,
    /// Milliseconds up to [`TIMEOUT_MAX`]; 0: as the location says. Indexed by
    /// [`timeout`](crate::shm::timeout).
    pub timeouts_ms: [u32; 3],
    /// What health checks ask for.
    pub health_path: HealthPath,
}

impl Settings {
    /// Of a server of which nothing is said: nginx's own, where it has any.
    pub const DEFAULT: Self = Self {
        max_fails: 1,
        fail_timeout_ms: 10_000,
        slow_start_ms: 0,
        timeouts_ms: [0; 3],
        health_path: HealthPath::NONE,
    };

    /// Those of a record. That of a departed server has none any more.
    pub(super) fn of(s: &Server) -> Self {
        if s.is_departed() {
            return Self::DEFAULT;
        }
        Self {
            max_fails: s.max_fails,
            fail_timeout_ms: s.fail_timeout_ms,
            slow_start_ms: s.slow_start_ms,
            timeouts_ms: s.timeouts_ms,
            health_path: HealthPath(s.health_path),
        }
    }

    /// Writes them into a record.
    pub(super) fn apply(&self, s: &mut Server) {
        s.max_fails = self.max_fails;
        s.fail_timeout_ms = self.fail_timeout_ms;
        s.slow_start_ms = self.slow_start_ms;
        s.timeouts_ms = self.timeouts_ms;
        s.health_path = self.health_path.0;
    }

    /// Whether each is one that a registration may have.
    pub fn is_valid(&self) -> bool {
        self.max_fails <= MAX_FAILS_MAX
            && self.fail_timeout_ms <= FAIL_TIMEOUT_MAX
            && self.slow_start_ms <= SLOW_START_MAX
            && self.timeouts_ms.iter().all(|ms| *ms <= TIMEOUT_MAX)
    }
}

/// What health checks ask a server for instead of their own `uri`, if anything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HealthPath([u8; HEALTH_PATH_MAX]);

impl HealthPath {
    /// The checks' own `uri`.
    pub const NONE: Self = Self([0; HEALTH_PATH_MAX]);

    /// What it may be, for messages.
    pub const SYNTAX: &str = "a path that begins with \"/\", of at most 48 printable ASCII characters and neither space nor \"#\"";

    /// Reads one; an empty text is [`HealthPath::NONE`]. `None`: it is none of [`HealthPath::SYNTAX`].
    pub fn new(text: &str) -> Option<Self> {
        let fits = text.len() <= HEALTH_PATH_MAX
            && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if !fits || !(text.is_empty() || text.starts_with('/')) {
            return None;
        }
        let mut path = Self::NONE;
        path.0[..text.len()].copy_from_slice(text.as_bytes());
        Some(path)
    }

    /// Empty when it is [`HealthPath::NONE`].
    pub fn as_str(&self) -> &str {
        super::news::trimmed(&self.0)
    }

    pub(super) const fn bytes(self) -> [u8; HEALTH_PATH_MAX] {
        self.0
    }
}

const _: () = assert!(HEALTH_PATH_MAX == 48, "as `SYNTAX` says");

impl std::fmt::Debug for HealthPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}
