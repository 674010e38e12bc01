//! The parameters of `health_check`.

use std::fmt::Display;

use super::{BodyRule, Check, Kind, Statuses};
use crate::registry::Initial;
use crate::time;

const DAY: u64 = 86_400_000;

/// Longest `host` and `service`, in bytes.
const NAME_MAX: usize = 255;

const KNOWN: &str = "type=, uri=, host=, port=, interval=, jitter=, timeout=, fails=, passes=, status=, body~, \
     body!~, initial=, mode= or service=, or off alone";

impl Check {
    /// Reads what stands behind `health_check`: nothing, parameters in any order, or `off`, which
    /// is `None`.
    ///
    /// # Errors
    ///
    /// What is wrong, and what may be there, in the words of nginx.
    pub fn parse(words: &[&str]) -> Result<Option<Self>, String> {
        if words == ["off"] {
            return Ok(None);
        }
        let mut check = Self::default();
        let mut seen: Vec<(&str, String)> = Vec::new();
        let mut words = words.iter();
        while let Some(first) = words.next() {
            let parameter = Parameter::split(first, &mut words)?;
            if seen.iter().any(|(name, _)| *name == parameter.name) {
                return Err(format!("duplicate parameter \"{}\"", parameter.word));
            }
            parameter.set(&mut check)?;
            seen.push((parameter.name, parameter.word));
        }
        for (name, word) in &seen {
            check.fits(name, word)?;
        }
        let jitter = seen.iter().find(|(name, _)| *name == "jitter");
        if let Some((_, word)) = jitter.filter(|_| check.jitter > check.interval) {
            return Err(invalid(word, "jitter may be a time of at most the interval"));
        }
        Ok(Some(check))
    }

    /// Whether a parameter has a meaning for checks of this type.
    fn fits(&self, name: &str, word: &str) -> Result<(), String> {
        let (fits, types) = match name {
            "uri" | "status" | "body" => (self.kind.is_http(), "type=http or type=https"),
            "host" => (self.kind != Kind::Tcp, "type=http, type=https or type=grpc"),
            "service" => (self.kind == Kind::Grpc, "type=grpc"),
            _ => return Ok(()),
        };
        if fits {
            return Ok(());
        }
        Err(invalid(
            word,
            format_args!("{name} goes with {types}, not with type={}", self.kind.name()),
        ))
    }
}

/// One parameter of the line.
struct Parameter<'a> {
    name: &'a str,
    value: &'a str,
    /// With `body`: whether it must match.
    matches: bool,
    /// As it is written, for errors.
    word: String,
}

impl<'a> Parameter<'a> {
    /// Takes a word apart. `body ~ REGEX` takes two more from `rest`.
    fn split(word: &'a str, rest: &mut impl Iterator<Item = &'a &'a str>) -> Result<Self, String> {
        let sign = |text: &'a str| match text.strip_prefix('~') {
            Some(regex) => Some((regex, true)),
            None => text.strip_prefix("!~").map(|regex| (regex, false)),
        };
        if word == "off" {
            return Err("\"off\" of \"health_check\" goes with no other parameter".to_owned());
        }
        if word == "body" {
            let operator = rest.next().copied().unwrap_or_default();
            let regex = rest.next().copied().unwrap_or_default();
            let written = format!("{word} {operator} {regex}");
            let written = written.trim_end().to_owned();
            return match sign(operator) {
                Some(("", matches)) => {
                    Ok(Self { name: word, value: regex, matches, word: written })
                }
                _ => Err(invalid(&written, "write it as body~REGEX or body!~REGEX")),
            };
        }
        if let Some((regex, matches)) = word.strip_prefix("body").and_then(sign) {
            return Ok(Self { name: "body", value: regex, matches, word: word.to_owned() });
        }
        match word.split_once('=') {
            Some(("body", _)) => Err(invalid(word, "write it as body~REGEX or body!~REGEX")),
            Some((name, value)) => Ok(Self { name, value, matches: true, word: word.to_owned() }),
            None => Err(invalid(word, format_args!("it may be {KNOWN}"))),
        }
    }

    /// Enters it.
    fn set(&self, check: &mut Check) -> Result<(), String> {
        let value = self.value;
        let (fits, may_be) = match self.name {
            "type" => (
                named(value, Kind::ALL.map(|kind| (kind.name(), kind)))
                    .map(|kind| check.kind = kind),
                "http, https, tcp or grpc",
            ),
            "uri" => (
                Self::owned(value, Check::is_uri).map(|uri| check.uri = uri),
                "a path such as /api/status, of visible ASCII (others as %XX) and at most 1024 bytes",
            ),
            "host" => (
                Self::owned(value, is_host).map(|host| check.host = Some(host)),
                "a name or an address, with or without a port",
            ),
            "port" => (
                number(value, u16::MAX).map(|port| check.port = Some(port)),
                "a number from 1 to 65535",
            ),
            "interval" => {
                (period(value, 10).map(|ms| check.interval = ms), "a time from 10ms to 1d")
            }
            "jitter" => {
                (period(value, 0).map(|ms| check.jitter = ms), "a time of at most the interval")
            }
            "timeout" => (period(value, 1).map(|ms| check.timeout = ms), "a time from 1ms to 1d"),
            "fails" => (number(value, 1000).map(|n| check.fails = n), "a number from 1 to 1000"),
            "passes" => (number(value, 1000).map(|n| check.passes = n), "a number from 1 to 1000"),
            "status" => (
                Statuses::parse(value).map(|statuses| check.status = statuses),
                "codes and ranges from 100 to 599 such as 200-399,401, or all but these: !500,502",
            ),
            "body" => {
                let rule = BodyRule::new(value, self.matches);
                check.body = Some(rule.map_err(|why| invalid(&self.word, why))?);
                return Ok(());
            }
            "initial" => (
                named(
                    value,
                    [("up", Initial::Up), ("down", Initial::Down), ("probe", Initial::Probe)],
                )
                .map(|initial| check.initial = initial),
                "up, down or probe",
            ),
            "mode" => (
                named(value, [("always", false), ("idle", true)]).map(|idle| check.idle = idle),
                "always or idle",
            ),
            "service" => (
                Self::owned(value, is_service).map(|service| check.service = service),
                "the name of a gRPC service, of at most 255 visible ASCII characters",
            ),
            _ => return Err(invalid(&self.word, format_args!("it may be {KNOWN}"))),
        };
        fits.ok_or_else(|| invalid(&self.word, format_args!("{} may be {may_be}", self.name)))
    }

    fn owned(value: &str, good: fn(&str) -> bool) -> Option<String> {
        good(value).then(|| value.to_owned())
    }
}

fn invalid(word: &str, why: impl Display) -> String {
    format!("invalid parameter \"{word}\": {why}")
}

fn named<T: Copy, const N: usize>(value: &str, names: [(&str, T); N]) -> Option<T> {
    names.iter().find(|(name, _)| *name == value).map(|(_, meaning)| *meaning)
}

fn number(text: &str, most: u16) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && (1..=most).contains(n))
}

fn period(text: &str, least: u64) -> Option<u64> {
    time::parse(text).filter(|ms| (least..=DAY).contains(ms))
}

/// What may stand in `Host`, as far as it must be known that nothing else can.
fn is_host(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(good)
}

fn is_service(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}
