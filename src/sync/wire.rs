//! One connection to one server: a socket, TLS if need be, and Redis' protocol (RESP2).
//!
//! The redis crate writes commands and reads answers, but its connections are not used. Theirs
//! wait for each answer of a login when the server hangs, so that timeouts add up; for a unix
//! socket whose queue is full they wait without end; one odd certificate of the system's spoils
//! all of them; and nobody can tell a thread that waits in one to stop.

use std::io::{self, Read, Write};
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ConnectionLike, Parser, RedisError, RedisResult, ServerError, Value, cmd};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::endpoint::{Endpoint, Host, Login, Place};
use super::error::LinkError;
use super::stop::Stop;
use super::tls::Tls;

/// Longest answer, in bytes: what Redis itself takes for the longest string.
const MAX_ANSWER: usize = 512 << 20;

/// When a silent connection is looked after, so that firewalls do not forget it and a machine that
/// is gone is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A connection that is logged in.
pub(super) struct Wire {
    stream: Stream,
    parser: Parser,
    timeout: Duration,
    max_answer: usize,
    place: Place,
    /// The same, for messages.
    to: String,
}

enum Stream {
    Plain(Shared),
    Tls(Box<StreamOwned<ClientConnection, Shared>>),
}

/// The socket of this thread, which another may shut down.
struct Shared(Arc<Socket>);

impl Wire {
    /// Connects and logs in. `timeout` is for each of: an address of the name, an answer.
    ///
    /// # Errors
    ///
    /// [`LinkError`]; all of them mean that there is no connection.
    pub(super) fn open(
        place: &Place,
        endpoint: &Endpoint,
        timeout: Duration,
        stop: &Stop,
    ) -> Result<Self, LinkError> {
        let tls = endpoint.tls.as_deref();
        let mut wire = Self::connect(place, tls, timeout, stop)?;
        wire.log_in(endpoint.login.as_ref())?;
        if endpoint.db != 0 {
            match wire.ask(cmd("SELECT").arg(endpoint.db))? {
                Err(LinkError::Server(_)) => return Err(LinkError::Database(endpoint.db)),
                other => other?,
            };
        }
        Ok(wire)
    }

    /// Connects, no more.
    pub(super) fn connect(
        place: &Place,
        tls: Option<&Tls>,
        timeout: Duration,
        stop: &Stop,
    ) -> Result<Self, LinkError> {
        let to = place.to_string();
        let socket = match place {
            Place::Host(host) => connect_tcp(host, timeout, stop),
            Place::Socket(path) => SockAddr::unix(path)
                .and_then(|address| connect_to(&address, timeout, stop))
                .map_err(|why| failed(why, &to, timeout)),
        };
        if stop.is_stopped() {
            return Err(LinkError::Stopped);
        }
        let socket = Shared(socket?);
        let stream = match (tls, place) {
            (Some(tls), Place::Host(host)) => {
                let config = tls.config().ok_or(LinkError::NoCertificates)?;
                Stream::Tls(Box::new(handshake(config, host, socket, timeout)?))
            }
            _ => Stream::Plain(socket),
        };
        let (parser, place) = (Parser::new(), place.clone());
        Ok(Self { stream, parser, timeout, max_answer: MAX_ANSWER, place, to })
    }

    /// Says who we are, if there is something to say.
    pub(super) fn log_in(&mut self, login: Option<&Login>) -> Result<(), LinkError> {
        let Some(Login { user, password }) = login else { return Ok(()) };
        let mut auth = cmd("AUTH");
        if let Some(user) = user {
            auth.arg(user);
        }
        match self.answer_to(auth.arg(password))? {
            Value::ServerError(error) => Err(LinkError::of_login(&error)),
            _ => Ok(()),
        }
    }

    /// Sends a command. The outer error means that the connection is lost, the inner one is the
    /// server's answer.
    pub(super) fn ask(&mut self, command: &Cmd) -> Result<Result<Value, LinkError>, LinkError> {
        Ok(match self.answer_to(command)? {
            Value::ServerError(error) => Err(LinkError::of_server(&error)),
            value => Ok(value),
        })
    }

    /// Sends a command; an error that the server reports is an answer as well.
    fn answer_to(&mut self, command: &Cmd) -> Result<Value, LinkError> {
        let value = self.req_command(command);
        value.map_err(|error| self.explain(error))
    }

    /// Sends a command without waiting for the answer.
    pub(super) fn send(&mut self, command: &Cmd) -> Result<(), LinkError> {
        let sent = self.stream.send(&command.get_packed_command());
        sent.map_err(|why| LinkError::of_io(&why, &self.to, self.timeout))
    }

    /// Waits for the next value. None: nothing, or only a part, came for so long; what came is
    /// kept for the next call.
    pub(super) fn next(&mut self, patience: Duration) -> Result<Option<Value>, LinkError> {
        let set = self.stream.socket().set_read_timeout(Some(patience));
        set.map_err(|why| LinkError::of_io(&why, &self.to, patience))?;
        match self.receive() {
            Ok(Value::ServerError(error)) => Err(LinkError::of_server(&error)),
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// Takes longer answers for an error.
    pub(super) fn limit(&mut self, bytes: usize) {
        self.max_answer = bytes;
    }

    /// Where it leads.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The same, for people.
    pub(super) fn to(&self) -> &str {
        &self.to
    }

    /// An error of the redis crate's in our words.
    pub(super) fn explain(&self, error: RedisError) -> LinkError {
        LinkError::of_redis(error, &self.to, self.timeout)
    }

    fn receive(&mut self) -> RedisResult<Value> {
        self.parser.parse_value(Limited { stream: &mut self.stream, left: self.max_answer })
    }
}

/// What [`redis::Script`] and [`Cmd`] need.
impl ConnectionLike for Wire {
    fn req_packed_command(&mut self, command: &[u8]) -> RedisResult<Value> {
        self.stream.send(command)?;
        self.receive()
    }

    fn req_packed_commands(
        &mut self,
        commands: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        self.stream.send(commands)?;
        for _ in 0..offset {
            self.receive()?;
        }
        (0..count).map(|_| self.receive()).collect()
    }

    fn get_db(&self) -> i64 {
        0
    }

    fn check_connection(&mut self) -> bool {
        self.ask(&cmd("PING")).is_ok_and(|answer| answer.is_ok())
    }

    fn is_open(&self) -> bool {
        true
    }
}

impl Stream {
    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => &socket.0,
            Self::Tls(stream) => &stream.sock.0,
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }
}

/// A stream that gives so many bytes and no more.
struct Limited<'a> {
    stream: &'a mut Stream,
    left: usize,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(self.left);
        if room == 0 && !buffer.is_empty() {
            return Err(io::Error::other("its answer is too long"));
        }
        let read = match &mut *self.stream {
            Stream::Plain(socket) => socket.read(&mut buffer[..room]),
            Stream::Tls(stream) => stream.read(&mut buffer[..room]),
        }?;
        self.left -= read;
        Ok(read)
    }
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tries the addresses of a name one after the other.
fn connect_tcp(host: &Host, timeout: Duration, stop: &Stop) -> Result<Arc<Socket>, LinkError> {
    let resolve = |why| LinkError::Resolve { host: host.name.clone(), why };
    let addresses = (host.name.as_str(), host.port).to_socket_addrs().map_err(resolve)?;
    let mut last = None;
    for address in addresses {
        match connect_to(&address.into(), timeout, stop) {
            Ok(socket) => return Ok(socket),
            Err(why) => last = Some(failed(why, &address.to_string(), timeout)),
        }
        if stop.is_stopped() {
            return Err(LinkError::Stopped);
        }
    }
    Err(last.unwrap_or_else(|| resolve(io::ErrorKind::NotFound.into())))
}

fn connect_to(address: &SockAddr, timeout: Duration, stop: &Stop) -> io::Result<Arc<Socket>> {
    let socket = Arc::new(Socket::new(address.domain(), Type::STREAM, None)?);
    if !stop.watch(&socket) {
        return Err(io::ErrorKind::Interrupted.into());
    }
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    if address.domain() == Domain::UNIX {
        // It waits when the server's queue is full. On Linux the timeout of writes ends that; a
        // socket that does not block would be refused at once, though there may soon be room.
        socket.connect(address)?;
    } else {
        socket.connect_timeout(address, timeout)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    }
    Ok(socket)
}

fn failed(why: io::Error, to: &str, after: Duration) -> LinkError {
    match why.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            LinkError::Timeout { to: to.to_owned(), after }
        }
        _ => LinkError::Connect { to: to.to_owned(), why },
    }
}

/// Agrees on keys now: later on an error would look like one of a command's.
fn handshake(
    config: Arc<rustls::ClientConfig>,
    host: &Host,
    mut socket: Shared,
    timeout: Duration,
) -> Result<StreamOwned<ClientConnection, Shared>, LinkError> {
    let to = host.to_string();
    let name = ServerName::try_from(host.name.clone()).ok();
    let session = name.and_then(|name| ClientConnection::new(config, name).ok());
    let Some(mut session) = session else {
        return Err(LinkError::Tls { to, why: "no certificate can be for that name".to_owned() });
    };
    while session.is_handshaking() {
        session.complete_io(&mut socket).map_err(|why| {
            match LinkError::of_io(&why, &to, timeout) {
                // A Redis without TLS just waits for more.
                LinkError::Timeout { .. } => {
                    LinkError::Timeout { to: format!("TLS with {to}"), after: timeout }
                }
                other => other,
            }
        })?;
    }
    Ok(StreamOwned::new(session, socket))
}

/// A server's error among the redis crate's.
pub(super) fn server_error(error: &RedisError) -> Option<ServerError> {
    ServerError::try_from(error.clone()).ok()
}
