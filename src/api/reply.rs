//! Replies: always JSON, whatever went wrong.

use serde::{Serialize, Serializer};

use crate::registry::{Health, Sweep};

/// What is sent back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status; the same as `code` in the body.
    pub status: u16,
    /// JSON.
    pub body: Vec<u8>,
    /// A header that goes with it: Allow with 405, WWW-Authenticate with 401.
    pub header: Option<(&'static str, &'static str)>,
    /// What an error says.
    pub error: Option<String>,
}

/// Milliseconds, written as seconds.
#[derive(Clone, Copy)]
pub(super) struct Seconds(pub(super) u64);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0 as f64 / 1000.0)
    }
}

#[derive(Serialize)]
struct Envelope<T: Serialize> {
    code: u16,
    message: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    data: T,
}

#[derive(Serialize)]
struct Failure<'a> {
    code: u16,
    message: &'a str,
}

#[derive(Serialize)]
struct HealthJson {
    total_servers: u64,
    enabled_servers: u64,
    active_servers: u64,
    expired_servers: u64,
}

#[derive(Serialize)]
struct Drained<'a> {
    addr: &'a str,
    connections: u32,
}

#[derive(Serialize)]
struct ResetDone {
    servers_reset: u64,
}

#[derive(Serialize)]
struct CleanupDone {
    expired_count: u64,
    disabled_count: u64,
    removed_count: u64,
}

impl Reply {
    fn json(status: u16, body: &impl Serialize) -> Self {
        // Serialising these types into memory has no way to fail.
        let mut body = serde_json::to_vec(body).unwrap_or_default();
        body.push(b'\n');
        Self { status, body, header: None, error: None }
    }

    /// An error.
    pub fn error(status: u16, message: String) -> Self {
        let reply = Self::json(status, &Failure { code: status, message: &message });
        Self { error: Some(message), ..reply }
    }

    /// The request has no good token.
    pub fn unauthorized() -> Self {
        let message = "A valid token is required: \
                       Authorization: Bearer TOKEN, or X-API-Token: TOKEN";
        Self {
            header: Some(("WWW-Authenticate", "Bearer realm=\"registry\"")),
            ..Self::error(401, message.to_owned())
        }
    }

    /// What was asked for is done, or here.
    pub(super) fn success(data: impl Serialize) -> Self {
        let (code, message) = (200, "Success");
        let body = Envelope { code, message, status: None, data };
        Self::json(code, &body)
    }

    /// A body made elsewhere, with 200.
    pub(super) fn ok(body: Vec<u8>) -> Self {
        Self { status: 200, body, header: None, error: None }
    }

    /// What a drain has left.
    pub(super) fn drained(addr: &str, connections: u32) -> Self {
        Self::success(Drained { addr, connections })
    }

    /// What `reset` did.
    pub(super) fn reset(servers_reset: u64) -> Self {
        Self::success(ResetDone { servers_reset })
    }

    /// What `cleanup` found and did.
    pub(super) fn cleanup(sweep: &Sweep) -> Self {
        Self::success(CleanupDone {
            expired_count: sweep.expired,
            disabled_count: sweep.disabled,
            removed_count: sweep.removed,
        })
    }

    /// What `health` found. `ready` turns "unhealthy" into a 503, for other balancers' probes.
    pub(super) fn health(health: &Health, ready: bool) -> Self {
        let healthy = health.eligible > 0;
        let code = if ready && !healthy { 503 } else { 200 };
        let body = Envelope {
            code,
            message: if code == 200 { "Success" } else { "No server is eligible" },
            status: Some(if healthy { "healthy" } else { "unhealthy" }),
            data: HealthJson {
                total_servers: health.total_servers,
                enabled_servers: health.enabled_servers,
                active_servers: health.active_servers,
                expired_servers: health.expired_servers,
            },
        };
        Self::json(code, &body)
    }
}
