//! Addresses of servers, in their one canonical form.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::shm::{NAME_MAX, Server};

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// An IP address, never an IPv4 address mapped into IPv6, and a port from 1 to 65535.
    Inet(IpAddr, u16),
    /// A name as [`Host::Name`] has it, and a port from 1 to 65535.
    Name(String, u16),
    /// The path of a unix socket; only `server` lines name these.
    Unix(String),
}

/// A host is not an address that a server can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// 0.0.0.0 or ::
    #[error("the unspecified address")]
    Unspecified,
    /// Neither an IPv4 or IPv6 address, nor a name where one may be.
    #[error("not an IP address")]
    Syntax,
    /// Longer than a record can hold.
    #[error("longer than a unix socket's path can be")]
    TooLong,
}

/// Longest name of a host, in bytes: with a port behind it a record can still hold it.
const HOST_NAME_MAX: usize = NAME_MAX - ":65535".len();

// As the syntax says to people.
const _: () = assert!(HOST_NAME_MAX == 106);

/// A host without a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Host {
    /// Never an IPv4 address mapped into IPv6.
    Ip(IpAddr),
    /// In lower case, without a full stop at its end, no longer than [`Host::SYNTAX`] says.
    Name(String),
}

impl Host {
    /// What a name may be, for messages.
    pub const SYNTAX: &'static str = "a name of at most 106 characters: parts of 1 to 63 letters, \
                                      digits, \"_\" or \"-\", with \".\" between them";

    /// Reads an address as [`parse_host`] does, or a name.
    ///
    /// # Errors
    ///
    /// [`AddressError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        match parse_host(text) {
            Ok(ip) => Ok(Self::Ip(ip)),
            Err(AddressError::Syntax) => {
                parse_name(text).map(Self::Name).ok_or(AddressError::Syntax)
            }
            Err(e) => Err(e),
        }
    }

    /// The address of a server there.
    pub fn with_port(self, port: u16) -> Address {
        match self {
            Self::Ip(ip) => Address::Inet(ip, port),
            Self::Name(name) => Address::Name(name, port),
        }
    }
}

/// Reads a name and makes it canonical. What ends like a number was meant to be an address.
fn parse_name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let part = |part: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        (1..=63).contains(&part.len())
            && part.bytes().all(good)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let last = text.rsplit('.').next()?;
    let number = last.bytes().all(|b| b.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let good = text.len() <= HOST_NAME_MAX && text.split('.').all(part) && !number;
    good.then(|| text.to_ascii_lowercase())
}

/// Reads an IPv4 address, or an IPv6 address with or without brackets, and makes it canonical:
/// leading zeros go, IPv4 mapped into IPv6 becomes IPv4.
///
/// # Errors
///
/// [`AddressError`] says what is wrong with it.
pub fn parse_host(text: &str) -> Result<IpAddr, AddressError> {
    let bracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let ip = match (bracketed, parse_v4(text)) {
        (None, Some(v4)) => IpAddr::V4(v4),
        _ => {
            let v6: Ipv6Addr =
                bracketed.unwrap_or(text).parse().map_err(|_| AddressError::Syntax)?;
            v6.to_canonical()
        }
    };
    if ip.is_unspecified() {
        return Err(AddressError::Unspecified);
    }
    Ok(ip)
}

/// Four decimal numbers. The standard library refuses leading zeros, because some C libraries read
/// them as octal; here "010.0.0.1" is what a person sees in it, 10.0.0.1.
fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

impl Address {
    /// A unix socket's address.
    ///
    /// # Errors
    ///
    /// [`AddressError::TooLong`] when the path does not fit a `sockaddr_un`.
    pub fn unix(path: &str) -> Result<Self, AddressError> {
        if path.len() > NAME_MAX - "unix:".len() {
            return Err(AddressError::TooLong);
        }
        Ok(Self::Unix(path.to_owned()))
    }

    /// Reads `host:port` with a name or an IP address, IPv6 in brackets, as they are printed or nearly
    /// so.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        if host.contains(':') != host.starts_with('[') {
            return None;
        }
        let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok())??;
        let port = Some(port).filter(|port| *port > 0)?;
        Some(Host::parse(host).ok()?.with_port(port))
    }

    /// The host as printed alone: no brackets.
    pub fn host(&self) -> String {
        match self {
            Self::Inet(ip, _) => ip.to_string(),
            Self::Name(name, _) => name.clone(),
            Self::Unix(path) => format!("unix:{path}"),
        }
    }

    /// The port; 0 for a unix socket.
    pub fn port(&self) -> u16 {
        match self {
            Self::Inet(_, port) | Self::Name(_, port) => *port,
            Self::Unix(_) => 0,
        }
    }

    pub(super) fn of(server: &Server) -> Self {
        match server.family {
            4 => {
                let [a, b, c, d, ..] = server.ip;
                Self::Inet(Ipv4Addr::new(a, b, c, d).into(), server.port)
            }
            6 => Self::Inet(Ipv6Addr::from(server.ip).into(), server.port),
            0 => {
                let name = printed(server);
                let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
                Self::Name(host.to_owned(), server.port)
            }
            _ => {
                let name = printed(server);
                Self::Unix(name.strip_prefix("unix:").unwrap_or(name).to_owned())
            }
        }
    }

    pub(super) fn write(&self, server: &mut Server) {
        server.ip = [0; 16];
        match self {
            Self::Inet(IpAddr::V4(v4), port) => {
                server.family = 4;
                server.port = *port;
                server.ip[..4].copy_from_slice(&v4.octets());
            }
            Self::Inet(IpAddr::V6(v6), port) => {
                server.family = 6;
                server.port = *port;
                server.ip = v6.octets();
            }
            Self::Name(_, port) => {
                server.family = 0;
                server.port = *port;
            }
            Self::Unix(_) => {
                server.family = 1;
                server.port = 0;
            }
        }
        let printed = self.print();
        server.name[..printed.bytes().len()].copy_from_slice(printed.bytes());
        server.name_len = printed.len;
    }

    /// The address as records hold it, made without asking for memory.
    pub(super) fn print(&self) -> Printed {
        let mut printed = Printed { bytes: [0; NAME_MAX], len: 0 };
        let fits = write!(printed, "{self}").is_ok();
        debug_assert!(fits, "no address is longer");
        printed
    }
}

/// An address, printed in place.
pub(super) struct Printed {
    bytes: [u8; NAME_MAX],
    len: u8,
}

impl Printed {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Write for Printed {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let at = usize::from(self.len);
        let room = self.bytes.get_mut(at..at + s.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(s.as_bytes());
        self.len += s.len() as u8;
        Ok(())
    }
}

/// The address of a record, `host:port`.
pub(super) fn printed(server: &Server) -> &str {
    let len = usize::from(server.name_len).min(NAME_MAX);
    std::str::from_utf8(&server.name[..len]).unwrap_or_default()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(IpAddr::V4(v4), port) => write!(f, "{v4}:{port}"),
            Self::Inet(IpAddr::V6(v6), port) => write!(f, "[{v6}]:{port}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (given, canonical) in [
            ("127.0.0.1", "127.0.0.1"),
            ("010.000.00.009", "10.0.0.9"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("2001:0DB8:0:0::0001", "2001:db8::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("[::FFFF:0A00:0001]", "10.0.0.1"),
        ] {
            assert_eq!(parse_host(given).map(|h| h.to_string()), Ok(canonical.into()), "{given}");
        }
    }

    #[test]
    fn refused() {
        for given in ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.0004", "1.2.3.-4", "a.b.c.d"] {
            assert_eq!(parse_host(given), Err(AddressError::Syntax), "{given}");
        }
        for given in ["[127.0.0.1]", "[::1", "::1]", "fe80::1%eth0", "example.com", " ::1", "1 "] {
            assert_eq!(parse_host(given), Err(AddressError::Syntax), "{given}");
        }
        for given in ["0.0.0.0", "::", "[::]", "::ffff:0.0.0.0", "000.0.0.0"] {
            assert_eq!(parse_host(given), Err(AddressError::Unspecified), "{given}");
        }
    }

    #[test]
    fn names_are_made_lower_case_and_lose_a_full_stop_at_the_end() {
        let longest = format!("{}.{}", "a".repeat(63), "b".repeat(42));
        for (given, name) in [
            ("localhost", "localhost"),
            ("App-1.Example.COM", "app-1.example.com"),
            ("app.example.com.", "app.example.com"),
            ("_http._tcp.app", "_http._tcp.app"),
            ("1.2.3.4.example", "1.2.3.4.example"),
            ("10.0.0.1a", "10.0.0.1a"),
            ("a.b.c.d", "a.b.c.d"),
            (&longest, &longest),
        ] {
            assert_eq!(Host::parse(given), Ok(Host::Name(name.to_owned())), "{given}");
        }
        let printed = Host::parse(&longest).unwrap().with_port(65_535).to_string();
        assert_eq!(printed.len(), NAME_MAX);
        assert_eq!(Address::parse(&printed).map(|a| a.to_string()), Some(printed));
    }

    #[test]
    fn what_is_no_name() {
        let (part, whole) = ("a".repeat(64), format!("{}.{}", "a".repeat(63), "b".repeat(43)));
        for given in
            ["", ".", "a..b", ".a", "a b", "a:b", "ä", "a/b", "[a]", "*", "-a", "a-", "a.-b"]
        {
            assert_eq!(Host::parse(given), Err(AddressError::Syntax), "{given}");
        }
        for given in ["10.0.0.256", "1.2.3", "1.2.3.4.", "167772161", "10.0.0.0x1", "0x", "a.1"] {
            assert_eq!(Host::parse(given), Err(AddressError::Syntax), "{given}");
        }
        for given in [part, whole] {
            assert_eq!(Host::parse(&given), Err(AddressError::Syntax), "{given}");
        }
        assert_eq!(Host::parse("0.0.0.0"), Err(AddressError::Unspecified));
    }

    #[test]
    fn printed_with_port() {
        let v6 = Address::Inet(parse_host("::1").unwrap(), 80);
        assert_eq!(v6.to_string(), "[::1]:80");
        assert_eq!(v6.host(), "::1");
        assert_eq!(Address::unix("/run/a").unwrap().to_string(), "unix:/run/a");
        assert_eq!(Address::unix(&"a".repeat(200)), Err(AddressError::TooLong));
    }
}
