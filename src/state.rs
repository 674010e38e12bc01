//! The state file: what outlives all processes, and how it is read and replaced.
//!
//! [`Writer`] and [`parse`] are the format, [`read`] and [`replace`] the files, and [`Keeper`] is
//! what a thread does with them: one change of the file at a time, under a lock that all nginx
//! with this file share. Nothing here knows of nginx or of shared memory.

#![forbid(unsafe_code)]

mod file;
mod format;
mod keeper;
#[cfg(test)]
mod tests;

pub use file::{Fnv, Found, Problem, identity, link_aside, path_hash, read, replace, set_aside};
pub use format::{Document, Draft, FORMAT_VERSION, Head, ParseError, Writer, parse};
pub use keeper::{Began, Content, Failure, Job, Keeper, Report, ask_for_latest};
