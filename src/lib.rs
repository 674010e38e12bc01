//! A service registry and dynamic load balancer inside stock nginx.
//!
//! One room a directory, each with one job; `docs/architecture.md` draws them on a page.
//!
//! | room | holds |
//! |---|---|
//! | [`registry`] | namespaces and servers, their life, who carries how many requests |
//! | [`balance`] | how one server is chosen, one policy a file |
//! | [`shm`] | the records in shared memory, their lock |
//! | [`api`] | the HTTP interface: request in, reply out |
//! | [`health`] | health checks: what is asked of a server, how its answer is judged |
//! | [`idle`] | connections kept open to servers |
//! | [`state`] | the state file: its format, and how it is read and replaced |
//! | [`sync`] | Redis: where it is, scripts that run there, what other nodes publish |
//! | `time` | times as nginx writes them |
//! | `nginx` | thin safe wrappers for what the `ngx` crate lacks |
//! | `http` | the nginx module: directives, upstream callbacks, workers |
//!
//! The last two need nginx's headers and come with the feature `module`.

pub mod api;
pub mod balance;
pub mod health;
pub mod idle;
pub mod registry;
pub mod shm;
pub mod state;
pub mod sync;

mod time;

#[cfg(feature = "module")]
mod http;
#[cfg(feature = "module")]
mod nginx;
