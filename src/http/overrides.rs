//! What an upstream says of its namespace in the place of the registry: `registry_health_check` and
//! `registry_slow_start`.

use std::ffi::{c_char, c_void};

use ngx::ffi::{ngx_command_t, ngx_conf_t};

use super::health;
use super::settings::{SLOW_START_HINT, Words};
use super::upstream::{UpstreamConf, register};
use crate::nginx::border;
use crate::nginx::conf::{self, Place};
use crate::registry::SLOW_START_MAX;

/// Such a directive.
pub(crate) struct Override<T> {
    pub(super) value: T,
    place: Place,
    /// Its parameters: what two upstreams of one namespace must have in common.
    words: Vec<String>,
}

impl<T> Override<T> {
    fn new(cf: *mut ngx_conf_t, value: T) -> Self {
        let words = conf::words(cf)[1..].iter().map(ToString::to_string).collect();
        Self { value, place: conf::place(cf), words }
    }
}

/// `registry_health_check [PARAMETER …];`
pub(super) unsafe extern "C" fn cmd_set_health_check(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    upstream: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what `create_conf` made for this upstream.
    let upstream = unsafe { &mut *upstream.cast::<UpstreamConf>() };
    set(
        cf,
        upstream,
        |upstream| &mut upstream.check,
        |words| health::read(cf, words.name, words.values),
    )
}

/// `registry_slow_start TIME;`
pub(super) unsafe extern "C" fn cmd_set_slow_start(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    upstream: *mut c_void,
) -> *mut c_char {
    // SAFETY: as above.
    let upstream = unsafe { &mut *upstream.cast::<UpstreamConf>() };
    set(
        cf,
        upstream,
        |upstream| &mut upstream.slow_start,
        |words| words.time_between(0, SLOW_START_MAX.into(), SLOW_START_HINT),
    )
}

fn set<T>(
    cf: *mut ngx_conf_t,
    upstream: &mut UpstreamConf,
    at: fn(&mut UpstreamConf) -> &mut Option<Override<T>>,
    read: impl FnOnce(&Words<'_>) -> Result<T, conf::Outcome>,
) -> conf::Outcome {
    border::guard(
        || conf::conf_log(cf),
        conf::ERROR,
        || {
            if at(upstream).is_some() {
                return conf::DUPLICATE;
            }
            let [name, values @ ..] = conf::words(cf) else { return conf::ERROR };
            match read(&Words { cf, name: &name.to_string(), values }) {
                Ok(value) => *at(upstream) = Some(Override::new(cf, value)),
                Err(outcome) => return outcome,
            }
            register(cf, upstream).err().unwrap_or(conf::OK)
        },
    )
}

/// Checks what an upstream says of its namespace when all have been read.
pub(super) fn check(
    cf: *mut ngx_conf_t,
    upstream: &UpstreamConf,
    all: &[*mut UpstreamConf],
) -> Result<(), ()> {
    agree(cf, upstream, all, "registry_health_check", |upstream| upstream.check.as_ref())?;
    agree(cf, upstream, all, "registry_slow_start", |upstream| upstream.slow_start.as_ref())
}

fn agree<T>(
    cf: *mut ngx_conf_t,
    upstream: &UpstreamConf,
    all: &[*mut UpstreamConf],
    directive: &str,
    of: fn(&UpstreamConf) -> Option<&Override<T>>,
) -> Result<(), ()> {
    let Some(own) = of(upstream) else { return Ok(()) };
    let refuse = |message: std::fmt::Arguments<'_>| {
        conf::refuse_at(conf::conf_log(cf), &own.place, message);
        Err(())
    };
    if upstream.place.is_none() {
        return refuse(format_args!("\"{directive}\" needs \"registry\" in its upstream"));
    }
    let Some(name) = upstream.fixed() else {
        return refuse(format_args!(
            "\"{directive}\" needs a fixed namespace: for a variable one the registry's own applies"
        ));
    };
    for other in all {
        // SAFETY: the pointers are those of this configuration's upstreams.
        let other = unsafe { &**other };
        let same =
            upstream.zone().is_some_and(|zone| other.uses(zone)) && other.fixed() == Some(name);
        if let Some(others) = of(other).filter(|others| same && others.words != own.words) {
            let (name, place) = (name.as_str(), &others.place);
            return refuse(format_args!(
                "\"{directive}\" of namespace \"{name}\" differs from the one in {place}: \
                 upstreams of one namespace must say the same,"
            ));
        }
    }
    Ok(())
}
