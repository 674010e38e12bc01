//! The directives `redis` and `redis_*`.

use std::hash::Hasher;
use std::path::{Path, PathBuf};

use ngx::ffi::ngx_conf_t;

use crate::http::main_conf::MainConf;
use crate::http::settings::Words;
use crate::http::zone::ZoneConf;
use crate::nginx::conf::{self, Outcome};
use crate::nginx::process;
use crate::registry::SpaceName;
use crate::state::Fnv;
use crate::sync::Endpoint;

/// Where Redis is and how to use it. Times in milliseconds.
#[derive(Default)]
pub(in crate::http) struct RedisConf {
    /// `None`: servers are not shared.
    pub(in crate::http) endpoint: Option<Endpoint>,
    prefix: Option<String>,
    timeout: Option<u64>,
    interval: Option<u64>,
    node: Option<String>,
    certificates: Option<PathBuf>,
    tombstone_ttl: Option<u64>,
}

impl RedisConf {
    /// Of the keys; with a cluster in braces, so that all keys are in one slot.
    pub(super) fn prefix(&self) -> String {
        let prefix = self.prefix.as_deref().unwrap_or("upstream");
        match &self.endpoint {
            Some(endpoint) if endpoint.is_cluster() => format!("{{{prefix}}}"),
            _ => prefix.to_owned(),
        }
    }

    pub(super) fn timeout(&self) -> u64 {
        self.timeout.unwrap_or(1000)
    }

    pub(super) fn interval(&self) -> u64 {
        self.interval.unwrap_or(1000)
    }

    /// `redis_tombstone_ttl`.
    pub(in crate::http) fn tombstone_ttl(&self) -> u64 {
        self.tombstone_ttl.unwrap_or(24 * 3600 * 1000)
    }

    /// The node's name, when servers are shared.
    pub(in crate::http) fn node(&self) -> Option<&str> {
        self.endpoint.as_ref().and(self.node.as_deref())
    }
}

/// Reads one of the directives.
pub(in crate::http) fn set(zone: &mut ZoneConf, words: &Words<'_>) -> Result<(), Outcome> {
    let redis = &mut zone.redis;
    match words.name {
        "redis" => {
            let text = conf::text(&words.values[0]).unwrap_or_default();
            let endpoint = Endpoint::parse(text)
                .map_err(|e| conf::refuse(words.cf, format_args!("invalid \"redis\": {e}")))?;
            redis.endpoint = Some(endpoint);
        }
        "redis_prefix" => {
            let good = |b: &u8| b.is_ascii_alphanumeric() || b"._:-".contains(b);
            redis.prefix = Some(name(words, good, "\".\", \"_\", \":\" or \"-\"")?);
        }
        "redis_node" => {
            let good = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
            redis.node = Some(name(words, good, "\".\", \"_\" or \"-\"")?);
        }
        "redis_timeout" => {
            let hint = "write it as 1s, from 10ms to 60s";
            redis.timeout = Some(words.time_between(10, 60_000, hint)?);
        }
        "redis_interval" => {
            let hint = "write it as 1s, from 100ms to 1h";
            redis.interval = Some(words.time_between(100, 3_600_000, hint)?);
        }
        "redis_tombstone_ttl" => {
            let hint = "write it as 24h, it must be at least 1s";
            redis.tombstone_ttl = Some(words.time(1000, hint)?);
        }
        _ => {
            let path = conf::text(&words.values[0]).filter(|path| !path.is_empty());
            let path = path.and_then(|path| conf::full_path(words.cf, path));
            redis.certificates = Some(path.ok_or(conf::ERROR)?);
        }
    }
    Ok(())
}

fn name(words: &Words<'_>, good: impl Fn(&u8) -> bool, others: &str) -> Result<String, Outcome> {
    let (directive, value) = (words.name, &words.values[0]);
    let text = conf::text(value)
        .filter(|text| (1..=64).contains(&text.len()) && text.as_bytes().iter().all(&good));
    text.map(str::to_owned).ok_or_else(|| {
        conf::refuse(
            words.cf,
            format_args!(
                "invalid value \"{value}\" in \"{directive}\": use 1 to 64 letters, digits, {others}"
            ),
        )
    })
}

/// Checks the block as a whole, at its end.
pub(in crate::http) fn finish(cf: *mut ngx_conf_t, zone: &mut ZoneConf) -> Result<(), Outcome> {
    let refuse = |message: std::fmt::Arguments<'_>| Err(conf::refuse(cf, message));
    let Some(endpoint) = zone.redis.endpoint.take() else {
        if let Some(lonely) = zone.seen.iter().find(|name| name.starts_with("redis_")) {
            return refuse(format_args!(
                "\"{lonely}\" needs \"redis\" in its registry block, which says where Redis is"
            ));
        }
        return Ok(());
    };
    let endpoint = match &zone.redis.certificates {
        None => endpoint,
        Some(path) => with_certificates(cf, endpoint, path)?,
    };
    let shown = endpoint.to_string();
    zone.redis.endpoint = Some(endpoint);
    let main = MainConf::of_conf(cf).ok_or(conf::ERROR)?;
    let prefix = zone.redis.prefix();
    let other = main.zones.iter().find(|other| {
        let same = other.redis.endpoint.as_ref().is_some_and(|e| e.to_string() == shown);
        same && other.redis.prefix() == prefix
    });
    if let Some(other) = other {
        let (name, place) = (&other.name, &other.place);
        return refuse(format_args!(
            "registry \"{name}\" in {place} has the same Redis and the same \"redis_prefix\": they \
             would have the same servers; give one of them another redis_prefix"
        ));
    }
    if zone.redis.node.is_none() {
        zone.redis.node = Some(default_node(cf));
    }
    Ok(())
}

fn with_certificates(
    cf: *mut ngx_conf_t,
    endpoint: Endpoint,
    path: &Path,
) -> Result<Endpoint, Outcome> {
    let shown = path.display();
    let refuse = |why: &dyn std::fmt::Display| {
        conf::refuse(cf, format_args!("invalid \"redis_trusted_certificate\": \"{shown}\": {why}"))
    };
    let pem = std::fs::read(path).map_err(|e| refuse(&e))?;
    endpoint.with_certificates(pem).map_err(|e| refuse(&e))
}

/// The host's name, and which nginx it is on that host: two may have the same name.
fn default_node(cf: *mut ngx_conf_t) -> String {
    let (host, prefix) = process::host_and_prefix(cf);
    let mut hash = Fnv::default();
    hash.write(host.as_bytes());
    hash.write(b"\n");
    hash.write(prefix.as_bytes());
    let mut name: String = host
        .chars()
        .map(|c| if SpaceName::new(c.to_string().as_bytes()).is_some() { c } else { '-' })
        .take(55)
        .collect();
    if name.is_empty() {
        name.push_str("node");
    }
    format!("{name}-{:08x}", hash.finish() as u32)
}
