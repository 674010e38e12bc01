//! The `registry NAME SIZE { … }` block and the shared memory behind it.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::ptr::{NonNull, null};

use ngx::ffi::{
    NGX_ERROR, NGX_LOG_EMERG, ngx_command_t, ngx_conf_t, ngx_int_t, ngx_shm_zone_t, ngx_str_t,
};
use ngx::http::HttpModule;

use super::Module;
use super::health::CheckConf;
use super::main_conf::MainConf;
use super::settings;
use super::sync::{self, RedisConf};
use super::worker::Local;
use crate::api::Tokens;
use crate::nginx::conf::{self, Place};
use crate::nginx::log::log;
use crate::nginx::process::cycle_log;
use crate::nginx::{border, shm};
use crate::registry::{Address, Network, OnDuplicate, OnExpire, Rules, SpaceName};
use crate::shm::{OpenError, Zone};

/// Smallest zone, in bytes: room for about a hundred servers.
const MIN_SIZE: usize = 128 * 1024;

/// A registry as configured.
pub(crate) struct ZoneConf {
    pub(super) name: String,
    pub(super) rules: Rules,
    /// Milliseconds between two cleanups.
    pub(super) cleanup_interval: u64,
    /// Who may use the API.
    pub(super) tokens: Tokens,
    /// What may be registered; empty: everything.
    pub(super) allow: Vec<Network>,
    /// Where its servers are kept when nginx is not running.
    pub(super) state_file: Option<PathBuf>,
    /// How they are shared with other nodes.
    pub(super) redis: RedisConf,
    /// `registry_slow_start` of namespaces, in milliseconds.
    pub(super) slow_starts: Vec<(String, u64)>,
    /// How they are checked where an upstream says nothing else.
    pub(super) check: Option<CheckConf>,
    pub(super) place: Place,
    /// Names of directives that the block has, to find what is there twice.
    pub(super) seen: Vec<String>,
    shm: Option<NonNull<ngx_shm_zone_t>>,
    /// This process's part in the zone: set when it begins to handle requests.
    pub(super) local: Cell<*const Local>,
    /// When this process last wrote an error line about a request (monotonic, in milliseconds), and
    /// how many it has kept to itself since.
    complained: Cell<(u64, u64)>,
}

impl ZoneConf {
    fn new(name: &str, place: Place) -> Self {
        Self {
            name: name.to_owned(),
            rules: Rules {
                ttl: 30_000,
                on_expire: OnExpire::Disable,
                remove_after: 0,
                on_duplicate: OnDuplicate::Refresh,
                panic_threshold: 0,
                slow_start: 0,
            },
            cleanup_interval: 10_000,
            tokens: Tokens::default(),
            allow: Vec::new(),
            state_file: None,
            redis: RedisConf::default(),
            slow_starts: Vec::new(),
            check: None,
            place,
            seen: Vec::new(),
            shm: None,
            local: Cell::new(null()),
            complained: Cell::new((0, 0)),
        }
    }

    /// Whether a request that failed for the operator's reasons is worth an error line: one in a
    /// second is, in each process. Then, how many were not since the last one.
    pub(super) fn complains(&self, now: u64) -> Option<u64> {
        let (last, untold) = self.complained.get();
        let worth = last == 0 || now.saturating_sub(last) >= 1000;
        self.complained.set(if worth { (now, 0) } else { (last, untold + 1) });
        worth.then_some(untold)
    }

    /// Whether `allow_servers` lets an address in.
    pub(super) fn allows(&self, address: &Address) -> bool {
        Network::admit(&self.allow, address)
    }

    /// The name of the shared memory: apart from the names that other modules give to theirs.
    pub(super) fn shm_name(&self) -> String {
        format!("registry:{}", self.name)
    }

    /// This process's part in the zone; `None` in processes that handle no requests.
    #[inline]
    pub(super) fn local(&self) -> Option<&Local> {
        // SAFETY: set to a leaked `Local`, which is never freed.
        unsafe { self.local.get().as_ref() }
    }

    /// The zone.
    pub(super) fn open(&self) -> Option<Zone> {
        open(self.shm?)
    }
}

/// Opens the zone in a piece of nginx's shared memory that has been initialised.
pub(super) fn open(zone: NonNull<ngx_shm_zone_t>) -> Option<Zone> {
    if !shm::is_mapped(zone) {
        return None;
    }
    let (base, len, known) = shm::arena(zone)?;
    if !known {
        return None;
    }
    // SAFETY: `init` made a zone there, and nginx keeps the memory mapped for as long as the cycle
    // (or a process forked while it was) lives.
    unsafe { Zone::open(base, len) }.ok()
}

/// `registry NAME SIZE { … }`
pub(super) unsafe extern "C" fn cmd_registry_block(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    _: *mut c_void,
) -> *mut c_char {
    border::guard(
        || conf::conf_log(cf),
        conf::ERROR,
        || match declare(cf) {
            Ok(()) => conf::OK,
            Err(outcome) => outcome,
        },
    )
}

fn declare(cf: *mut ngx_conf_t) -> Result<(), conf::Outcome> {
    let main = MainConf::of_conf(cf).ok_or(conf::ERROR)?;
    let [_, name, size] = conf::words(cf) else { return Err(conf::ERROR) };

    // The rule for namespaces does for zones as well.
    if SpaceName::new(name.as_bytes()).is_none() {
        let syntax = SpaceName::SYNTAX;
        return Err(conf::refuse(
            cf,
            format_args!("invalid registry name \"{name}\": use {syntax}"),
        ));
    }
    let name = conf::text(name).ok_or(conf::ERROR)?;
    if let Some(first) = main.zone(name) {
        let place = &first.place;
        return Err(conf::refuse(
            cf,
            format_args!("duplicate registry \"{name}\", the first is in {place}"),
        ));
    }
    let Some(bytes) = conf::size(size) else {
        return Err(conf::refuse(
            cf,
            format_args!("invalid size \"{size}\" of registry \"{name}\": write it as 16m or 512k"),
        ));
    };
    if bytes < MIN_SIZE {
        return Err(conf::refuse(
            cf,
            format_args!(
                "registry \"{name}\" is too small with {size}: the smallest size is {}k",
                MIN_SIZE / 1024
            ),
        ));
    }

    let mut zone = Box::new(ZoneConf::new(name, conf::place(cf)));
    let data: *mut ZoneConf = &mut *zone;
    let read = conf::block(cf, cmd_inside, data.cast());
    if read != conf::OK {
        return Err(read);
    }
    sync::finish(cf, &mut zone)?;

    // nginx keeps the pointer to the name: it must live as long as the configuration.
    let leaked = crate::nginx::pool::keep(
        // SAFETY: nginx passes a valid configuration.
        unsafe { (*cf).pool },
        zone.shm_name(),
    )
    .ok_or(conf::ERROR)?;
    // SAFETY: just made, dropped with the configuration.
    let shm_name = unsafe { leaked.as_ref() };
    let mut shm_name = ngx_str_t { len: shm_name.len(), data: shm_name.as_ptr().cast_mut() };
    zone.shm = Some(
        shm::declare(cf, &mut shm_name, bytes, Module::module(), init_zone, data.cast())
            .ok_or(conf::ERROR)?,
    );
    main.zones.push(zone);
    Ok(())
}

/// A directive inside the block.
unsafe extern "C" fn cmd_inside(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    zone: *mut c_void,
) -> *mut c_char {
    border::guard(
        || conf::conf_log(cf),
        conf::ERROR,
        || {
            // SAFETY: `declare` passes the zone that is being read.
            let zone = unsafe { &mut *zone.cast::<ZoneConf>() };
            match settings::read(cf, zone) {
                Ok(()) => conf::OK,
                Err(outcome) => outcome,
            }
        },
    )
}

/// Called when the zone is mapped. Makes an empty zone in new memory, and changes nothing in memory
/// that is kept: the new configuration may still fail.
unsafe extern "C" fn init_zone(zone: *mut ngx_shm_zone_t, _old: *mut c_void) -> ngx_int_t {
    border::guard(cycle_log, NGX_ERROR as ngx_int_t, || {
        let made = NonNull::new(zone).and_then(shm::arena);
        let Some((base, len, known)) = made else { return NGX_ERROR as ngx_int_t };
        // SAFETY: the arena is all of the zone's memory and stays mapped with it; new memory is
        // seen by nobody else yet.
        let zone = unsafe { if known { Zone::open(base, len) } else { Zone::create(base, len) } };
        match zone {
            Ok(_) => 0,
            Err(e) => {
                log_broken(&e);
                NGX_ERROR as ngx_int_t
            }
        }
    })
}

fn log_broken(e: &OpenError) {
    log(NGX_LOG_EMERG, cycle_log(), format_args!("registry: {e}"));
}
