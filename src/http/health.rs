//! Health checks: the directives, and the worker's part in them.

mod conf;
mod prober;

pub(super) use conf::{CheckConf, Override, check_override, cmd_set_health_check, set};
pub(super) use prober::Probers;
