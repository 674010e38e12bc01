//! nginx's resolver: the addresses of a name, asked for without waiting.

use std::ffi::CStr;
use std::marker::PhantomPinned;
use std::net::IpAddr;
use std::pin::Pin;
use std::ptr::{NonNull, null_mut};

use ngx::ffi::{
    NGX_OK, NGX_RESOLVE_NXDOMAIN, ngx_cached_time, ngx_cycle, ngx_cycle_t, ngx_http_conf_ctx_t,
    ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_http_module, ngx_int_t, ngx_resolve_name,
    ngx_resolve_name_done, ngx_resolve_start, ngx_resolver_ctx_t, ngx_resolver_strerror,
    ngx_resolver_t, ngx_str_t, time_t,
};

use super::border;
use super::listen;
use super::process::cycle_log;

/// `resolver_timeout` where nothing is said, in milliseconds: as the core module has it.
const TIMEOUT: u64 = 30_000;

/// The resolver of http{}; it lives as long as its configuration.
#[derive(Clone, Copy)]
pub(crate) struct Resolver {
    resolver: NonNull<ngx_resolver_t>,
    /// Milliseconds.
    timeout: u64,
}

/// What became of a question. Times in milliseconds.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The addresses, one at least, and for how long that holds: 1 s at least.
    Addresses(Vec<IpAddr>, u64),
    /// There is no such name, or it has no address.
    Missing(u64),
    /// The name servers did not say: why.
    Failed(String),
}

impl Resolver {
    /// That of a configuration, when it has one.
    pub(crate) fn of_cycle(cycle: *const ngx_cycle_t) -> Option<Self> {
        // SAFETY: a cycle that is alive; inside http{} all modules have their configurations, the
        // core module's is always there. Its own directive alone makes a resolver with name
        // servers; where there is none, servers are given one without.
        unsafe {
            let http = *(*cycle).conf_ctx.add(ngx_http_module.index);
            let context = http.cast::<ngx_http_conf_ctx_t>().as_ref()?;
            let core = *context.loc_conf.add(ngx_http_core_module.ctx_index);
            let core = &*core.cast::<ngx_http_core_loc_conf_t>();
            let resolver = NonNull::new(core.resolver)?;
            if resolver.as_ref().connections.nelts == 0 {
                return None;
            }
            // NGX_CONF_UNSET_MSEC, which merging replaces in servers and locations alone.
            let timeout = match core.resolver_timeout {
                usize::MAX => TIMEOUT,
                ms => ms as u64,
            };
            Some(Self { resolver, timeout })
        }
    }

    /// That of this process's configuration.
    pub(crate) fn current() -> Option<Self> {
        // SAFETY: there is a current cycle from main() on.
        Self::of_cycle(unsafe { ngx_cycle })
    }
}

/// A question that is under way. Dropped, it is taken back.
pub(crate) struct Query {
    /// Null when there is nothing to wait for any more.
    context: *mut ngx_resolver_ctx_t,
    answer: Option<Answer>,
    /// nginx writes it in lower case, and names it in its log.
    name: Vec<u8>,
    _pinned: PhantomPinned,
}

impl Query {
    /// Asks for a name. What nginx has in its cache is answered at once.
    pub(crate) fn start(resolver: Resolver, name: &str) -> Pin<Box<Self>> {
        let mut query = Box::pin(Self {
            context: null_mut(),
            answer: None,
            name: name.as_bytes().to_vec(),
            _pinned: PhantomPinned,
        });
        // SAFETY: the query is pinned, and Drop takes the context back before the memory goes. The
        // handler may be called before `ngx_resolve_name` returns, so the query is reached by its
        // pointer alone. After an error the context has been freed, and the handler not called.
        unsafe {
            let this: *mut Self = query.as_mut().get_unchecked_mut();
            let context = ngx_resolve_start(resolver.resolver.as_ptr(), null_mut());
            let none = -1isize as *mut ngx_resolver_ctx_t;
            if context.is_null() || context == none {
                (*this).answer = Some(Answer::Failed("no memory".to_owned()));
                return query;
            }
            (*this).context = context;
            (*context).name =
                ngx_str_t { len: (*this).name.len(), data: (*this).name.as_mut_ptr() };
            (*context).handler = Some(Self::handler);
            (*context).data = this.cast();
            (*context).timeout = resolver.timeout as _;
            // A worker on its way out does not wait for it.
            (*context).set_cancelable(1);
            if ngx_resolve_name(context) != NGX_OK as ngx_int_t {
                (*this).context = null_mut();
                (*this).answer = Some(Answer::Failed("no memory".to_owned()));
            }
        }
        query
    }

    /// The answer, when it has come; once.
    pub(crate) fn take(self: Pin<&mut Self>) -> Option<Answer> {
        // SAFETY: nothing is moved out but the answer, which nobody points to.
        unsafe { self.get_unchecked_mut().answer.take() }
    }

    unsafe extern "C" fn handler(context: *mut ngx_resolver_ctx_t) {
        border::guard(cycle_log, (), || {
            // SAFETY: nginx calls this once with a context made in `start`, whose data is a pinned
            // query that is alive until it has given the context back.
            unsafe {
                let this = (*context).data.cast::<Self>();
                // Before anything that may panic: it is given back below, and once.
                (*this).context = null_mut();
                (*this).answer = Some(Answer::Failed("internal error".to_owned()));
                (*this).answer = Some(read(&*context));
            }
        });
        // SAFETY: it is given back once: the query does not have it any more.
        unsafe { ngx_resolve_name_done(context) };
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        if !self.context.is_null() {
            // SAFETY: started, and neither answered nor given back.
            unsafe { ngx_resolve_name_done(self.context) };
        }
    }
}

/// # Safety
///
/// A context that nginx has called the handler with.
unsafe fn read(context: &ngx_resolver_ctx_t) -> Answer {
    // SAFETY: `ngx_cached_time` points into nginx's own array; only this thread updates it.
    let now = unsafe { (*ngx_cached_time).sec };
    // As stock: nginx's cache holds an answer through the whole of its last second.
    let whole = |valid: time_t| if valid > now { (valid - now + 1) as u64 * 1000 } else { 1000 };
    match context.state {
        0 => {
            let (first, n) = (context.addrs, context.naddrs);
            let addresses = (0..n).filter_map(|i| {
                // SAFETY: nginx says that there are so many, each with an address.
                unsafe { listen::address((*first.add(i)).sockaddr.cast()) }.map(|a| a.ip())
            });
            Answer::Addresses(addresses.collect(), whole(context.valid))
        }
        state if state == NGX_RESOLVE_NXDOMAIN as ngx_int_t => {
            Answer::Missing(whole(context.valid))
        }
        state => {
            // SAFETY: nginx's own texts, which end with a zero byte.
            let text = unsafe { CStr::from_ptr(ngx_resolver_strerror(state)) };
            Answer::Failed(text.to_string_lossy().into_owned())
        }
    }
}
