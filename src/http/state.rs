//! `state_file`: what a start does with it, and the worker that writes it.

mod core;
mod saver;
mod start;

pub(super) use saver::Savers;
pub(super) use start::{check, load, prepare, set};

use std::io;
use std::path::{Path, PathBuf};

use ngx::ffi::{NGX_LOG_ERR, NGX_LOG_NOTICE, ngx_log_t};

use super::zone::ZoneConf;
use crate::nginx::log::log;
use crate::registry::SavedServer;
use crate::state::Problem;

/// How many servers one line names.
const NAMED: usize = 5;

/// Logs that a file can't be used, and what became of it.
fn say_bad(
    conf: &ZoneConf,
    path: &Path,
    problem: &Problem,
    aside: &io::Result<PathBuf>,
    to: *mut ngx_log_t,
) {
    let (name, path) = (&conf.name, path.display());
    match aside {
        Ok(kept) => log(
            NGX_LOG_ERR,
            to,
            format_args!(
                "registry \"{name}\": can't use state file \"{path}\": {problem}; it is kept as \
                 \"{}\"",
                kept.display()
            ),
        ),
        Err(e) => log(
            NGX_LOG_ERR,
            to,
            format_args!(
                "registry \"{name}\": can't use state file \"{path}\": {problem}; it can't be \
                 moved aside ({e}) and is not overwritten: nothing is saved until it is gone and \
                 nginx has been reloaded"
            ),
        ),
    }
}

/// Whether `allow_servers` lets a server back in; the addresses of those that it does not are
/// collected, the first few.
#[derive(Default)]
struct Doorkeeper {
    refused: usize,
    named: Vec<String>,
}

impl Doorkeeper {
    fn admits(&mut self, conf: &ZoneConf, server: &SavedServer) -> bool {
        // `server` lines are not asked, here as there.
        if server.is_static || conf.allows(&server.address) {
            return true;
        }
        self.refused += 1;
        if self.named.len() < NAMED {
            self.named.push(server.address.to_string());
        }
        false
    }

    fn report(&self, conf: &ZoneConf, path: &Path, to: *mut ngx_log_t) {
        if self.refused == 0 {
            return;
        }
        let more = match self.refused - self.named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let (name, n, path, who) =
            (&conf.name, self.refused, path.display(), self.named.join(", "));
        log(
            NGX_LOG_NOTICE,
            to,
            format_args!(
                "registry \"{name}\": {n} of the servers in state file \"{path}\" are not in \
                 allow_servers and left out: {who}{more}"
            ),
        );
    }
}
