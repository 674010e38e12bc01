//! Answers about many servers, slice by slice.

use super::*;
use crate::registry::{Registry, StaticServer};

/// A site with servers 10.0.0.0:1 and on in the namespace "a".
fn site(servers: usize) -> Site {
    let site = Site { zone: zone(4 << 20), ..Site::new() };
    (0..servers).for_each(|n| site.add(n));
    site
}

fn host(n: usize) -> String {
    format!("10.0.{}.{}", n >> 8, n & 255)
}

impl Site {
    fn add(&self, n: usize) {
        assert_eq!(self.post("add", &format!("ns=a&port=1&host={}", host(n))).0, 200);
    }

    fn remove(&self, n: usize) {
        assert_eq!(self.post("remove", &format!("ns=a&port=1&host={}", host(n))).0, 200);
    }

    fn begin(&self, method: Method, endpoint: &str) -> Answer {
        let (query, body) = (b"ns=a".as_slice(), b"".as_slice());
        let endpoint = Endpoint::by_name(endpoint).unwrap();
        let client = self.client;
        let body_kind = BodyKind::Form;
        let request = Request { endpoint, method, query, body, body_kind, client };
        let door = Door {
            namespace: None,
            access: self.access,
            allow: &[],
            slow_starts: &[],
            node: None,
            resolver: true,
        };
        answer(&request, &door, self.zone, &RULES, self.now, &mut Events::default())
    }

    /// The list, with `between` called after each piece. Its hosts, its total and its timestamp.
    fn list(&self, mut between: impl FnMut(usize)) -> (Vec<String>, Value, Value) {
        let Answer::List(mut list) = self.begin(Method::Get, "status") else {
            panic!("not a long list")
        };
        let mut text = Vec::new();
        let mut pieces = 0;
        loop {
            let mut piece = Vec::new();
            let last = list.write_piece(self.zone, &RULES, self.now, &mut piece).unwrap();
            text.extend_from_slice(&piece);
            assert!(piece.len() < 32 * 1024, "a piece of {} bytes", piece.len());
            pieces += 1;
            assert!(pieces < 1000, "it does not end");
            if last {
                break;
            }
            between(pieces);
        }
        let value: Value = serde_json::from_slice(&text).unwrap();
        let data = value["data"].as_array().unwrap();
        let hosts = data.iter().map(|s| s["host"].as_str().unwrap().to_owned()).collect();
        (hosts, value["total"].clone(), value["timestamp"].clone())
    }
}

#[test]
fn a_list_of_more_than_256_servers_comes_in_pieces() {
    let site = site(256);
    assert!(matches!(site.begin(Method::Get, "status"), Answer::Reply(_)));
    site.add(256);
    let mut pieces = 0;
    let (hosts, total, timestamp) = site.list(|n| pieces = n);
    assert_eq!(pieces, 4);
    assert_eq!(hosts, (0..257).map(host).collect::<Vec<_>>());
    assert_eq!(total, 257);
    assert_eq!(timestamp, 1_700_000_000.25);
}

#[test]
fn a_list_in_pieces_says_what_a_short_one_says() {
    let few = site(1);
    let (_, short) = few.get("status", "ns=a");
    let many = site(300);
    let (_, long) = many.get("status", "ns=a");
    assert_eq!(short["data"][0], long["data"][0]);
    let fields = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&short), fields(&long));
}

#[test]
fn a_list_stays_right_when_servers_come_and_go() {
    let site = site(1000);
    // The one that was listed last goes, so that the list has to find its place again; some that
    // were not yet listed go as well, and new ones come.
    let (hosts, total, _) = site.list(|piece| {
        if piece <= 10 {
            site.remove(piece * 64 - 1);
            site.remove(999 - piece);
            site.add(2000 + piece);
        }
    });
    assert_eq!(total, hosts.len());
    let gone: Vec<_> = (1..=10).map(|p| host(999 - p)).collect();
    let expected = (0..1000).map(host).filter(|h| !gone.contains(h)).chain((2001..=2010).map(host));
    assert_eq!(hosts, expected.collect::<Vec<_>>());
}

#[test]
fn a_list_ends_when_its_namespace_goes() {
    let site = site(300);
    let (hosts, total, _) = site.list(|piece| {
        if piece == 2 {
            (0..300).for_each(|n| site.remove(n));
            site.add(5);
        }
    });
    assert_eq!(hosts, (0..128).map(host).collect::<Vec<_>>(), "not those of its successor");
    assert_eq!(total, 128);
}

#[test]
fn the_path_of_a_unix_socket_is_escaped() {
    let site = Site::new();
    let server = StaticServer {
        address: crate::registry::Address::unix("/run/\"a\\\u{e9}\n").unwrap(),
        weight: 1,
        max_conns: 0,
        max_fails: 1,
        fail_timeout_ms: 10_000,
        backup: true,
        down: true,
        slow_start_ms: 0,
    };
    let name = SpaceName::new(b"a").unwrap();
    let mut registry = Registry::lock(site.zone).unwrap();
    let mut events = Events::default();
    registry.configure(&[name], &[(name, server)], &RULES, site.now, &mut events).unwrap();
    drop(registry);
    let (_, status) = site.get("status", "");
    let server = &status["data"][0];
    assert_eq!(server["addr"], "unix:/run/\"a\\\u{e9}\n");
    assert_eq!(server["host"], server["addr"]);
    assert_eq!(server["port"], 0);
    assert_eq!(server["disabled_at"], 1_700_000_000.25);
    assert_eq!(server["disabled_reason"], "configuration");
    assert_eq!((&server["static"], &server["backup"]), (&json!(true), &json!(true)));
}

#[test]
fn times_have_three_digits_after_the_point() {
    let mut site = Site::new();
    for (wall, text) in
        [(1_700_000_000_007, "1700000000.007"), (1_700_000_001_000, "1700000001.000")]
    {
        site.now.wall = wall;
        site.post("add", "ns=a&port=1");
        let Answer::Reply(reply) = site.begin(Method::Get, "status") else { panic!("too long") };
        let body = String::from_utf8(reply.body).unwrap();
        assert!(body.contains(&format!("\"last_heartbeat\":{text},")), "{body}");
        assert!(body.contains("\"time_since_heartbeat\":0.000,"), "{body}");
        assert!(body.ends_with(&format!(",\"timestamp\":{text}}}\n")), "{body}");
    }
}

/// Takes a task to its end. Its slices and its reply.
fn steps(site: &Site, method: Method, endpoint: &str) -> (usize, Value) {
    let mut slices = 1;
    match site.begin(method, endpoint) {
        Answer::Reply(reply) => (slices, read(&reply).1),
        Answer::List(_) | Answer::Wait(_) => panic!("no task"),
        Answer::Task(mut task) => loop {
            let mut events = Events::default();
            slices += 1;
            let reply = task.step(site.zone, &RULES, site.now, &mut events);
            assert!(events.len() < 256, "{} lines", events.len());
            if let Some(reply) = reply {
                break (slices, read(&reply).1);
            }
        },
    }
}

#[test]
fn health_and_reset_take_a_slice_for_each_1024_servers() {
    let site = site(2500);
    let (slices, health) = steps(&site, Method::Get, "health");
    assert_eq!((slices, &health["data"]["total_servers"]), (3, &json!(2500)));
    let (slices, reset) = steps(&site, Method::Post, "reset");
    assert_eq!((slices, &reset["data"]["servers_reset"]), (3, &json!(2500)));
}

#[test]
fn a_cleanup_takes_a_slice_for_each_128_servers_that_it_has_to_report() {
    let mut site = site(1000);
    site.now.mono += RULES.ttl + 1;
    let (slices, cleanup) = steps(&site, Method::Post, "cleanup");
    assert_eq!(cleanup["data"]["disabled_count"], 1000);
    assert_eq!(slices, 8);
}

#[test]
fn a_task_ends_when_its_namespace_goes() {
    let site = site(2500);
    let Answer::Task(mut task) = site.begin(Method::Post, "reset") else { panic!("too short") };
    (0..2500).for_each(|n| site.remove(n));
    let reply = task.step(site.zone, &RULES, site.now, &mut Events::default()).unwrap();
    assert_eq!(read(&reply).1["data"]["servers_reset"], 1024);
}
