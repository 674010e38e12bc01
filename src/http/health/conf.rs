//! `health_check` and `registry_health_check`.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use ngx::ffi::{ngx_command_t, ngx_conf_t, ngx_str_t};

use crate::health::Check;
use crate::http::settings::Words;
use crate::http::upstream::{self, UpstreamConf};
use crate::http::zone::ZoneConf;
use crate::nginx::border;
use crate::nginx::conf::{self, Place};
use crate::nginx::dial::tls;
use crate::registry::CheckRules;

/// Checks as configured.
#[derive(Clone)]
pub(crate) struct CheckConf {
    pub(super) check: Arc<Check>,
    pub(crate) rules: CheckRules,
    /// What connections are encrypted with.
    pub(super) tls: Option<tls::Context>,
}

/// The checks of an upstream's namespace, in the place of the registry's.
pub(crate) struct Override {
    /// `None`: it has none.
    pub(crate) check: Option<CheckConf>,
    pub(crate) place: Place,
    /// The directive's parameters: what two upstreams of one namespace must have in common.
    pub(crate) words: Vec<String>,
}

/// Reads what stands behind the directive; `None` for `off`.
fn read(
    cf: *mut ngx_conf_t,
    name: &str,
    words: &[ngx_str_t],
) -> Result<Option<CheckConf>, conf::Outcome> {
    let mut texts = Vec::with_capacity(words.len());
    for word in words {
        let text = conf::text(word).ok_or_else(|| {
            conf::refuse(
                cf,
                format_args!("invalid parameter \"{word}\" in \"{name}\": it is no UTF-8"),
            )
        })?;
        texts.push(text);
    }
    let read = Check::parse(&texts);
    let read = read.map_err(|e| conf::refuse(cf, format_args!("\"{name}\": {e}")))?;
    let Some(check) = read else { return Ok(None) };
    let rules = CheckRules {
        interval: check.interval,
        jitter: check.jitter,
        timeout: check.timeout,
        fails: check.fails,
        passes: check.passes,
        initial: check.initial,
        idle: check.idle,
    };
    let tls = if check.kind.is_tls() { Some(context(cf, name)?) } else { None };
    Ok(Some(CheckConf { check: Arc::new(check), rules, tls }))
}

#[cfg(ngx_feature = "http_ssl")]
fn context(cf: *mut ngx_conf_t, _: &str) -> Result<tls::Context, conf::Outcome> {
    tls::Context::new(cf).ok_or(conf::ERROR)
}

#[cfg(not(ngx_feature = "http_ssl"))]
fn context(cf: *mut ngx_conf_t, name: &str) -> Result<tls::Context, conf::Outcome> {
    let message = format_args!("\"type=https\" in \"{name}\" needs an nginx with TLS");
    Err(conf::refuse(cf, message))
}

/// `health_check PARAMETER …` in a `registry` block.
pub(crate) fn set(zone: &mut ZoneConf, words: &Words<'_>) -> Result<(), conf::Outcome> {
    zone.check = read(words.cf, words.name, words.values)?;
    Ok(())
}

/// `registry_health_check PARAMETER …` in an upstream.
pub(crate) unsafe extern "C" fn cmd_set_health_check(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    upstream: *mut c_void,
) -> *mut c_char {
    border::guard(
        || conf::conf_log(cf),
        conf::ERROR,
        || {
            // SAFETY: nginx passes what `create_conf` made for this upstream.
            let upstream = unsafe { &mut *upstream.cast::<UpstreamConf>() };
            if upstream.check.is_some() {
                return conf::DUPLICATE;
            }
            let [name, values @ ..] = conf::words(cf) else { return conf::ERROR };
            let check = match read(cf, &name.to_string(), values) {
                Ok(check) => check,
                Err(outcome) => return outcome,
            };
            let words = values.iter().map(ToString::to_string).collect();
            upstream.check = Some(Override { check, place: conf::place(cf), words });
            upstream::register(cf, upstream).err().unwrap_or(conf::OK)
        },
    )
}

/// Checks an upstream's `registry_health_check` when all have been read.
pub(crate) fn check_override(
    cf: *mut ngx_conf_t,
    upstream: &UpstreamConf,
    all: &[*mut UpstreamConf],
) -> Result<(), ()> {
    let Some(own) = &upstream.check else { return Ok(()) };
    let refuse = |message: std::fmt::Arguments<'_>| {
        conf::refuse_at(conf::conf_log(cf), &own.place, message);
        Err(())
    };
    if upstream.place.is_none() {
        return refuse(format_args!(
            "\"registry_health_check\" needs \"registry\" in its upstream"
        ));
    }
    let Some(name) = upstream.fixed() else {
        return refuse(format_args!(
            "\"registry_health_check\" needs a fixed namespace: with a variable one the \
             \"health_check\" of the registry applies"
        ));
    };
    for other in all {
        // SAFETY: the pointers are those of this configuration's upstreams.
        let other = unsafe { &**other };
        let same =
            upstream.zone().is_some_and(|zone| other.uses(zone)) && other.fixed() == Some(name);
        if let Some(check) = other.check.as_ref().filter(|check| same && check.words != own.words) {
            return refuse(format_args!(
                "namespace \"{}\" has two different \"registry_health_check\", the other is in {}, \
                 and this",
                name.as_str(),
                check.place
            ));
        }
    }
    Ok(())
}
