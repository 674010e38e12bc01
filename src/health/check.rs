//! What a server is asked, how often, and what counts as well.

use super::{BodyRule, Statuses};
use crate::registry::Initial;

/// How servers are checked: what `health_check` says. Times in milliseconds.
#[derive(Clone, Debug)]
pub struct Check {
    /// `type`.
    pub kind: Kind,
    /// What HTTP asks for: see [`Check::is_uri`].
    pub uri: String,
    /// `Host` or `:authority`, and the name for TLS; `None`: the server's address.
    pub host: Option<String>,
    /// Where the check connects to instead of the server's own port, 1 or more.
    pub port: Option<u16>,
    /// From one check of a server to its next, 10 to a day.
    pub interval: u64,
    /// Up to how much chance adds to each interval, at most `interval`.
    pub jitter: u64,
    /// How long one check may take from connecting to the verdict, 1 to a day. It may be longer
    /// than the interval, as in NGINX Plus: a server is never asked twice at a time.
    pub timeout: u64,
    /// So many failures in a row make a server unhealthy, 1 to 1000.
    pub fails: u16,
    /// So many passes in a row make an unhealthy one well again, 1 to 1000.
    pub passes: u16,
    /// The statuses of HTTP that are well.
    pub status: Statuses,
    /// What must be in the body, or must not.
    pub body: Option<BodyRule>,
    /// What a server is before its first check.
    pub initial: Initial,
    /// `mode=idle`: servers whose requests show that they are well are not asked.
    pub idle: bool,
    /// Which service gRPC's health protocol asks about; empty: the server as a whole.
    pub service: String,
}

/// What a check speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// HTTP/1.1.
    Http,
    /// The same within TLS.
    Https,
    /// Nothing: that the connection is made is all.
    Tcp,
    /// gRPC's health protocol, `grpc.health.v1.Health/Check`, in HTTP/2 without TLS.
    Grpc,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Http, Self::Https, Self::Tcp, Self::Grpc];

    /// As `type=` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
            Self::Grpc => "grpc",
        }
    }

    /// Whether there is a TLS handshake before the talk.
    pub fn is_tls(self) -> bool {
        self == Self::Https
    }

    /// Whether it asks for a path, and gets a status and a body.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }
}

impl Default for Check {
    fn default() -> Self {
        Self {
            kind: Kind::Http,
            uri: "/".to_owned(),
            host: None,
            port: None,
            interval: 5000,
            jitter: 0,
            timeout: 2000,
            fails: 3,
            passes: 2,
            status: Statuses::default(),
            body: None,
            initial: Initial::Up,
            idle: false,
            service: String::new(),
        }
    }
}

impl Check {
    /// Longest `uri`, in bytes.
    pub const URI_MAX: usize = 1024;

    /// Whether HTTP can ask for it as it stands: `/` and visible ASCII after it, no fragment, up to
    /// [`Check::URI_MAX`] bytes. Nothing of it can end the request line.
    pub fn is_uri(text: &str) -> bool {
        text.starts_with('/')
            && text.len() <= Self::URI_MAX
            && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
    }

    /// The server's name in a request: `host`, or else `peer`, the server's printed address, with the
    /// port that is connected to. A unix socket has no name, so it is localhost.
    pub(super) fn authority(&self, peer: &str) -> String {
        if let Some(host) = &self.host {
            return host.clone();
        }
        if peer.starts_with("unix:") {
            return "localhost".to_owned();
        }
        match (self.port, peer.rsplit_once(':')) {
            (Some(port), Some((host, _))) => format!("{host}:{port}"),
            _ => peer.to_owned(),
        }
    }
}
