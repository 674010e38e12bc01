//! The HTTP interface of a registry: a request in, a reply out.
//!
//! No nginx type comes in here: `http` reads the request and sends the reply. What an endpoint does
//! to servers is the registry's business; this room parses, routes, validates and answers.

#![forbid(unsafe_code)]

mod answer;
mod endpoint;
#[cfg(fault)]
mod fault;
mod list;
mod params;
mod reply;
#[cfg(test)]
mod tests;
mod token;
mod wait;
mod work;

pub use answer::{Answer, Door, Request, answer};
pub use endpoint::{Access, Endpoint, Method};
pub use params::{BodyKind, MAX_BODY};
pub use reply::Reply;
pub use token::{TokenError, Tokens};
pub use wait::Wait;
pub use work::{List, Task};
