//! The nginx module: directives, upstream callbacks, the API's handler, workers.
//!
//! In the order of nginx's own modules: commands, context, module. What a directive means is in
//! the file of its place: `zone` (the registry block), `upstream`, `api`.

mod api;
mod health;
mod keepalive;
mod long;
mod main_conf;
mod names;
mod overrides;
mod peer;
mod settings;
mod state;
mod sync;
mod upstream;
mod variables;
mod wait;
mod worker;
mod zone;

use std::ptr::null_mut;

use ngx::ffi::{
    NGX_CONF_1MORE, NGX_CONF_ANY, NGX_CONF_BLOCK, NGX_CONF_TAKE1, NGX_CONF_TAKE2, NGX_CONF_TAKE12,
    NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET, NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET,
    NGX_HTTP_MODULE, NGX_HTTP_SRV_CONF_OFFSET, NGX_HTTP_UPS_CONF, ngx_command_t, ngx_http_module_t,
    ngx_module_t, ngx_uint_t,
};
use ngx::http::{HttpModule, HttpModuleLocationConf, HttpModuleMainConf, HttpModuleServerConf};
use ngx::ngx_string;

/// The module as the `ngx` crate sees it.
struct Module;

impl HttpModule for Module {
    fn module() -> &'static ngx_module_t {
        let module = &raw const ngx_http_upstream_registry_module;
        // SAFETY: nginx sets the indexes while it loads the module, before any code of ours runs.
        unsafe { &*module }
    }
}

// SAFETY: `main_conf::create` makes this type.
unsafe impl HttpModuleMainConf for Module {
    type MainConf = main_conf::MainConf;
}

// SAFETY: `upstream::create_conf` makes this type.
unsafe impl HttpModuleServerConf for Module {
    type ServerConf = upstream::UpstreamConf;
}

// SAFETY: `api::create_conf` makes this type.
unsafe impl HttpModuleLocationConf for Module {
    type LocationConf = api::ApiConf;
}

static mut COMMANDS: [ngx_command_t; 8] = [
    ngx_command_t {
        name: ngx_string!("registry"),
        type_: (NGX_HTTP_MAIN_CONF | NGX_CONF_BLOCK | NGX_CONF_TAKE2) as ngx_uint_t,
        set: Some(zone::cmd_registry_block),
        conf: NGX_HTTP_MAIN_CONF_OFFSET,
        offset: 0,
        post: null_mut(),
    },
    ngx_command_t {
        name: ngx_string!("registry"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_TAKE12) as ngx_uint_t,
        set: Some(upstream::cmd_set_registry),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: null_mut(),
    },
    ngx_command_t {
        name: ngx_string!("registry_balance"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_1MORE) as ngx_uint_t,
        set: Some(upstream::cmd_set_balance),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: null_mut(),
    },
    ngx_command_t {
        name: ngx_string!("registry_keepalive"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_1MORE) as ngx_uint_t,
        set: Some(keepalive::cmd_set_keepalive),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: null_mut(),
    },
    ngx_command_t {
        name: ngx_string!("registry_health_check"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_ANY) as ngx_uint_t,
        set: Some(overrides::cmd_set_health_check),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: null_mut(),
    },
    ngx_command_t {
        name: ngx_string!("registry_slow_start"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_TAKE1) as ngx_uint_t,
        set: Some(overrides::cmd_set_slow_start),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: null_mut(),
    },
    ngx_command_t {
        name: ngx_string!("registry_api"),
        type_: (NGX_HTTP_LOC_CONF | NGX_CONF_1MORE) as ngx_uint_t,
        set: Some(api::cmd_set_api),
        conf: NGX_HTTP_LOC_CONF_OFFSET,
        offset: 0,
        post: null_mut(),
    },
    ngx_command_t::empty(),
];

static CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(variables::add),
    postconfiguration: Some(main_conf::warn_of_open_doors),
    create_main_conf: Some(main_conf::create),
    init_main_conf: Some(main_conf::init),
    create_srv_conf: Some(upstream::create_conf),
    merge_srv_conf: None,
    create_loc_conf: Some(api::create_conf),
    merge_loc_conf: Some(api::merge_conf),
};

/// The module, as nginx loads it.
#[used]
#[expect(unreachable_pub, reason = "nginx reads the symbol; no Rust code does")]
#[allow(non_upper_case_globals)]
pub static mut ngx_http_upstream_registry_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const CONTEXT).cast_mut().cast(),
    commands: (&raw mut COMMANDS).cast(),
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    init_module: Some(worker::init_module),
    init_process: Some(worker::init_process),
    exit_process: Some(worker::exit_process),
    ..ngx_module_t::default()
};

ngx::ngx_modules!(ngx_http_upstream_registry_module);
