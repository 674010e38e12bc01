//! `registry` and `registry_balance` inside `upstream`.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::ptr::{NonNull, null, null_mut};

use ngx::ffi::{
    NGX_ERROR, NGX_HTTP_UPSTREAM_BACKUP, NGX_HTTP_UPSTREAM_CREATE, NGX_HTTP_UPSTREAM_DOWN,
    NGX_HTTP_UPSTREAM_FAIL_TIMEOUT, NGX_HTTP_UPSTREAM_MAX_CONNS, NGX_HTTP_UPSTREAM_MAX_FAILS,
    NGX_HTTP_UPSTREAM_WEIGHT, NGX_LOG_WARN, ngx_addr_t, ngx_array_push, ngx_command_t, ngx_conf_t,
    ngx_http_complex_value_t, ngx_http_conf_ctx_t, ngx_http_request_t,
    ngx_http_upstream_init_round_robin, ngx_http_upstream_module, ngx_http_upstream_server_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_str_t, ngx_uint_t, sockaddr,
};

use super::health::CheckConf;
use super::keepalive::Pool;
use super::main_conf::MainConf;
use super::overrides::Override;
use super::peer::init_peer;
use super::zone::ZoneConf;
use crate::balance::{self, Policy};
use crate::nginx::conf::{self, Place};
use crate::nginx::log::log_conf;
#[cfg(ngx_feature = "http_ssl")]
use crate::nginx::peer::session::Sessions;
use crate::nginx::{border, pool};
use crate::registry::{Address, SpaceName, SpaceRef, StaticServer, WEIGHT_MAX};

/// Which namespace an upstream's requests go to.
#[derive(Clone)]
pub(super) enum Namespace {
    /// Always this one.
    Fixed(String),
    /// Evaluated for each request.
    Variable(NonNull<ngx_http_complex_value_t>),
}

/// An upstream as configured.
pub(crate) struct UpstreamConf {
    zone_name: String,
    pub(super) namespace: Option<Namespace>,
    pub(super) policy: &'static dyn Policy,
    /// What is hashed, where the policy goes by a key.
    pub(super) key: Option<NonNull<ngx_http_complex_value_t>>,
    /// Where `registry` stands; `None` without it.
    pub(super) place: Option<Place>,
    balance_place: Option<Place>,
    /// The address that keeps stock nginx content: see `placeholder`.
    placeholder: *const ngx_addr_t,
    initialised: bool,
    zone: *const ZoneConf,
    /// `server` lines.
    pub(super) statics: Vec<StaticServer>,
    /// `registry_health_check`.
    pub(super) check: Option<Override<Option<CheckConf>>>,
    /// `registry_slow_start`, in milliseconds.
    pub(super) slow_start: Option<Override<u64>>,
    /// `registry_keepalive`.
    pub(super) keepalive: Option<Pool>,
    /// The upstream that this belongs to; null without `registry`.
    stock: *const ngx_http_upstream_srv_conf_t,
    /// The upstream's name, for `$upstream_addr` when nobody is eligible.
    pub(super) host: *mut ngx_str_t,
    /// Where the fixed namespace was found last, in this process.
    pub(super) space: RefCell<Option<SpaceRef>>,
    #[cfg(ngx_feature = "http_ssl")]
    pub(super) sessions: RefCell<Sessions>,
}

impl UpstreamConf {
    /// The registry.
    #[inline]
    pub(super) fn zone(&self) -> Option<&ZoneConf> {
        // SAFETY: null, or a zone of the same configuration.
        unsafe { self.zone.as_ref() }
    }

    /// The fixed namespace.
    pub(super) fn fixed(&self) -> Option<SpaceName<'_>> {
        match &self.namespace {
            Some(Namespace::Fixed(name)) => SpaceName::new(name.as_bytes()),
            _ => None,
        }
    }

    /// Whether it uses that registry.
    pub(super) fn uses(&self, zone: &ZoneConf) -> bool {
        std::ptr::eq(self.zone, zone)
    }
}

/// Makes the configuration of an upstream (and of each server block, where it stays unused).
pub(super) unsafe extern "C" fn create_conf(cf: *mut ngx_conf_t) -> *mut c_void {
    border::guard(
        || conf::conf_log(cf),
        null_mut(),
        || {
            let made = UpstreamConf {
                zone_name: String::new(),
                namespace: None,
                policy: balance::POLICIES[0],
                key: None,
                place: None,
                balance_place: None,
                placeholder: null(),
                initialised: false,
                zone: null(),
                statics: Vec::new(),
                check: None,
                slow_start: None,
                keepalive: None,
                stock: null(),
                host: null_mut(),
                space: RefCell::new(None),
                #[cfg(ngx_feature = "http_ssl")]
                sessions: RefCell::default(),
            };
            // SAFETY: nginx passes a valid configuration.
            let made = pool::keep(unsafe { (*cf).pool }, made);
            made.map_or(null_mut(), |p| p.as_ptr().cast())
        },
    )
}

/// The upstream that is being read.
fn upstream_of(cf: *mut ngx_conf_t) -> *mut ngx_http_upstream_srv_conf_t {
    // SAFETY: inside upstream{} the context's srv_conf has the core module's structure at its
    // index.
    unsafe {
        let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>();
        let index = ngx_http_upstream_module.ctx_index;
        (*(*context).srv_conf.add(index)).cast()
    }
}

/// `registry ZONE [namespace=NAME];`
pub(super) unsafe extern "C" fn cmd_set_registry(
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
            set_registry(cf, upstream).err().unwrap_or(conf::OK)
        },
    )
}

fn set_registry(cf: *mut ngx_conf_t, upstream: &mut UpstreamConf) -> Result<(), conf::Outcome> {
    if upstream.place.is_some() {
        return Err(conf::DUPLICATE);
    }
    let words = conf::words(cf);
    let us = upstream_of(cf);
    // SAFETY: the upstream that is being read.
    let host = unsafe { (*us).host };

    upstream.zone_name = words[1].to_string();
    upstream.namespace = Some(match words.get(2) {
        Some(word) => read_namespace(cf, word)?,
        None => {
            if SpaceName::new(host.as_bytes()).is_none() {
                let syntax = SpaceName::SYNTAX;
                return Err(conf::refuse(
                    cf,
                    format_args!(
                        "the upstream's name \"{host}\" can't be a namespace, which is {syntax}: \
                         add namespace=NAME"
                    ),
                ));
            }
            Namespace::Fixed(host.to_string())
        }
    });
    upstream.place = Some(conf::place(cf));
    register(cf, upstream)?;

    // SAFETY: the upstream that is being read.
    unsafe {
        if (*us).peer.init_upstream.is_some() {
            log_conf(NGX_LOG_WARN, cf, format_args!("load balancing method redefined"));
        }
        (*us).peer.init_upstream = Some(init_upstream);
        (*us).flags = (NGX_HTTP_UPSTREAM_CREATE
            | NGX_HTTP_UPSTREAM_WEIGHT
            | NGX_HTTP_UPSTREAM_MAX_CONNS
            | NGX_HTTP_UPSTREAM_MAX_FAILS
            | NGX_HTTP_UPSTREAM_FAIL_TIMEOUT
            | NGX_HTTP_UPSTREAM_DOWN
            | NGX_HTTP_UPSTREAM_BACKUP) as ngx_uint_t;
        upstream.stock = us;
        upstream.host = &raw mut (*us).host;
        upstream.placeholder = placeholder(cf, us).ok_or(conf::ERROR)?;
    }
    Ok(())
}

/// Reads `namespace=NAME`, where NAME may have variables.
pub(super) fn read_namespace(
    cf: *mut ngx_conf_t,
    word: &ngx_str_t,
) -> Result<Namespace, conf::Outcome> {
    let name = conf::text(word).and_then(|w| w.strip_prefix("namespace="));
    let Some(name) = name else {
        return Err(conf::refuse(
            cf,
            format_args!("invalid parameter \"{word}\": it may be namespace=NAME"),
        ));
    };
    if name.contains('$') {
        let compiled = conf::compile(cf, name).ok_or(conf::ERROR)?;
        if conf::is_variable(compiled) {
            return Ok(Namespace::Variable(compiled));
        }
    }
    if SpaceName::new(name.as_bytes()).is_none() {
        let syntax = SpaceName::SYNTAX;
        return Err(conf::refuse(
            cf,
            format_args!("invalid namespace \"{name}\": use {syntax}, or a variable"),
        ));
    }
    Ok(Namespace::Fixed(name.to_owned()))
}

/// `registry_balance METHOD;`
pub(super) unsafe extern "C" fn cmd_set_balance(
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
            if upstream.balance_place.is_some() {
                return conf::DUPLICATE;
            }
            let words: Vec<_> = conf::words(cf)[1..].iter().map(ToString::to_string).collect();
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let (policy, key) = match balance::parse(&words) {
                Ok(read) => read,
                Err(why) => return conf::refuse(cf, format_args!("{why}")),
            };
            upstream.policy = policy;
            if let Some(key) = key {
                let Some(key) = conf::compile(cf, key) else { return conf::ERROR };
                upstream.key = Some(key);
            }
            upstream.balance_place = Some(conf::place(cf));
            register(cf, upstream).err().unwrap_or(conf::OK)
        },
    )
}

/// Notes the upstream in the main configuration, once.
pub(super) fn register(
    cf: *mut ngx_conf_t,
    upstream: &mut UpstreamConf,
) -> Result<(), conf::Outcome> {
    let main = MainConf::of_conf(cf).ok_or(conf::ERROR)?;
    let this: *mut UpstreamConf = upstream;
    if !main.upstreams.contains(&this) {
        main.upstreams.push(this);
    }
    Ok(())
}

/// nginx refuses an upstream without servers, and other modules (`zone`) read `peer.data` as stock
/// round robin's. So each of ours has one stock server, down, which is never used.
fn placeholder(
    cf: *mut ngx_conf_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> Option<*const ngx_addr_t> {
    // SAFETY: all that is pointed to is in the configuration's pool; nginx reads the elements of
    // `servers` as this type. A zeroed sockaddr_in is valid.
    unsafe {
        // 0.0.0.1, as the place holders that people write by hand.
        let into = pool::room::<libc::sockaddr_in>((*cf).pool)?;
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = libc::AF_INET as _;
        address.sin_port = 1u16.to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes([0, 0, 0, 1]);
        into.write(address);
        let name = "registry";
        let name = ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() };
        let addr = pool::room::<ngx_addr_t>((*cf).pool)?;
        addr.write(ngx_addr_t {
            sockaddr: into.as_ptr().cast::<sockaddr>(),
            socklen: size_of::<libc::sockaddr_in>() as _,
            name,
        });
        let server = ngx_array_push((*us).servers).cast::<ngx_http_upstream_server_t>();
        let server = server.as_mut()?;
        *server = std::mem::zeroed();
        server.name = name;
        server.addrs = addr.as_ptr();
        server.naddrs = 1;
        server.weight = 1;
        server.max_fails = 1;
        server.fail_timeout = 10;
        server.down = 1;
        Some(addr.as_ptr())
    }
}

/// What nginx calls for each request: one address to compare with.
const INIT_PEER: unsafe extern "C" fn(
    *mut ngx_http_request_t,
    *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t = init_peer;

/// Called when all of http{} has been read.
unsafe extern "C" fn init_upstream(
    cf: *mut ngx_conf_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    const FAILED: ngx_int_t = NGX_ERROR as ngx_int_t;
    border::guard(
        || conf::conf_log(cf),
        FAILED,
        || {
            // SAFETY: nginx passes an upstream whose `init_upstream` is ours: it has our configuration.
            let upstream = unsafe {
                let index = super::ngx_http_upstream_registry_module.ctx_index;
                &mut *(*(*us).srv_conf.add(index)).cast::<UpstreamConf>()
            };
            match init(cf, us, upstream) {
                Ok(()) => 0,
                Err(()) => FAILED,
            }
        },
    )
}

fn init(
    cf: *mut ngx_conf_t,
    us: *mut ngx_http_upstream_srv_conf_t,
    upstream: &mut UpstreamConf,
) -> Result<(), ()> {
    let place = upstream.place.clone().ok_or(())?;
    let main = MainConf::of_conf(cf).ok_or(())?;
    upstream.zone = main.find_zone(cf, &upstream.zone_name, &place)?;

    // SAFETY: as nginx's own methods do. It also refuses `resolve`, which asks for a method that
    // lets peers be changed behind its back.
    if unsafe { ngx_http_upstream_init_round_robin(cf, us) } != 0 {
        return Err(());
    }
    // SAFETY: the upstream being initialised; its array holds this type.
    let servers: &[ngx_http_upstream_server_t] = unsafe {
        (*us).peer.init = Some(INIT_PEER);
        (*(*us).servers).as_slice()
    };

    for server in servers {
        if std::ptr::eq(server.addrs, upstream.placeholder) {
            continue;
        }
        if upstream.fixed().is_none() {
            let message = format_args!(
                "\"server\" lines and a variable namespace can't be together in one upstream: \
                 give the registry a fixed namespace or remove server {}",
                server.name
            );
            conf::refuse_at(conf::conf_log(cf), &place, message);
            return Err(());
        }
        if server.weight > WEIGHT_MAX as usize {
            let message = format_args!(
                "invalid weight={} of server {}: in an upstream with \"registry\" it may be 1 to \
                 {WEIGHT_MAX}",
                server.weight, server.name
            );
            conf::refuse_at(conf::conf_log(cf), &place, message);
            return Err(());
        }
        // SAFETY: nginx resolved the line into `naddrs` addresses.
        let addrs = unsafe { std::slice::from_raw_parts(server.addrs, server.naddrs) };
        for addr in addrs {
            upstream.statics.push(static_server(cf, &place, server, addr)?);
        }
    }
    upstream.initialised = true;
    Ok(())
}

fn static_server(
    cf: *mut ngx_conf_t,
    place: &Place,
    server: &ngx_http_upstream_server_t,
    addr: &ngx_addr_t,
) -> Result<StaticServer, ()> {
    let name = addr.name.to_string();
    let address = match name.strip_prefix("unix:") {
        Some(path) => Address::unix(path).map_err(|e| e.to_string()),
        None => name
            .parse::<std::net::SocketAddr>()
            .map(|a| Address::Inet(a.ip().to_canonical(), a.port()))
            .map_err(|e| e.to_string()),
    };
    let address = address.map_err(|e| {
        let message = format_args!("server {name} can't be a member of a registry: {e}");
        conf::refuse_at(conf::conf_log(cf), place, message);
    })?;
    Ok(StaticServer {
        address,
        weight: server.weight as u32,
        max_conns: u32::try_from(server.max_conns).unwrap_or(u32::MAX),
        max_fails: u32::try_from(server.max_fails).unwrap_or(u32::MAX),
        fail_timeout_ms: u32::try_from(server.fail_timeout.saturating_mul(1000))
            .unwrap_or(u32::MAX),
        backup: server.backup() != 0,
        down: server.down != 0,
        // What its namespace says, see `worker::renew`.
        slow_start_ms: 0,
    })
}

/// Checks an upstream when nginx has initialised all.
pub(super) fn check(cf: *mut ngx_conf_t, upstream: &UpstreamConf) -> Result<(), ()> {
    if let Some(pool) = &upstream.keepalive
        && let Err(why) = check_keepalive(upstream)
    {
        conf::refuse_at(
            conf::conf_log(cf),
            &pool.place,
            format_args!("\"registry_keepalive\" {why}"),
        );
        return Err(());
    }
    if let Some(place) = &upstream.balance_place
        && upstream.keepalive.is_none()
        && upstream.policy.prefers_warm()
    {
        let name = upstream.policy.name();
        let message = format_args!(
            "\"registry_balance {name}\" needs \"registry_keepalive\" in its upstream: stock \
             keepalive does not say which servers it has connections to"
        );
        conf::refuse_at(conf::conf_log(cf), place, message);
        return Err(());
    }
    match (&upstream.place, &upstream.balance_place) {
        (None, Some(balance)) => {
            let message = format_args!("\"registry_balance\" needs \"registry\" in its upstream");
            conf::refuse_at(conf::conf_log(cf), balance, message);
            Err(())
        }
        (Some(place), _) if !upstream.initialised => {
            let message = format_args!(
                "another load balancing method has taken the place of \"registry\": remove it, \
                 or put it (keepalive too) after \"registry\" only if it adds to it; methods are \
                 set by \"registry_balance\""
            );
            conf::refuse_at(conf::conf_log(cf), place, message);
            Err(())
        }
        _ => Ok(()),
    }
}

fn check_keepalive(upstream: &UpstreamConf) -> Result<(), &'static str> {
    if upstream.place.is_none() {
        return Err("needs \"registry\" in its upstream");
    }
    // SAFETY: set with `place`; the upstream lives as long as the configuration.
    let init = unsafe { upstream.stock.as_ref() }.and_then(|us| us.peer.init);
    if upstream.initialised && init.is_some_and(|f| !std::ptr::fn_addr_eq(f, INIT_PEER)) {
        return Err("can't be together with another directive that keeps connections: remove \
                    \"keepalive\" or \"registry_keepalive\"");
    }
    Ok(())
}
