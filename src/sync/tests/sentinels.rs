//! The master that sentinels name.

use super::hearing::Ear;
use super::*;

/// A master, its replica, and a sentinel that watches them.
fn watched() -> (Server, Server, Server) {
    let master = Server::start(&[]);
    let of = format!("127.0.0.1 {}", master.port());
    let replica = Server::start(&["--replicaof", &of]);
    wait_until("the replica is up", || replica.cli(&["INFO"]).contains("master_link_status:up"));
    let lines = "sentinel down-after-milliseconds m 500\nsentinel failover-timeout m 3000\n";
    let sentinel = Server::start_sentinel(&[("m", master.port())], lines);
    wait_until("the sentinel knows the replica", || {
        sentinel.cli(&["SENTINEL", "MASTER", "m"]).contains("num-slaves\n1\n")
    });
    (master, replica, sentinel)
}

#[test]
fn after_a_failover_the_new_master_is_found() {
    let (mut master, replica, sentinel) = watched();
    // The first sentinel is one that is gone.
    let url =
        format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{}/m/2", free_port(), sentinel.port());
    let mut link = open(&url).unwrap();
    assert_eq!(link.server(), format!("127.0.0.1:{}", master.port()));
    put(&mut link, b"before").unwrap();
    wait_until("it is copied", || replica.cli(&["-n", "2", "GET", "{k}"]) == "before");
    let ear = Ear::open(&url, PATIENCE);
    ear.hears(b"");
    master.kill();
    assert!(error_of(put(&mut link, b"v")).is_lost());
    let mut link = None;
    wait_until("there is a new master", || {
        link = open(&url).ok();
        link.is_some()
    });
    let mut link = link.unwrap();
    assert_eq!(link.server(), format!("127.0.0.1:{}", replica.port()));
    put(&mut link, b"after").unwrap();
    ear.hears(b"");
    replica.cli(&["PUBLISH", "c", "there"]);
    ear.hears(b"there");
    ear.stop();
    // Told to be a replica, as a master that comes back is: lost, and not found as a master.
    let of = free_port().to_string();
    replica.cli(&["CONFIG", "SET", "replica-read-only", "yes"]);
    replica.cli(&["REPLICAOF", "127.0.0.1", &of]);
    assert!(error_of(put(&mut link, b"v")).is_lost());
    let error = error_of(open(&url));
    assert!(matches!(error, LinkError::NotMaster(_)), "{error}");
}

#[test]
fn a_service_that_nobody_knows_and_sentinels_that_are_gone_are_named() {
    let master = Server::start(&[]);
    let sentinel = Server::start_sentinel(&[("m", master.port())], "");
    let (port, gone) = (sentinel.port(), free_port());
    works(&format!("redis+sentinel://127.0.0.1:{port}/m"));
    let error = error_of(open(&format!("redis+sentinel://127.0.0.1:{port},127.0.0.1:{gone}/x")));
    assert!(matches!(&error, LinkError::UnknownService(name) if name == "x"), "{error}");
    let error = error_of(open(&format!("redis+sentinel://127.0.0.1:{gone}/m")));
    assert!(matches!(error, LinkError::NoSentinel(_)), "{error}");
    // A server that is no sentinel.
    let error = error_of(open(&format!("redis+sentinel://127.0.0.1:{}/m", master.port())));
    assert!(matches!(error, LinkError::NoSentinel(_)), "{error}");
}

#[test]
fn sentinels_and_servers_have_logins_of_their_own() {
    let master = Server::start(&["--requirepass", "outer"]);
    let lines = "sentinel auth-pass m outer\nrequirepass inner\n";
    let sentinel = Server::start_sentinel(&[("m", master.port())], lines);
    let at = format!("127.0.0.1:{}/m", sentinel.port());
    works(&format!("redis+sentinel://:outer@{at}?sentinel_password=inner"));
    let error = error_of(open(&format!("redis+sentinel://:outer@{at}")));
    assert!(
        matches!(&error, LinkError::NoSentinel(why) if matches!(**why, LinkError::NeedsLogin)),
        "{error}"
    );
    let error = error_of(open(&format!("redis+sentinel://:bad@{at}?sentinel_password=inner")));
    assert!(matches!(error, LinkError::Login), "{error}");
}

#[test]
fn each_sentinel_that_hangs_takes_one_timeout() {
    let master = Server::start(&[]);
    let sentinel = Server::start_sentinel(&[("m", master.port())], "");
    let hung = Server::start(&[]);
    hung.pause();
    let hung = hung.port();
    let url = format!("redis+sentinel://127.0.0.1:{hung},127.0.0.1:{}/m", sentinel.port());
    let began = Instant::now();
    Link::open(&Endpoint::parse(&url).unwrap(), SHORT).unwrap();
    let took = began.elapsed();
    assert!(took >= SHORT && took < SHORT * 2, "{took:?}");
}
