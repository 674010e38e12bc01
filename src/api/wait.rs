//! A drain that is answered when the last request has ended.

use super::answer::failure;
use super::reply::Reply;
use super::work::broken;
use crate::registry::{Error, Now, Registry, Watch, Watched};
use crate::shm::Zone;

/// A client that waits for a server to finish its requests.
#[derive(Debug)]
pub struct Wait {
    pub(super) addr: String,
    pub(super) watch: Watch,
    /// By the monotonic clock, in milliseconds.
    pub(super) until: u64,
}

impl Wait {
    /// The reply, when there is nothing more to wait for. `leaving`: there is no more time.
    pub fn look(&self, zone: &Zone, now: Now, leaving: bool) -> Option<Reply> {
        let watched = match Registry::lock(zone) {
            Ok(registry) => registry.look(self.watch),
            Err(e) => return Some(broken(e)),
        };
        match watched {
            Watched::Gone => Some(failure(Error::NotFound(self.addr.clone()))),
            Watched::Enabled => Some(Reply::error(
                409,
                format!("Server was enabled before it had drained: {}", self.addr),
            )),
            Watched::Draining(n) if n > 0 && now.mono < self.until && !leaving => None,
            Watched::Draining(n) => Some(Reply::drained(&self.addr, n)),
        }
    }
}
