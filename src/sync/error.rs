//! What can go wrong between here and Redis, in one line each.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerError};

/// Longest text of the server's that is shown, in characters.
const MAX_TEXT: usize = 160;

/// Why Redis could not be asked, or would not do it. No password is in the message.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A name without an address.
    #[error("no address for \"{host}\": {why}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        why: io::Error,
    },
    /// Nobody there, or nobody that lets in.
    #[error("can't connect to {to}: {why}")]
    Connect {
        /// The address.
        to: String,
        /// What the system says.
        why: io::Error,
    },
    /// The server is too slow, or hangs, or packets get lost on the way.
    #[error("{to} timed out after {}", Time(*.after))]
    Timeout {
        /// The address.
        to: String,
        /// `redis_timeout`.
        after: Duration,
    },
    /// No encrypted connection.
    #[error("no TLS with {to}: {why}")]
    Tls {
        /// The address.
        to: String,
        /// What is wrong.
        why: String,
    },
    /// No certificates to check the server's with.
    #[error("this system has no CA certificates: give redis_trusted_certificate")]
    NoCertificates,
    /// The server ended the connection.
    #[error("{to} closed the connection")]
    Closed {
        /// The address.
        to: String,
    },
    /// Something else happened to the connection.
    #[error("the connection to {to} failed: {why}")]
    Io {
        /// The address.
        to: String,
        /// What the system says.
        why: io::Error,
    },
    /// What came back is no answer of Redis'.
    #[error("{to} does not speak the protocol of Redis (is TLS on one side only?)")]
    Protocol {
        /// The address.
        to: String,
    },
    /// No sentinel said which server is the master.
    #[error("no sentinel could be asked, the last one because {0}")]
    NoSentinel(Box<LinkError>),
    /// The sentinels answer, but not about this service.
    #[error("the sentinels know no service \"{0}\": see SENTINEL MASTERS")]
    UnknownService(String),
    /// The server that the sentinels name is no master, or not yet.
    #[error("{0} is a replica, though the sentinels call it the master")]
    NotMaster(String),
    /// A cluster that sends from one node to the other.
    #[error("the cluster's nodes do not agree which of them has the keys")]
    Redirects,
    /// A redirection by a server that is no cluster as far as the URL says.
    #[error("it is a node of a cluster: write redis+cluster:// in the URL")]
    IsCluster,
    /// A login that is refused.
    #[error("wrong user name or password")]
    Login,
    /// No login where one is needed.
    #[error("it wants a password: write :PASSWORD@ before the host in the URL")]
    NeedsLogin,
    /// A login where none is possible.
    #[error("it has no password for that user: take it out of the URL, or set one (requirepass)")]
    NeedsNoLogin,
    /// The number is too high for this server, or it has a single one.
    #[error("it has no database {0}")]
    Database(u32),
    /// READONLY.
    #[error("it is a read-only replica")]
    ReadOnly,
    /// OOM.
    #[error("it is out of memory (maxmemory)")]
    OutOfMemory,
    /// BUSY.
    #[error("it is busy with another program's script (SCRIPT KILL ends that)")]
    Busy,
    /// LOADING.
    #[error("it is still loading its data")]
    Loading,
    /// MISCONF and NOREPLICAS.
    #[error("it refuses writes: {0}")]
    Unsafe(String),
    /// WRONGTYPE.
    #[error("a key has another type than it should have: {0}")]
    WrongType(String),
    /// NOPERM.
    #[error("its user lacks a permission (ACL): {0}")]
    NoPermission(String),
    /// MASTERDOWN.
    #[error("it is a replica that has lost its master")]
    MasterDown,
    /// CLUSTERDOWN.
    #[error("the cluster is down: {0}")]
    ClusterDown(String),
    /// TRYAGAIN, for as long as a slot moves.
    #[error("the keys are being moved to another node of the cluster")]
    Moving,
    /// Another error that the server reports, those of scripts among them.
    #[error("it reports an error: {0}")]
    Server(String),
    /// An answer of another kind than the script gives.
    #[error("its answer is of an unexpected kind ({0})")]
    Answer(&'static str),
    /// A link that was lost is used again.
    #[error("the connection was lost before")]
    Lost,
    /// By [`Stop`](super::Stop).
    #[error("stopped")]
    Stopped,
}

impl LinkError {
    /// Whether the link must not be used again: an answer may still come and would be taken for
    /// the next one's, or the next link may lead to a better server.
    pub fn is_lost(&self) -> bool {
        !matches!(
            self,
            Self::OutOfMemory
                | Self::Busy
                | Self::Loading
                | Self::Unsafe(_)
                | Self::WrongType(_)
                | Self::NoPermission(_)
                | Self::Moving
                | Self::Server(_)
                | Self::Answer(_)
        )
    }

    /// An error that the server reports.
    pub(super) fn of_server(error: &ServerError) -> Self {
        let text = error.details().unwrap_or_default();
        match Self::of_code(error.code(), text) {
            Some(known) => known,
            None => Self::Server(shown(&format!("{} {text}", error.code()))),
        }
    }

    fn of_code(code: &str, text: &str) -> Option<Self> {
        Some(match code {
            "NOAUTH" => Self::NeedsLogin,
            "WRONGPASS" => Self::Login,
            "READONLY" => Self::ReadOnly,
            "OOM" => Self::OutOfMemory,
            "BUSY" => Self::Busy,
            "LOADING" => Self::Loading,
            "MISCONF" | "NOREPLICAS" => Self::Unsafe(shown(text)),
            "WRONGTYPE" => Self::WrongType(shown(text)),
            "NOPERM" => Self::NoPermission(shown(text)),
            "MASTERDOWN" => Self::MasterDown,
            "CLUSTERDOWN" => Self::ClusterDown(shown(text)),
            "TRYAGAIN" => Self::Moving,
            "MOVED" | "ASK" => Self::IsCluster,
            // Before Redis 7 an error inside a script is wrapped: "… user_script:1: -OOM command …".
            "ERR" => {
                let (code, text) = text.split_once(": -")?.1.split_once(' ')?;
                return Self::of_code(code, text).filter(|_| code != "ERR");
            }
            _ => return None,
        })
    }

    /// What the server says to AUTH. Its own words are not shown: one that does not know the
    /// command repeats the arguments.
    pub(super) fn of_login(error: &ServerError) -> Self {
        let text = error.details().unwrap_or_default();
        match error.code() {
            "ERR" if text.contains("without any password") || text.contains("no password") => {
                Self::NeedsNoLogin
            }
            "ERR" => Self::Login,
            code => Self::of_code(code, "AUTH").unwrap_or(Self::Login),
        }
    }

    /// What went wrong on the way, as the redis crate wraps it.
    pub(super) fn of_redis(error: RedisError, to: &str, after: Duration) -> Self {
        let error = match ServerError::try_from(error) {
            Ok(error) => return Self::of_server(&error),
            Err(error) => error,
        };
        match cause(&error) {
            Some(why) => Self::of_io(why, to, after),
            None if error.kind() == ErrorKind::Parse => Self::Protocol { to: to.to_owned() },
            None => Self::Server(shown(&error.to_string())),
        }
    }

    /// What the system says while something is read or written.
    pub(super) fn of_io(error: &io::Error, to: &str, after: Duration) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, NotConnected, TimedOut,
            UnexpectedEof, WouldBlock,
        };
        let to = to.to_owned();
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match (error.kind(), tls) {
            (_, Some(why)) => Self::Tls { to, why: explained(why) },
            (WouldBlock | TimedOut, _) => Self::Timeout { to, after },
            (InvalidData, _) => Self::Protocol { to },
            (
                UnexpectedEof | BrokenPipe | ConnectionReset | ConnectionAborted | NotConnected,
                _,
            ) => Self::Closed { to },
            _ => Self::Io { to, why: io::Error::new(error.kind(), error.to_string()) },
        }
    }
}

/// The system's error in one of the redis crate's, which shares it by an Arc.
fn cause(error: &RedisError) -> Option<&io::Error> {
    let source = error.source()?;
    match source.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        Some(shared) => shared.downcast_ref(),
        None => source.downcast_ref(),
    }
}

/// What to do about an error of TLS, where that can be known.
fn explained(error: &rustls::Error) -> String {
    use rustls::{CertificateError as C, Error as E};
    match error {
        // The signature is wrong when another CA has the same name, or had it before.
        E::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            "its certificate is from no trusted CA (see redis_trusted_certificate)".to_owned()
        }
        E::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            "its certificate has expired".to_owned()
        }
        E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            "its certificate is for another name".to_owned()
        }
        E::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        _ => shown(&error.to_string()),
    }
}

/// A text of the server's in one line that is not too long.
fn shown(text: &str) -> String {
    let text = text.trim();
    let mut line: String =
        text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        line.push('…');
    }
    line
}

/// A time as people write it.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < Duration::from_secs(1) {
            write!(f, "{} ms", self.0.as_millis())
        } else {
            write!(f, "{} s", self.0.as_secs_f64())
        }
    }
}
