//! A request's peer: init, get, free, and the TLS session.

use std::ffi::c_void;
use std::ptr::{NonNull, null, null_mut};

use ngx::ffi::{
    NGX_BUSY, NGX_DONE, NGX_ERROR, NGX_LOG_ERR, NGX_LOG_WARN, NGX_PEER_FAILED, ngx_http_request_t,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_peer_connection_t, ngx_pool_t, ngx_str_t,
    ngx_uint_t,
};

use super::keepalive::Hold;
use super::upstream::{Namespace, UpstreamConf};
use super::worker::{Local, now, report};
use super::zone::ZoneConf;
use crate::balance::{Seed, digest, digest_of_client};
use crate::nginx::connection::Shape;
use crate::nginx::log::log;
use crate::nginx::peer::{SocketAddress, point, went_stale};
use crate::nginx::request::{self, log_of};
use crate::nginx::timeouts::Timeouts;
use crate::nginx::{border, conf, pool, process};
use crate::registry::{
    Choice, Flight, Nobody, Registry, Released, SpaceName, SpaceRef, Target, Verdict,
};

const FAILED: ngx_int_t = NGX_ERROR as ngx_int_t;
/// There is a connection already.
const DONE: ngx_int_t = NGX_DONE as ngx_int_t;
const BUSY: ngx_int_t = NGX_BUSY as ngx_int_t;

/// More tries than any request makes: the first `get` sets the true number.
const MANY: usize = 1 << 30;

/// A request's way through an upstream; in the request's pool.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    upstream: *const UpstreamConf,
    request: *mut ngx_http_request_t,
    /// The request on a server now.
    flight: Option<Flight>,
    /// Whose kept connection was stale.
    again: Option<Flight>,
    /// What the pool knows of the connection.
    hold: Option<Hold>,
    timeouts: Timeouts,
    space: Option<SpaceRef>,
    /// The digest of what the policy hashes; `None` when it is empty.
    key: Option<u64>,
    tries: usize,
    /// Numbers of the servers tried, in rising order; in the request's pool.
    tried: *mut u64,
    tried_len: usize,
    tried_cap: usize,
    // What variables tell.
    /// The server of the last try; in the request's pool.
    server: *const ngx_str_t,
    /// What a variable namespace was; in the request's pool.
    variable: Option<NonNull<[u8]>>,
    trouble: Option<Trouble>,
}

/// A try that failed, or whose answer was not the one to pass on.
#[derive(Clone, Copy)]
pub(super) struct Trouble {
    /// The server answered, and another may know better: 403, 404.
    pub(super) next: bool,
    /// Which of the request's tries, of all upstreams.
    pub(super) state: usize,
}

// SAFETY: it is the only one.
unsafe impl pool::Findable for Peer {}

impl Peer {
    /// The last way of a request through an upstream with a registry.
    pub(super) fn of<'a>(r: *mut ngx_http_request_t) -> Option<&'a Self> {
        // SAFETY: `r` is alive. Subrequests share the pool of their main request.
        pool::find(unsafe { (*r).pool }, |peer: &Self| peer.request == r)
    }

    /// The address of the server of the last try; empty when there was none.
    pub(super) fn server(&self) -> &'static [u8] {
        // SAFETY: made by `point` in the request's pool, where those who ask are as well.
        unsafe { self.server.as_ref().map_or(b"", |s| std::slice::from_raw_parts(s.data, s.len)) }
    }

    /// The namespace; empty when what it was to be is no name.
    pub(super) fn namespace(&self) -> &'static [u8] {
        // SAFETY: the configuration outlives the request.
        let upstream: &'static UpstreamConf = unsafe { &*self.upstream };
        match (&upstream.namespace, self.variable) {
            (Some(Namespace::Fixed(name)), _) => name.as_bytes(),
            // SAFETY: evaluated into the request's pool, or a constant.
            (_, Some(name)) => SpaceName::new(unsafe { name.as_ref() })
                .map_or(b"", |name| name.as_str().as_bytes()),
            _ => b"",
        }
    }

    /// How many tries were made.
    pub(super) fn tries(&self) -> usize {
        self.tries
    }

    /// The last that did not go well.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    fn tried(&self) -> &[u64] {
        if self.tried_len == 0 {
            return &[];
        }
        // SAFETY: `remember` made room for `tried_cap` numbers and wrote `tried_len` of them.
        unsafe { std::slice::from_raw_parts(self.tried, self.tried_len) }
    }

    /// Adds a server to those tried. Without memory it may be tried again: a smaller evil.
    fn remember(&mut self, number: u64, pool: *mut ngx_pool_t) {
        let Err(at) = self.tried().binary_search(&number) else { return };
        // SAFETY: both runs are in the request's pool and as long as `tried_cap` says.
        unsafe {
            if self.tried_len == self.tried_cap {
                let cap = (self.tried_cap * 2).max(8);
                let new = ngx::ffi::ngx_palloc(pool, cap * size_of::<u64>()).cast::<u64>();
                if new.is_null() {
                    return;
                }
                if self.tried_len > 0 {
                    new.copy_from_nonoverlapping(self.tried, self.tried_len);
                }
                self.tried = new;
                self.tried_cap = cap;
            }
            let hole = self.tried.add(at);
            hole.copy_to(hole.add(1), self.tried_len - at);
            hole.write(number);
        }
        self.tried_len += 1;
    }
}

/// Called when a request begins with this upstream.
pub(super) unsafe extern "C" fn init_peer(
    r: *mut ngx_http_request_t,
    us: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    border::guard(
        || log_of(r),
        FAILED,
        || {
            // SAFETY: nginx passes the request and an upstream whose `peer.init` is this: it has our
            // configuration, and the request has an upstream structure.
            unsafe {
                let index = super::ngx_http_upstream_registry_module.ctx_index;
                let upstream = (*(*us).srv_conf.add(index)).cast::<UpstreamConf>();
                let Ok(key) = key_of(r, &*upstream) else { return FAILED };
                let peer = Peer {
                    upstream,
                    request: r,
                    flight: None,
                    again: None,
                    hold: None,
                    timeouts: Timeouts::OF_LOCATION,
                    space: None,
                    key,
                    tries: 0,
                    tried: null_mut(),
                    tried_len: 0,
                    tried_cap: 0,
                    server: null(),
                    variable: None,
                    trouble: None,
                };
                let Some(peer) = pool::put((*r).pool, peer) else { return FAILED };

                let pc = &mut (*(*r).upstream).peer;
                pc.data = peer.as_ptr().cast();
                pc.get = Some(get_peer);
                pc.free = Some(free_peer);
                pc.tries = MANY;
                #[cfg(ngx_feature = "http_ssl")]
                {
                    pc.set_session = Some(session::set_session);
                    pc.save_session = Some(session::save_session);
                }
            }
            0
        },
    )
}

/// The digest of what an upstream's policy hashes, as it is when the request begins with the
/// upstream: all its tries go by the same.
fn key_of(r: *mut ngx_http_request_t, upstream: &UpstreamConf) -> Result<Option<u64>, ()> {
    let key = match (upstream.policy.seed(), upstream.key) {
        (Seed::Address, _) => return Ok(Some(digest_of_client(request::client(r)))),
        (Seed::Key, Some(key)) => conf::evaluate(r, key).ok_or(())?,
        _ => return Ok(None),
    };
    // As in stock nginx: who has no key is sent round.
    Ok((!key.is_empty()).then(|| digest(key)))
}

/// Called when the request needs a server.
unsafe extern "C" fn get_peer(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    // SAFETY: nginx passes the connection whose `data` is the Peer made in `init_peer`, and calls
    // back for one request at a time.
    let (pc, peer) = unsafe { (&mut *pc, &mut *data.cast::<Peer>()) };
    let log_to = pc.log;
    border::guard(
        || log_to,
        FAILED,
        || {
            pc.set_cached(0);
            pc.connection = null_mut();
            get(pc, peer)
        },
    )
}

fn get(pc: &mut ngx_peer_connection_t, peer: &mut Peer) -> ngx_int_t {
    // SAFETY: the configuration outlives the request.
    let upstream = unsafe { &*peer.upstream };
    let Some(zone) = upstream.zone() else { return FAILED };
    let Some(local) = zone.local().filter(|local| local.is_attached()) else { return FAILED };
    let again = peer.again.take();
    let mut target = Target::NONE;
    let taken = take(upstream, zone, local, peer, again, &mut target, pc);
    let (flight, eligible) = match taken {
        Ok(taken) => taken,
        Err(why) => {
            refuse(upstream, zone, peer, pc, &why);
            return BUSY;
        }
    };
    let mut address = socket_address(&target);
    let fresh = again.is_some_and(|flown| flown.number == flight.number);
    if fresh && upstream.keepalive.is_none() {
        address.pass_the_pool();
    }
    // SAFETY: the request is alive.
    let pool = unsafe { (*peer.request).pool };
    let set = peer.timeouts.set(peer.request, target.timeouts_ms);
    if !set || !point(pc, pool, &address, target.name()) {
        // nginx frees only a peer that has an address.
        give_back(upstream, flight, Verdict::Cut);
        return FAILED;
    }
    peer.flight = Some(flight);
    peer.server = pc.name;
    if peer.tries == 0 && pc.tries > eligible {
        pc.tries = eligible;
    }
    peer.tries += 1;
    peer.hold =
        upstream.keepalive.as_ref().and_then(|pool| pool.take(peer.request, pc, flight, fresh));
    if peer.hold.is_some_and(|hold| hold.is_kept()) { DONE } else { 0 }
}

/// Where a server is, for the kernel.
pub(super) fn socket_address(target: &Target) -> SocketAddress {
    match target.family {
        4 => {
            let [a, b, c, d, ..] = target.ip;
            SocketAddress::v4([a, b, c, d], target.port)
        }
        6 => SocketAddress::v6(target.ip, target.port),
        _ => SocketAddress::unix(target.name().strip_prefix(b"unix:").unwrap_or_default()),
    }
}

fn take(
    upstream: &UpstreamConf,
    zone: &ZoneConf,
    local: &Local,
    p: &mut Peer,
    again: Option<Flight>,
    target: &mut Target,
    pc: &ngx_peer_connection_t,
) -> Result<(Flight, usize), Nobody> {
    let gone = Nobody { no_namespace: true, ..Nobody::default() };
    let variable = match &upstream.namespace {
        Some(Namespace::Variable(value)) => Some(conf::evaluate(p.request, *value).ok_or(gone)?),
        _ => None,
    };
    p.variable = variable.map(NonNull::from);
    let seed = match upstream.policy.seed() {
        Seed::Random => Some(process::random()),
        _ => p.key,
    };
    let mut hands = local.hands();
    let hands = &mut *hands;
    let Some(worker) = hands.worker.as_mut() else { return Err(gone) };
    let Ok(mut registry) = Registry::lock(&local.zone) else { return Err(gone) };

    let space = match (p.space, variable) {
        (Some(space), _) => Some(space),
        (None, Some(name)) => SpaceName::new(name).and_then(|name| registry.find_space(name)),
        (None, None) => {
            let known = upstream.space.borrow().filter(|space| registry.is_current(*space));
            let found =
                known.or_else(|| upstream.fixed().and_then(|name| registry.find_space(name)));
            *upstream.space.borrow_mut() = found;
            found
        }
    };
    let space = space.ok_or(gone)?;
    p.space = Some(space);
    let some;
    let warm = match &upstream.keepalive {
        Some(pool) if upstream.policy.prefers_warm() => {
            some = pool.warmest();
            some.as_slice()
        }
        _ => &[],
    };
    let tried = p.tried();
    let choice = Choice { space, policy: upstream.policy, tried, warm, seed, again };
    let taken = registry.take(worker, &choice, &zone.rules, now(), target, &mut hands.events);
    drop(registry);
    report(zone, pc.log, &mut hands.events);
    taken
}

/// Says why there is no server.
fn refuse(
    upstream: &UpstreamConf,
    zone: &ZoneConf,
    p: &Peer,
    pc: &mut ngx_peer_connection_t,
    why: &Nobody,
) {
    let name = match &upstream.namespace {
        Some(Namespace::Fixed(name)) => name.clone(),
        Some(Namespace::Variable(value)) => conf::evaluate(p.request, *value)
            .map_or_else(String::new, |name| String::from_utf8_lossy(name).into_owned()),
        None => String::new(),
    };
    log(
        NGX_LOG_ERR,
        pc.log,
        format_args!(
            "registry \"{}\": no eligible server in namespace \"{}\": {why}",
            zone.name,
            name.escape_default()
        ),
    );
    // As stock: the upstream's name stands in $upstream_addr.
    pc.name = upstream.host;
}

/// Called when the request is done with the server, however it ended.
unsafe extern "C" fn free_peer(
    pc: *mut ngx_peer_connection_t,
    data: *mut c_void,
    state: ngx_uint_t,
) {
    // SAFETY: as for `get_peer`.
    let (pc, peer) = unsafe { (&mut *pc, &mut *data.cast::<Peer>()) };
    let log_to = pc.log;
    border::guard(|| log_to, (), || free(pc, peer, state));
}

fn free(pc: &mut ngx_peer_connection_t, peer: &mut Peer, state: ngx_uint_t) {
    // Taken out: whatever comes after, this request is given back once.
    let Some(flight) = peer.flight.take() else { return };
    let verdict = if state & NGX_PEER_FAILED as ngx_uint_t == 0 {
        if has_answered(peer.request) { Verdict::Fine } else { Verdict::Cut }
    } else if went_stale(pc, received(peer.request)) {
        peer.again = Some(flight);
        Verdict::Stale
    } else {
        Verdict::Failed
    };
    if state != 0 {
        let states = request::upstream_states(peer.request);
        let next = state & NGX_PEER_FAILED as ngx_uint_t == 0;
        peer.trouble = states.checked_sub(1).map(|state| Trouble { next, state });
    }
    if state != 0 && verdict != Verdict::Stale {
        // SAFETY: the request is alive.
        peer.remember(flight.number, unsafe { (*peer.request).pool });
    }

    // SAFETY: the configuration outlives the request.
    let upstream = unsafe { &*peer.upstream };
    let released = give_back(upstream, flight, verdict);
    if let (Some(pool), Some(hold)) = (&upstream.keepalive, peer.hold.take())
        && released.stays
    {
        pool.put(peer.request, pc, flight, &hold, state);
    }
    if released.failed {
        log(NGX_LOG_WARN, pc.log, format_args!("upstream server temporarily disabled"));
    }
    if released.alone {
        pc.tries = 0;
    } else if pc.tries > 0 {
        pc.tries -= 1;
    }
}

/// Ends a request's stay on a server.
fn give_back(upstream: &UpstreamConf, flight: Flight, verdict: Verdict) -> Released {
    if let Some(local) = upstream.zone().and_then(ZoneConf::local)
        && let Some(worker) = local.hands().worker.as_mut()
        && let Ok(mut registry) = Registry::lock(&local.zone)
    {
        return registry.release(worker, flight, verdict, now());
    }
    Released::default()
}

/// Whether the server of this try has sent the head of a response.
fn has_answered(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: the request is alive and has an upstream.
    unsafe { (*(*r).upstream).headers_in.status_n != 0 }
}

/// Bytes of a response that have come in this try.
fn received(r: *mut ngx_http_request_t) -> u64 {
    // SAFETY: the request is alive and has an upstream; the state is that of the current try.
    unsafe {
        let state = (*(*r).upstream).state;
        state.as_ref().map_or(0, |s| s.bytes_received.max(0) as u64)
    }
}

#[cfg(ngx_feature = "http_ssl")]
mod session {
    use super::{
        FAILED, Peer, Shape, UpstreamConf, border, c_void, ngx_int_t, ngx_peer_connection_t,
    };

    /// Called before the handshake with a server.
    pub(super) unsafe extern "C" fn set_session(
        pc: *mut ngx_peer_connection_t,
        data: *mut c_void,
    ) -> ngx_int_t {
        // SAFETY: as for `get_peer`.
        let (pc, peer) = unsafe { (&mut *pc, &*data.cast::<Peer>()) };
        let log_to = pc.log;
        border::guard(
            || log_to,
            FAILED,
            || {
                let (Some(flight), Some(shape)) = (peer.flight, Shape::of(peer.request, pc)) else {
                    return 0;
                };
                let sessions = upstream(peer).sessions.borrow();
                sessions.resume(pc, flight.slot(), flight.number, &shape.tls())
            },
        )
    }

    /// Called when a server has given a session.
    pub(super) unsafe extern "C" fn save_session(
        pc: *mut ngx_peer_connection_t,
        data: *mut c_void,
    ) {
        // SAFETY: as for `get_peer`.
        let (pc, peer) = unsafe { (&mut *pc, &*data.cast::<Peer>()) };
        let log_to = pc.log;
        border::guard(
            || log_to,
            (),
            || {
                if let Some(flight) = peer.flight
                    && let Some(shape) = Shape::of(peer.request, pc)
                {
                    let mut sessions = upstream(peer).sessions.borrow_mut();
                    sessions.save(pc, flight.slot(), flight.number, shape.tls());
                }
            },
        );
    }

    fn upstream(peer: &Peer) -> &UpstreamConf {
        // SAFETY: the configuration outlives the request.
        unsafe { &*peer.upstream }
    }
}
