//! Real Redis servers for tests: one process each, in a directory of its own, gone with its
//! [`Server`].

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// Passed to every server before what the test wants: nothing is kept on disk unasked, and replicas
/// get their data at once.
const OPTIONS: [&str; 8] =
    ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"];

/// A running redis-server, or one that was stopped to be started again.
pub(crate) struct Server {
    child: Option<Child>,
    dir: PathBuf,
    port: u16,
    args: Vec<String>,
    is_sentinel: bool,
}

impl Server {
    /// Starts one with these options (`"--requirepass", "secret"`) and waits until it answers. It
    /// listens on a free port of 127.0.0.1 and on a unix socket.
    ///
    /// # Panics
    ///
    /// When there is no redis-server, or it does not start.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::new(args, None)
    }

    /// Starts a sentinel with this configuration, which watches those of `masters` (name and
    /// port) with a quorum of 1.
    ///
    /// # Panics
    ///
    /// As [`Server::start`].
    pub(crate) fn start_sentinel(masters: &[(&str, u16)], lines: &str) -> Self {
        let mut text = String::new();
        for (name, port) in masters {
            text += &format!("sentinel monitor {name} 127.0.0.1 {port} 1\n");
        }
        Self::new(&[], Some(&(text + lines)))
    }

    fn new(args: &[&str], sentinel: Option<&str>) -> Self {
        // Somebody else may take the port first.
        for _ in 0..5 {
            let dir = directory();
            let port = free_port();
            if let Some(text) = sentinel {
                fs::write(dir.join("sentinel.conf"), text).unwrap();
            }
            let args = args.iter().map(|&arg| arg.to_owned()).collect();
            let is_sentinel = sentinel.is_some();
            let mut server = Self { child: None, dir, port, args, is_sentinel };
            if server.spawn() {
                return server;
            }
        }
        panic!("redis-server does not start with {args:?}");
    }

    /// False: it ended at once.
    fn spawn(&mut self) -> bool {
        let log = fs::File::create(self.dir.join("log")).unwrap();
        let mut command = Command::new("redis-server");
        if self.is_sentinel {
            command.arg(self.dir.join("sentinel.conf")).arg("--sentinel");
        } else {
            command.args(OPTIONS);
        }
        command.arg("--port").arg(self.port.to_string()).arg("--dir").arg(&self.dir);
        command.arg("--unixsocket").arg(self.socket()).args(&self.args);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| match error.kind() {
            ErrorKind::NotFound => panic!("redis-server is not installed: run scripts/setup"),
            _ => panic!("redis-server: {error}"),
        });
        // Before anything can fail: who has it kills it.
        let socket = self.socket();
        let child = self.child.insert(child);
        let mut ended = false;
        wait_until("redis-server answers", || {
            ended = child.try_wait().unwrap().is_some();
            ended || answers(&socket)
        });
        if ended {
            self.child = None;
            let log = fs::read_to_string(self.dir.join("log")).unwrap();
            assert!(log.contains("in use"), "redis-server ended: {log}");
        }
        !ended
    }

    /// The port of 127.0.0.1, without TLS.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    /// For the directive `redis`, with the password of `--requirepass`.
    pub(crate) fn url(&self) -> String {
        let login = self.password().map_or(String::new(), |password| format!(":{password}@"));
        format!("redis://{login}127.0.0.1:{}/0", self.port)
    }

    /// Its process.
    ///
    /// # Panics
    ///
    /// When it was stopped.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it was stopped").id()
    }

    /// Ends it in good order, with its data on disk.
    pub(crate) fn stop_and_keep_data(&mut self) {
        let mut child = self.child.take().expect("it was stopped");
        self.cli(&["SHUTDOWN", "SAVE"]);
        child.wait().unwrap();
    }

    /// Kills it, with what it has in memory.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again on the same port, with the data that it kept.
    ///
    /// # Panics
    ///
    /// When somebody else has the port by now.
    pub(crate) fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        assert!(self.spawn(), "its port was taken");
    }

    /// Stops it where it is: connections stay open, and nothing is answered.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
        let stat = format!("/proc/{}/stat", self.pid());
        wait_until("it has stopped", || fs::read_to_string(&stat).unwrap().contains(") T "));
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.pid().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// What redis-cli prints for a command, without the last line's end.
    ///
    /// # Panics
    ///
    /// When there is no redis-cli.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(self.socket());
        if let Some(password) = self.password() {
            command.env("REDISCLI_AUTH", password);
        }
        let output = command.args(args).stdin(Stdio::null()).output();
        let output = output.expect("redis-cli is not installed: run scripts/setup");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        text.trim_end().to_owned()
    }

    fn password(&self) -> Option<&str> {
        let at = self.args.iter().position(|arg| arg == "--requirepass")?;
        self.args.get(at + 1).map(String::as_str)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A directory of its own.
pub(crate) fn directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("registry-redis-{}-{number}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A port of 127.0.0.1 where nobody listens. They come one after the other, from below those that
/// the system gives to outgoing connections, so that two tests rarely get the same.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    loop {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 12_000 + (number % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits for something that will be soon.
///
/// # Panics
///
/// When it is not.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a server has its data and answers, be it that it wants a password or its master.
fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut answer = [0; 64];
    let read = stream.write_all(b"PING\r\n").and_then(|()| stream.read(&mut answer));
    let good: [&[u8]; 3] = [b"+PONG", b"-NOAUTH", b"-MASTERDOWN"];
    read.is_ok_and(|n| good.iter().any(|start| answer[..n].starts_with(start)))
}
