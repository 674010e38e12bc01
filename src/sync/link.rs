//! The connection for commands.

use std::fmt;
use std::time::{Duration, SystemTime};

use redis::{Script, ServerErrorKind, Value, cmd};

use super::endpoint::{Endpoint, Host, Kind, Login, Place};
use super::error::LinkError;
use super::stop::Stop;
use super::wire::{Wire, server_error};

/// How often a cluster may send us on for one script.
const MAX_REDIRECTS: usize = 5;

/// A connection that runs scripts: with the one server, with the master that the sentinels name, or
/// with that node of a cluster which has the keys.
///
/// In a cluster all keys are in one slot, so one node at a time is all that is needed: it is found
/// by asking any node.
pub struct Link {
    wire: Wire,
    endpoint: Endpoint,
    timeout: Duration,
    stop: Stop,
    lost: bool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} at {})", self.endpoint, self.wire.to())
    }
}

impl Link {
    /// Connects, logs in, and sees that the server answers. `timeout` is for each of: connecting to
    /// an address, an answer (between two parts of a long one), a sentinel.
    ///
    /// # Errors
    ///
    /// [`LinkError`]; whatever it is, there is no link.
    pub fn open(endpoint: &Endpoint, timeout: Duration) -> Result<Self, LinkError> {
        Self::open_until(endpoint, timeout, &Stop::new())
    }

    /// As [`Link::open`]; `stop` ends this and everything that is later waited for.
    ///
    /// # Errors
    ///
    /// As [`Link::open`], and [`LinkError::Stopped`].
    pub fn open_until(
        endpoint: &Endpoint,
        timeout: Duration,
        stop: &Stop,
    ) -> Result<Self, LinkError> {
        let wire = reach(endpoint, timeout, stop).map_err(|error| stopped(error, stop))?;
        let (endpoint, stop) = (endpoint.clone(), stop.clone());
        Ok(Self { wire, endpoint, timeout, stop, lost: false })
    }

    /// Runs a script with one key and one argument, and returns the string that it answers with.
    /// The script's text is sent only when the server does not have it.
    ///
    /// After an error the script may have run or not.
    ///
    /// # Errors
    ///
    /// [`LinkError`]. After one that [is lost](LinkError::is_lost) every call fails.
    pub fn eval(&mut self, script: &Script, key: &str, arg: &[u8]) -> Result<Vec<u8>, LinkError> {
        if self.lost {
            return Err(LinkError::Lost);
        }
        let answer = self.run(script, key, arg).map_err(|error| stopped(error, &self.stop));
        self.lost = answer.as_ref().is_err_and(LinkError::is_lost);
        match answer? {
            Value::BulkString(bytes) => Ok(bytes),
            Value::Nil => Err(LinkError::Answer("nothing")),
            Value::Int(_) => Err(LinkError::Answer("a number")),
            Value::Array(_) => Err(LinkError::Answer("a list")),
            _ => Err(LinkError::Answer("neither a string nor a number")),
        }
    }

    /// The server that it leads to, for people.
    pub fn server(&self) -> &str {
        self.wire.to()
    }

    fn run(&mut self, script: &Script, key: &str, arg: &[u8]) -> Result<Value, LinkError> {
        let mut run = script.key(key);
        run.arg(arg);
        for _ in 0..MAX_REDIRECTS {
            let error = match run.invoke::<Value>(&mut self.wire) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let redirect = server_error(&error).filter(|_| self.endpoint.is_cluster());
            let redirect = redirect.and_then(|error| Some((error.kind()?, target(&error)?)));
            let Some((kind, (host, port))) = redirect else { return Err(self.wire.explain(error)) };
            let place = self.node(host, port);
            match kind {
                // That node has the slot from now on.
                ServerErrorKind::Moved => {
                    self.wire = Wire::open(&place, &self.endpoint, self.timeout, &self.stop)?;
                }
                // That node has these keys, while the slot moves there. What is watched by `stop`
                // remains this connection.
                _ => {
                    let endpoint = &self.endpoint;
                    let mut there = Wire::open(&place, endpoint, self.timeout, &Stop::new())?;
                    script.load(&mut there).map_err(|error| there.explain(error))?;
                    there.ask(&cmd("ASKING"))??;
                    let answer = run.invoke::<Value>(&mut there);
                    return answer.map_err(|error| there.explain(error));
                }
            }
        }
        Err(LinkError::Redirects)
    }

    /// The node that a redirection names; without a host it is another port of the same.
    fn node(&self, host: String, port: u16) -> Place {
        let name = match self.wire.place() {
            Place::Host(here) if host.is_empty() => here.name.clone(),
            _ => host,
        };
        Place::Host(Host { name, port })
    }
}

/// "3999 127.0.0.1:6381", of MOVED and of ASK. An IPv6 address has no brackets there.
fn target(error: &redis::ServerError) -> Option<(String, u16)> {
    if !matches!(error.kind(), Some(ServerErrorKind::Moved | ServerErrorKind::Ask)) {
        return None;
    }
    let (host, port) = error.details()?.split(' ').nth(1)?.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port.parse().ok()?))
}

/// A connection that was shut down looks like one that the server closed.
fn stopped(error: LinkError, stop: &Stop) -> LinkError {
    if stop.is_stopped() { LinkError::Stopped } else { error }
}

/// Connects to the server that writes can be sent to, or to any node of a cluster.
pub(super) fn reach(
    endpoint: &Endpoint,
    timeout: Duration,
    stop: &Stop,
) -> Result<Wire, LinkError> {
    match &endpoint.kind {
        Kind::Server(place) => alive(place, endpoint, timeout, stop),
        Kind::Cluster(hosts) => {
            // Not always the same first: it may be the one that is cut off from the others.
            let mut error = LinkError::Stopped;
            let first = usize::from(arbitrary() as u16) % hosts.len().max(1);
            for host in hosts.iter().cycle().skip(first).take(hosts.len()) {
                match alive(&Place::Host(host.clone()), endpoint, timeout, stop) {
                    Ok(wire) => return Ok(wire),
                    Err(why) => error = why,
                }
                if stop.is_stopped() {
                    break;
                }
            }
            Err(error)
        }
        Kind::Sentinel { hosts, service, login } => {
            let place = master(endpoint, hosts, service, login.as_ref(), timeout, stop)?;
            let mut wire = Wire::open(&place, endpoint, timeout, stop)?;
            match wire.ask(&cmd("ROLE"))? {
                Ok(Value::Array(role)) => match role.first() {
                    Some(Value::BulkString(name)) if name != b"master" => {
                        Err(LinkError::NotMaster(place.to_string()))
                    }
                    _ => Ok(wire),
                },
                // A user may not be allowed to ask; READONLY will tell.
                Ok(_) | Err(LinkError::NoPermission(_)) => Ok(wire),
                Err(error) => Err(error),
            }
        }
    }
}

/// Connects to a server that answers.
fn alive(
    place: &Place,
    endpoint: &Endpoint,
    timeout: Duration,
    stop: &Stop,
) -> Result<Wire, LinkError> {
    let mut wire = Wire::open(place, endpoint, timeout, stop)?;
    match wire.ask(&cmd("PING"))? {
        // That it may not be asked is an answer too.
        Ok(_) | Err(LinkError::NoPermission(_)) => Ok(wire),
        Err(error) => Err(error),
    }
}

/// Asks the sentinels, one after the other, for the master.
fn master(
    endpoint: &Endpoint,
    hosts: &[Host],
    service: &str,
    login: Option<&Login>,
    timeout: Duration,
    stop: &Stop,
) -> Result<Place, LinkError> {
    let tls = endpoint.tls.as_deref();
    let ask = |host: &Host| {
        let mut wire = Wire::connect(&Place::Host(host.clone()), tls, timeout, stop)?;
        wire.log_in(login)?;
        match wire.ask(cmd("SENTINEL").arg("get-master-addr-by-name").arg(service))?? {
            Value::Array(address) => match address.as_slice() {
                [Value::BulkString(name), Value::BulkString(port)] => {
                    let name = String::from_utf8_lossy(name).into_owned();
                    let port = str::from_utf8(port).ok().and_then(|port| port.parse().ok());
                    port.map(|port| Place::Host(Host { name, port }))
                        .ok_or(LinkError::Answer("no port"))
                }
                _ => Err(LinkError::Answer("no address")),
            },
            _ => Err(LinkError::UnknownService(service.to_owned())),
        }
    };
    let mut error = None;
    for host in hosts {
        match ask(host) {
            Ok(place) => return Ok(place),
            // Worth more than that another one could not be asked.
            Err(why @ LinkError::UnknownService(_)) => error = Some(why),
            Err(why) if !matches!(error, Some(LinkError::UnknownService(_))) => {
                error = Some(LinkError::NoSentinel(Box::new(why)));
            }
            Err(_) => {}
        }
        if stop.is_stopped() {
            break;
        }
    }
    Err(error.unwrap_or(LinkError::Stopped))
}

/// A number that is another one each time; good enough to spread.
pub(super) fn arbitrary() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The steps of xorshift64: neighbours in time come far apart.
    let mut x = now.as_nanos() as u64 | 1;
    for _ in 0..3 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    x
}
