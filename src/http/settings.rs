//! The directives inside a `registry` block.

use ngx::ffi::{NGX_LOG_WARN, ngx_conf_t, ngx_str_t};

use super::zone::ZoneConf;
use super::{health, state, sync};
use crate::nginx::conf;
use crate::nginx::log::log_conf;
use crate::registry::{Network, OnDuplicate, OnExpire, SLOW_START_MAX};

/// Longest times that directives take: a year, in milliseconds.
pub(super) const MAX_TIME: u64 = 365 * 24 * 3600 * 1000;

/// What `slow_start` may be.
pub(super) const SLOW_START_HINT: &str = "write it as 30s, it may be 1h at most, or 0 for none";

/// How many words may follow a directive's name.
#[derive(PartialEq, Eq)]
enum Takes {
    One,
    Several,
    Any,
}

struct Setting {
    name: &'static str,
    takes: Takes,
    /// May stand more than once.
    repeatable: bool,
    set: fn(&mut ZoneConf, &Words<'_>) -> Result<(), conf::Outcome>,
}

const fn one(
    name: &'static str,
    set: fn(&mut ZoneConf, &Words<'_>) -> Result<(), conf::Outcome>,
) -> Setting {
    Setting { name, takes: Takes::One, repeatable: false, set }
}

const SETTINGS: [Setting; 18] = [
    one("heartbeat_ttl", |zone, words| {
        zone.rules.ttl = words.time(0, "write it as 30s, or 0 for servers that never expire")?;
        Ok(())
    }),
    one("cleanup_interval", |zone, words| {
        zone.cleanup_interval = words.time(10, "write it as 10s, it must be at least 10ms")?;
        Ok(())
    }),
    one("on_expire", |zone, words| {
        let values = [("disable", OnExpire::Disable), ("remove", OnExpire::Remove)];
        zone.rules.on_expire = words.one_of(&values)?;
        Ok(())
    }),
    one("remove_after", |zone, words| {
        let hint = "write it as 120s, or 0 to never forget a server";
        zone.rules.remove_after = words.time(0, hint)?;
        Ok(())
    }),
    one("on_duplicate", |zone, words| {
        let values = [("refresh", OnDuplicate::Refresh), ("reject", OnDuplicate::Reject)];
        zone.rules.on_duplicate = words.one_of(&values)?;
        Ok(())
    }),
    one("panic_threshold", set_panic),
    one("slow_start", |zone, words| {
        zone.rules.slow_start = words.time_between(0, SLOW_START_MAX.into(), SLOW_START_HINT)?;
        Ok(())
    }),
    one("state_file", |zone, words| state::set(words.cf, zone, conf::text(&words.values[0]))),
    one("redis", sync::set),
    one("redis_prefix", sync::set),
    one("redis_timeout", sync::set),
    one("redis_interval", sync::set),
    one("redis_node", sync::set),
    one("redis_trusted_certificate", sync::set),
    one("redis_tombstone_ttl", sync::set),
    Setting { takes: Takes::Any, ..one("health_check", health::set) },
    Setting { repeatable: true, ..one("api_token", set_token) },
    Setting { takes: Takes::Several, repeatable: true, ..one("allow_servers", set_allow) },
];

/// `panic_threshold PERCENT%`
fn set_panic(zone: &mut ZoneConf, words: &Words<'_>) -> Result<(), conf::Outcome> {
    let value = &words.values[0];
    let text = conf::text(value).unwrap_or_default();
    let number = match text.strip_suffix('%').unwrap_or(text) {
        _ if text == "off" || text == "0" => Some(0),
        // Of 50 alone nobody knows whether a share or a number is meant.
        number if number.len() < text.len() && number.bytes().all(|b| b.is_ascii_digit()) => {
            number.parse().ok().filter(|n| *n < 100)
        }
        _ => None,
    };
    zone.rules.panic_threshold = number.ok_or_else(|| {
        conf::refuse(
            words.cf,
            format_args!(
                "invalid value \"{value}\" in \"panic_threshold\": write it as 50%, it may be 1% to \
                 99%, or 0 or off"
            ),
        )
    })?;
    Ok(())
}

/// `api_token TOKEN` or `api_token file:PATH`
fn set_token(zone: &mut ZoneConf, words: &Words<'_>) -> Result<(), conf::Outcome> {
    let value = &words.values[0];
    let added = match conf::text(value).and_then(|text| text.strip_prefix("file:")) {
        Some("") => {
            return Err(conf::refuse(
                words.cf,
                format_args!("\"file:\" needs a path in \"api_token\""),
            ));
        }
        Some(path) => {
            let path = conf::full_path(words.cf, path).ok_or(conf::ERROR)?;
            zone.tokens.add_file(&path)
        }
        None => zone.tokens.add(value.as_bytes()),
    };
    added.map_err(|e| conf::refuse(words.cf, format_args!("invalid \"api_token\": {e}")))
}

/// `allow_servers NETWORK …`
fn set_allow(zone: &mut ZoneConf, words: &Words<'_>) -> Result<(), conf::Outcome> {
    for value in words.values {
        let text = conf::text(value).unwrap_or_default();
        let (network, low_bits) = Network::parse(text).map_err(|e| {
            conf::refuse(
                words.cf,
                format_args!("invalid network \"{value}\" in \"allow_servers\": {e}"),
            )
        })?;
        if low_bits {
            // In the words of `allow` and `deny`.
            let message =
                format_args!("low address bits of {value} are meaningless: it is {network}");
            log_conf(NGX_LOG_WARN, words.cf, message);
        }
        zone.allow.push(network);
    }
    Ok(())
}

/// A directive's words.
pub(super) struct Words<'a> {
    pub(super) cf: *mut ngx_conf_t,
    pub(super) name: &'a str,
    pub(super) values: &'a [ngx_str_t],
}

impl Words<'_> {
    /// A time in milliseconds.
    pub(super) fn time(&self, min: u64, hint: &str) -> Result<u64, conf::Outcome> {
        self.time_between(min, MAX_TIME, hint)
    }

    /// A time in milliseconds that may not be any.
    pub(super) fn time_between(
        &self,
        min: u64,
        max: u64,
        hint: &str,
    ) -> Result<u64, conf::Outcome> {
        let (name, value) = (self.name, &self.values[0]);
        match conf::time_ms(value) {
            Some(ms) if (min..=max).contains(&ms) => Ok(ms),
            Some(ms) if ms > MAX_TIME => Err(conf::refuse(
                self.cf,
                format_args!("invalid time \"{value}\" in \"{name}\": it may be a year at most"),
            )),
            _ => Err(conf::refuse(
                self.cf,
                format_args!("invalid time \"{value}\" in \"{name}\": {hint}"),
            )),
        }
    }

    fn one_of<T: Copy>(&self, values: &[(&str, T)]) -> Result<T, conf::Outcome> {
        let (name, value) = (self.name, &self.values[0]);
        let found = values.iter().find(|(word, _)| word.as_bytes() == value.as_bytes());
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<_> = values.iter().map(|(word, _)| *word).collect();
            let words = words.join(" or ");
            conf::refuse(
                self.cf,
                format_args!("invalid value \"{value}\" in \"{name}\": it may be {words}"),
            )
        })
    }
}

/// Reads one directive of the block.
pub(super) fn read(cf: *mut ngx_conf_t, zone: &mut ZoneConf) -> Result<(), conf::Outcome> {
    let [name, values @ ..] = conf::words(cf) else { return Err(conf::ERROR) };
    let name = name.to_string();
    let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
        let known = SETTINGS.map(|setting| setting.name).join(", ");
        return Err(conf::refuse(
            cf,
            format_args!("unknown directive \"{name}\" in a registry block: there are {known}"),
        ));
    };
    let fits = match setting.takes {
        Takes::One => values.len() == 1,
        Takes::Several => !values.is_empty(),
        Takes::Any => true,
    };
    if !fits {
        let takes = if setting.takes == Takes::One { "one" } else { "one or more" };
        return Err(conf::refuse(
            cf,
            format_args!("invalid number of arguments in \"{name}\" directive: it takes {takes}"),
        ));
    }
    if !setting.repeatable && zone.seen.contains(&name) {
        return Err(conf::refuse(cf, format_args!("\"{name}\" directive is duplicate")));
    }
    (setting.set)(zone, &Words { cf, name: &name, values })?;
    zone.seen.push(name);
    Ok(())
}
