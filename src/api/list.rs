//! The JSON of a list of servers, written by hand.
//!
//! A list may have ten thousand of them, and each has eight times: `serde_json` would write
//! these as floating-point numbers, which takes longer than all the rest.

use std::io::Write;

use crate::registry::{CheckView, ServerView, Sharing};

/// The text of a list that is written piece by piece: what has been written is valid JSON once
/// [`ListText::end`] has been called.
#[derive(Debug)]
pub(super) struct ListText {
    /// The namespace's name, which needs no escaping.
    namespace: String,
    /// The name of this node, when its servers are shared with others; it needs no escaping.
    node: Option<String>,
    total: u64,
}

impl ListText {
    pub(super) fn new(namespace: &str, node: Option<&str>) -> Self {
        Self { namespace: namespace.to_owned(), node: node.map(str::to_owned), total: 0 }
    }

    /// Appends servers, and before the first what comes before them.
    pub(super) fn servers(&mut self, servers: &[ServerView], out: &mut Vec<u8>) {
        for server in servers {
            out.extend_from_slice(if self.total == 0 { BEGIN } else { b"," });
            self.total += 1;
            put_server(out, &self.namespace, server);
        }
    }

    /// Appends what comes after the last one. `wall`: milliseconds since the epoch.
    pub(super) fn end(&mut self, wall: u64, sharing: &Sharing, out: &mut Vec<u8>) {
        if self.total == 0 {
            out.extend_from_slice(BEGIN);
        }
        out.extend_from_slice(b"],\"total\":");
        put_integer(out, self.total);
        out.extend_from_slice(b",\"timestamp\":");
        put_seconds(out, wall);
        if let Some(node) = &self.node {
            put_sharing(out, node, sharing);
        }
        out.extend_from_slice(b"}\n");
    }
}

const BEGIN: &[u8] = b"{\"code\":200,\"message\":\"Success\",\"data\":[";

fn put_sharing(out: &mut Vec<u8>, node: &str, sharing: &Sharing) {
    out.extend_from_slice(b",\"sync\":{\"connected\":");
    put_bool(out, sharing.connected);
    out.extend_from_slice(b",\"last_sync\":");
    match sharing.last_sync {
        0 => out.extend_from_slice(b"null"),
        wall => put_seconds(out, wall),
    }
    out.extend_from_slice(b",\"lag_ms\":");
    put_integer(out, sharing.lag);
    out.extend_from_slice(b",\"pending\":");
    put_integer(out, sharing.pending);
    out.extend_from_slice(b",\"node\":");
    put_string(out, node);
    out.extend_from_slice(b",\"nodes\":");
    put_integer(out, sharing.nodes);
    out.push(b'}');
}

fn put_server(out: &mut Vec<u8>, namespace: &str, s: &ServerView) {
    out.extend_from_slice(b"{\"addr\":");
    put_string(out, s.addr());
    out.extend_from_slice(b",\"host\":");
    put_string(out, s.host());
    out.extend_from_slice(b",\"port\":");
    put_integer(out, s.port.into());
    out.extend_from_slice(b",\"namespace\":");
    put_string(out, namespace);
    out.extend_from_slice(b",\"connections\":");
    put_integer(out, s.connections.into());
    out.extend_from_slice(b",\"weight\":");
    put_integer(out, s.weight.into());
    out.extend_from_slice(b",\"max_conns\":");
    put_integer(out, s.max_conns.into());
    out.extend_from_slice(b",\"enabled\":");
    put_bool(out, s.enabled);
    out.extend_from_slice(b",\"is_active\":");
    put_bool(out, s.is_active);
    out.extend_from_slice(b",\"state\":");
    put_string(out, s.state.as_str());
    out.extend_from_slice(b",\"last_heartbeat\":");
    put_seconds(out, s.last_heartbeat);
    out.extend_from_slice(b",\"time_since_heartbeat\":");
    put_seconds(out, s.time_since_heartbeat);
    out.extend_from_slice(b",\"created_at\":");
    put_seconds(out, s.created_at);
    out.extend_from_slice(b",\"updated_at\":");
    put_seconds(out, s.updated_at);
    out.extend_from_slice(b",\"disabled_at\":");
    match s.disabled_at {
        0 => out.extend_from_slice(b"null"),
        wall => put_seconds(out, wall),
    }
    out.extend_from_slice(b",\"disabled_reason\":");
    match s.disabled_reason {
        None => out.extend_from_slice(b"null"),
        Some(why) => put_string(out, why),
    }
    out.extend_from_slice(b",\"requests\":");
    put_integer(out, s.requests);
    out.extend_from_slice(b",\"fails\":");
    put_integer(out, s.fails);
    out.extend_from_slice(b",\"static\":");
    put_bool(out, s.is_static);
    out.extend_from_slice(b",\"backup\":");
    put_bool(out, s.backup);
    out.extend_from_slice(b",\"local_connections\":");
    put_integer(out, s.local_connections.into());
    out.extend_from_slice(b",\"name\":");
    match s.of_name() {
        None => out.extend_from_slice(b"null"),
        Some(name) => put_string(out, name),
    }
    out.extend_from_slice(b",\"health\":");
    match &s.health {
        None => out.extend_from_slice(b"null"),
        Some(health) => put_health(out, health),
    }
    out.push(b'}');
}

fn put_health(out: &mut Vec<u8>, h: &CheckView) {
    out.extend_from_slice(b"{\"checks\":");
    put_integer(out, h.checks.into());
    out.extend_from_slice(b",\"fails\":");
    put_integer(out, h.fails.into());
    // Writing into memory has no way to fail.
    let _ = write!(out, ",\"consecutive\":{}", h.consecutive);
    out.extend_from_slice(b",\"last_check\":");
    match h.last_check {
        0 => out.extend_from_slice(b"null"),
        wall => put_seconds(out, wall),
    }
    out.extend_from_slice(b",\"last_error\":");
    match h.last_error {
        None => out.extend_from_slice(b"null"),
        Some(trouble) => _ = write!(out, "\"{trouble}\""),
    }
    out.extend_from_slice(b",\"latency_ms\":");
    put_integer(out, h.latency_ms.into());
    out.push(b'}');
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    let plain = |b: u8| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\';
    if s.bytes().all(plain) {
        out.push(b'"');
        out.extend_from_slice(s.as_bytes());
        out.push(b'"');
    } else {
        // The path of a unix socket. Writing into memory has no way to fail.
        let _ = serde_json::to_writer(out, s);
    }
}

fn put_bool(out: &mut Vec<u8>, b: bool) {
    out.extend_from_slice(if b { b"true" } else { b"false" });
}

fn put_integer(out: &mut Vec<u8>, n: u64) {
    // Writing into memory has no way to fail.
    let _ = write!(out, "{n}");
}

/// Milliseconds, as seconds with a fraction of three digits.
fn put_seconds(out: &mut Vec<u8>, ms: u64) {
    put_integer(out, ms / 1000);
    let ms = ms % 1000;
    let digit = |n: u64| b'0' + (n % 10) as u8;
    out.extend_from_slice(&[b'.', digit(ms / 100), digit(ms / 10), digit(ms)]);
}
