//! Replies: always JSON, whatever went wrong.

use serde::{Serialize, Serializer};

use crate::registry::{Health, ServerView};

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
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<Seconds>,
}

#[derive(Serialize)]
struct Failure<'a> {
    code: u16,
    message: &'a str,
}

#[derive(Serialize)]
struct ServerJson<'a> {
    addr: &'a str,
    host: &'a str,
    port: u16,
    namespace: &'a str,
    connections: u32,
    weight: u32,
    max_conns: u32,
    enabled: bool,
    is_active: bool,
    state: &'static str,
    last_heartbeat: Seconds,
    time_since_heartbeat: Seconds,
    created_at: Seconds,
    updated_at: Seconds,
    disabled_at: Option<Seconds>,
    disabled_reason: Option<&'static str>,
    requests: u64,
    fails: u64,
    #[serde(rename = "static")]
    is_static: bool,
    backup: bool,
}

#[derive(Serialize)]
struct HealthJson {
    total_servers: u64,
    enabled_servers: u64,
    active_servers: u64,
    expired_servers: u64,
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
        let body = Envelope { code, message, status: None, data, total: None, timestamp: None };
        Self::json(code, &body)
    }

    /// A list of servers.
    pub(super) fn status(namespace: &str, servers: &[ServerView], now_wall: u64) -> Self {
        let data: Vec<_> = servers.iter().map(|s| server_json(namespace, s)).collect();
        let body = Envelope {
            code: 200,
            message: "Success",
            status: None,
            data,
            total: Some(servers.len()),
            timestamp: Some(Seconds(now_wall)),
        };
        Self::json(200, &body)
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
            total: None,
            timestamp: None,
        };
        Self::json(code, &body)
    }
}

fn server_json<'a>(namespace: &'a str, s: &'a ServerView) -> ServerJson<'a> {
    ServerJson {
        addr: &s.addr,
        host: &s.host,
        port: s.port,
        namespace,
        connections: s.connections,
        weight: s.weight,
        max_conns: s.max_conns,
        enabled: s.enabled,
        is_active: s.is_active,
        state: s.state.as_str(),
        last_heartbeat: Seconds(s.last_heartbeat),
        time_since_heartbeat: Seconds(s.time_since_heartbeat),
        created_at: Seconds(s.created_at),
        updated_at: Seconds(s.updated_at),
        disabled_at: (s.disabled_at > 0).then_some(Seconds(s.disabled_at)),
        disabled_reason: s.disabled_reason,
        requests: s.requests,
        fails: s.fails,
        is_static: s.is_static,
        backup: s.backup,
    }
}
