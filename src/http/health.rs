//! Health checks: the directives, and the worker's part in them.

mod conf;
mod prober;

pub(super) use conf::{CheckConf, read, set};
pub(super) use prober::Probers;
