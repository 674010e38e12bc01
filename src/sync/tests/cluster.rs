//! Three masters that share the slots.

use super::hearing::Ear;
use super::*;

/// A cluster's nodes.
fn cluster(args: &[&str]) -> Vec<Server> {
    let node = || {
        let bus = free_port().to_string();
        let mut all = vec!["--cluster-enabled", "yes", "--cluster-port", &bus];
        all.extend(["--cluster-node-timeout", "2000", "--cluster-config-file", "nodes.conf"]);
        all.extend(args);
        Server::start(&all)
    };
    let nodes: Vec<Server> = (0..3).map(|_| node()).collect();
    let addresses: Vec<String> =
        nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let mut create = vec!["--cluster", "create"];
    create.extend(addresses.iter().map(String::as_str));
    create.extend(["--cluster-replicas", "0", "--cluster-yes"]);
    let told = nodes[0].cli(&create);
    assert!(told.contains("All 16384 slots covered"), "{told}");
    for node in &nodes {
        wait_until("the cluster is up", || {
            node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
        });
    }
    nodes
}

#[test]
fn the_node_that_has_the_keys_is_found_from_any_other() {
    let nodes = cluster(&["--requirepass", "secret"]);
    let ports: Vec<u16> = nodes.iter().map(Server::port).collect();
    let mut led_to = Vec::new();
    for port in &ports {
        let mut link = open(&format!("redis+cluster://:secret@127.0.0.1:{port}")).unwrap();
        assert_eq!(put(&mut link, b"v").unwrap(), b"{k}=v");
        led_to.push(link.server().to_owned());
    }
    led_to.dedup();
    assert_eq!(led_to.len(), 1, "{led_to:?}");

    // All slots, with the keys of each, come to other nodes while a link is open.
    let all: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("redis+cluster://:secret@{}", all.join(","));
    let mut link = open(&url).unwrap();
    put(&mut link, b"v").unwrap();
    let slot = nodes[0].cli(&["CLUSTER", "KEYSLOT", "{k}"]);
    let here = all.iter().position(|node| *node == link.server()).unwrap();
    let there = (here + 1) % 3;
    let id = |node: usize| nodes[node].cli(&["CLUSTER", "MYID"]);
    let (from, to) = (id(here), id(there));
    nodes[there].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]);
    nodes[here].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]);
    put(&mut link, b"still here").unwrap();
    let port = ports[there].to_string();
    let told = nodes[here].cli(&[
        "MIGRATE",
        "127.0.0.1",
        &port,
        "",
        "0",
        "5000",
        "AUTH",
        "secret",
        "KEYS",
        "{k}",
    ]);
    assert_eq!(told, "OK");
    // The key is there, the slot still here: ASK.
    put(&mut link, b"on its way").unwrap();
    assert_eq!(link.server(), all[here]);
    for node in [there, here] {
        nodes[node].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]);
    }
    // MOVED.
    put(&mut link, b"there").unwrap();
    assert_eq!(link.server(), all[there]);
    assert_eq!(nodes[there].cli(&["GET", "{k}"]), "there");

    let error = error_of(open(&format!("redis+cluster://127.0.0.1:{port}")));
    assert!(matches!(error, LinkError::NeedsLogin), "{error}");
    let plain = format!("redis://:secret@{}", all[here]);
    let error = error_of(open(&plain).and_then(|mut link| put(&mut link, b"v")));
    assert!(matches!(error, LinkError::IsCluster) && error.is_lost(), "{error}");
}

#[test]
fn what_any_node_publishes_is_heard_and_nodes_that_are_gone_or_hang_are_passed_by() {
    let mut nodes = cluster(&[]);
    let all: Vec<String> = nodes.iter().map(|n| format!("127.0.0.1:{}", n.port())).collect();
    let endpoint = Endpoint::parse(&format!("redis+cluster://{}", all.join(","))).unwrap();
    let mut link = Link::open(&endpoint, PATIENCE).unwrap();
    put(&mut link, b"v").unwrap();
    let here = all.iter().position(|node| *node == link.server()).unwrap();
    let ear = Ear::open(&format!("redis+cluster://{}", all[0]), PATIENCE);
    ear.hears(b"");
    for node in &nodes {
        node.cli(&["PUBLISH", "c", "from any"]);
        ear.hears(b"from any");
    }
    ear.stop();
    let (dead, hung) = ((here + 1) % 3, (here + 2) % 3);
    nodes[dead].kill();
    nodes[hung].pause();
    for _ in 0..6 {
        let mut link = Link::open(&endpoint, SHORT).unwrap();
        assert_eq!(link.server(), all[here]);
        let answer = put(&mut link, b"v");
        // Most of the cluster is gone, as it finds out after a while.
        assert!(matches!(answer, Ok(_) | Err(LinkError::ClusterDown(_))), "{answer:?}");
    }
    nodes[here].kill();
    assert!(error_of(put(&mut link, b"v")).is_lost());
    assert!(error_of(Link::open(&endpoint, SHORT)).is_lost());
    nodes[hung].resume();
}
