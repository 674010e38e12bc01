//! Variables about the way that a request took: `$registry_server` and its like.
//!
//! They are read from what the request has anyway (`peer::Peer`), when they are asked for.

use ngx::ffi::{NGX_ERROR, ngx_conf_t, ngx_http_request_t, ngx_http_variable_value_t, ngx_int_t};

use super::peer::{Peer, Trouble};
use crate::nginx::variable::{self, Value};
use crate::nginx::{border, conf, pool, request};

/// A variable's name, and what it is for a request. `None`: out of memory.
struct Variable {
    name: &'static str,
    of: fn(&Peer, *mut ngx_http_request_t) -> Option<&'static [u8]>,
}

const VARIABLES: [Variable; 4] = [
    Variable { name: "registry_server", of: |peer, _| Some(peer.server()) },
    Variable { name: "registry_namespace", of: |peer, _| Some(peer.namespace()) },
    Variable { name: "registry_tries", of: |peer, r| text(r, &peer.tries().to_string()) },
    Variable { name: "registry_last_failure", of: last_failure },
];

/// Called before http{} is read.
pub(super) unsafe extern "C" fn add(cf: *mut ngx_conf_t) -> ngx_int_t {
    border::guard(
        || conf::conf_log(cf),
        NGX_ERROR as ngx_int_t,
        || {
            let mut all = VARIABLES.iter().enumerate();
            let added = all.all(|(i, v)| variable::add(cf, v.name, get, i));
            if added { 0 } else { NGX_ERROR as ngx_int_t }
        },
    )
}

/// Called when the variable of a place in [`VARIABLES`] is asked for.
unsafe extern "C" fn get(
    r: *mut ngx_http_request_t,
    v: *mut ngx_http_variable_value_t,
    place: usize,
) -> ngx_int_t {
    // SAFETY: nginx passes both.
    unsafe {
        variable::give(r, v, || match (Peer::of(r), VARIABLES.get(place)) {
            (Some(peer), Some(variable)) => (variable.of)(peer, r).map_or(Value::Failed, Value::Is),
            _ => Value::None,
        })
    }
}

fn text(r: *mut ngx_http_request_t, text: &str) -> Option<&'static [u8]> {
    // SAFETY: `r` is the request that the variable is asked for.
    pool::text(unsafe { (*r).pool }, text)
}

/// In the words of ngx.balancer's `get_last_failure`: "failed" when the connection is of no more use,
/// "next" when it was an answer that the next server may know better; and the status that
/// `$upstream_status` has for that try.
fn last_failure(peer: &Peer, r: *mut ngx_http_request_t) -> Option<&'static [u8]> {
    let Some(Trouble { next, state }) = peer.trouble() else { return Some(b"") };
    let word = if next { "next" } else { "failed" };
    match request::upstream_status(r, state) {
        0 => Some(word.as_bytes()),
        status => text(r, &format!("{word} {status}")),
    }
}
