//! The user that workers run as, and what it may do with directories.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ngx::ffi::{ngx_core_conf_t, ngx_core_module, ngx_cycle_t};

/// The worker user, when this process may become it.
pub(crate) struct WorkerUser {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    name: Option<CString>,
}

/// Whether workers run as another user than this process: only root's do.
fn is_root() -> bool {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() == 0 }
}

impl WorkerUser {
    /// Whether workers run as who runs this.
    pub(crate) fn is_of_this_process() -> bool {
        !is_root()
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> String {
        self.name
            .as_ref()
            .map_or_else(|| self.uid.to_string(), |n| n.to_string_lossy().into_owned())
    }

    /// That of a configuration that has been read. `None`: workers run as who runs this.
    pub(crate) fn of_cycle(cycle: *const ngx_cycle_t) -> Option<Self> {
        if !is_root() {
            return None;
        }
        // SAFETY: a living cycle has the core module's configuration, complete once read.
        unsafe {
            let conf = *(*cycle).conf_ctx.add(ngx_core_module.index);
            let conf = conf.cast::<ngx_core_conf_t>().as_ref()?;
            let name = conf.username;
            let name = (!name.is_null()).then(|| CStr::from_ptr(name.cast()).to_owned());
            Some(Self { uid: conf.user, gid: conf.group, name })
        }
    }

    /// Whether that user may make files in a directory. Asked by a process that becomes it, as only
    /// the kernel knows all the rules.
    pub(crate) fn can_write(&self, directory: &Path) -> io::Result<()> {
        let path = CString::new(directory.as_os_str().as_bytes())?;
        // SAFETY: this process has one thread (the configuration is being tested). The child calls
        // nothing but the system and ends without running what the parent registered for its end.
        unsafe {
            let child = libc::fork();
            if child == -1 {
                return Err(io::Error::last_os_error());
            }
            if child == 0 {
                if let Some(name) = &self.name {
                    libc::initgroups(name.as_ptr(), self.gid as _);
                }
                let became = libc::setgid(self.gid) == 0 && libc::setuid(self.uid) == 0;
                let code = match became && access(&path).is_ok() {
                    true => 0,
                    false => io::Error::last_os_error().raw_os_error().unwrap_or(libc::EPERM),
                };
                libc::_exit(code);
            }
            let mut status = 0;
            if libc::waitpid(child, &mut status, 0) != child || !libc::WIFEXITED(status) {
                return Err(io::Error::other("it could not be tried"));
            }
            match libc::WEXITSTATUS(status) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
}

/// Whether this process may make files in a directory.
pub(crate) fn can_write(directory: &Path) -> io::Result<()> {
    access(&CString::new(directory.as_os_str().as_bytes())?)
}

fn access(path: &CStr) -> io::Result<()> {
    // SAFETY: reads the path.
    match unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
