//! What a configuration holds in all: its registries, and the upstreams and locations that use
//! them.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

use ngx::ffi::{NGX_LOG_WARN, ngx_conf_t, ngx_cycle_t, ngx_http_core_srv_conf_t, ngx_int_t};
use ngx::http::HttpModuleMainConf;

use super::Module;
use super::health::CheckConf;
use super::keepalive::Pool;
use super::overrides;
use super::upstream::{self, UpstreamConf};
use super::zone::ZoneConf;
use crate::nginx::conf::{self, Place};
use crate::nginx::log::log;
use crate::nginx::{border, listen, pool};
use crate::registry::{CheckPlan, SpaceName};

/// The module's main configuration.
#[derive(Default)]
pub(crate) struct MainConf {
    /// The registries. Boxed: nginx's zones and the other configurations point to them.
    #[expect(clippy::vec_box, reason = "others hold pointers to the elements")]
    pub(super) zones: Vec<Box<ZoneConf>>,
    /// The upstreams with `registry` or `registry_balance`.
    pub(super) upstreams: Vec<*mut UpstreamConf>,
    /// Locations where servers can be changed, by the server block that they are in.
    pub(super) doors: Vec<(*const ngx_http_core_srv_conf_t, *const ZoneConf)>,
    /// Fixed namespaces that locations name, with the registry's name.
    pub(super) named: Vec<(String, String)>,
}

impl MainConf {
    pub(super) fn of_conf(cf: *mut ngx_conf_t) -> Option<&'static mut Self> {
        // SAFETY: `cf` is what nginx passed; the reference is used while the configuration is
        // read, by one thread, one callback at a time.
        Module::main_conf_mut(unsafe { &*cf })
    }

    pub(super) fn of_cycle(cycle: *const ngx_cycle_t) -> Option<&'static Self> {
        // SAFETY: a cycle that is alive; null `conf_ctx` for http means that there is no http{}.
        Module::main_conf(unsafe { cycle.as_ref()? })
    }

    /// The pools of connections of the upstreams that use that registry.
    pub(super) fn pools<'a>(
        cycle: *const ngx_cycle_t,
        zone: &ZoneConf,
    ) -> impl Iterator<Item = &'a Pool> {
        let upstreams = Self::of_cycle(cycle).map_or(&[][..], |main| &main.upstreams);
        // SAFETY: the pointers are those of this configuration's upstreams.
        let upstreams = upstreams.iter().map(|upstream| unsafe { &**upstream });
        upstreams.filter(move |u| u.uses(zone)).filter_map(|u| u.keepalive.as_ref())
    }

    /// The fixed namespaces of a registry that the configuration names.
    pub(super) fn spaces(&self, zone: &ZoneConf) -> Vec<SpaceName<'_>> {
        // SAFETY: the pointers are those of this configuration's upstreams.
        let upstreams = self.upstreams.iter().map(|upstream| unsafe { &**upstream });
        let fixed = upstreams.filter(|u| u.uses(zone)).filter_map(UpstreamConf::fixed);
        let named = self.named.iter().filter(|(name, _)| *name == zone.name);
        fixed.chain(named.filter_map(|(_, name)| SpaceName::new(name.as_bytes()))).collect()
    }

    /// The checks of a registry's servers, and which of them are for whom.
    pub(super) fn checks(&self, zone: &ZoneConf) -> (Vec<CheckConf>, CheckPlan<'_>) {
        let mut all: Vec<CheckConf> = Vec::new();
        let mut add = |check: &CheckConf| {
            all.push(check.clone());
            (all.len() - 1, check.rules.initial)
        };
        let default = zone.check.as_ref().map(&mut add);
        let mut spaces: Vec<(SpaceName<'_>, _)> = Vec::new();
        for upstream in &self.upstreams {
            // SAFETY: the pointers are those of this configuration's upstreams.
            let upstream = unsafe { &**upstream };
            if let Some(own) = upstream.check.as_ref().filter(|_| upstream.uses(zone))
                && let Some(name) = upstream.fixed()
                && spaces.iter().all(|(known, _)| *known != name)
            {
                spaces.push((name, own.value.as_ref().map(&mut add)));
            }
        }
        (all, CheckPlan { default, spaces })
    }

    /// Tells the registries what upstreams say of their namespaces.
    fn spread_overrides(&mut self) {
        for upstream in &self.upstreams {
            // SAFETY: the pointers are those of this configuration's upstreams.
            let upstream = unsafe { &**upstream };
            let Some(name) = upstream.fixed() else { continue };
            let zone = self.zones.iter_mut().find(|zone| upstream.uses(zone));
            if let (Some(zone), Some(own)) = (zone, &upstream.slow_start) {
                zone.slow_starts.push((name.as_str().to_owned(), own.value));
            }
        }
    }

    pub(super) fn zone(&self, name: &str) -> Option<&ZoneConf> {
        self.zones.iter().find(|z| z.name == name).map(|z| &**z)
    }

    /// Finds the registry that a directive names, or logs that there is none.
    pub(super) fn find_zone(
        &self,
        cf: *mut ngx_conf_t,
        name: &str,
        place: &Place,
    ) -> Result<&ZoneConf, ()> {
        self.zone(name).ok_or_else(|| {
            let names: Vec<_> = self.zones.iter().map(|z| format!("\"{}\"", z.name)).collect();
            let known = match names.len() {
                0 => "declare one with: registry NAME SIZE { }".to_owned(),
                _ => format!("there are {}", names.join(", ")),
            };
            let message = format_args!("unknown registry \"{name}\"; {known}");
            conf::refuse_at(conf::conf_log(cf), place, message);
        })
    }
}

/// Makes the main configuration.
pub(super) unsafe extern "C" fn create(cf: *mut ngx_conf_t) -> *mut c_void {
    border::guard(
        || conf::conf_log(cf),
        null_mut(),
        || {
            // SAFETY: nginx passes a valid configuration.
            let made = pool::keep(unsafe { (*cf).pool }, MainConf::default());
            made.map_or(null_mut(), |p| p.as_ptr().cast())
        },
    )
}

/// Called when all of http{} has been read and the upstreams have been initialised.
pub(super) unsafe extern "C" fn init(cf: *mut ngx_conf_t, main: *mut c_void) -> *mut c_char {
    border::guard(
        || conf::conf_log(cf),
        conf::ERROR,
        || {
            // SAFETY: nginx passes what `create` made.
            let main = unsafe { &mut *main.cast::<MainConf>() };
            for upstream in &main.upstreams {
                // SAFETY: the pointers are those of this configuration's upstreams.
                let upstream = unsafe { &**upstream };
                if upstream::check(cf, upstream).is_err()
                    || overrides::check(cf, upstream, &main.upstreams).is_err()
                {
                    return conf::ERROR;
                }
            }
            main.spread_overrides();
            conf::OK
        },
    )
}

/// Called when the configuration has been read: says, once for each registry, when everybody who
/// reaches this machine may register servers.
pub(super) unsafe extern "C" fn warn_of_open_doors(cf: *mut ngx_conf_t) -> ngx_int_t {
    border::guard(
        || conf::conf_log(cf),
        (),
        || {
            let Some(main) = MainConf::of_conf(cf) else { return };
            for zone in &main.zones {
                if !zone.tokens.is_empty() || !zone.allow.is_empty() {
                    continue;
                }
                let doors = main.doors.iter().filter(|(_, z)| std::ptr::eq(*z, &**zone));
                let open =
                    doors.filter_map(|(server, _)| listen::beyond_loopback(cf, *server)).next();
                if let Some(address) = open {
                    let name = &zone.name;
                    log(
                        NGX_LOG_WARN,
                        conf::conf_log(cf),
                        format_args!(
                            "registry \"{name}\": whoever reaches {address} can register servers, \
                         unless access is denied there: \
                         set api_token or allow_servers in {}",
                            zone.place
                        ),
                    );
                }
            }
        },
    );
    0
}
