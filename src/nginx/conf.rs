//! Reading the configuration.

use std::ffi::{OsStr, c_char, c_void};
use std::fmt;
use std::mem::zeroed;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::{NonNull, null_mut};

use ngx::ffi::{
    NGX_LOG_EMERG, ngx_conf_full_name, ngx_conf_parse, ngx_conf_t, ngx_http_compile_complex_value,
    ngx_http_compile_complex_value_t, ngx_http_complex_value, ngx_http_complex_value_t,
    ngx_http_request_t, ngx_log_t, ngx_parse_size, ngx_parse_time, ngx_str_t,
};

use super::log::{log, log_conf};
use super::pool;

/// What a directive's handler returns to nginx.
pub(crate) type Outcome = *mut c_char;

/// The directive was read.
pub(crate) const OK: Outcome = null_mut();

/// The directive is wrong, and the log says why: `NGX_CONF_ERROR`.
pub(crate) const ERROR: Outcome = usize::MAX as Outcome;

/// nginx's own words for a directive that is there twice; it adds name, file and line.
pub(crate) const DUPLICATE: Outcome = c"is duplicate".as_ptr().cast_mut();

/// Logs why a directive is wrong, with file and line, and returns the error.
pub(crate) fn refuse(cf: *mut ngx_conf_t, message: fmt::Arguments<'_>) -> Outcome {
    log_conf(NGX_LOG_EMERG, cf, message);
    ERROR
}

/// Where a directive stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    file: String,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Where nginx is reading now.
pub(crate) fn place(cf: *mut ngx_conf_t) -> Place {
    // SAFETY: `cf` is what nginx passed to a directive; `conf_file` is null only for parameters of
    // the command line.
    unsafe {
        match (*cf).conf_file.as_ref() {
            Some(f) => Place { file: f.file.name.to_string(), line: f.line },
            None => Place { file: "command line".into(), line: 0 },
        }
    }
}

/// Logs what is wrong with a directive that was read before, and where it stands.
pub(crate) fn refuse_at(to: *mut ngx_log_t, place: &Place, message: fmt::Arguments<'_>) {
    log(NGX_LOG_EMERG, to, format_args!("{message} in {place}"));
}

/// The log of a configuration that is being read.
pub(crate) fn conf_log(cf: *mut ngx_conf_t) -> *mut ngx_log_t {
    // SAFETY: `cf` is what nginx passed.
    unsafe { (*cf).log }
}

/// The words of a directive, its name first.
pub(crate) fn words<'a>(cf: *mut ngx_conf_t) -> &'a [ngx_str_t] {
    // SAFETY: nginx fills `args` with strings before it calls a directive's handler; they are in
    // the configuration's pool, which outlives the handler.
    unsafe { (*(*cf).args).as_slice() }
}

/// A word as text, `None` when it is not UTF-8.
pub(crate) fn text(word: &ngx_str_t) -> Option<&str> {
    word.to_str().ok()
}

/// A time as nginx writes it ("30s", "1h 30m", "500ms"), in milliseconds.
pub(crate) fn time_ms(word: &ngx_str_t) -> Option<u64> {
    let mut word = *word;
    if word.is_empty() {
        return None;
    }
    // SAFETY: reads the string alone. 0: in milliseconds.
    u64::try_from(unsafe { ngx_parse_time(&mut word, 0) }).ok()
}

/// The same for a part of a word.
pub(crate) fn time_of(text: &str) -> Option<u64> {
    time_ms(&ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() })
}

/// A size as nginx writes it ("16m", "64k"), in bytes.
pub(crate) fn size(word: &ngx_str_t) -> Option<usize> {
    let mut word = *word;
    if word.is_empty() {
        return None;
    }
    // SAFETY: reads the string alone.
    usize::try_from(unsafe { ngx_parse_size(&mut word) }).ok()
}

/// A path relative to the directory of the configuration file, made absolute. `None`: out of
/// memory.
pub(crate) fn full_path(cf: *mut ngx_conf_t, path: &str) -> Option<PathBuf> {
    full_name(cf, path, 1)
}

/// A path relative to the prefix, made absolute. `None`: out of memory.
pub(crate) fn path_in_prefix(cf: *mut ngx_conf_t, path: &str) -> Option<PathBuf> {
    full_name(cf, path, 0)
}

fn full_name(cf: *mut ngx_conf_t, path: &str, in_conf: usize) -> Option<PathBuf> {
    let mut name = ngx_str_t { len: path.len(), data: path.as_ptr().cast_mut() };
    // SAFETY: nginx replaces `name` by a string in the cycle's pool when `path` is relative, and
    // reads no byte beyond its length then. 1: relative to the configuration's directory.
    unsafe {
        if ngx_conf_full_name((*cf).cycle, &mut name, in_conf) != 0 {
            return None;
        }
        Some(PathBuf::from(OsStr::from_bytes(name.as_bytes())))
    }
}

/// Called for each directive of a block.
pub(crate) type Inside =
    unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx::ffi::ngx_command_t, *mut c_void) -> Outcome;

/// Reads the block that follows the directive, each directive in it with `handler`.
pub(crate) fn block(cf: *mut ngx_conf_t, handler: Inside, data: *mut c_void) -> Outcome {
    // SAFETY: as nginx's own blocks with free-form content (`map`, `geo`, `types`) are read: the
    // context is copied, changed for the block, and put back.
    unsafe {
        let saved = *cf;
        (*cf).handler = Some(handler);
        (*cf).handler_conf = data.cast();
        let rv = ngx_conf_parse(cf, null_mut());
        *cf = saved;
        rv
    }
}

/// Text that may hold variables. `None`: nginx has logged what is wrong with it.
pub(crate) fn compile(
    cf: *mut ngx_conf_t,
    value: &str,
) -> Option<NonNull<ngx_http_complex_value_t>> {
    // SAFETY: nginx compiles out of and into memory of the configuration's pool; `value` is a part
    // of a directive's word, which is there. A zeroed structure is what ngx_memzero leaves in C.
    unsafe {
        let into = pool::room::<ngx_http_complex_value_t>((*cf).pool)?;
        into.write(zeroed());
        let mut text = ngx_str_t { len: value.len(), data: value.as_ptr().cast_mut() };
        let mut ccv: ngx_http_compile_complex_value_t = zeroed();
        ccv.cf = cf;
        ccv.value = &mut text;
        ccv.complex_value = into.as_ptr();
        (ngx_http_compile_complex_value(&mut ccv) == 0).then_some(into)
    }
}

/// Whether the text has variables in it.
pub(crate) fn is_variable(value: NonNull<ngx_http_complex_value_t>) -> bool {
    // SAFETY: made by `compile`.
    unsafe { !(*value.as_ptr()).lengths.is_null() }
}

/// The text for a request. `None`: out of memory.
pub(crate) fn evaluate<'a>(
    r: *mut ngx_http_request_t,
    value: NonNull<ngx_http_complex_value_t>,
) -> Option<&'a [u8]> {
    // SAFETY: made by `compile` for the configuration that handles `r`; the result lives in the
    // request's pool.
    unsafe {
        let mut text = ngx_str_t { len: 0, data: null_mut() };
        if ngx_http_complex_value(r, value.as_ptr(), &mut text) != 0 {
            return None;
        }
        if text.len == 0 {
            return Some(b"");
        }
        Some(std::slice::from_raw_parts(text.data, text.len))
    }
}
