//! What registrations say besides weight and limit.

use serde_json::{Value, json};

use super::super::sim::{Key, Member, address};
use super::*;
use crate::registry::{HealthPath, Registration};

const A: Key = ("default", 1);
const ADDR: &str = "10.0.0.1:1";

/// All settings that there are.
fn all() -> Registration {
    Registration {
        max_fails: Some(0),
        fail_timeout_ms: Some(2500),
        slow_start_ms: Some(60_000),
        timeouts_ms: [Some(1), Some(2000), Some(3_000)],
        health_path: HealthPath::new("/live?\"x\""),
        ..Registration::of(address(A.1))
    }
}

fn all_fields() -> Value {
    json!({
        "max_fails": 0, "fail_timeout": 2.5, "slow_start": 60, "connect_timeout": 0.001,
        "send_timeout": 2, "read_timeout": 3, "health_path": "/live?\"x\"",
    })
}

fn fails(n: u32) -> Registration {
    Registration { max_fails: Some(n), ..Registration::of(address(A.1)) }
}

fn read_timeout(ms: u32) -> Registration {
    let timeouts_ms = [None, None, Some(ms)];
    Registration { timeouts_ms, ..Registration::of(address(A.1)) }
}

fn register(node: &mut Member, said: &Registration) {
    node.register(A.0, said).unwrap();
}

/// As `Shown` has them.
fn of(node: &Member) -> Value {
    let shown = node.shown().remove(&(A.0.to_owned(), ADDR.to_owned())).unwrap();
    Value::Object(shown.settings)
}

/// The entry in `servers:meta`.
fn meta(sim: &mut Sim) -> Value {
    serde_json::from_str(&sim.dump().spaces[A.0].meta[ADDR]).unwrap()
}

#[track_caller]
fn settled(sim: &mut Sim, expected: Value) {
    sim.settle();
    sim.agree();
    assert_eq!(of(&sim.nodes[0]), expected, "{}", sim.told());
}

#[test]
fn settings_go_with_a_registration_to_all_nodes_and_into_the_public_keys() {
    let mut sim = Sim::new(3);
    register(&mut sim.nodes[0], &all());
    settled(&mut sim, all_fields());
    let meta = meta(&mut sim);
    for (name, value) in all_fields().as_object().unwrap() {
        assert_eq!(meta[name], *value, "{name}");
    }

    // One by one, from here and there; what is not said stays.
    register(&mut sim.nodes[1], &fails(7));
    sim.until("node 2 has heard", |sim| of(&sim.nodes[2])["max_fails"] == 7);
    register(&mut sim.nodes[2], &read_timeout(1500));
    sim.nodes[0].add(A, None, None);
    let mut expected = all_fields();
    expected["max_fails"] = 7.into();
    expected["read_timeout"] = json!(1.5);
    settled(&mut sim, expected);
}

#[test]
fn settings_that_are_taken_back_are_nowhere_any_more() {
    let mut sim = Sim::new(2);
    register(&mut sim.nodes[0], &all());
    settled(&mut sim, all_fields());
    let back = Registration {
        max_fails: Some(1),
        fail_timeout_ms: Some(10_000),
        slow_start_ms: Some(0),
        timeouts_ms: [Some(0); 3],
        health_path: HealthPath::new(""),
        ..Registration::of(address(A.1))
    };
    register(&mut sim.nodes[1], &back);
    settled(&mut sim, json!({}));
    let meta = meta(&mut sim);
    for name in all_fields().as_object().unwrap().keys() {
        assert_eq!(meta.get(name), None, "{name}: {meta}");
    }

    // Nor does what a server had that was removed come back with the next of its name.
    register(&mut sim.nodes[0], &all());
    settled(&mut sim, all_fields());
    assert!(sim.nodes[1].remove(A));
    sim.run(50);
    sim.nodes[0].add(A, None, None);
    sim.settle();
    sim.agree();
}

#[test]
fn a_heartbeat_by_add_that_says_no_settings_does_not_undo_what_another_node_was_told() {
    let mut sim = Sim::new(2);
    sim.nodes[0].add(A, None, None);
    sim.settle();
    sim.nodes[1].cable = Cable::Cut;
    register(&mut sim.nodes[0], &fails(5));
    sim.run(60);
    for _ in 0..3 {
        sim.nodes[1].add(A, None, None);
        sim.run(20);
    }
    settled(&mut sim, json!({ "max_fails": 5 }));
}

#[test]
fn of_two_nodes_that_were_told_apart_the_later_counts_with_all_its_settings() {
    for later in 0..2 {
        let mut sim = Sim::new(2);
        sim.nodes[0].add(A, None, None);
        sim.settle();
        sim.all(Cable::Cut);
        register(&mut sim.nodes[1 - later], &fails(5));
        sim.run(40);
        register(&mut sim.nodes[later], &read_timeout(900));
        // The later one is told first, then last.
        sim.nodes[0].cable = Cable::Fine;
        sim.run(60);
        settled(&mut sim, json!({ "read_timeout": 0.9 }));
    }
}

#[test]
fn settings_that_an_older_copy_of_the_data_has_not_are_told_again() {
    let mut sim = Sim::new(2);
    register(&mut sim.nodes[0], &fails(2));
    sim.settle();
    let old = sim.redis.data();
    register(&mut sim.nodes[0], &fails(3));
    settled(&mut sim, json!({ "max_fails": 3 }));
    sim.redis.start_again_with(&old);
    settled(&mut sim, json!({ "max_fails": 3 }));
    sim.redis.cli(&["FLUSHALL"]);
    sim.run(100);
    settled(&mut sim, json!({ "max_fails": 3 }));
}

#[test]
fn what_another_program_writes_of_settings_counts() {
    let mut sim = Sim::new(2);
    sim.settle();
    let key = "upstream:servers:meta";
    let text = r#"{"weight":2,"max_fails":3,"fail_timeout":0.5,"health_path":"/up"}"#;
    sim.redis.cli(&["HSET", key, ADDR, text]);
    sim.until("it is there", |sim| sim.nodes.iter().all(|node| node.has(A)));
    settled(&mut sim, json!({ "max_fails": 3, "fail_timeout": 0.5, "health_path": "/up" }));

    let text = r#"{"weight":2,"max_fails":4,"read_timeout":null,"zone":"eu"}"#;
    sim.redis.cli(&["HSET", key, ADDR, text]);
    let expected = json!({ "max_fails": 4 });
    sim.until("it has others", |sim| sim.nodes.iter().all(|node| of(node) == expected));
    settled(&mut sim, expected.clone());
    assert_eq!(meta(&mut sim)["zone"], "eu", "what is not ours stays");

    let text = r#"{"weight":3,"max_fails":4,"read_timeout":"3s"}"#;
    sim.redis.cli(&["HSET", key, ADDR, text]);
    let why = "\"read_timeout\" must be a number of seconds from 0 to 86400";
    sim.until("it is refused", |sim| sim.nodes.iter().any(|node| node.said(Level::Warn, why) == 1));
    sim.nodes.iter().for_each(|node| assert_eq!(of(node), expected));
}

/// Makes the record what a node leaves that knows nothing of settings.
const UNTOLD: &str = r"
local S = ARGV[1] .. ':sync:'
local r = cjson.decode(redis.call('HGET', S .. 'records', 'default 10.0.0.1:1'))
r.g, r.gt, r.v = nil, nil, r.v + 1
redis.call('HSET', S .. 'records', 'default 10.0.0.1:1', cjson.encode(r))
redis.call('ZADD', S .. 'index', r.v, 'default 10.0.0.1:1')
redis.call('SET', S .. 'version', r.v)
return 'true'";

#[test]
fn a_record_without_settings_says_nothing_of_those_that_are_known() {
    let mut sim = Sim::new(2);
    register(&mut sim.nodes[0], &fails(5));
    settled(&mut sim, json!({ "max_fails": 5 }));
    sim.eval(UNTOLD).unwrap();
    sim.run(3 * super::super::sim::INTERVAL);
    sim.nodes.iter().for_each(|node| assert_eq!(of(node), json!({ "max_fails": 5 })));
    assert!(sim.nodes[1].set_weight(A, 9));
    sim.run(3 * super::super::sim::INTERVAL);
    sim.nodes.iter().for_each(|node| assert_eq!(of(node), json!({ "max_fails": 5 })));

    // Who says it again tells it.
    register(&mut sim.nodes[1], &fails(5));
    settled(&mut sim, json!({ "max_fails": 5 }));
    // And to who knows the server from such a record alone it has the defaults.
    sim.eval(UNTOLD).unwrap();
    assert!(sim.nodes[0].remove(A));
    sim.settle();
    sim.nodes[1].add(A, None, None);
    settled(&mut sim, json!({}));
}

#[test]
fn a_new_server_grows_on_all_nodes() {
    let mut sim = Sim::new(2);
    sim.nodes[0].add(("default", 2), None, Some(0));
    sim.settle();
    let slow = Registration { slow_start_ms: Some(600_000), max_conns: Some(0), ..fails(0) };
    register(&mut sim.nodes[0], &slow);
    sim.settle();
    for node in &mut sim.nodes {
        let mut to_new = || {
            let flights: Vec<_> = (0..20).map(|_| node.take("default").unwrap()).collect();
            let n = flights.iter().filter(|(_, port)| *port == A.1).count();
            flights.into_iter().for_each(|(flight, _)| node.release(flight));
            n
        };
        assert!(to_new() <= 2, "{}", to_new());
    }
    // As one that is switched on again does.
    register(&mut sim.nodes[1], &Registration { slow_start_ms: Some(1), ..fails(0) });
    assert!(sim.nodes[0].toggle(A, false));
    sim.settle();
    register(&mut sim.nodes[1], &slow);
    sim.settle();
    assert!(sim.nodes[0].toggle(A, true));
    sim.settle();
    for node in &mut sim.nodes {
        let flights: Vec<_> = (0..20).map(|_| node.take("default").unwrap()).collect();
        assert!(flights.iter().filter(|(_, port)| *port == A.1).count() <= 2);
    }
}
