//! `redis`: what the configuration says, and the worker that keeps in touch with Redis.

mod conf;
mod talker;

pub(super) use conf::{RedisConf, finish, set};
pub(super) use talker::Talkers;
