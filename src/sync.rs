//! Redis, as the nodes' common memory.
//!
//! [`Node`] decides what is to be told and asked, and takes answers into the zone, slice by slice: it
//! never waits. [`Courier`] carries its jobs to Redis on a thread of its own, by a [`Link`], where
//! `exchange.lua` does an exchange as one step and `scan.lua` finds what other programs wrote.
//! [`Endpoint`] says where Redis is, [`Listener`] hears what other nodes publish, and [`Stop`] ends
//! whatever of these waits. Nothing here knows of nginx.

#![forbid(unsafe_code)]

mod courier;
mod endpoint;
mod error;
mod exchange;
mod given;
mod link;
mod listener;
mod mend;
mod node;
mod scan;
mod stop;
mod tls;
mod url;
mod wire;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use courier::{Courier, Job, Outcome, Report};
pub use endpoint::{Endpoint, EndpointError};
pub use error::LinkError;
pub use exchange::{Answer, Done, Identity, Request};
pub use link::Link;
pub use listener::{Deaf, Listener};
pub use node::{Level, Next, Node, Settings};
/// A script, sent by its digest.
pub use redis::Script;
pub use stop::Stop;
