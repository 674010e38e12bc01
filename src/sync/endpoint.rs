//! Where Redis is: the URL of the directive `redis`.
//!
//! Errors never repeat a part of the URL: a password with a `/` or a `@` in it may be anywhere.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::tls::Tls;
use super::url::{Parts, decode, hosts, number};

/// Longest path of a unix socket, in bytes: what `sun_path` holds beside its end.
const MAX_PATH: usize = 107;

/// A URL can't be used. No part of it is in the message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EndpointError {
    /// Neither of the schemes.
    #[error(
        "a URL of Redis begins with redis://, rediss://, unix:/, redis+sentinel://, \
         rediss+sentinel://, redis+cluster:// or rediss+cluster://"
    )]
    Scheme,
    /// A control character, a space or a `#`.
    #[error("a URL must not contain control characters, spaces or \"#\": write them as %XX")]
    Character,
    /// A `%` without two digits.
    #[error("\"%\" must be followed by two hexadecimal digits in a URL: write \"%\" itself as %25")]
    Percent,
    /// The password is cut, or there is one without an end.
    #[error(
        "\"/\", \"?\" and \"@\" in a user name or password must be written as %2F, %3F and %40"
    )]
    Login,
    /// A user without a password.
    #[error("a user name needs a password: write USER:PASSWORD@ before the host")]
    NoPassword,
    /// No host where one must be.
    #[error("there must be a host after \"//\", and after each comma")]
    NoHost,
    /// A host that can't be one.
    #[error("a host must be a name, an IPv4 address or an IPv6 address in brackets")]
    Host,
    /// More than one host where only one may be.
    #[error("only redis+sentinel:// and redis+cluster:// take more than one host")]
    OneHost,
    /// A port that can't be one.
    #[error("a port must be a number from 1 to 65535")]
    Port,
    /// A database that can't be one.
    #[error("a database must be a number from 0 to 2147483647")]
    Database,
    /// A database other than 0.
    #[error("a cluster has no database other than 0")]
    ClusterDatabase,
    /// No service.
    #[error("the name of the service must follow the sentinels: redis+sentinel://HOST/SERVICE")]
    NoService,
    /// More after the path's end.
    #[error("there is too much after the last \"/\"")]
    Path,
    /// Not a path of a socket.
    #[error(
        "the path of a unix socket must be absolute and at most {MAX_PATH} bytes long: unix:/PATH"
    )]
    SocketPath,
    /// A parameter that nobody knows, or one that is there twice.
    #[error(
        "after \"?\" there may be db, user and pass with unix:, sentinel_user and \
         sentinel_password with redis+sentinel:, each once"
    )]
    Parameter,
    /// Certificates where there is no TLS.
    #[error(
        "certificates are for URLs with TLS: rediss://, rediss+sentinel:// or rediss+cluster://"
    )]
    NotTls,
    /// No certificate among the PEM.
    #[error("there is no certificate in PEM form in it")]
    NoCertificate,
    /// A certificate that is none.
    #[error("certificate {0} in it is damaged")]
    Certificate(usize),
}

/// Where Redis is and how to get in.
#[derive(Clone)]
pub struct Endpoint {
    scheme: &'static str,
    pub(super) kind: Kind,
    pub(super) login: Option<Login>,
    pub(super) db: u32,
    pub(super) tls: Option<Arc<Tls>>,
}

/// What the URL names.
#[derive(Clone)]
pub(super) enum Kind {
    /// One server.
    Server(Place),
    /// Servers that know which one is the master.
    Sentinel { hosts: Vec<Host>, service: String, login: Option<Login> },
    /// Some of a cluster's nodes.
    Cluster(Vec<Host>),
}

/// Something to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Host(Host),
    Socket(PathBuf),
}

/// A name or an address (without brackets) and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: u16,
}

/// What AUTH wants.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: Option<Vec<u8>>,
    pub(super) password: Vec<u8>,
}

impl Endpoint {
    /// Reads a URL, in one of these forms:
    ///
    /// - `redis://[[user]:password@]host[:port][/db]`, and `rediss://` for TLS; `valkey://` and
    ///   `valkeys://` are the same
    /// - `unix:/path[?db=N&user=U&pass=P]`; `unix:///path` and `redis+unix:///path` are the same
    /// - `redis+sentinel://[user:password@]host[:port][,…]/service[/db]` with
    ///   `?sentinel_user=U&sentinel_password=P`, and `rediss+sentinel://` for TLS to all of them
    /// - `redis+cluster://[user:password@]host[:port][,…]`, and `rediss+cluster://`
    ///
    /// # Errors
    ///
    /// [`EndpointError`] of any kind but those of certificates.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let parts = Parts::split(url)?;
        let mut endpoint = Self {
            scheme: parts.scheme,
            kind: Kind::Cluster(Vec::new()),
            login: parts.login,
            db: 0,
            tls: parts.tls.then(Arc::default),
        };
        let mut query = parts.query;
        let path = parts.path.strip_prefix('/').unwrap_or(parts.path);
        if endpoint.scheme == "unix" {
            endpoint.db = query.take("db")?.map_or(Ok(0), |db| database(&db))?;
            endpoint.login = login(query.take("user")?, query.take("pass")?)?;
            endpoint.kind = Kind::Server(Place::Socket(socket(parts.path)?));
        } else if endpoint.scheme.ends_with("+sentinel") {
            let (service, db) = path.split_once('/').unwrap_or((path, ""));
            let service = String::from_utf8(decode(service)?).ok().filter(|s| !s.is_empty());
            let login = login(query.take("sentinel_user")?, query.take("sentinel_password")?)?;
            endpoint.db = database(db.as_bytes())?;
            endpoint.kind = Kind::Sentinel {
                hosts: hosts(parts.hosts, 26379)?,
                service: service.ok_or(EndpointError::NoService)?,
                login,
            };
        } else if endpoint.scheme.ends_with("+cluster") {
            if database(path.as_bytes())? != 0 {
                return Err(EndpointError::ClusterDatabase);
            }
            endpoint.kind = Kind::Cluster(hosts(parts.hosts, 6379)?);
        } else {
            let mut hosts = hosts(parts.hosts, 6379)?.into_iter();
            let (Some(host), None) = (hosts.next(), hosts.next()) else {
                return Err(EndpointError::OneHost);
            };
            endpoint.db = database(path.as_bytes())?;
            endpoint.kind = Kind::Server(Place::Host(host));
        }
        query.end()?;
        Ok(endpoint)
    }

    /// Trusts these CA certificates (PEM, one or more) instead of the system's.
    ///
    /// # Errors
    ///
    /// [`EndpointError::NotTls`], [`EndpointError::NoCertificate`],
    /// [`EndpointError::Certificate`].
    pub fn with_certificates(mut self, pem: Vec<u8>) -> Result<Self, EndpointError> {
        if self.tls.is_none() {
            return Err(EndpointError::NotTls);
        }
        self.tls = Some(Arc::new(Tls::trusting(&pem)?));
        Ok(self)
    }

    /// Whether it is a cluster, where keys of one script must be in one slot.
    pub fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster(_))
    }

    /// Whether the connections are encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// The URL without what opens it: neither users nor passwords.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, hosts: &[Host]| {
            hosts.iter().enumerate().try_for_each(|(i, host)| {
                let comma = if i == 0 { "" } else { "," };
                write!(f, "{comma}{host}")
            })
        };
        match &self.kind {
            Kind::Server(Place::Host(host)) => write!(f, "{}://{host}/{}", self.scheme, self.db),
            Kind::Server(Place::Socket(path)) => {
                write!(f, "{}:{}", self.scheme, path.display())?;
                if self.db == 0 { Ok(()) } else { write!(f, "?db={}", self.db) }
            }
            Kind::Sentinel { hosts, service, .. } => {
                write!(f, "{}://", self.scheme)?;
                list(f, hosts)?;
                write!(f, "/{service}/{}", self.db)
            }
            Kind::Cluster(hosts) => {
                write!(f, "{}://", self.scheme)?;
                list(f, hosts)
            }
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => host.fmt(f),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// A user and a password, each of which may be left out or empty.
pub(super) fn login(
    user: Option<Vec<u8>>,
    password: Option<Vec<u8>>,
) -> Result<Option<Login>, EndpointError> {
    let user = user.filter(|user| !user.is_empty());
    match password.filter(|password| !password.is_empty()) {
        Some(password) => Ok(Some(Login { user, password })),
        None if user.is_some() => Err(EndpointError::NoPassword),
        None => Ok(None),
    }
}

/// A database; nothing is 0.
fn database(text: &[u8]) -> Result<u32, EndpointError> {
    match text {
        [] => Ok(0),
        _ if text.contains(&b'/') => Err(EndpointError::Path),
        _ => number(text).filter(|db| *db <= i32::MAX as u32).ok_or(EndpointError::Database),
    }
}

fn socket(path: &str) -> Result<PathBuf, EndpointError> {
    let path = String::from_utf8(decode(path)?).map_err(|_| EndpointError::SocketPath)?;
    let good = path.starts_with('/') && !path.ends_with('/') && path.len() <= MAX_PATH;
    if good { Ok(path.into()) } else { Err(EndpointError::SocketPath) }
}
