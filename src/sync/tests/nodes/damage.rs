//! What others have written there.

use super::super::sim::{INTERVAL, Key, Sim};
use super::*;

const A: Key = ("default", 1);
const B: Key = ("default", 2);
const NEW: Key = ("default", 9);

fn joined() -> Sim {
    let mut sim = Sim::new(2);
    sim.nodes[0].add(A, None, None);
    sim.nodes[1].add(B, None, None);
    sim.settle();
    sim
}

impl Sim {
    fn warnings(&self) -> Vec<&str> {
        let lines = self.nodes.iter().flat_map(|node| &node.lines);
        lines.filter(|(level, _)| *level != Level::Notice).map(|(_, line)| &**line).collect()
    }

    /// New servers come through, and both nodes have them.
    #[track_caller]
    fn works(&mut self) {
        self.nodes[0].add(NEW, Some(3), None);
        self.until("the other node has it", |sim| {
            sim.nodes[1].view(NEW).is_some_and(|v| v.weight == 3)
        });
        assert!(self.nodes[1].remove(NEW));
        self.until("it is gone", |sim| !sim.nodes[0].has(NEW));
        assert!((0..2).all(|i| self.nodes[i].has(A) && self.nodes[i].has(B)), "{}", self.told());
        self.nodes.iter().for_each(|node| node.registry().check().unwrap());
    }
}

#[test]
fn public_keys_of_a_wrong_type_are_left_alone_with_one_warning_each() {
    let mut sim = joined();
    for n in 3..6 {
        sim.nodes[0].add(("default", n), None, None);
    }
    sim.settle();
    for key in ["servers:zset", "servers:meta", "heartbeat"] {
        let key = format!("upstream:{key}");
        sim.redis.cli(&["DEL", &key]);
        sim.redis.cli(&["SET", &key, "x"]);
    }
    sim.run(6 * INTERVAL);
    sim.works();
    sim.run(6 * INTERVAL);
    let warnings = sim.warnings();
    assert!(warnings.iter().all(|line| line.contains("is left alone: it is no")), "{warnings:?}");
    for key in ["servers:zset", "servers:meta", "heartbeat"] {
        // Each of the two nodes that look for it.
        let n = warnings.iter().filter(|line| line.contains(key)).count();
        assert!((1..=2).contains(&n), "{key}: {warnings:#?}");
        assert_eq!(sim.redis.cli(&["GET", &format!("upstream:{key}")]), "x");
        sim.redis.cli(&["DEL", &format!("upstream:{key}")]);
    }
    sim.until("they are made again", |sim| {
        sim.nodes[0].refresh(A);
        let dump = sim.dump();
        let keys = &dump.spaces["default"];
        keys.meta.len() == 5 && keys.beat.len() == 5 && keys.zset.len() == 5
    });
    sim.settle();
    sim.agree();
}

#[test]
fn bad_entries_are_skipped_with_one_warning_each() {
    let mut sim = joined();
    let long = "9".repeat(1 << 20);
    let bad: [(&str, &str, &str); 10] = [
        ("servers:meta", "10.0.0.2:1", "{"),
        ("servers:meta", "10.0.0.2:2", r#"{"weight":-1}"#),
        ("servers:meta", "10.0.0.2:3", r#"{"weight":"a"}"#),
        ("servers:meta", "not an address", r"{}"),
        ("servers:meta", "10.0.0.2:4", &long),
        ("servers:meta", "10.0.0.2:5", "[[[[[[[["),
        ("servers:meta", "10.0.0.2:6", r#"{"weight":1e999}"#),
        ("heartbeat", "10.0.0.1:1", "soon"),
        ("servers:meta", "10.0.0.1:1", "no JSON any more"),
        ("servers:meta", "10.0.0.1:2", r#"{"weight":1,"x":1e999}"#),
    ];
    for (key, entry, value) in bad {
        // The long one is more than a command line can carry.
        let script = format!(
            "redis.call('HSET', 'upstream:{key}', [==[{entry}]==], [==[{value}]==]) return 'true'"
        );
        sim.eval(&script).unwrap();
    }
    sim.eval(r"redis.call('HSET', 'upstream:servers:meta', 'x\255\254\0', '\255\192') return '1'")
        .unwrap();
    sim.eval(r"redis.call('HSET', 'upstream:heartbeat', '10.0.0.1:2', '1e999') return '1'")
        .unwrap();
    let good = r#"{"weight":2,"x":1e-9,"y":[null,{"1":2}]}"#;
    sim.redis.cli(&["HSET", "upstream:servers:meta", "10.0.0.3:1", good]);
    sim.until("the good one is taken", |sim| {
        sim.nodes.iter().all(|node| {
            node.views("default").iter().any(|v| v.addr() == "10.0.0.3:1" && v.weight == 2)
        })
    });
    sim.works();
    sim.run(6 * INTERVAL);
    let warnings = sim.warnings();
    for (_, entry, _) in bad {
        let n = warnings.iter().filter(|line| line.contains(&format!("\"{entry}\""))).count();
        let both = entry.starts_with("10.0.0.1:");
        assert_eq!(n, 1 + usize::from(both), "{entry}: {warnings:#?}");
    }
    assert!(warnings.len() <= 12, "{warnings:#?}");
    assert!(warnings.iter().all(|line| line.len() < 300), "{warnings:#?}");
    // A change of such a server mends its entry.
    for (key, entry) in [(A, "10.0.0.1:1"), (B, "10.0.0.1:2")] {
        sim.nodes[0].set_weight(key, 6);
        sim.settle();
        assert!(sim.dump().spaces["default"].meta[entry].contains("\"weight\":6"));
    }
}

#[test]
fn rubbish_among_the_nodes_own_records_does_not_stop_them() {
    let rubbish = [
        r"call('HSET', S .. 'records', 'default 10.0.0.1:1', '{')",
        r"call('HSET', S .. 'records', 'default 10.0.0.1:1', '7')",
        r"call('HSET', S .. 'records', 'default 10.0.0.1:1', '{}')",
        r"call('HSET', S .. 'records', 'default 10.0.0.1:1', '\255\192')",
        r"call('HSET', S .. 'records', 'x', '{}') call('ZADD', S .. 'index', 1000, 'x')",
        r"call('HSET', S .. 'records', '\255 \255', '\255') call('ZADD', S .. 'index', 1000, '\255 \255')",
        r"call('ZADD', S .. 'index', 1000, 'y') call('ZADD', S .. 'beat-index', 1000, 'y')
          call('ZADD', S .. 'total-index', 1000, 'y') call('ZADD', S .. 'nodes', 'inf', 'y')
          call('SADD', S .. 'spaces', 'a b', '\255')",
        r"call('HSET', S .. 'beat:default', '10.0.0.1:1', 'x') call('HSET', S .. 'meta:default', '10.0.0.1:1', 'x')",
        r"call('HSET', S .. 'totals', 'default 10.0.0.1:1', 'x')",
        r"call('HSET', S .. 'totals', 'default 10.0.0.1:1', '1e300')",
        r"for _, key in ipairs(call('KEYS', S .. 'counts:*')) do call('HSET', key, 'default 10.0.0.1:1', 'nan', 'z', 'z') end",
        r"call('SET', S .. 'version', 'x')",
        r"call('SET', S .. 'beat-seq', 'nan') call('SET', S .. 'total-seq', 'inf')",
        r"call('SET', S .. 'floor', 'x') call('ZADD', S .. 'graves', 1, 'x', 1, 'default 10.0.0.1:1')",
        r"call('SET', S .. 'run', 'x')",
        r"call('SET', S .. 'lease', 'x')",
    ];
    let mut sim = joined();
    let flight = sim.nodes[0].take("default").unwrap().0;
    sim.run(3 * INTERVAL);
    for write in rubbish {
        let script =
            format!("local call, S = redis.call, ARGV[1] .. ':sync:' {write} return 'true'");
        sim.eval(&script).unwrap();
        sim.nodes[1].restart();
        for i in 0..2 {
            sim.nodes[i].refresh(A);
            sim.nodes[i].set_weight(A, 4 + i as u32);
        }
        sim.works();
        let said: Vec<_> = sim.nodes.iter().flat_map(|n| n.lines.iter()).collect();
        assert!(said.iter().all(|(level, _)| *level != Level::Error), "{write}: {said:#?}");
        assert!(said.len() < 10, "{write}: {said:#?}");
        sim.nodes.iter_mut().for_each(|node| node.lines.clear());
    }
    sim.nodes[0].release(flight);
}

#[test]
fn private_keys_of_a_wrong_type_are_made_anew() {
    let mut sim = joined();
    let keys = [
        "epoch",
        "wiped",
        "run",
        "process",
        "loss",
        "version",
        "floor",
        "records",
        "index",
        "graves",
        "beat-seq",
        "beat-index",
        "total-seq",
        "totals",
        "total-index",
        "nodes",
        "spaces",
        "lease",
        "meta:default",
        "beat:default",
    ];
    for (i, key) in keys.into_iter().enumerate() {
        let key = format!("upstream:sync:{key}");
        sim.redis.cli(&["DEL", &key]);
        if i % 2 == 0 || sim.redis.cli(&["TYPE", &key]) == "string" {
            sim.redis.cli(&["RPUSH", &key, "x"]);
        } else {
            sim.redis.cli(&["HSET", &key, "x", "y"]);
        }
        sim.works();
        assert!(sim.warnings().len() <= 8, "{key}: {:#?}", sim.warnings());
        sim.nodes.iter_mut().for_each(|node| node.lines.clear());
    }
    sim.settle();
    sim.agree();
}

#[test]
fn changes_are_kept_while_redis_is_out_of_memory_or_read_only() {
    let mut sim = joined();
    let commands: [[&[&str]; 2]; 2] = [
        [&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]],
        [&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]],
    ];
    for (i, [on, off]) in commands.iter().enumerate() {
        assert_eq!(sim.redis.cli(on), "OK");
        sim.nodes[0].add(NEW, Some(3), None);
        assert!(sim.nodes[1].set_weight(A, 5 + i as u32));
        sim.run(10 * INTERVAL);
        assert!(sim.nodes[0].queued() > 0 && sim.nodes[1].queued() > 0);
        assert!(!sim.nodes[1].has(NEW));
        assert_eq!(sim.redis.cli(off), "OK");
        sim.settle();
        sim.agree();
        assert!(sim.nodes[1].has(NEW));
        assert_eq!(sim.nodes[0].view(A).unwrap().weight, 5 + i as u32);
        assert!(sim.nodes[1].remove(NEW));
        sim.settle();
        for node in &mut sim.nodes {
            assert_eq!(node.said(Level::Error, "can't be used"), 1, "{:#?}", node.lines);
            assert_eq!(node.said(Level::Notice, "is used again"), 1, "{:#?}", node.lines);
            node.lines.clear();
        }
    }
}

#[test]
fn a_user_needs_no_more_than_the_readme_says() {
    let readme = include_str!("../../../../README.md");
    let rules = readme.lines().find_map(|line| line.strip_prefix("ACL SETUSER registry ")).unwrap();
    // INFO is one that many do not like to give: it is done without, and refused once a connection.
    for info in ["+info", ""] {
        let redis = Server::start(&[]);
        let rules = rules.replace(">PASSWORD", ">secret").replace("+info", info);
        let mut command = vec!["ACL", "SETUSER", "registry"];
        command.extend(rules.split_whitespace());
        assert_eq!(redis.cli(&command), "OK");
        let url = format!("redis://registry:secret@127.0.0.1:{}/0", redis.port());
        let mut sim = Sim::at(&url, redis, 2);
        sim.nodes[0].add(A, None, None);
        sim.nodes[1].add(B, None, None);
        sim.settle();
        let flight = sim.nodes[0].take("default").unwrap().0;
        sim.redis.cli(&["HSET", "upstream:servers:meta", "10.0.0.3:1", "{}"]);
        sim.run(4 * INTERVAL);
        sim.works();
        sim.redis.cli(&["DEL", "upstream:sync:run", "upstream:servers:meta"]);
        sim.run(4 * INTERVAL);
        sim.works();
        sim.nodes[0].release(flight);
        let denied = sim.redis.cli(&["ACL", "LOG"]);
        assert_eq!(denied.is_empty(), !info.is_empty(), "{denied}");
    }
}
