//! Redis, as the nodes' common memory.
//!
//! [`Endpoint`] says where it is, [`Link`] runs scripts there, [`Listener`] hears what other nodes
//! publish, and [`Stop`] ends whatever of these waits. All of it blocks: it is for threads of its
//! own. Nothing here knows of nginx or of shared memory.

#![forbid(unsafe_code)]

mod courier;
mod endpoint;
mod error;
mod exchange;
mod link;
mod listener;
mod node;
mod scan;
mod stop;
mod tls;
mod url;
mod wire;

pub use courier::{Courier, Job, Outcome, Report};
pub use endpoint::{Endpoint, EndpointError};
pub use error::LinkError;
pub use exchange::{Answer, Done, Identity, Request};
pub use link::Link;
pub use listener::Listener;
pub use node::{Level, Next, Node, Settings};
/// A script, sent by its digest.
pub use redis::Script;
pub use stop::Stop;
