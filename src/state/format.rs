//! The format: one JSON object, a server a line, that ends with the number of servers and a
//! checksum of all before it. No part of a file passes for a whole one.
//!
//! ```json
//! {"version":1,"registry":"main","instance":"00c0ffee00c0ffee","next":8,"servers":[
//! {"namespace":"backend","addr":"10.0.0.1:80","number":7,"weight":1,"max_conns":1000,"created_at":1795235972329,"updated_at":1795235972329}
//! ],"count":1,"checksum":"0123456789abcdef"}
//! ```

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::Hasher;

use serde::{Deserialize, Serialize};

use super::file::Fnv;
use crate::registry::{
    Address, HealthPath, MAX_CONNS_MAX, SavedServer, Settings, Source, SpaceName, SwitchedOff,
    WEIGHT_MAX,
};
use crate::shm::timeout;

/// Version of the format.
pub const FORMAT_VERSION: u64 = 1;

/// A file can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// No bytes.
    #[error("it is empty")]
    Empty,
    /// Its end is missing.
    #[error("it is truncated")]
    Truncated,
    /// Written by another version of this module.
    #[error("it has format version {0}, this module reads version {FORMAT_VERSION}")]
    Version(u64),
    /// Something else.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// What stands before the servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The registry's name, for people.
    pub registry: String,
    /// Who wrote it, and whom the writer had read.
    pub source: Source,
}

/// A file's content.
#[derive(Debug, PartialEq, Eq)]
pub struct Document {
    /// What stands before the servers.
    pub head: Head,
    /// The servers, in no order.
    pub servers: Vec<SavedServer>,
    /// The [`SavedServer::key`]s of those that are there.
    pub keys: HashSet<String>,
}

#[derive(Serialize, Deserialize)]
struct Seen {
    instance: String,
    next: u64,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    namespace: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    addr: std::borrow::Cow<'a, str>,
    number: u64,
    weight: u32,
    max_conns: u32,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    max_fails: u32,
    #[serde(default = "ten_seconds", skip_serializing_if = "is_ten_seconds")]
    fail_timeout_ms: u32,
    #[serde(default, skip_serializing_if = "is_none")]
    slow_start_ms: u32,
    #[serde(default, skip_serializing_if = "is_none")]
    connect_timeout_ms: u32,
    #[serde(default, skip_serializing_if = "is_none")]
    send_timeout_ms: u32,
    #[serde(default, skip_serializing_if = "is_none")]
    read_timeout_ms: u32,
    #[serde(default, skip_serializing_if = "str::is_empty", borrow)]
    health_path: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    disabled: Option<std::borrow::Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    disabled_at: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    draining: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    r#static: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    down: bool,
    created_at: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    updated_at: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    heard: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    removed_at: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(b: &bool) -> bool {
    !*b
}

// nginx's defaults, which a line does not say.

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_one(n: &u32) -> bool {
    *n == one()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_none(ms: &u32) -> bool {
    *ms == 0
}

fn ten_seconds() -> u32 {
    10_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_ten_seconds(ms: &u32) -> bool {
    *ms == ten_seconds()
}

const MANUAL: &str = "manual";
const CONFIGURED: &str = "configuration";
const CHECKSUM: &str = ",\"checksum\":\"";
/// `,"checksum":"0123456789abcdef"}` and the end of the line.
const TRAILER: usize = CHECKSUM.len() + 16 + 3;

/// Makes a file's content, a few servers at a time.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    count: u64,
    content: Fnv,
    heartbeats: bool,
}

/// All of a file but its checksum.
#[derive(Debug)]
pub struct Draft(Vec<u8>);

impl Writer {
    /// Begins with the head. `heartbeats`: with the times of the last ones, for another nginx that
    /// runs at the same time.
    pub fn new(head: &Head, heartbeats: bool) -> Self {
        let Source { instance, next_number, seen } = head.source;
        let mut text = format!("{{\"version\":{FORMAT_VERSION},\"registry\":");
        // A text always has a form in JSON.
        text.push_str(&serde_json::to_string(&head.registry).unwrap_or_default());
        let _ = write!(text, ",\"instance\":\"{instance:016x}\",\"next\":{next_number}");
        if let Some((instance, next)) = seen {
            let _ = write!(text, ",\"seen\":{{\"instance\":\"{instance:016x}\",\"next\":{next}}}");
        }
        text.push_str(",\"servers\":[");
        Self { bytes: text.into_bytes(), count: 0, content: Fnv::default(), heartbeats }
    }

    /// Adds a server.
    pub fn push(&mut self, s: &SavedServer) {
        self.bytes.extend_from_slice(if self.count == 0 { b"\n" } else { b",\n" });
        let settings = &s.settings;
        let mut line = Line {
            namespace: s.namespace.as_str().into(),
            addr: s.address.to_string().into(),
            number: s.number,
            weight: s.weight,
            max_conns: s.max_conns,
            max_fails: settings.max_fails,
            fail_timeout_ms: settings.fail_timeout_ms,
            slow_start_ms: settings.slow_start_ms,
            connect_timeout_ms: settings.timeouts_ms[timeout::CONNECT],
            send_timeout_ms: settings.timeouts_ms[timeout::SEND],
            read_timeout_ms: settings.timeouts_ms[timeout::READ],
            health_path: settings.health_path.as_str().into(),
            disabled: s.off.map(|off| match off {
                SwitchedOff::Manual => MANUAL.into(),
                SwitchedOff::Configured => CONFIGURED.into(),
            }),
            disabled_at: s.disabled_at,
            draining: s.draining,
            r#static: s.is_static,
            down: s.down,
            created_at: s.created_at,
            updated_at: 0,
            heard: 0,
            removed_at: s.removed_at,
        };
        let before = self.bytes.len();
        // Neither a vector nor this structure can fail to be written.
        let _ = serde_json::to_writer(&mut self.bytes, &line);
        self.content.write(&self.bytes[before..]);
        self.bytes.truncate(before);
        line.updated_at = s.updated_at;
        line.heard = if self.heartbeats { s.heard } else { 0 };
        let _ = serde_json::to_writer(&mut self.bytes, &line);
        self.count += 1;
    }

    /// Hash of the servers, their last change and heartbeat apart: what makes no difference to a
    /// restart.
    pub fn content(&self) -> u64 {
        self.content.finish()
    }

    /// All servers have been added.
    pub fn finish(mut self) -> Draft {
        self.bytes.extend_from_slice(format!("\n],\"count\":{}", self.count).as_bytes());
        Draft(self.bytes)
    }
}

impl Draft {
    /// The content, whole. Takes some milliseconds for ten thousand servers.
    pub fn seal(mut self) -> Vec<u8> {
        let mut sum = Fnv::default();
        sum.write(&self.0);
        let sum = sum.finish();
        self.0.extend_from_slice(format!("{CHECKSUM}{sum:016x}\"}}\n").as_bytes());
        self.0
    }
}

#[derive(Deserialize)]
struct Probe {
    version: u64,
}

#[derive(Deserialize)]
struct Whole<'a> {
    registry: String,
    instance: String,
    next: u64,
    seen: Option<Seen>,
    #[serde(borrow)]
    servers: Vec<Line<'a>>,
    count: usize,
}

/// Reads a file's content.
///
/// # Errors
///
/// [`ParseError`]: nothing of it is to be used.
pub fn parse(bytes: &[u8]) -> Result<Document, ParseError> {
    let damaged = |e: &dyn std::fmt::Display| ParseError::Damaged(e.to_string());
    if bytes.is_empty() {
        return Err(ParseError::Empty);
    }
    if let Err(e) = unspoilt(bytes) {
        // Another version may end in another way, but it is JSON with its version.
        return Err(match serde_json::from_slice::<Probe>(bytes) {
            Ok(Probe { version }) if version != FORMAT_VERSION => ParseError::Version(version),
            _ => e,
        });
    }
    let Probe { version } = serde_json::from_slice(bytes).map_err(|e| damaged(&e))?;
    if version != FORMAT_VERSION {
        return Err(ParseError::Version(version));
    }

    let whole: Whole<'_> = serde_json::from_slice(bytes).map_err(|e| damaged(&e))?;
    let (count, found) = (whole.count, whole.servers.len());
    if count != found {
        return Err(damaged(&format_args!("it has {found} servers and says {count}")));
    }
    let seen = match &whole.seen {
        Some(seen) => Some((instance(&seen.instance)?, seen.next)),
        None => None,
    };
    let source = Source { instance: instance(&whole.instance)?, next_number: whole.next, seen };
    let mut servers = Vec::with_capacity(found);
    let mut keys = HashSet::with_capacity(found);
    for line in whole.servers {
        let server = server(&line)
            .ok_or_else(|| damaged(&format_args!("there is no such server: {}", line.addr)))?;
        // One that was removed may have come again, and been removed again.
        if server.removed_at == 0 && !keys.insert(server.key()) {
            return Err(damaged(&format_args!("it has {} twice", line.addr)));
        }
        servers.push(server);
    }
    Ok(Document { head: Head { registry: whole.registry, source }, servers, keys })
}

/// Whether the file ends as it should and its checksum is right.
fn unspoilt(bytes: &[u8]) -> Result<(), ParseError> {
    if !bytes.ends_with(b"\"}\n") {
        return Err(ParseError::Truncated);
    }
    let damaged = |why: &str| Err(ParseError::Damaged(why.to_owned()));
    let Some(at) = bytes.len().checked_sub(TRAILER) else { return damaged("it is too short") };
    let (body, trailer) = bytes.split_at(at);
    let stated = trailer
        .strip_prefix(CHECKSUM.as_bytes())
        .and_then(|rest| std::str::from_utf8(&rest[..16]).ok())
        .and_then(hex);
    let Some(stated) = stated else { return damaged("there is no checksum at its end") };
    let mut sum = Fnv::default();
    sum.write(body);
    if sum.finish() != stated {
        return damaged("its checksum is wrong");
    }
    Ok(())
}

/// Sixteen lower-case digits.
fn hex(text: &str) -> Option<u64> {
    let digits = |b: &u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    if text.len() != 16 || !text.as_bytes().iter().all(digits) {
        return None;
    }
    u64::from_str_radix(text, 16).ok()
}

fn instance(text: &str) -> Result<u64, ParseError> {
    hex(text)
        .filter(|i| *i != 0)
        .ok_or_else(|| ParseError::Damaged(format!("\"{text}\" is no instance")))
}

fn server(line: &Line<'_>) -> Option<SavedServer> {
    SpaceName::new(line.namespace.as_bytes())?;
    if line.weight > WEIGHT_MAX || line.max_conns > MAX_CONNS_MAX {
        return None;
    }
    let off = match line.disabled.as_deref() {
        None => None,
        Some(MANUAL) => Some(SwitchedOff::Manual),
        Some(CONFIGURED) => Some(SwitchedOff::Configured),
        Some(_) => return None,
    };
    Some(SavedServer {
        namespace: line.namespace.clone().into_owned(),
        address: address(&line.addr, line.r#static)?,
        number: line.number,
        weight: line.weight,
        max_conns: line.max_conns,
        settings: Settings {
            max_fails: line.max_fails,
            fail_timeout_ms: line.fail_timeout_ms,
            slow_start_ms: line.slow_start_ms,
            timeouts_ms: [line.connect_timeout_ms, line.send_timeout_ms, line.read_timeout_ms],
            health_path: HealthPath::new(&line.health_path)?,
        },
        off,
        disabled_at: line.disabled_at,
        draining: line.draining,
        is_static: line.r#static,
        down: line.down,
        created_at: line.created_at,
        updated_at: line.updated_at,
        heard: line.heard,
        removed_at: line.removed_at,
    })
}

/// An address as printed. Only `server` lines name unix sockets.
fn address(text: &str, is_static: bool) -> Option<Address> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Address::unix(path).ok().filter(|_| is_static);
    }
    Address::parse(text)
}
