//! Memory that lives as long as a configuration or a request.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use ngx::ffi::{ngx_palloc, ngx_pool_cleanup_add, ngx_pool_cleanup_t, ngx_pool_t};

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

/// A value that can be found again in its pool: the pool's own list of cleanups leads to it.
#[repr(C)]
struct Found<T> {
    cleanup: ngx_pool_cleanup_t,
    value: T,
}

/// Marks a [`Found`] whose pool is gone; only there to make this function one of a kind.
const GONE: *mut c_void = ptr::without_provenance_mut(0x5EED_0F00);

/// What tells cleanups of a [`Found`] from all others: its address. It does something that no other
/// function does, so the linker can't make one of the two.
unsafe extern "C" fn found_gone(data: *mut c_void) {
    // SAFETY: nginx passes the data that was set in `put`, once: the cleanup itself.
    unsafe { (&raw mut (*data.cast::<ngx_pool_cleanup_t>()).data).write_volatile(GONE) }
}

/// Puts a value that needs no drop into a pool, where [`find`] finds it. Takes no more memory from
/// the pool at a time than [`room`] does. `None`: out of memory.
///
/// One type only may be used with this: see [`find`].
pub(crate) fn put<T: Findable>(pool: *mut ngx_pool_t, value: T) -> Option<NonNull<T>> {
    const { assert!(align_of::<Found<T>>() <= align_of::<usize>()) };
    // SAFETY: `pool` is alive; ngx_palloc aligns to words. The cleanup is linked as
    // ngx_pool_cleanup_add does it.
    unsafe {
        let found = NonNull::new(ngx_palloc(pool, size_of::<Found<T>>()).cast::<Found<T>>())?;
        let at = found.as_ptr();
        at.write(Found {
            cleanup: ngx_pool_cleanup_t {
                handler: Some(found_gone),
                data: at.cast(),
                next: (*pool).cleanup,
            },
            value,
        });
        (*pool).cleanup = &raw mut (*at).cleanup;
        NonNull::new(&raw mut (*at).value)
    }
}

/// The value put last into a pool that `wanted` says yes to.
pub(crate) fn find<'a, T: Findable>(
    pool: *mut ngx_pool_t,
    wanted: impl Fn(&T) -> bool,
) -> Option<&'a T> {
    // SAFETY: `pool` is alive, and with it its list. Who has this handler was made by `put`, with
    // the one type that it is used for.
    unsafe {
        let mut next = (*pool).cleanup;
        while let Some(cleanup) = next.as_ref() {
            let ours = cleanup.handler.is_some_and(|f| ptr::fn_addr_eq(f, HANDLER));
            if ours && ptr::eq(cleanup.data.cast(), cleanup) {
                let found = &*ptr::from_ref(cleanup).cast::<Found<T>>();
                if wanted(&found.value) {
                    return Some(&found.value);
                }
            }
            next = cleanup.next;
        }
    }
    None
}

const HANDLER: unsafe extern "C" fn(*mut c_void) = found_gone;

/// The type that [`put`] and [`find`] are used with.
///
/// # Safety
///
/// One type of the crate only: nothing else says of what type a value in a pool is.
pub(crate) unsafe trait Findable: Copy {}

/// Text in a pool. `None`: out of memory.
pub(crate) fn text<'a>(pool: *mut ngx_pool_t, text: &str) -> Option<&'a [u8]> {
    // SAFETY: `pool` is alive; the piece is as long as the text.
    unsafe {
        let at = NonNull::new(ngx::ffi::ngx_pnalloc(pool, text.len()).cast::<u8>())?;
        at.copy_from_nonoverlapping(NonNull::from(text.as_bytes()).cast(), text.len());
        Some(std::slice::from_raw_parts(at.as_ptr(), text.len()))
    }
}
