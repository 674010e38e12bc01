//! Shared memory zones of nginx, taken whole.

use std::ffi::c_void;
use std::ptr::NonNull;

use ngx::ffi::{
    ngx_conf_t, ngx_cycle_t, ngx_int_t, ngx_list_part_t, ngx_module_t, ngx_pagesize,
    ngx_shared_memory_add, ngx_shm_zone_t, ngx_slab_alloc, ngx_slab_pool_t, ngx_str_t,
};

/// Called when a zone is mapped: for the first time, or again at a reload.
pub(crate) type Init = unsafe extern "C" fn(*mut ngx_shm_zone_t, *mut c_void) -> ngx_int_t;

/// Declares a zone. `None`: nginx has logged why.
pub(crate) fn declare(
    cf: *mut ngx_conf_t,
    name: &mut ngx_str_t,
    size: usize,
    tag: *const ngx_module_t,
    init: Init,
    data: *mut c_void,
) -> Option<NonNull<ngx_shm_zone_t>> {
    // SAFETY: called while the configuration is read; `name` is in its pool.
    let zone = unsafe { ngx_shared_memory_add(cf, name, size, tag.cast_mut().cast()) };
    let zone = NonNull::new(zone)?;
    // SAFETY: nginx returned a valid zone of this cycle.
    unsafe {
        (*zone.as_ptr()).init = Some(init);
        (*zone.as_ptr()).data = data;
    }
    Some(zone)
}

/// All the memory that a zone's slab pool has, taken in one piece: its start and length. The second
/// time, and at every reload that keeps the zone, the same piece; true then.
pub(crate) fn arena(zone: NonNull<ngx_shm_zone_t>) -> Option<(NonNull<u8>, usize, bool)> {
    // SAFETY: nginx has mapped the zone and set up its slab pool before it calls init; only the
    // master or the only process runs this, while no worker of this zone exists or none touches
    // the slab pool.
    unsafe {
        let pool = (*zone.as_ptr()).shm.addr.cast::<ngx_slab_pool_t>();
        let end = (*pool).end as usize;
        if let Some(known) = NonNull::new((*pool).data.cast::<u8>()) {
            return Some((known, end - known.as_ptr() as usize, true));
        }
        let len = (*pool).pfree * ngx_pagesize;
        let base = NonNull::new(ngx_slab_alloc(pool, len).cast::<u8>())?;
        (*pool).data = base.as_ptr().cast();
        Some((base, len, false))
    }
}

/// Whether a zone that is declared is mapped already.
pub(crate) fn is_mapped(zone: NonNull<ngx_shm_zone_t>) -> bool {
    // SAFETY: a zone of a living cycle.
    unsafe { !(*zone.as_ptr()).shm.addr.is_null() }
}

/// The zone of that name in a cycle.
pub(crate) fn find(cycle: *const ngx_cycle_t, name: &[u8]) -> Option<NonNull<ngx_shm_zone_t>> {
    // SAFETY: `cycle` is null or a cycle that is alive; its list of zones is complete.
    unsafe {
        let mut part: *const ngx_list_part_t = &raw const cycle.as_ref()?.shared_memory.part;
        while let Some(p) = part.as_ref() {
            for i in 0..p.nelts {
                let zone = p.elts.cast::<ngx_shm_zone_t>().add(i);
                if (*zone).shm.name.as_bytes() == name {
                    return NonNull::new(zone);
                }
            }
            part = p.next;
        }
    }
    None
}
