//! Requests and replies, without nginx.

mod fuzz;

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::registry::{Events, Network, Now, OnDuplicate, OnExpire, Rules, SpaceName};
use crate::shm::Zone;
use crate::shm::testing::zone;

mod settings;
mod slices;

const RULES: Rules = Rules {
    ttl: 30_000,
    on_expire: OnExpire::Disable,
    remove_after: 0,
    on_duplicate: OnDuplicate::Refresh,
    panic_threshold: 0,
    slow_start: 0,
};

struct Site {
    zone: &'static Zone,
    namespace: Option<SpaceName<'static>>,
    access: Access,
    allow: Vec<Network>,
    client: Option<IpAddr>,
    now: Now,
    resolver: bool,
}

impl Site {
    fn new() -> Self {
        Self {
            zone: zone(256 * 1024),
            namespace: None,
            access: Access::default(),
            allow: Vec::new(),
            client: Some(Ipv4Addr::LOCALHOST.into()),
            now: Now { mono: 1_000_000, wall: 1_700_000_000_250 },
            resolver: true,
        }
    }

    fn ask(
        &self,
        method: Method,
        endpoint: &str,
        query: &str,
        body: &[u8],
        kind: BodyKind,
    ) -> (u16, Value) {
        let endpoint = match Endpoint::by_name(endpoint) {
            Ok(endpoint) => endpoint,
            Err(reply) => return read(&reply),
        };
        let request = Request {
            endpoint,
            method,
            query: query.as_bytes(),
            body,
            body_kind: kind,
            client: self.client,
        };
        let door = Door {
            namespace: self.namespace,
            access: self.access,
            allow: &self.allow,
            slow_starts: &[],
            node: None,
            resolver: self.resolver,
        };
        let mut events = Events::default();
        read(&self.whole(answer(&request, &door, self.zone, &RULES, self.now, &mut events)))
    }

    /// Takes an answer to its end.
    fn whole(&self, answer: Answer) -> Reply {
        match answer {
            Answer::Reply(reply) => reply,
            Answer::List(mut list) => {
                let mut body = Vec::new();
                while !list.write_piece(self.zone, &RULES, self.now, &mut body).unwrap() {}
                Reply { status: 200, body, header: None, error: None }
            }
            Answer::Task(mut task) => loop {
                let mut events = Events::default();
                if let Some(reply) = task.step(self.zone, &RULES, self.now, &mut events) {
                    break reply;
                }
            },
            Answer::Wait(wait) => {
                let mut now = self.now;
                loop {
                    if let Some(reply) = wait.look(self.zone, now, false) {
                        break reply;
                    }
                    now.mono += 1000;
                }
            }
        }
    }

    fn post(&self, endpoint: &str, query: &str) -> (u16, Value) {
        self.ask(Method::Post, endpoint, query, b"", BodyKind::Form)
    }

    fn get(&self, endpoint: &str, query: &str) -> (u16, Value) {
        self.ask(Method::Get, endpoint, query, b"", BodyKind::Form)
    }

    fn json(&self, endpoint: &str, body: &str) -> (u16, Value) {
        self.ask(Method::Post, endpoint, "", body.as_bytes(), BodyKind::Json)
    }
}

/// Every reply is JSON whose code is the status.
fn read(reply: &Reply) -> (u16, Value) {
    let value: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(value["code"], reply.status);
    assert_eq!(reply.error.is_some(), reply.status != 200 && value.get("data").is_none());
    (reply.status, value)
}

#[test]
fn add_answers_with_the_server() {
    let site = Site::new();
    let (status, body) = site.post("add", "ns=a&port=8080&host=::FFFF:10.0.0.1");
    assert_eq!(status, 200);
    assert_eq!(
        body,
        json!({"code": 200, "message": "Success", "data": {
            "addr": "10.0.0.1:8080", "host": "10.0.0.1", "port": 8080,
            "weight": 1, "max_conns": 1000, "enabled": true
        }})
    );
}

#[test]
fn the_clients_address_stands_in_for_a_host_that_is_left_out_or_empty() {
    let mut site = Site::new();
    for query in ["ns=a&port=1", "ns=a&port=1&host="] {
        assert_eq!(site.post("add", query).1["data"]["addr"], "127.0.0.1:1");
    }
    site.client = Some("::ffff:10.1.2.3".parse().unwrap());
    assert_eq!(site.post("add", "ns=a&port=1").1["data"]["host"], "10.1.2.3");
    site.client = None;
    let (status, body) = site.post("add", "ns=a&port=1");
    assert_eq!(status, 400);
    assert!(body["message"].as_str().unwrap().contains("\"host\" is required"));
}

#[test]
fn parameters_come_as_query_form_or_json() {
    let site = Site::new();
    let form = b"ns=a&port=81&host=%5B%3A%3A1%5D";
    let (_, body) = site.ask(Method::Post, "add", "weight=3", form, BodyKind::Form);
    assert_eq!(body["data"]["addr"], "[::1]:81");
    assert_eq!(body["data"]["weight"], 3);
    let (_, body) =
        site.json("add", r#"{"ns":"a","port":82,"host":"::1","max_conns":"7","weight":null}"#);
    assert_eq!(body["data"]["max_conns"], 7);
    assert_eq!(site.json("add", "").0, 400, "no parameters");
}

#[test]
fn bad_parameters_are_named_with_what_they_may_be() {
    let site = Site::new();
    for (query, words) in [
        ("ns=a", "\"port\" is required: an integer from 1 to 65535"),
        ("ns=a&port=", "\"port\" must be an integer from 1 to 65535"),
        ("ns=a&port=0", "\"port\" must be"),
        ("ns=a&port=65536", "\"port\" must be"),
        ("ns=a&port=-1", "\"port\" must be"),
        ("ns=a&port=+1", "\"port\" must be"),
        ("ns=a&port=1.0", "\"port\" must be"),
        ("ns=a&port=99999999999999999999", "\"port\" must be"),
        ("ns=a&port=1&port=1", "\"port\" is given more than once"),
        ("ns=a&port=1&weight=65536", "\"weight\" must be an integer from 0 to 65535"),
        (
            "ns=a&port=1&max_conns=2147483648",
            "\"max_conns\" must be an integer from 0 to 2147483647",
        ),
        ("ns=a&port=1&host=0.0.0.0", "\"host\" must not be the unspecified address"),
        ("ns=a&port=1&host=a%20b", "\"host\" must be an IPv4 or IPv6 address"),
        ("ns=a&port=1&host=%00", "\"host\" must be"),
        ("ns=a&port=1&host=%ff", "\"host\" must be"),
        (
            "ns=a&port=1&host=1.2.3.4.5",
            "\"host\" must be an IPv4 or IPv6 address, or a name of at most",
        ),
        (
            "ns=a&port=1&host=-a",
            "parts of 1 to 63 letters, digits, \"_\" or \"-\", with \".\" between",
        ),
        ("ns=a%2Fb&port=1", "\"ns\" must be 1 to 64 letters"),
        ("ns=a&port=%zz", "Malformed percent-encoding"),
        ("port=1", "\"ns\" is required: the registry has 0 namespaces"),
    ] {
        let (status, body) = site.post("add", query);
        let message = body["message"].as_str().unwrap();
        assert_eq!(status, 400, "{query}");
        assert!(message.contains(words), "{query}: {message}");
    }
    for (body, words) in [
        ("{", "Malformed JSON"),
        ("[]", "Malformed JSON"),
        ("7", "Malformed JSON"),
        (r#"{"ns":"a","port":1,"wieght":1}"#, "Unknown parameter \"wieght\""),
        (r#"{"ns":"a","port":1,"port":1}"#, "more than once"),
        (r#"{"ns":"a","port":[1]}"#, "\"port\" must be a string or a number"),
        (r#"{"ns":"a","port":true}"#, "\"port\" must be a string or a number"),
        (r#"{"ns":"a","port":1.0}"#, "\"port\" must be an integer"),
    ] {
        let (status, reply) = site.json("add", body);
        let message = reply["message"].as_str().unwrap();
        assert_eq!(status, 400, "{body}");
        assert!(message.contains(words), "{body}: {message}");
    }
    let deep = format!("{{\"a\":{}", "[".repeat(5000));
    assert_eq!(site.json("add", &deep).0, 400);
    let (status, _) = site.ask(Method::Post, "add", "", b"<x/>", BodyKind::Other);
    assert_eq!(status, 415);
    assert_eq!(site.get("status", "ns=a").0, 404, "nothing was added");
}

#[test]
fn endpoints_take_their_methods() {
    let mut site = Site::new();
    site.post("add", "ns=a&port=1");
    assert_eq!(site.get("add", "ns=a&port=1").0, 405);
    assert_eq!(site.post("status", "").0, 405);
    assert_eq!(site.get("cleanup", "").0, 200);
    assert_eq!(site.post("cleanup", "").0, 200);
    site.access.allow_get = true;
    assert_eq!(site.get("add", "ns=a&port=2").0, 200);
    site.access.read_only = true;
    assert_eq!(site.get("add", "ns=a&port=3").0, 403);
    assert_eq!(site.get("status", "ns=a").1["total"], 2);
    let (_, body) = site.get("nothing", "");
    assert!(body["message"].as_str().unwrap().starts_with("Unknown endpoint: nothing; there are"));
    let refused = Endpoint::Add.admit(Method::Other, Access::default()).unwrap_err();
    assert_eq!((refused.status, refused.header), (405, Some(("Allow", "POST"))));
}

#[test]
fn a_locations_namespace_binds() {
    let mut site = Site::new();
    site.namespace = SpaceName::new(b"mine");
    assert_eq!(site.post("add", "port=1").0, 200);
    assert_eq!(site.post("add", "ns=mine&port=2").0, 200);
    let (status, body) = site.post("add", "ns=other&port=3");
    assert_eq!(status, 403);
    assert_eq!(body["message"], "This location is for the namespace \"mine\" only");
    assert_eq!(site.get("status", "").1["total"], 2);
}

#[test]
fn without_a_name_the_zones_only_namespace_is_meant() {
    let site = Site::new();
    site.post("add", "ns=a&port=1");
    assert_eq!(site.post("add", "port=2").0, 200);
    site.post("add", "ns=b&port=1");
    let (status, body) = site.post("refresh", "port=1");
    assert_eq!(status, 400);
    assert!(body["message"].as_str().unwrap().contains("has 2 namespaces"));
}

#[test]
fn a_name_is_a_server_where_there_is_a_resolver() {
    let mut site = Site::new();
    let (status, body) = site.post("add", "ns=a&port=80&host=App.Example.COM.");
    assert_eq!(status, 200);
    assert_eq!(body["data"]["addr"], "app.example.com:80");
    assert_eq!(body["data"]["host"], "app.example.com");
    for (endpoint, query) in [
        ("refresh", ""),
        ("weight", "&weight=2"),
        ("toggle", "&action=disable"),
        ("drain", ""),
        ("remove", ""),
    ] {
        let (status, body) =
            site.post(endpoint, &format!("ns=a&port=80&host=APP.example.com{query}"));
        assert_eq!(status, 200, "{endpoint}: {body}");
        assert_eq!(body["data"]["addr"], "app.example.com:80", "{endpoint}");
    }
    site.resolver = false;
    let (status, body) = site.post("add", "ns=a&port=80&host=app");
    assert_eq!(status, 400);
    let message = body["message"].as_str().unwrap();
    assert!(message.contains("\"app\"") && message.contains("set \"resolver\""), "{message}");
    assert_eq!(site.post("remove", "ns=a&port=80&host=app").0, 404);
}

#[test]
fn only_servers_of_the_allowed_networks_can_be_added() {
    let mut site = Site::new();
    site.post("add", "ns=a&port=1&host=192.168.0.1");
    site.allow = ["10.0.0.0/8", "2001:db8::/32"].map(|n| Network::parse(n).unwrap().0).to_vec();
    for host in ["10.255.0.1", "::ffff:10.0.0.1", "2001:db8::1"] {
        assert_eq!(site.post("add", &format!("ns=a&port=1&host={host}")).0, 200, "{host}");
    }
    for host in ["11.0.0.1", "127.0.0.1", "2001:db9::1", "192.168.0.1"] {
        let (status, body) = site.post("add", &format!("ns=a&port=1&host={host}"));
        assert_eq!(status, 403, "{host}");
        assert!(body["message"].as_str().unwrap().contains(host));
    }
    assert_eq!(site.get("status", "").1["total"], 4);
    let known = site.post("remove", "ns=a&port=1&host=192.168.0.1");
    assert_eq!(known.0, 200, "what is there can be managed");
}

#[test]
fn status_tells_all_of_a_server() {
    let mut site = Site::new();
    site.post("add", "ns=a&port=1&weight=2");
    site.now.mono += 1_500;
    site.now.wall += 1_500;
    let (_, body) = site.get("status", "ns=a&_=cache-buster");
    assert_eq!(body["timestamp"], 1_700_000_001.75);
    assert_eq!(
        body["data"][0],
        json!({
            "addr": "127.0.0.1:1", "host": "127.0.0.1", "port": 1, "namespace": "a",
            "connections": 0, "local_connections": 0, "weight": 2, "max_conns": 1000, "enabled": true,
            "is_active": true, "state": "up", "last_heartbeat": 1_700_000_000.25,
            "time_since_heartbeat": 1.5, "created_at": 1_700_000_000.25,
            "updated_at": 1_700_000_000.25, "disabled_at": null, "disabled_reason": null,
            "requests": 0, "fails": 0, "static": false, "backup": false, "name": null,
            "health": null
        })
    );
}

#[test]
fn health_says_unhealthy_in_the_body_and_with_ready_in_the_status() {
    let mut site = Site::new();
    site.post("add", "ns=a&port=1");
    site.post("add", "ns=a&port=2");
    site.post("toggle", "ns=a&port=2&action=disable");
    let (status, body) = site.get("health", "ns=a&ready");
    assert_eq!((status, &body["status"]), (200, &json!("healthy")));
    assert_eq!(
        body["data"],
        json!({"total_servers": 2, "enabled_servers": 1, "active_servers": 1, "expired_servers": 0})
    );
    site.now.mono += 30_001;
    let (status, body) = site.get("health", "ns=a");
    assert_eq!((status, &body["status"]), (200, &json!("unhealthy")));
    assert_eq!(body["data"]["expired_servers"], 1);
    assert_eq!(site.get("health", "ns=a&ready").0, 503);
}

#[test]
fn what_is_not_there_is_404_in_the_words_that_clients_look_for() {
    let site = Site::new();
    for endpoint in ["refresh", "remove", "drain"] {
        let (status, body) = site.post(endpoint, "ns=a&port=1&host=10.0.0.1");
        assert_eq!((status, &body["message"]), (404, &json!("Server not found: 10.0.0.1:1")));
    }
    assert_eq!(site.get("status", "ns=a").1["message"], "Namespace not found: a");
}

#[test]
fn errors_are_escaped() {
    let site = Site::new();
    let (_, body) = site.ask(Method::Post, "add", "", b"%22%0a%00=1", BodyKind::Form);
    assert!(body["message"].as_str().unwrap().starts_with("Unknown parameter \"\"\n\0\""));
}

proptest! {
    #[test]
    fn any_query_and_body_get_a_reply(
        endpoint in proptest::sample::select(vec!["add", "toggle", "weight", "status", "health", "reset"]),
        query in "[a-z0-9=&%+\\[\\]:. ]{0,60}",
        body in proptest::collection::vec(any::<u8>(), 0..200),
        json in any::<bool>(),
    ) {
        let site = Site::new();
        let kind = if json { BodyKind::Json } else { BodyKind::Form };
        for method in [Method::Get, Method::Post] {
            let (status, _) = site.ask(method, endpoint, &query, &body, kind);
            prop_assert!([200, 400, 404, 405].contains(&status), "{status}");
        }
    }

    #[test]
    fn any_valid_registration_is_told_back(
        port in 1..=65_535u16,
        ip in any::<[u8; 4]>().prop_filter("not 0.0.0.0", |ip| *ip != [0; 4]),
        weight in 0..=65_535u32,
    ) {
        let site = Site::new();
        let host = Ipv4Addr::from(ip);
        let body = json!({"ns": "a", "host": host.to_string(), "port": port, "weight": weight});
        let (status, reply) = site.json("add", &body.to_string());
        prop_assert_eq!(status, 200);
        prop_assert_eq!(&reply["data"]["host"], &json!(host.to_string()));
        let (_, list) = site.get("status", "");
        prop_assert_eq!(&list["data"][0]["port"], &json!(port));
        prop_assert_eq!(&list["data"][0]["weight"], &json!(weight));
    }
}

/// A request on the namespace's only server.
fn occupy(site: &Site) -> (crate::registry::Worker, crate::registry::Flight) {
    use crate::registry::{Choice, Registry, Target};
    let mut registry = Registry::lock(site.zone).unwrap();
    let mut worker = registry.join(1);
    let space = registry.find_space(SpaceName::new(b"a").unwrap()).unwrap();
    let policy = crate::balance::POLICIES[0];
    let choice = Choice { space, policy, tried: &[], warm: &[], seed: None, again: None };
    let (mut target, mut events) = (Target::NONE, Events::default());
    let taken = registry.take(&mut worker, &choice, &RULES, site.now, &mut target, &mut events);
    (worker, taken.unwrap().0)
}

#[test]
fn a_drain_waits_for_requests_as_long_as_it_is_told_to() {
    let site = Site::new();
    site.post("add", "ns=a&port=1");
    let left = |n: u64| json!({"code": 200, "message": "Success", "data": {"addr": "127.0.0.1:1", "connections": n}});
    assert_eq!(site.post("drain", "ns=a&port=1&wait=30s").1, left(0), "nothing to wait for");
    site.post("toggle", "ns=a&port=1&action=enable");
    let (mut worker, flight) = occupy(&site);
    assert_eq!(site.post("drain", "ns=a&port=1").1, left(1), "told not to wait");
    assert_eq!(site.post("drain", "ns=a&port=1&wait=0").1, left(1), "for no time");
    assert_eq!(site.json("drain", r#"{"ns":"a","port":1,"wait":5}"#).1, left(1), "the time is up");

    let begin = |site: &Site| {
        let request = Request {
            endpoint: Endpoint::Drain,
            method: Method::Post,
            query: b"ns=a&port=1&wait=1m",
            body: b"",
            body_kind: BodyKind::Form,
            client: site.client,
        };
        let door = Door {
            namespace: None,
            access: site.access,
            allow: &[],
            slow_starts: &[],
            node: None,
            resolver: true,
        };
        match answer(&request, &door, site.zone, &RULES, site.now, &mut Events::default()) {
            Answer::Wait(wait) => wait,
            other => panic!("{other:?}"),
        }
    };
    let at = |ms: u64| Now { mono: site.now.mono + ms, ..site.now };
    let wait = begin(&site);
    assert_eq!(wait.look(site.zone, at(59_999), false), None);
    let up = wait.look(site.zone, at(60_000), false);
    assert_eq!(read(&up.unwrap()).1, left(1));
    assert_eq!(read(&wait.look(site.zone, at(1), true).unwrap()).1, left(1), "no more time");

    site.post("toggle", "ns=a&port=1&action=enable");
    let enabled = read(&wait.look(site.zone, at(1), false).unwrap());
    assert_eq!(enabled.0, 409);
    assert_eq!(enabled.1["message"], "Server was enabled before it had drained: 127.0.0.1:1");

    let wait = begin(&site);
    let mut registry = crate::registry::Registry::lock(site.zone).unwrap();
    registry.release(&mut worker, flight, crate::registry::Verdict::Fine, site.now);
    drop(registry);
    assert_eq!(read(&wait.look(site.zone, at(1), false).unwrap()).1, left(0), "the last has ended");
    site.post("remove", "ns=a&port=1");
    let gone = read(&wait.look(site.zone, at(1), false).unwrap());
    assert_eq!((gone.0, gone.1["message"].as_str()), (404, Some("Server not found: 127.0.0.1:1")));
}

#[test]
fn how_long_a_drain_may_wait() {
    let site = Site::new();
    site.post("add", "ns=a&port=1");
    for bad in ["61m", "2h", "-1s", "soon", "", "1.5s", "1d"] {
        let (status, body) = site.post("drain", &format!("ns=a&port=1&wait={bad}"));
        assert_eq!(status, 400, "{bad}");
        assert_eq!(
            body["message"],
            "Parameter \"wait\" must be a time of at most 1h, written as 30s, 500ms or 1m 30s"
        );
    }
    assert_eq!(site.get("status", "ns=a").1["data"][0]["state"], "up", "nothing was changed");
    for good in ["1h", "60m", "0", "500ms", "1m+30s"] {
        assert_eq!(site.post("drain", &format!("ns=a&port=1&wait={good}")).0, 200, "{good}");
    }
}

#[test]
fn failures_that_a_server_may_have_are_said_when_it_registers() {
    let site = Site::new();
    let add = |more: &str| site.post("add", &format!("ns=a&port=1&{more}"));
    for good in [
        "max_fails=0",
        "max_fails=2147483647",
        "fail_timeout=0",
        "fail_timeout=1d",
        "fail_timeout=250ms",
    ] {
        assert_eq!(add(good).0, 200, "{good}");
    }
    for (bad, may) in [
        ("max_fails=-1", "Parameter \"max_fails\" must be an integer from 0 to 2147483647"),
        ("max_fails=2147483648", "Parameter \"max_fails\" must be an integer from 0 to 2147483647"),
        (
            "fail_timeout=never",
            "Parameter \"fail_timeout\" must be a time of at most 1d, written as 30s, 500ms or 1m 30s",
        ),
        (
            "fail_timeout=25h",
            "Parameter \"fail_timeout\" must be a time of at most 1d, written as 30s, 500ms or 1m 30s",
        ),
    ] {
        let (status, body) = add(bad);
        assert_eq!((status, body["message"].as_str()), (400, Some(may)));
    }
}
