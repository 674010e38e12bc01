//! What the master does, as root: the directory is made, and the file is read at a cold start.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ngx::ffi::{NGX_LOG_ERR, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_conf_t, ngx_cycle_t, ngx_log_t};

use super::{Doorkeeper, say_bad};
use crate::http::main_conf::MainConf;
use crate::http::worker::now;
use crate::http::zone::ZoneConf;
use crate::nginx::conf::{self, Outcome};
use crate::nginx::log::{log, log_conf};
use crate::nginx::user::{self, WorkerUser};
use crate::registry::{AWAY_TOO_LONG, Registry};
use crate::state::{Found, ask_for_latest, link_aside, path_hash, read, set_aside};

/// How long a new binary waits for the old one to write its last changes.
const LATEST: Duration = Duration::from_millis(1500);

/// `state_file PATH`
pub(in crate::http) fn set(
    cf: *mut ngx_conf_t,
    zone: &mut ZoneConf,
    value: Option<&str>,
) -> Result<(), Outcome> {
    let refuse = |message: std::fmt::Arguments<'_>| Err(conf::refuse(cf, message));
    let Some(value) = value.filter(|v| names_a_file(v)) else {
        return refuse(format_args!(
            "\"state_file\" names no file: write it as registry/main.json, which is taken from \
             the prefix"
        ));
    };
    // Workers may run in another directory than the one that nginx was started in.
    let path = conf::path_in_prefix(cf, value).and_then(|path| std::path::absolute(path).ok());
    let path = path.ok_or(conf::ERROR)?;

    let main = MainConf::of_conf(cf).ok_or(conf::ERROR)?;
    let same = |other: &Path| canonical(other) == canonical(&path);
    let other = main.zones.iter().find(|z| z.state_file.as_deref().is_some_and(same));
    if let Some(other) = other {
        let (path, name) = (path.display(), &other.name);
        return refuse(format_args!(
            "duplicate state file \"{path}\": registry \"{name}\" has it in {}",
            other.place
        ));
    }

    let directory = path.parent().unwrap_or(Path::new("/"));
    match existing(directory) {
        Ok(found) if found == directory => {}
        Ok(found) => {
            if let Err(e) = user::can_write(found) {
                let (directory, found) = (directory.display(), found.display());
                let message = format!(
                    "can't make the directory \"{directory}\" of \"state_file\": \"{found}\" can't \
                     be written: {e}"
                );
                // Others than root may test what they can't run.
                if WorkerUser::is_of_this_process() {
                    log_conf(NGX_LOG_WARN, cf, format_args!("{message}"));
                } else {
                    return refuse(format_args!("{message}"));
                }
            }
        }
        Err((found, e)) if e.kind() == io::ErrorKind::PermissionDenied => {
            let found = found.display();
            log_conf(NGX_LOG_WARN, cf, format_args!("can't look at \"{found}\": {e}"));
        }
        Err((found, e)) => {
            let (directory, found) = (directory.display(), found.display());
            return refuse(format_args!(
                "can't use the directory \"{directory}\" of \"state_file\": \"{found}\": {e}"
            ));
        }
    }
    zone.state_file = Some(path);
    Ok(())
}

fn names_a_file(value: &str) -> bool {
    let name = value.rsplit('/').next().unwrap_or_default();
    !matches!(name, "" | "." | "..") && !value.bytes().any(|b| b.is_ascii_control())
}

/// One name for one file, as far as its directory is there.
fn canonical(path: &Path) -> PathBuf {
    let directory = path.parent().and_then(|parent| fs::canonicalize(parent).ok());
    match (directory, path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}

/// The directory, or the nearest one above that is there.
fn existing(directory: &Path) -> Result<&Path, (&Path, io::Error)> {
    for above in directory.ancestors() {
        match fs::metadata(above) {
            Ok(about) if about.is_dir() => return Ok(above),
            Ok(_) => return Err((above, io::ErrorKind::NotADirectory.into())),
            // Something below a file: the file itself is found next.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err((above, e)),
        }
    }
    Err((directory, io::ErrorKind::NotFound.into()))
}

/// `nginx -t`: says when workers could not write the file. Changes nothing.
pub(in crate::http) fn check(conf: &ZoneConf, cycle: *const ngx_cycle_t, to: *mut ngx_log_t) {
    let Some(path) = &conf.state_file else { return };
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        return;
    }
    let (tried, who) = match WorkerUser::of_cycle(cycle) {
        Some(user) => (user.can_write(directory), format!("user \"{}\"", user.name())),
        None => (user::can_write(directory), "this user".to_owned()),
    };
    if let Err(e) = tried {
        let (name, directory) = (&conf.name, directory.display());
        log(
            NGX_LOG_WARN,
            to,
            format_args!(
                "registry \"{name}\": state_file can't be written: {who}, which workers run as, \
                 can't make files in \"{directory}\": {e}; in {}",
                conf.place
            ),
        );
    }
}

/// Makes the file's directory when it is missing, with those above, and gives it to the worker
/// user. One that is there is left alone.
pub(in crate::http) fn prepare(conf: &ZoneConf, cycle: *const ngx_cycle_t, to: *mut ngx_log_t) {
    let Some(directory) = conf.state_file.as_deref().and_then(Path::parent) else { return };
    if directory.exists() {
        return;
    }
    let name = &conf.name;
    match make(directory, WorkerUser::of_cycle(cycle).as_ref()) {
        Ok(()) => log(
            NGX_LOG_NOTICE,
            to,
            format_args!("registry \"{name}\": made directory \"{}\"", directory.display()),
        ),
        Err(e) => log(
            NGX_LOG_ERR,
            to,
            format_args!(
                "registry \"{name}\": can't make directory \"{}\": {e}",
                directory.display()
            ),
        ),
    }
}

fn make(directory: &Path, user: Option<&WorkerUser>) -> io::Result<()> {
    let missing: Vec<_> = directory.ancestors().take_while(|above| !above.exists()).collect();
    for above in missing.into_iter().rev() {
        let last = above == directory;
        let mode = if last { 0o700 } else { 0o755 };
        match DirBuilder::new().mode(mode).create(above) {
            // nginx's umask may be anything: the one of who started it, or 0.
            Ok(()) => fs::set_permissions(above, Permissions::from_mode(mode))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && above.is_dir() => continue,
            Err(e) => return Err(e),
        }
        if let Some(user) = user.filter(|_| last) {
            chown(above, Some(user.uid), Some(user.gid))?;
        }
    }
    Ok(())
}

/// Reads the file into a zone that nobody uses yet.
pub(in crate::http) fn load(conf: &ZoneConf, registry: &mut Registry<'_>, to: *mut ngx_log_t) {
    let Some(path) = &conf.state_file else { return };
    let name = &conf.name;
    ask_for_latest(path, registry.filed().instance, LATEST);
    let (mut document, identity) = match read(path) {
        Found::Missing => return,
        Found::Whole(document, identity) => (document, identity),
        Found::Bad(problem) => {
            let aside = set_aside(path);
            if aside.is_err() {
                registry.filed().refused = path_hash(path);
            }
            return say_bad(conf, path, &problem, &aside, to);
        }
    };
    let mut door = Doorkeeper::default();
    document.servers.retain(|server| door.admits(conf, server));
    door.report(conf, path, to);

    // What was removed elsewhere so long ago is remembered by nobody any more.
    let written = fs::metadata(path).and_then(|about| about.modified()).ok();
    let age = written.and_then(|at| at.elapsed().ok()).unwrap_or_default();
    if conf.redis.endpoint.is_some() && age.as_millis() > u128::from(conf.redis.tombstone_ttl()) {
        registry.shared().unseen = AWAY_TOO_LONG;
    }

    let n = document.servers.len();
    registry.filed().identity = identity;
    match registry.restore(document.head.source, &document.servers, now()) {
        Ok(restored) => log(
            NGX_LOG_NOTICE,
            to,
            format_args!(
                "registry \"{name}\": {restored} servers read from state file \"{}\"",
                path.display()
            ),
        ),
        Err(without_room) => {
            let kept = match link_aside(path) {
                Ok(kept) => format!("the file is kept as \"{}\"", kept.display()),
                Err(e) => {
                    registry.filed().refused = path_hash(path);
                    format!("the file can't be kept aside ({e}) and is not overwritten")
                }
            };
            log(
                NGX_LOG_ERR,
                to,
                format_args!(
                    "registry \"{name}\": the zone has no room for {without_room} of the {n} \
                     servers in state file \"{}\": give it a larger size; {kept}",
                    path.display()
                ),
            );
        }
    }
}
