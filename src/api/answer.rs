//! Endpoints at work.

use std::net::IpAddr;

use serde::Serialize;

use super::endpoint::{Access, Endpoint, Method};
use super::params::{BodyKind, Params};
use super::reply::{Reply, Seconds};
use super::wait::Wait;
use super::work::{AT_ONCE, List, Task, broken};
use crate::registry::{
    Address, Change, Error, Events, Host, Network, Now, Registration, Registry, Rules, SpaceName,
    SpaceRef,
};
use crate::shm::Zone;

/// A location with `registry_api`.
#[derive(Clone, Copy, Debug)]
pub struct Door<'a> {
    /// The namespace that the location is bound to.
    pub namespace: Option<SpaceName<'a>>,
    /// What it lets through.
    pub access: Access,
    /// What may be registered; empty: everything.
    pub allow: &'a [Network],
    /// Namespaces whose new servers have a `slow_start` other than [`Rules::slow_start`], with it in
    /// milliseconds.
    pub slow_starts: &'a [(String, u64)],
    /// The name of this node, when its servers are shared with others.
    pub node: Option<&'a str>,
    /// Whether names can be looked up.
    pub resolver: bool,
}

/// A request, read.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What is asked for.
    pub endpoint: Endpoint,
    /// The method.
    pub method: Method,
    /// The query string, as sent.
    pub query: &'a [u8],
    /// The body, as sent.
    pub body: &'a [u8],
    /// How to read the body.
    pub body_kind: BodyKind,
    /// The client's address; `None` for a unix socket.
    pub client: Option<IpAddr>,
}

#[derive(Serialize)]
struct Added<'a> {
    addr: &'a str,
    host: &'a str,
    port: u16,
    weight: u32,
    max_conns: u32,
    enabled: bool,
}

#[derive(Serialize)]
struct Of<'a> {
    addr: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_time: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
}

impl<'a> Of<'a> {
    fn addr(addr: &'a str) -> Self {
        Self { addr, enabled: None, heartbeat_time: None, weight: None }
    }
}

/// What a request comes to.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Reply(Reply),
    /// A list too long for one turn of the event loop: to be sent piece by piece, with status 200.
    List(List),
    /// More servers than can be treated in one turn: the first slice is done, others are to follow.
    Task(Task),
    /// A server that is to finish its requests first.
    Wait(Wait),
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// Answers a request. What the location does not admit is refused here too.
pub fn answer(
    request: &Request<'_>,
    door: &Door<'_>,
    zone: &Zone,
    rules: &Rules,
    now: Now,
    events: &mut Events,
) -> Answer {
    Call { request, door, zone, rules, now }.run(events).unwrap_or_else(Answer::Reply)
}

struct Call<'a> {
    request: &'a Request<'a>,
    door: &'a Door<'a>,
    zone: &'a Zone,
    rules: &'a Rules,
    now: Now,
}

impl Call<'_> {
    fn run(&self, events: &mut Events) -> Result<Answer, Reply> {
        let endpoint = self.request.endpoint;
        endpoint.admit(self.request.method, self.door.access)?;
        #[cfg(fault)]
        match endpoint {
            Endpoint::Check => return super::fault::check(self.zone).map(Answer::Reply),
            Endpoint::Fault => return super::fault::order(self.request.query).map(Answer::Reply),
            _ => {}
        }
        let body: &[u8] = if self.request.method == Method::Post { self.request.body } else { b"" };
        let params = Params::parse(self.request.query, body, self.request.body_kind)?;
        let ns = self.namespace(&params)?;

        match endpoint {
            Endpoint::Status => self.status(ns),
            Endpoint::Health => {
                let space = self.existing(&self.lock()?, ns)?;
                Ok(self.begin(Task::health(space, params.has("ready")), events))
            }
            Endpoint::Reset => Ok(self.begin(Task::reset(self.changeable(ns)?), events)),
            Endpoint::Drain => self.drain(ns, &params, events),
            Endpoint::Cleanup => Ok(self.begin(Task::cleanup(self.changeable(ns)?), events)),
            _ => self.change(endpoint, ns, &params, events).map(Answer::Reply),
        }
    }

    /// The namespace that the request or the location names.
    fn namespace<'p>(&'p self, params: &'p Params) -> Result<Option<SpaceName<'p>>, Reply> {
        let asked = params.namespace()?;
        match (self.door.namespace, asked) {
            (Some(bound), Some(asked)) if bound != asked => Err(Reply::error(
                403,
                format!("This location is for the namespace \"{}\" only", bound.as_str()),
            )),
            (Some(bound), _) => Ok(Some(bound)),
            (None, asked) => Ok(asked),
        }
    }

    fn lock(&self) -> Result<Registry<'_>, Reply> {
        Registry::lock(self.zone).map_err(broken)
    }

    /// Finds the namespace: the one named, or the zone's only one.
    fn space(
        &self,
        registry: &Registry<'_>,
        ns: Option<SpaceName<'_>>,
    ) -> Result<Option<SpaceRef>, Reply> {
        match ns {
            Some(name) => Ok(registry.find_space(name)),
            None => registry.only_space().map(Some).map_err(|n| {
                Reply::error(
                    400,
                    format!(
                        "Parameter \"ns\" is required: the registry has {n} namespaces, not one"
                    ),
                )
            }),
        }
    }

    /// As [`Call::space`] for endpoints that mean a whole namespace.
    fn existing(
        &self,
        registry: &Registry<'_>,
        ns: Option<SpaceName<'_>>,
    ) -> Result<SpaceRef, Reply> {
        self.space(registry, ns)?
            .ok_or_else(|| failure(Error::NoSpace(ns.map_or("", SpaceName::as_str).to_owned())))
    }

    fn address(&self, params: &Params) -> Result<Address, Reply> {
        let host = match params.host()? {
            Some(host) => host,
            None => self.request.client.map(|ip| Host::Ip(ip.to_canonical())).ok_or_else(|| {
                Reply::error(
                    400,
                    "Parameter \"host\" is required from a client on a unix socket: \
                         an IPv4 or IPv6 address, or a name"
                        .to_owned(),
                )
            })?,
        };
        Ok(host.with_port(params.port()?))
    }

    /// Checks that a name can be looked up.
    fn resolvable(&self, address: &Address) -> Result<(), Reply> {
        match address {
            Address::Name(host, _) if !self.door.resolver => {
                let message = format!(
                    "Parameter \"host\" is a name, \"{host}\", and nginx has no resolver to look \
                     it up: set \"resolver\" in http {{ }}, or give an IPv4 or IPv6 address"
                );
                Err(Reply::error(400, message))
            }
            _ => Ok(()),
        }
    }

    /// Checks an address against `allow_servers`.
    fn allowed(&self, address: &Address) -> Result<(), Reply> {
        if Network::admit(self.door.allow, address) {
            return Ok(());
        }
        let host = address.host();
        let message = format!("Host {host} may not be registered: it is not in allow_servers");
        Err(Reply::error(403, message))
    }

    fn change(
        &self,
        endpoint: Endpoint,
        ns: Option<SpaceName<'_>>,
        params: &Params,
        events: &mut Events,
    ) -> Result<Reply, Reply> {
        let address = self.address(params)?;
        let addr = address.to_string();
        // All parameters are read before the first change is made.
        match endpoint {
            Endpoint::Add => {
                let registration = Registration {
                    address,
                    weight: params.weight()?,
                    max_conns: params.max_conns()?,
                    max_fails: params.max_fails()?,
                    fail_timeout_ms: params.fail_timeout()?,
                    slow_start_ms: params.slow_start()?,
                    timeouts_ms: params.timeouts()?,
                    health_path: params.health_path()?,
                };
                self.allowed(&registration.address)?;
                self.resolvable(&registration.address)?;
                self.add(ns, &registration, &addr, events)
            }
            Endpoint::Toggle => {
                let enable = params.enable()?;
                self.one(ns, |r, space| {
                    let done = r.toggle(space, &address, enable, self.now, events)?;
                    Ok(Of { enabled: Some(done.enabled), ..Of::addr(&addr) })
                })
            }
            Endpoint::Refresh => self.one(ns, |r, space| {
                r.refresh(space, &address, self.now, events)?;
                Ok(Of { heartbeat_time: Some(Seconds(self.now.wall)), ..Of::addr(&addr) })
            }),
            Endpoint::Weight => {
                let weight = params.required_weight()?;
                self.one(ns, |r, space| {
                    let done = r.set_weight(space, &address, weight, self.now)?;
                    Ok(Of { weight: Some(done.weight), ..Of::addr(&addr) })
                })
            }
            _ => self.one(ns, |r, space| {
                r.remove(space, &address, self.now, events)?;
                Ok(Of::addr(&addr))
            }),
        }
    }

    fn drain(
        &self,
        ns: Option<SpaceName<'_>>,
        params: &Params,
        events: &mut Events,
    ) -> Result<Answer, Reply> {
        let address = self.address(params)?;
        let wait = params.wait()?.unwrap_or(0);
        let mut registry = self.lock()?;
        let space = self.space(&registry, ns)?;
        let (watch, left) = registry.drain(space, &address, self.now, events).map_err(failure)?;
        drop(registry);
        let addr = address.to_string();
        if wait == 0 || left.conns == 0 {
            return Ok(Answer::Reply(Reply::drained(&addr, left.conns)));
        }
        Ok(Answer::Wait(Wait { addr, watch, until: self.now.mono + wait }))
    }

    fn one<'r>(
        &self,
        ns: Option<SpaceName<'_>>,
        f: impl FnOnce(&mut Registry<'_>, Option<SpaceRef>) -> Result<Of<'r>, Error>,
    ) -> Result<Reply, Reply> {
        let mut registry = self.lock()?;
        let space = self.space(&registry, ns)?;
        let done = f(&mut registry, space);
        drop(registry);
        done.map(Reply::success).map_err(failure)
    }

    fn add(
        &self,
        ns: Option<SpaceName<'_>>,
        registration: &Registration,
        addr: &str,
        events: &mut Events,
    ) -> Result<Reply, Reply> {
        let mut registry = self.lock()?;
        let name;
        let ns = match ns {
            Some(ns) => ns,
            None => {
                let space = self.existing(&registry, None)?;
                name = registry.space_name(space).to_owned();
                SpaceName::new(name.as_bytes())
                    .ok_or_else(|| failure(Error::NoSpace(name.clone())))?
            }
        };
        let rules = self.rules.of_space(self.door.slow_starts, ns.as_str());
        let done = registry.add(ns, registration, &rules, self.now, events);
        drop(registry);
        let Change { weight, max_conns, enabled, .. } = done.map_err(failure)?;
        let host = registration.address.host();
        let port = registration.address.port();
        Ok(Reply::success(Added { addr, host: &host, port, weight, max_conns, enabled }))
    }

    /// The namespace whose servers are all to be changed.
    fn changeable(&self, ns: Option<SpaceName<'_>>) -> Result<SpaceRef, Reply> {
        let registry = self.lock()?;
        let space = self.existing(&registry, ns)?;
        if registry.is_retired() { Err(failure(Error::Retired)) } else { Ok(space) }
    }

    fn begin(&self, mut task: Task, events: &mut Events) -> Answer {
        match task.step(self.zone, self.rules, self.now, events) {
            Some(reply) => Answer::Reply(reply),
            None => Answer::Task(task),
        }
    }

    fn status(&self, ns: Option<SpaceName<'_>>) -> Result<Answer, Reply> {
        let registry = self.lock()?;
        let space = self.existing(&registry, ns)?;
        let list = List::new(space, registry.space_name(space), self.door.node);
        let members = registry.members(space);
        drop(registry);
        if members > AT_ONCE {
            return Ok(Answer::List(list));
        }
        list.whole(self.zone, self.rules, self.now).map(Answer::Reply)
    }
}

pub(super) fn failure(error: Error) -> Reply {
    let status = match error {
        Error::NotFound(_) | Error::NoSpace(_) => 404,
        Error::Duplicate(_) | Error::Static(_) | Error::OfName(..) => 409,
        Error::Full(_) => 507,
        Error::Retired => 503,
    };
    Reply::error(status, error.to_string())
}
