//! The parts of a URL of Redis. The URL standard knows neither lists of hosts nor unix sockets.

use std::net::Ipv6Addr;

use super::endpoint::{EndpointError, Host, Login, login};

/// A URL taken apart, with nothing decoded but the login.
pub(super) struct Parts<'a> {
    pub(super) scheme: &'static str,
    pub(super) tls: bool,
    pub(super) login: Option<Login>,
    /// Hosts with or without ports, and commas between them.
    pub(super) hosts: &'a str,
    /// Empty, or with the slash that it begins with.
    pub(super) path: &'a str,
    pub(super) query: Query<'a>,
}

/// As written, and as shown. Those of Valkey are shown as they are written.
const SCHEMES: [(&str, &str); 15] = [
    ("redis", "redis"),
    ("rediss", "rediss"),
    ("valkey", "valkey"),
    ("valkeys", "valkeys"),
    ("unix", "unix"),
    ("redis+unix", "unix"),
    ("valkey+unix", "unix"),
    ("redis+sentinel", "redis+sentinel"),
    ("rediss+sentinel", "rediss+sentinel"),
    ("valkey+sentinel", "valkey+sentinel"),
    ("valkeys+sentinel", "valkeys+sentinel"),
    ("redis+cluster", "redis+cluster"),
    ("rediss+cluster", "rediss+cluster"),
    ("valkey+cluster", "valkey+cluster"),
    ("valkeys+cluster", "valkeys+cluster"),
];

impl<'a> Parts<'a> {
    /// Takes a URL apart.
    pub(super) fn split(url: &'a str) -> Result<Self, EndpointError> {
        let (scheme, rest) = url.split_once(':').ok_or(EndpointError::Scheme)?;
        let known = SCHEMES.iter().find(|(written, _)| scheme.eq_ignore_ascii_case(written));
        let scheme = known.ok_or(EndpointError::Scheme)?.1;
        if url.chars().any(|c| c.is_control() || c.is_whitespace() || c == '#') {
            return Err(EndpointError::Character);
        }
        let tls = scheme.starts_with("rediss") || scheme.starts_with("valkeys");
        let (before, text) = rest.split_once('?').unwrap_or((rest, ""));
        let query = Query::split(text);
        if scheme == "unix" {
            let path = before.strip_prefix("//").unwrap_or(before);
            return Ok(Self { scheme, tls, login: None, hosts: "", path, query });
        }
        let rest = before.strip_prefix("//").ok_or(EndpointError::Scheme)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // A password with a slash or a question mark in it has its end, and the "@", behind that.
        // (The password for sentinels is a parameter, and may have one.)
        let may_have_one = scheme.ends_with("+sentinel");
        if path.contains('@') || (text.contains('@') && !may_have_one) {
            return Err(EndpointError::Login);
        }
        let (login, hosts) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((info, hosts)) => {
                if info.contains('@') {
                    return Err(EndpointError::Login);
                }
                let (user, password) = match info.split_once(':') {
                    Some((user, password)) => (user, Some(password)),
                    None => (info, None),
                };
                (login(Some(decode(user)?), password.map(decode).transpose()?)?, hosts)
            }
        };
        Ok(Self { scheme, tls, login, hosts, path, query })
    }
}

/// The parameters after `?`.
pub(super) struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    fn split(text: &'a str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect())
    }

    /// Takes one out. A second one of that name is left.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<Vec<u8>>, EndpointError> {
        match self.0.iter().position(|(found, _)| *found == name) {
            Some(at) => decode(self.0.remove(at).1).map(Some),
            None => Ok(None),
        }
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), EndpointError> {
        if self.0.is_empty() { Ok(()) } else { Err(EndpointError::Parameter) }
    }
}

/// Replaces each %XX. What comes out must be free of control characters as well.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, EndpointError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit(), digit());
                let value = high.zip(low).map(|(high, low)| high << 4 | low);
                value.and_then(|v| u8::try_from(v).ok()).ok_or(EndpointError::Percent)?
            }
            _ => byte,
        };
        if byte.is_ascii_control() {
            return Err(EndpointError::Character);
        }
        out.push(byte);
    }
    Ok(out)
}

/// Digits and nothing else.
pub(super) fn number(text: &[u8]) -> Option<u32> {
    let text = str::from_utf8(text).ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The hosts of a list.
pub(super) fn hosts(list: &str, default_port: u16) -> Result<Vec<Host>, EndpointError> {
    list.split(',').map(|text| host(text, default_port)).collect()
}

fn host(text: &str, default_port: u16) -> Result<Host, EndpointError> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest.split_once(']').ok_or(EndpointError::Host)?;
            let ip: Ipv6Addr = name.parse().map_err(|_| EndpointError::Host)?;
            let port = match rest {
                "" => None,
                _ => Some(rest.strip_prefix(':').ok_or(EndpointError::Host)?),
            };
            (ip.to_string(), port)
        }
        None => {
            let (name, port) = match text.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            };
            if name.is_empty() {
                return Err(EndpointError::NoHost);
            }
            let good = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            if name.len() > 253 || !name.bytes().all(good) {
                return Err(EndpointError::Host);
            }
            (name.to_owned(), port)
        }
    };
    let port = match port {
        None => default_port,
        Some(port) => number(port.as_bytes())
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
            .ok_or(EndpointError::Port)?,
    };
    Ok(Host { name, port })
}
