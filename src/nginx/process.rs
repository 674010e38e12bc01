//! What kind of process this is, and its clocks.

use ngx::ffi::{
    NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, ngx_cached_time, ngx_conf_t, ngx_current_msec,
    ngx_cycle, ngx_exiting, ngx_log_t, ngx_pid, ngx_process, ngx_quit, ngx_terminate,
    ngx_test_config,
};

/// This is a worker, or the only process (`master_process off`): it handles requests.
pub(crate) fn handles_requests() -> bool {
    // SAFETY: set once when the process starts.
    let kind = unsafe { ngx_process } as u32;
    kind == NGX_PROCESS_WORKER || kind == NGX_PROCESS_SINGLE
}

/// `master_process off`.
pub(crate) fn is_single() -> bool {
    // SAFETY: as above.
    unsafe { ngx_process as u32 == NGX_PROCESS_SINGLE }
}

/// `nginx -t`: nothing is to be changed.
pub(crate) fn is_test() -> bool {
    // SAFETY: set once when the process starts.
    unsafe { ngx_test_config != 0 }
}

/// The worker is on its way out.
pub(crate) fn is_exiting() -> bool {
    // SAFETY: words set by signal handlers and the event loop of this thread.
    unsafe { ngx_exiting != 0 || ngx_quit != 0 || ngx_terminate != 0 }
}

/// Milliseconds of the monotonic clock and since the epoch, as cached for this turn of the event
/// loop.
#[inline]
pub(crate) fn clocks() -> (u64, u64) {
    // SAFETY: `ngx_cached_time` points into nginx's own array of slots from the start on; only
    // this thread updates it.
    unsafe {
        let time = &*ngx_cached_time;
        (ngx_current_msec as u64, time.sec as u64 * 1000 + time.msec as u64)
    }
}

/// The host's name and nginx's prefix, while a configuration is read.
pub(crate) fn host_and_prefix(cf: *mut ngx_conf_t) -> (String, String) {
    // SAFETY: `cf` is what nginx passed; both are set before a configuration is read.
    unsafe { ((*(*cf).cycle).hostname.to_string(), (*(*cf).cycle).prefix.to_string()) }
}

/// A random number. In glibc `rand` is the generator behind `random`, which nginx uses too and seeds
/// in each worker when it starts.
#[inline]
pub(crate) fn random() -> u64 {
    // SAFETY: glibc's generator has a lock of its own.
    let half = || unsafe { libc::rand() } as u64;
    half() << 32 ^ half()
}

/// This process's id.
pub(crate) fn pid() -> u32 {
    // SAFETY: set once when the process starts.
    unsafe { ngx_pid as u32 }
}

/// The log of the current cycle.
pub(crate) fn cycle_log() -> *mut ngx_log_t {
    // SAFETY: there is a current cycle from main() on.
    unsafe { (*ngx_cycle).log }
}
