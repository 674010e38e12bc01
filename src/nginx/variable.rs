//! Variables that a module brings.

use ngx::ffi::{
    NGX_ERROR, NGX_HTTP_VAR_NOCACHEABLE, NGX_OK, ngx_conf_t, ngx_http_add_variable,
    ngx_http_request_t, ngx_http_variable_value_t, ngx_int_t, ngx_str_t, ngx_uint_t,
};

use super::border;
use super::request::log_of;

/// What evaluates a variable. `data`: see [`add`].
pub(crate) type Getter = unsafe extern "C" fn(
    *mut ngx_http_request_t,
    *mut ngx_http_variable_value_t,
    data: usize,
) -> ngx_int_t;

/// Adds a variable that changes while a request lasts. `data` is passed on to `getter`. False: nginx
/// has logged why not.
pub(crate) fn add(cf: *mut ngx_conf_t, name: &'static str, getter: Getter, data: usize) -> bool {
    let mut name = ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() };
    // SAFETY: `cf` is what nginx passed; it copies the name.
    unsafe {
        let flags = NGX_HTTP_VAR_NOCACHEABLE as ngx_uint_t;
        let Some(variable) = ngx_http_add_variable(cf, &mut name, flags).as_mut() else {
            return false;
        };
        variable.get_handler = Some(getter);
        variable.data = data;
    }
    true
}

/// A variable's value for a request: bytes that live as long as that.
pub(crate) enum Value<'a> {
    /// It has one, which may be empty.
    Is(&'a [u8]),
    /// It has none.
    None,
    /// Out of memory.
    Failed,
}

/// What a [`Getter`] does: sets the value that `f` gives.
///
/// # Safety
///
/// `r` and `v` are what nginx passed to the getter.
pub(crate) unsafe fn give<'a>(
    r: *mut ngx_http_request_t,
    v: *mut ngx_http_variable_value_t,
    f: impl FnOnce() -> Value<'a>,
) -> ngx_int_t {
    let value = border::guard(|| log_of(r), Value::Failed, f);
    // SAFETY: by this function's contract.
    let v = unsafe { &mut *v };
    let bytes = match value {
        Value::Is(bytes) => bytes,
        Value::None => {
            v.set_not_found(1);
            return NGX_OK as ngx_int_t;
        }
        Value::Failed => return NGX_ERROR as ngx_int_t,
    };
    v.set_len(bytes.len() as u32);
    v.set_valid(1);
    v.set_no_cacheable(0);
    v.set_not_found(0);
    v.data = bytes.as_ptr().cast_mut();
    NGX_OK as ngx_int_t
}
