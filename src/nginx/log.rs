//! The error log.

use std::fmt;
use std::mem::MaybeUninit;

use ngx::ffi::{ngx_conf_log_error, ngx_conf_t, ngx_log_t, ngx_uint_t};
use ngx::log::{LOG_BUFFER_SIZE, log_error, write_fmt};

/// Writes a line at `level` (`NGX_LOG_…`), if the log takes that level.
///
/// `to` must be a log of nginx's, valid now: a connection's, a cycle's, a configuration's.
pub(crate) fn log(level: u32, to: *mut ngx_log_t, message: fmt::Arguments<'_>) {
    let level = level as ngx_uint_t;
    // SAFETY: nginx's logs outlive the callbacks that get at them.
    unsafe {
        if to.is_null() || level > (*to).log_level {
            return;
        }
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; LOG_BUFFER_SIZE];
        let text = write_fmt(&mut buffer, message);
        if text.iter().any(u8::is_ascii_control) {
            log_error(level, to, 0, &visible(text));
        } else {
            log_error(level, to, 0, text);
        }
    }
}

/// Control characters as `\xNN`, as nginx escapes them in its access log: what a client sent must
/// not look like a line of the log's own, nor steer the terminal of who reads it.
fn visible(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 32);
    for byte in text {
        if byte.is_ascii_control() {
            out.extend_from_slice(format!("\\x{byte:02X}").as_bytes());
        } else {
            out.push(*byte);
        }
    }
    out.truncate(LOG_BUFFER_SIZE);
    out
}

/// Writes a line about the configuration; nginx adds the file and the line being read.
pub(crate) fn log_conf(level: u32, cf: *mut ngx_conf_t, message: fmt::Arguments<'_>) {
    let level = level as ngx_uint_t;
    // SAFETY: `cf` is what nginx passed to the directive that is being read.
    unsafe {
        if level > (*(*cf).log).log_level {
            return;
        }
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; LOG_BUFFER_SIZE];
        let text = write_fmt(&mut buffer, message);
        ngx_conf_log_error(level, cf, 0, c"%*s".as_ptr(), text.len(), text.as_ptr());
    }
}
