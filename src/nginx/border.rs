//! The border between nginx and Rust: no panic crosses it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ngx::ffi::{NGX_LOG_ALERT, ngx_log_t};

use super::log::log;

/// Runs `f`; a panic in it becomes an alert in the log and `otherwise`.
///
/// What `f` had borrowed is dropped by the unwinding, locks included.
#[inline]
pub(crate) fn guard<T>(
    log_to: impl FnOnce() -> *mut ngx_log_t,
    otherwise: T,
    f: impl FnOnce() -> T,
) -> T {
    // AssertUnwindSafe: state reached from here is either in the zone, which is repaired after a
    // panic, or this process's own and left whole by the code that changes it.
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(value) => value,
        Err(panic) => {
            report(log_to(), &*panic);
            otherwise
        }
    }
}

#[cold]
fn report(to: *mut ngx_log_t, panic: &(dyn Any + Send)) {
    log(NGX_LOG_ALERT, to, format_args!("registry: internal error: {}", text_of(panic)));
}

/// What a panic said.
pub(super) fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown")
}
