//! Parameters: from a query string, a form body or a JSON object, into typed values.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::Reply;
use crate::registry::{
    AddressError, FAIL_TIMEOUT_MAX, HealthPath, Host, MAX_CONNS_MAX, MAX_FAILS_MAX, SLOW_START_MAX,
    SpaceName, TIMEOUT_MAX, WEIGHT_MAX,
};
use crate::shm::timeout;
use crate::time;

/// Longest body, in bytes; longer ones are answered with 413.
pub const MAX_BODY: usize = 64 * 1024;

/// Parameters that endpoints know.
const KNOWN: [&str; 15] = [
    "ns",
    "host",
    "port",
    "weight",
    "max_conns",
    "max_fails",
    "fail_timeout",
    "slow_start",
    "connect_timeout",
    "send_timeout",
    "read_timeout",
    "health_path",
    "action",
    "ready",
    "wait",
];

/// An hour in milliseconds.
const HOUR: u64 = 3_600_000;

/// How a body is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyKind {
    /// `application/x-www-form-urlencoded`, or nothing said.
    Form,
    /// `application/json`
    Json,
    /// Something else.
    Other,
}

impl BodyKind {
    /// By the value of a Content-Type header; `None`: there is none.
    pub fn of(content_type: Option<&[u8]>) -> Self {
        let Some(value) = content_type else { return Self::Form };
        let mime = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        if mime.is_empty() || mime.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
            Self::Form
        } else if mime.eq_ignore_ascii_case(b"application/json") {
            Self::Json
        } else {
            Self::Other
        }
    }
}

/// The parameters of a request that endpoints know, each at most once.
#[derive(Debug, Default)]
pub(super) struct Params {
    values: [Option<String>; KNOWN.len()],
}

/// What to do with a parameter that no endpoint knows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    /// The query string is not ours alone: `$arg_NAME` and others read it too.
    Pass,
    /// A body is: what is unknown there is a slip of the pen.
    Refuse,
}

fn bad(message: String) -> Reply {
    Reply::error(400, message)
}

impl Params {
    /// Reads query string and body.
    pub(super) fn parse(query: &[u8], body: &[u8], kind: BodyKind) -> Result<Self, Reply> {
        let mut params = Self::default();
        params.form(query, "query string", Unknown::Pass)?;
        // A body of nothing is no body, whatever its type is said to be.
        if !body.trim_ascii().is_empty() {
            match kind {
                BodyKind::Form => params.form(body, "body", Unknown::Refuse)?,
                BodyKind::Json => params.json(body)?,
                BodyKind::Other => {
                    return Err(Reply::error(
                        415,
                        "Content-Type must be application/json or \
                         application/x-www-form-urlencoded"
                            .to_owned(),
                    ));
                }
            }
        }
        Ok(params)
    }

    fn form(&mut self, text: &[u8], place: &str, unknown: Unknown) -> Result<(), Reply> {
        if !well_escaped(text) {
            return Err(bad(format!("Malformed percent-encoding in the {place}")));
        }
        for (name, value) in form_urlencoded::parse(text) {
            self.push(name.into_owned(), value.into_owned(), unknown)?;
        }
        Ok(())
    }

    fn json(&mut self, body: &[u8]) -> Result<(), Reply> {
        let members: Members = serde_json::from_slice(body)
            .map_err(|e| bad(format!("Malformed JSON: {e}; expected an object of parameters")))?;
        for (name, value) in members.0 {
            let value = match value {
                Value::Null => continue,
                Value::String(s) => s,
                Value::Number(n) => n.to_string(),
                _ => {
                    return Err(bad(format!(
                        "Parameter \"{}\" must be a string or a number",
                        short(&name)
                    )));
                }
            };
            self.push(name, value, Unknown::Refuse)?;
        }
        Ok(())
    }

    fn push(&mut self, name: String, value: String, unknown: Unknown) -> Result<(), Reply> {
        let Some(at) = KNOWN.iter().position(|known| *known == name) else {
            if unknown == Unknown::Pass {
                return Ok(());
            }
            let known = KNOWN.join(", ");
            return Err(bad(format!("Unknown parameter \"{}\"; known are {known}", short(&name))));
        };
        if self.values[at].replace(value).is_some() {
            return Err(bad(format!("Parameter \"{name}\" is given more than once")));
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&str> {
        let at = KNOWN.iter().position(|known| *known == name)?;
        self.values[at].as_deref()
    }

    /// Whether it is there, whatever its value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The host; `None` when it is left out or empty.
    pub(super) fn host(&self) -> Result<Option<Host>, Reply> {
        let Some(text) = self.get("host").filter(|text| !text.is_empty()) else { return Ok(None) };
        Host::parse(text).map(Some).map_err(|e| {
            bad(match e {
                AddressError::Unspecified => {
                    "Parameter \"host\" must not be the unspecified address".to_owned()
                }
                _ => {
                    format!(
                        "Parameter \"host\" must be an IPv4 or IPv6 address, or {}",
                        Host::SYNTAX
                    )
                }
            })
        })
    }

    /// The port: required.
    pub(super) fn port(&self) -> Result<u16, Reply> {
        Ok(self.required("port", 1, 65_535)? as u16)
    }

    /// The weight, when given.
    pub(super) fn weight(&self) -> Result<Option<u32>, Reply> {
        self.number("weight", 0, WEIGHT_MAX)
    }

    /// The weight: required.
    pub(super) fn required_weight(&self) -> Result<u32, Reply> {
        self.required("weight", 0, WEIGHT_MAX)
    }

    /// The limit of requests, when given.
    pub(super) fn max_conns(&self) -> Result<Option<u32>, Reply> {
        self.number("max_conns", 0, MAX_CONNS_MAX)
    }

    /// How many failures take the server out, when given.
    pub(super) fn max_fails(&self) -> Result<Option<u32>, Reply> {
        self.number("max_fails", 0, MAX_FAILS_MAX)
    }

    /// How long a failure counts, in milliseconds, when given.
    pub(super) fn fail_timeout(&self) -> Result<Option<u32>, Reply> {
        Ok(self.time("fail_timeout", FAIL_TIMEOUT_MAX.into())?.map(|ms| ms as u32))
    }

    /// How long the server takes to grow to its weight, in milliseconds, when given.
    pub(super) fn slow_start(&self) -> Result<Option<u32>, Reply> {
        Ok(self.time("slow_start", SLOW_START_MAX.into())?.map(|ms| ms as u32))
    }

    /// How long requests to the server wait for it, in milliseconds, where given: indexed by
    /// [`timeout`](crate::shm::timeout).
    pub(super) fn timeouts(&self) -> Result<[Option<u32>; 3], Reply> {
        let mut timeouts = [None; 3];
        for (at, name) in [
            (timeout::CONNECT, "connect_timeout"),
            (timeout::SEND, "send_timeout"),
            (timeout::READ, "read_timeout"),
        ] {
            timeouts[at] = self.time(name, TIMEOUT_MAX.into())?.map(|ms| ms as u32);
        }
        Ok(timeouts)
    }

    /// What health checks ask the server for, when given.
    pub(super) fn health_path(&self) -> Result<Option<HealthPath>, Reply> {
        let Some(text) = self.get("health_path") else { return Ok(None) };
        HealthPath::new(text).map(Some).ok_or_else(|| {
            let syntax = HealthPath::SYNTAX;
            bad(format!("Parameter \"health_path\" must be {syntax}, or empty"))
        })
    }

    /// `action`: required; true for enable.
    pub(super) fn enable(&self) -> Result<bool, Reply> {
        match self.get("action") {
            Some("enable") => Ok(true),
            Some("disable") => Ok(false),
            Some(_) => Err(bad("Parameter \"action\" must be enable or disable".to_owned())),
            None => Err(bad("Parameter \"action\" is required: enable or disable".to_owned())),
        }
    }

    /// How long to wait at most, in milliseconds, when given.
    pub(super) fn wait(&self) -> Result<Option<u64>, Reply> {
        self.time("wait", HOUR)
    }

    /// The namespace, when given.
    pub(super) fn namespace(&self) -> Result<Option<SpaceName<'_>>, Reply> {
        let Some(name) = self.get("ns") else { return Ok(None) };
        SpaceName::new(name.as_bytes())
            .map(Some)
            .ok_or_else(|| bad(format!("Parameter \"ns\" must be {}", SpaceName::SYNTAX)))
    }

    fn required(&self, name: &str, min: u32, max: u32) -> Result<u32, Reply> {
        self.number(name, min, max)?.ok_or_else(|| {
            bad(format!("Parameter \"{name}\" is required: an integer from {min} to {max}"))
        })
    }

    fn time(&self, name: &str, max: u64) -> Result<Option<u64>, Reply> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match time::parse(text) {
            Some(ms) if ms <= max => Ok(Some(ms)),
            _ => Err(bad(format!(
                "Parameter \"{name}\" must be a time of at most {}, written as 30s, 500ms or 1m 30s",
                if max == HOUR { "1h" } else { "1d" }
            ))),
        }
    }

    fn number(&self, name: &str, min: u32, max: u32) -> Result<Option<u32>, Reply> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let value = if digits { text.parse::<u32>().ok() } else { None };
        match value {
            Some(n) if (min..=max).contains(&n) => Ok(Some(n)),
            _ => Err(bad(format!("Parameter \"{name}\" must be an integer from {min} to {max}"))),
        }
    }
}

/// Enough of a client's text to recognise it by.
fn short(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(40).collect();
    if chars.next().is_some() { start + "…" } else { start }
}

fn well_escaped(text: &[u8]) -> bool {
    text.iter().enumerate().filter(|(_, b)| **b == b'%').all(|(i, _)| {
        matches!(text.get(i + 1..i + 3), Some([a, b]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
    })
}

/// The members of a JSON object, with those that a map would silently drop as repeated.
struct Members(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All)
    }
}
