//! What other programs write to the public keys: found slice by slice, checked, and told to Redis as
//! news.
//!
//! One node at a time does this, the one that has the lease. What it finds carries what it saw:
//! Redis takes it only when that is still there, so two that look at a time do no harm.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::exchange::{Item, ItemChange};
use super::given;
use super::{Link, LinkError, Script};
use crate::registry::{Address, MAX_CONNS_MAX, Settings, SpaceName, WEIGHT_MAX};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scan.lua")));

/// Fields of a hash in one slice, about.
const COUNT: u32 = 500;

/// Entries that are remembered as bad ones.
const REMEMBERED: usize = 10_000;

/// A namespace of fewer servers than this is emptied one by one; of a larger one more than half are
/// never gone at once but by accident.
const FEW: u64 = 4;

#[derive(Serialize)]
struct ScanRequest<'a> {
    prefix: &'a str,
    part: &'static str,
    space: &'a str,
    cursor: &'a str,
    count: u32,
    /// Entries of `servers:meta` that are no servers.
    extra: u64,
}

#[derive(Deserialize)]
struct ScanReply {
    cursor: String,
    #[serde(default)]
    spaces: Vec<String>,
    #[serde(default)]
    differ: Vec<String>,
    #[serde(default)]
    wrong: Vec<String>,
    #[serde(default)]
    total: u64,
    #[serde(default)]
    now: u64,
}

/// Where a walk through all public keys stands.
#[derive(Debug, Default)]
enum Place {
    #[default]
    Start,
    In {
        /// Namespaces still to come, the present one last.
        spaces: Vec<String>,
        part: usize,
        cursor: String,
        /// Servers that are missing, of how many.
        gone: Vec<(String, bool)>,
        total: u64,
        /// Entries that are no servers.
        extra: u64,
    },
}

const PARTS: [&str; 3] = ["meta", "beat", "gone"];

/// Looks for what other programs write.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    place: Place,
    /// What has been complained of, by key and entry: a hash of the value.
    bad: HashMap<(String, String), u64>,
    /// Keys of a wrong type that have been complained of.
    wrong: HashSet<String>,
}

/// What a slice brought.
#[derive(Debug, Default)]
pub(super) struct Slice {
    /// To be told.
    pub(super) items: Vec<Item>,
    /// Lines for the log.
    pub(super) warnings: Vec<String>,
    /// The walk is through.
    pub(super) done: bool,
}

impl Scanner {
    /// Looks at the next slice. `spaces`: namespaces that are in the configuration.
    ///
    /// # Errors
    ///
    /// [`LinkError`]; the walk begins anew.
    pub(super) fn slice(
        &mut self,
        link: &mut Link,
        prefix: &str,
        spaces: &[String],
    ) -> Result<Slice, LinkError> {
        let place = std::mem::take(&mut self.place);
        let (mut spaces, part, cursor, gone, total, mut extra) = match place {
            Place::Start => {
                let reply = ask(link, prefix, "spaces", "", "0", 0)?;
                let mut all = reply.spaces;
                all.extend(spaces.iter().cloned());
                all.retain(|name| SpaceName::new(name.as_bytes()).is_some());
                all.sort();
                all.dedup();
                (all, 0, "0".to_owned(), Vec::new(), 0, 0)
            }
            Place::In { spaces, part, cursor, gone, total, extra } => {
                (spaces, part, cursor, gone, total, extra)
            }
        };
        let Some(space) = spaces.last().cloned() else {
            return Ok(Slice { done: true, ..Slice::default() });
        };
        let reply = ask(link, prefix, PARTS[part], &space, &cursor, extra)?;
        let mut slice = Slice::default();
        let (mut gone, total) = (gone, total.max(reply.total));
        if PARTS[part] == "meta" && cursor == "0" {
            // One that is right again and spoilt once more is worth another line.
            for rest in ["servers:meta", "servers:zset", "heartbeat"] {
                let key = public(prefix, &space, rest);
                if !reply.wrong.contains(&key) {
                    self.wrong.remove(&key);
                }
            }
        }
        for pair in reply.wrong.chunks_exact(2) {
            self.complain_of_key(&pair[0], &pair[1], &mut slice.warnings);
        }
        match PARTS[part] {
            "meta" => {
                for cells in reply.differ.chunks_exact(4) {
                    let [addr, text, shadow, heard] = cells else { continue };
                    let entry = Entry { space: &space, addr, text, shadow, heard, now: reply.now };
                    match entry.read() {
                        Ok(item) => slice.items.push(item),
                        Err(why) => {
                            extra += u64::from(shadow.is_empty());
                            let key = public(prefix, &space, "servers:meta");
                            self.complain(&key, addr, text, &why, &mut slice.warnings);
                        }
                    }
                }
            }
            "beat" => {
                for cells in reply.differ.chunks_exact(2) {
                    let [addr, value] = cells else { continue };
                    if value.parse::<f64>().is_ok_and(f64::is_finite) {
                        slice.items.push(Item {
                            kind: "foreign-beat",
                            namespace: space.clone(),
                            address: addr.clone(),
                            seen: Some(value.clone()),
                            ..Item::default()
                        });
                    } else {
                        let key = public(prefix, &space, "heartbeat");
                        let why = "it is no number of seconds";
                        self.complain(&key, addr, value, why, &mut slice.warnings);
                    }
                }
            }
            _ => gone.extend(
                reply.differ.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1] == "gone")),
            ),
        }
        let through = reply.cursor == "0";
        if through && PARTS[part] == "gone" {
            slice.missing(&space, &gone, total, prefix);
        }
        self.place = if !through {
            Place::In { spaces, part, cursor: reply.cursor, gone, total, extra }
        } else if part + 1 < PARTS.len() {
            let (cursor, gone) = ("0".to_owned(), Vec::new());
            Place::In { spaces, part: part + 1, cursor, gone, total: 0, extra }
        } else {
            spaces.pop();
            slice.done = spaces.is_empty();
            if slice.done {
                Place::Start
            } else {
                let cursor = "0".to_owned();
                Place::In { spaces, part: 0, cursor, gone: Vec::new(), total: 0, extra: 0 }
            }
        };
        Ok(slice)
    }

    /// Notes public keys of a wrong type, for the log.
    pub(super) fn complain_of_key(&mut self, key: &str, kind: &str, warnings: &mut Vec<String>) {
        if self.wrong.len() < REMEMBERED && self.wrong.insert(key.to_owned()) {
            let kind = if kind == "zset" { "sorted set" } else { kind };
            warnings.push(format!("key \"{key}\" in Redis is left alone: it is no {kind}"));
        }
    }

    /// Notes a record of the nodes' own that makes no sense, for the log.
    pub(super) fn complain_of_record(&mut self, member: &str, warnings: &mut Vec<String>) {
        self.complain("sync:records", member, "", "it makes no sense", warnings);
    }

    fn complain(
        &mut self,
        key: &str,
        entry: &str,
        value: &str,
        why: &str,
        warnings: &mut Vec<String>,
    ) {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        let hash = hasher.finish();
        if self.bad.len() >= REMEMBERED {
            self.bad.clear();
        }
        let known = self.bad.insert((key.to_owned(), entry.to_owned()), hash);
        if known != Some(hash) {
            let entry = shown(entry);
            warnings.push(format!("entry \"{entry}\" of \"{key}\" in Redis is skipped: {why}"));
        }
    }
}

impl Slice {
    /// Servers that are no more in the public keys were removed by another program; unless they are
    /// so many, or only gone from one of the keys, that somebody has lost them.
    fn missing(&mut self, space: &str, gone: &[(String, bool)], total: u64, prefix: &str) {
        let lost = total >= FEW && gone.len() as u64 * 2 > total;
        if lost {
            let (key, n) = (public(prefix, space, "servers:meta"), gone.len());
            self.warnings.push(format!(
                "{n} of {total} servers are missing in \"{key}\" in Redis and are written again; \
                 scripts/init_redis.sh --force is what empties a registry"
            ));
        }
        self.items.extend(gone.iter().map(|(addr, removed)| Item {
            kind: if lost || !removed { "lost" } else { "gone" },
            namespace: space.to_owned(),
            address: addr.clone(),
            ..Item::default()
        }));
    }
}

fn ask(
    link: &mut Link,
    prefix: &str,
    part: &'static str,
    space: &str,
    cursor: &str,
    extra: u64,
) -> Result<ScanReply, LinkError> {
    let request = ScanRequest { prefix, part, space, cursor, count: COUNT, extra };
    // Serialising this into memory has no way to fail.
    let text = serde_json::to_vec(&request).unwrap_or_default();
    let answer = link.eval(&SCRIPT, &format!("{prefix}:sync:epoch"), &text)?;
    // What others have written need not be text.
    let answer = String::from_utf8_lossy(&answer);
    serde_json::from_str(&answer).map_err(|_| LinkError::Answer("something that makes no sense"))
}

/// The name of a public key.
fn public(prefix: &str, space: &str, rest: &str) -> String {
    if space == "default" { format!("{prefix}:{rest}") } else { format!("{prefix}:{space}:{rest}") }
}

/// What somebody wrote, fit for a log line.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().count() > 80 {
        shown.push('…');
    }
    shown
}

/// An entry of `servers:meta` that is not as nodes left it.
struct Entry<'a> {
    space: &'a str,
    addr: &'a str,
    text: &'a str,
    /// What nodes left; empty when it is new.
    shadow: &'a str,
    /// The server's entry in `heartbeat`; empty: none.
    heard: &'a str,
    /// Redis' clock in milliseconds.
    now: u64,
}

/// What counts of an entry.
struct Meta {
    weight: u32,
    max_conns: u32,
    disabled: bool,
    settings: Settings,
    created: Option<f64>,
}

impl Entry<'_> {
    fn read(&self) -> Result<Item, String> {
        let address = Address::parse(self.addr).ok_or("it is no IP address or name and port")?;
        let canonical = address.to_string();
        if canonical != self.addr {
            return Err(format!("write it as \"{canonical}\""));
        }
        // It has been made text of, with a mark where it was none.
        if self.text.contains(char::REPLACEMENT_CHARACTER) {
            return Err("it is no UTF-8".to_owned());
        }
        let known = if self.shadow.is_empty() { None } else { meta(self.shadow).ok() };
        let meta = meta(self.text)?;
        let new = known.is_none();
        let known = known.unwrap_or(Meta {
            weight: meta.weight,
            max_conns: meta.max_conns,
            disabled: meta.disabled,
            settings: meta.settings,
            created: None,
        });
        let changed = |differs: bool| (new || differs).then_some(0);
        let age = |at: Option<f64>| match at {
            Some(at) if at > 0.0 => self.now.saturating_sub((at * 1000.0) as u64),
            _ => 0,
        };
        // Never later than Redis' now. What is new may have an old sign of life.
        let heard = self.heard.parse::<f64>().ok().filter(|heard| heard.is_finite());
        Ok(Item {
            kind: "change",
            namespace: self.space.to_owned(),
            address: canonical,
            heartbeat_age: Some(age(heard)),
            change: Some(ItemChange {
                host: address.host(),
                port: address.port(),
                added: changed(false),
                weight: meta.weight,
                weight_age: changed(meta.weight != known.weight),
                max_conns: meta.max_conns,
                max_conns_age: changed(meta.max_conns != known.max_conns),
                disabled: meta.disabled.into(),
                draining: 0,
                switch_age: changed(meta.disabled != known.disabled),
                settings: Some(given::write(&meta.settings)),
                settings_age: changed(meta.settings != known.settings),
                ages: None,
                disabled_age: 0,
                created_age: age(meta.created),
                weak: true,
            }),
            seen: Some(self.text.to_owned()),
            ..Item::default()
        })
    }
}

fn meta(text: &str) -> Result<Meta, String> {
    let value: Value = serde_json::from_str(text).map_err(|_| "it is no JSON".to_owned())?;
    let Value::Object(fields) = value else { return Err("it is no JSON object".to_owned()) };
    let whole = |name: &str, most: u32, default: u32| match fields.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => {
            // Lua writes whole numbers as such, others may write 1.0.
            let n = value.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0);
            n.filter(|n| *n <= f64::from(most))
                .map(|n| n as u32)
                .ok_or_else(|| format!("\"{name}\" must be a whole number from 0 to {most}"))
        }
    };
    let enabled = match fields.get("enabled") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(enabled)) => *enabled,
        Some(_) => return Err("\"enabled\" must be true or false".to_owned()),
    };
    // Silence is each node's own conclusion: one that another system draws is not taken over.
    let silent = fields.get("disabled_reason").and_then(Value::as_str) == Some("heartbeat_timeout");
    Ok(Meta {
        weight: whole("weight", WEIGHT_MAX, 1)?,
        max_conns: whole("max_conns", MAX_CONNS_MAX, 1000)?,
        disabled: !enabled && !silent,
        settings: given::read(&fields)?,
        created: fields.get("created_at").and_then(Value::as_f64),
    })
}
