//! What `health_check` and `registry_health_check` say.

use std::sync::Arc;

use ngx::ffi::{ngx_conf_t, ngx_str_t};

use crate::health::Check;
use crate::http::settings::Words;
use crate::http::zone::ZoneConf;
use crate::nginx::conf;
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

/// Reads what stands behind the directive; `None` for `off`.
pub(crate) fn read(
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
