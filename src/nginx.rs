//! Thin safe wrappers for what the `ngx` crate lacks.
//!
//! Each file covers one thing of nginx. None knows of registries: what is here could move into the
//! `ngx` crate.

pub(crate) mod body;
pub(crate) mod border;
pub(crate) mod conf;
pub(crate) mod connection;
pub(crate) mod dial;
pub(crate) mod later;
pub(crate) mod listen;
pub(crate) mod log;
pub(crate) mod peer;
pub(crate) mod pool;
pub(crate) mod process;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod resolve;
pub(crate) mod shm;
pub(crate) mod stream;
pub(crate) mod thread;
pub(crate) mod timeouts;
pub(crate) mod timer;
pub(crate) mod user;
pub(crate) mod variable;
pub(crate) mod wake;
