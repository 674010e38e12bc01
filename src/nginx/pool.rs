//! Memory that lives as long as a configuration or a request.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use ngx::ffi::{ngx_palloc, ngx_pool_cleanup_add, ngx_pool_t};

/// Puts a value into a pool; it is dropped with the pool. `None`: out of memory.
pub(crate) fn keep<T>(pool: *mut ngx_pool_t, value: T) -> Option<NonNull<T>> {
    unsafe extern "C" fn drop_it<T>(data: *mut c_void) {
        // SAFETY: nginx passes the data that was set below, once.
        unsafe { ptr::drop_in_place(data.cast::<T>()) }
    }
    // SAFETY: `pool` is alive, as the configuration or request that it belongs to is; nginx aligns
    // cleanup data to words, which `T`'s alignment is checked against.
    unsafe {
        const { assert!(align_of::<T>() <= align_of::<usize>()) };
        let cleanup = ngx_pool_cleanup_add(pool, size_of::<T>());
        let cleanup = cleanup.as_mut()?;
        let at = NonNull::new(cleanup.data.cast::<T>())?;
        at.write(value);
        cleanup.handler = Some(drop_it::<T>);
        Some(at)
    }
}

/// Room for a value that needs no drop. `None`: out of memory.
#[inline]
pub(crate) fn room<T: Copy>(pool: *mut ngx_pool_t) -> Option<NonNull<T>> {
    const { assert!(align_of::<T>() <= align_of::<usize>()) };
    // SAFETY: `pool` is alive; ngx_palloc aligns to words.
    NonNull::new(unsafe { ngx_palloc(pool, size_of::<T>()) }.cast())
}
