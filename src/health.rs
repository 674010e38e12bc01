//! Health checks: what is asked of a server, and whether its answer is good.
//!
//! No socket and no clock comes in here. A [`Talk`] says what is to be sent, is told what came, and
//! judges; who connects, waits and gives up is the caller. An answer is judged as soon as it can be,
//! and however it is cut into pieces the verdict is the same. What a server sends is not trusted: a
//! talk keeps no more of it than [`BODY_MAX`] and a head.

#![forbid(unsafe_code)]

mod body;
mod check;
mod grpc;
mod hpack;
mod http;
mod parse;
mod statuses;
mod talk;
#[cfg(test)]
mod tests;

pub use body::{BODY_MAX, BodyRule};
pub use check::{Check, Kind};
pub use statuses::Statuses;
pub use talk::Talk;

/// How a check ended.
pub type Verdict = Result<(), crate::registry::Trouble>;
