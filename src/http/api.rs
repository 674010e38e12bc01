//! `registry_api` and the handler behind it.

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

use ngx::ffi::{
    NGX_DONE, NGX_ERROR, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_POST, NGX_LOG_ALERT, NGX_LOG_ERR,
    NGX_LOG_INFO, NGX_LOG_NOTICE, ngx_command_t, ngx_conf_t, ngx_http_conf_ctx_t,
    ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_http_core_srv_conf_t, ngx_http_request_t,
    ngx_int_t,
};
use ngx::http::HttpModuleLocationConf;

use super::main_conf::MainConf;
use super::upstream::{Namespace, read_namespace};
use super::worker::{Local, now, report};
use super::zone::ZoneConf;
use super::{Module, long, wait};
use crate::api::{self, Access, Answer, BodyKind, Door, Endpoint, MAX_BODY, Method, Reply};
use crate::nginx::body::{self, Ended, Reader};
use crate::nginx::conf::{self, Place};
use crate::nginx::log::log;
use crate::nginx::resolve::Resolver;
use crate::nginx::{border, pool, reply, request};
use crate::registry::{Events, SpaceName};

const FAILED: ngx_int_t = NGX_ERROR as ngx_int_t;

/// A location as configured.
#[derive(Clone)]
pub(crate) struct ApiConf {
    zone_name: String,
    namespace: Option<Namespace>,
    access: Access,
    /// Where `registry_api` stands; `None` without it.
    place: Option<Place>,
    zone: *const ZoneConf,
}

/// Makes the configuration of a location.
pub(super) unsafe extern "C" fn create_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    border::guard(
        || conf::conf_log(cf),
        null_mut(),
        || {
            let made = ApiConf {
                zone_name: String::new(),
                namespace: None,
                access: Access::default(),
                place: None,
                zone: null(),
            };
            // SAFETY: nginx passes a valid configuration.
            let made = pool::keep(unsafe { (*cf).pool }, made);
            made.map_or(null_mut(), |p| p.as_ptr().cast())
        },
    )
}

/// The core module's configuration of the location that `cf` is about.
fn core_conf<'a>(cf: *mut ngx_conf_t) -> &'a mut ngx_http_core_loc_conf_t {
    // SAFETY: inside http{} the context has all modules' location configurations; the core
    // module's is always there.
    unsafe {
        let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>();
        let index = ngx_http_core_module.ctx_index;
        &mut *(*(*context).loc_conf.add(index)).cast()
    }
}

/// The core module's configuration of the server block that `cf` is about.
fn server_conf(cf: *mut ngx_conf_t) -> *const ngx_http_core_srv_conf_t {
    // SAFETY: as in `core_conf`.
    unsafe {
        let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>();
        (*(*context).srv_conf.add(ngx_http_core_module.ctx_index)).cast()
    }
}

/// `registry_api ZONE [namespace=NAME] [read_only] [allow_get];`
pub(super) unsafe extern "C" fn cmd_set_api(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    location: *mut c_void,
) -> *mut c_char {
    border::guard(
        || conf::conf_log(cf),
        conf::ERROR,
        || {
            // SAFETY: nginx passes what `create_conf` made for this location.
            let location = unsafe { &mut *location.cast::<ApiConf>() };
            set_api(cf, location).err().unwrap_or(conf::OK)
        },
    )
}

fn set_api(cf: *mut ngx_conf_t, location: &mut ApiConf) -> Result<(), conf::Outcome> {
    if location.place.is_some() {
        return Err(conf::DUPLICATE);
    }
    let words = conf::words(cf);
    location.zone_name = words[1].to_string();
    for word in &words[2..] {
        let set = match word.as_bytes() {
            b"read_only" => &mut location.access.read_only,
            b"allow_get" => &mut location.access.allow_get,
            b if b.starts_with(b"namespace=") => {
                if location.namespace.is_some() {
                    return Err(conf::refuse(cf, format_args!("duplicate parameter \"{word}\"")));
                }
                location.namespace = Some(read_namespace(cf, word)?);
                continue;
            }
            _ => {
                return Err(conf::refuse(
                    cf,
                    format_args!(
                        "invalid parameter \"{word}\": it may be namespace=NAME, read_only or \
                         allow_get"
                    ),
                ));
            }
        };
        if std::mem::replace(set, true) {
            return Err(conf::refuse(cf, format_args!("duplicate parameter \"{word}\"")));
        }
    }
    if let Some(Namespace::Fixed(name)) = &location.namespace {
        let main = MainConf::of_conf(cf).ok_or(conf::ERROR)?;
        main.named.push((location.zone_name.clone(), name.clone()));
    }
    location.place = Some(conf::place(cf));
    core_conf(cf).handler = Some(handler);
    Ok(())
}

/// Called for each location when all of http{} has been read, after the core module's own merge.
pub(super) unsafe extern "C" fn merge_conf(
    cf: *mut ngx_conf_t,
    outer: *mut c_void,
    location: *mut c_void,
) -> *mut c_char {
    border::guard(
        || conf::conf_log(cf),
        conf::ERROR,
        || {
            // SAFETY: nginx passes what `create_conf` made, the outer location's merged already.
            let (outer, location) =
                unsafe { (&*outer.cast::<ApiConf>(), &mut *location.cast::<ApiConf>()) };
            let core = core_conf(cf);
            // The blocks that `if` and `limit_except` make are the same location to their users.
            let unnamed = core.noname() != 0 || core.lmt_excpt() != 0;
            if unnamed && location.place.is_none() && outer.place.is_some() {
                *location = outer.clone();
                core.handler = core.handler.or(Some(handler));
                core.client_max_body_size = 0;
                return conf::OK;
            }
            let Some(place) = &location.place else { return conf::OK };
            let Some(main) = MainConf::of_conf(cf) else { return conf::ERROR };
            let Ok(zone) = main.find_zone(cf, &location.zone_name, place) else {
                return conf::ERROR;
            };
            location.zone = zone;
            if !location.access.read_only {
                main.doors.push((server_conf(cf), zone));
            }
            // The core module would answer a long body with a page of HTML. The handler has a limit of
            // its own and answers in JSON.
            core.client_max_body_size = 0;
            conf::OK
        },
    )
}

/// A request whose body is being read; in the request's pool.
struct Call {
    endpoint: Endpoint,
    body: Vec<u8>,
}

impl Reader for Call {
    const LIMIT: usize = MAX_BODY;

    fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }

    fn of<'a>(r: *mut ngx_http_request_t) -> Option<&'a mut Self> {
        // SAFETY: `handle` sets the context to a Call in the request's pool before it reads.
        unsafe { (*context(r)).cast::<Self>().as_mut() }
    }

    fn ended(r: *mut ngx_http_request_t, how: Ended) {
        let rc = border::guard(
            || request::log_of(r),
            FAILED,
            || match (how, Self::of(r)) {
                (Ended::Whole, Some(call)) => {
                    let body = std::mem::take(&mut call.body);
                    finish(r, call.endpoint, &body)
                }
                (Ended::Broken, _) | (_, None) => FAILED,
                (how, _) => decline(r, unread(how)),
            },
        );
        request::finalize(r, rc);
    }
}

/// This module's context of a request.
pub(super) fn context(r: *mut ngx_http_request_t) -> *mut *mut c_void {
    // SAFETY: nginx gives each request room for a context of each http module.
    unsafe { (*r).ctx.add(super::ngx_http_upstream_registry_module.ctx_index) }
}

/// The content handler.
unsafe extern "C" fn handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    border::guard(|| request::log_of(r), FAILED, || handle(r))
}

fn handle(r: *mut ngx_http_request_t) -> ngx_int_t {
    let Some(conf) = conf_of(r) else { return misconfigured(r) };
    let Some(zone) = zone_of(conf) else { return misconfigured(r) };
    // Who has no token learns nothing, not even which endpoints there are.
    if !zone.tokens.admit(request::authorization(r), request::headers(r, b"x-api-token")) {
        return decline(r, Reply::unauthorized());
    }
    let method = method_of(r);
    let name = request::below_location(r).unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    let admitted = Endpoint::by_name(&name)
        .and_then(|endpoint| endpoint.admit(method, conf.access).map(|()| endpoint));
    let endpoint = match admitted {
        Ok(endpoint) => endpoint,
        Err(reply) => return decline(r, reply),
    };
    if method != Method::Post {
        body::discard(r);
        return finish(r, endpoint, b"");
    }
    if body::announced_over(r, MAX_BODY) {
        return decline(r, unread(Ended::TooLong));
    }

    // SAFETY: `r` is the request being handled.
    let call = pool::keep(unsafe { (*r).pool }, Call { endpoint, body: Vec::new() });
    let Some(call) = call else { return FAILED };
    // SAFETY: the cell is this module's own.
    unsafe { *context(r) = call.as_ptr().cast() };
    match body::read::<Call>(r) {
        Ok(()) => NGX_DONE as ngx_int_t,
        Err(how) => send(r, unread(how)),
    }
}

fn conf_of<'a>(r: *mut ngx_http_request_t) -> Option<&'a ApiConf> {
    // SAFETY: `r` is the request being handled.
    Module::location_conf(unsafe { ngx::http::Request::from_ngx_http_request(r) }.as_ref())
}

fn zone_of(conf: &ApiConf) -> Option<&ZoneConf> {
    // SAFETY: set in `merge_conf` to a zone of the same configuration.
    unsafe { conf.zone.as_ref() }
}

fn method_of(r: *mut ngx_http_request_t) -> Method {
    match request::method(r) {
        NGX_HTTP_GET | NGX_HTTP_HEAD => Method::Get,
        NGX_HTTP_POST => Method::Post,
        _ => Method::Other,
    }
}

/// The handler runs where no registry is configured: this can't be, and must not go unanswered.
#[cold]
fn misconfigured(r: *mut ngx_http_request_t) -> ngx_int_t {
    log(NGX_LOG_ALERT, request::log_of(r), format_args!("registry: no registry in this location"));
    decline(r, Reply::error(500, "There is no registry in this location".to_owned()))
}

/// What is said about a body that could not be read.
fn unread(how: Ended) -> Reply {
    match how {
        Ended::TooLong | Ended::Status(413) => {
            Reply::error(413, format!("The body is too long: at most {MAX_BODY} bytes"))
        }
        Ended::Status(408) => Reply::error(408, "The body did not come in time".to_owned()),
        Ended::Status(status @ 400..500) => {
            Reply::error(status, "The body is malformed".to_owned())
        }
        _ => Reply::error(500, "The body could not be read".to_owned()),
    }
}

/// Answers without reading the body, or the rest of it.
fn decline(r: *mut ngx_http_request_t, reply: Reply) -> ngx_int_t {
    body::discard(r);
    send(r, reply)
}

/// Does what is asked for and answers.
fn finish(r: *mut ngx_http_request_t, endpoint: Endpoint, body: &[u8]) -> ngx_int_t {
    let Some(conf) = conf_of(r) else { return misconfigured(r) };
    let Some(zone) = zone_of(conf) else { return misconfigured(r) };
    let Some((_, local)) = place_of(r) else { return unavailable(r) };

    let namespace = match &conf.namespace {
        None => None,
        Some(Namespace::Fixed(name)) => Some(name.as_bytes()),
        Some(Namespace::Variable(value)) => match conf::evaluate(r, *value) {
            Some(name) => Some(name),
            None => return FAILED,
        },
    };
    let namespace = match namespace.map(SpaceName::new) {
        None => None,
        Some(Some(name)) => Some(name),
        Some(None) => {
            let message = format!(
                "The namespace that this location makes of the request must be {}",
                SpaceName::SYNTAX
            );
            return send(r, Reply::error(400, message));
        }
    };

    let call = api::Request {
        endpoint,
        method: method_of(r),
        query: request::query(r),
        body,
        body_kind: BodyKind::of(request::content_type(r)),
        client: request::client(r),
    };
    let node = zone.redis.node();
    let resolver = Resolver::current().is_some();
    let door = Door {
        namespace,
        access: conf.access,
        allow: &zone.allow,
        slow_starts: &zone.slow_starts,
        node,
        resolver,
    };
    let mut events = Events::with_capacity(16);
    let answer = api::answer(&call, &door, &local.zone, &zone.rules, now(), &mut events);
    report(zone, request::log_of(r), &mut events);
    match answer {
        Answer::Reply(reply) => send(r, reply),
        Answer::List(list) => long::list(r, list),
        Answer::Task(task) => long::task(r, task),
        Answer::Wait(waits) => wait::begin(r, waits),
    }
}

/// The zone that a request is about, and this process's part in it. `None`: it has none.
pub(super) fn place_of<'a>(r: *mut ngx_http_request_t) -> Option<(&'a ZoneConf, &'a Local)> {
    let zone = zone_of(conf_of(r)?)?;
    let local = zone.local().filter(|local| local.is_attached())?;
    Some((zone, local))
}

pub(super) fn unavailable(r: *mut ngx_http_request_t) -> ngx_int_t {
    send(r, Reply::error(503, "The registry is not available".to_owned()))
}

pub(super) fn send(r: *mut ngx_http_request_t, reply: Reply) -> ngx_int_t {
    if let Some(error) = &reply.error {
        let zone = conf_of(r).and_then(zone_of);
        let name = zone.map_or("", |zone| zone.name.as_str());
        let status = reply.status;
        // A client's mistake is worth a line only to those who look for it; a full zone is the
        // operator's, but not a line for each client that tries: a flood of these must not fill
        // the disk.
        let (level, untold) = match reply.status {
            500 | 507 => match zone.map_or(Some(0), |zone| zone.complains(now().mono)) {
                Some(untold) => (NGX_LOG_ERR, untold),
                None => (NGX_LOG_INFO, 0),
            },
            503 => (NGX_LOG_NOTICE, 0),
            _ => (NGX_LOG_INFO, 0),
        };
        let more = if untold > 0 { format!(", and {untold} times before") } else { String::new() };
        let to = request::log_of(r);
        log(level, to, format_args!("registry \"{name}\": {status}: {error}{more}"));
    }
    reply::json(r, reply.status, reply.body, reply.header.as_slice())
}
