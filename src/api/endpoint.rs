//! Endpoints, and who may call them how.

use super::Reply;

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each is the endpoint of that name in the API's table")]
pub enum Endpoint {
    Add,
    Remove,
    Toggle,
    Refresh,
    Weight,
    Drain,
    Status,
    Health,
    Reset,
    Cleanup,
    /// Checks the zone; in the fault-injection build alone.
    #[cfg(fault)]
    Check,
    /// Orders deaths; in the fault-injection build alone.
    #[cfg(fault)]
    Fault,
}

use Endpoint::{Add, Cleanup, Drain, Health, Refresh, Remove, Reset, Status, Toggle, Weight};

const ALL: &[(&str, Endpoint)] = &[
    ("add", Add),
    ("remove", Remove),
    ("toggle", Toggle),
    ("refresh", Refresh),
    ("weight", Weight),
    ("drain", Drain),
    ("status", Status),
    ("health", Health),
    ("reset", Reset),
    ("cleanup", Cleanup),
    #[cfg(fault)]
    ("check", Endpoint::Check),
    #[cfg(fault)]
    ("fault", Endpoint::Fault),
];

/// A request's method, as far as endpoints tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// GET, and HEAD, whose reply nginx sends without the body.
    Get,
    /// POST
    Post,
    /// Any other.
    Other,
}

/// What a location lets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// Nothing that changes servers.
    pub read_only: bool,
    /// GET also where POST is meant.
    pub allow_get: bool,
}

impl Endpoint {
    /// The endpoint of that name.
    ///
    /// # Errors
    ///
    /// The reply to send when there is none.
    pub fn by_name(name: &str) -> Result<Self, Reply> {
        let found = ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, endpoint)| *endpoint).ok_or_else(|| {
            let known: Vec<_> = ALL.iter().map(|(known, _)| *known).collect();
            Reply::error(404, format!("Unknown endpoint: {name}; there are {}", known.join(", ")))
        })
    }

    /// Whether it changes servers.
    pub fn changes(self) -> bool {
        #[cfg(fault)]
        if matches!(self, Self::Check | Self::Fault) {
            return false;
        }
        !matches!(self, Status | Health)
    }

    /// Checks a method against what the endpoint takes and the location allows.
    ///
    /// # Errors
    ///
    /// The reply to send: 405 with the methods that are allowed, 403 where the location is for
    /// reading only.
    pub fn admit(self, method: Method, access: Access) -> Result<(), Reply> {
        let post = self.changes();
        let get = !post || access.allow_get || self == Cleanup;
        let fits = match method {
            Method::Get => get,
            Method::Post => post,
            Method::Other => false,
        };
        if !fits {
            let allow = match (get, post) {
                (true, true) => "GET, HEAD, POST",
                (true, false) => "GET, HEAD",
                _ => "POST",
            };
            let message = format!("Method not allowed; allowed are {allow}");
            return Err(Reply { header: Some(("Allow", allow)), ..Reply::error(405, message) });
        }
        if post && access.read_only {
            return Err(Reply::error(403, "This location is read only".to_owned()));
        }
        Ok(())
    }
}
