//! One server: the ways in, and answers that do not come.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use super::*;

#[test]
fn a_server_is_reached_by_tcp_and_by_its_socket() {
    let server = Server::start(&[]);
    works(&server.url());
    works(&format!("unix:{}", server.socket().display()));
    works(&format!("redis://localhost:{}", server.port()));
    assert_eq!(server.cli(&["GET", "{k}"]), "v");
}

#[test]
fn arguments_and_answers_are_bytes() {
    let server = Server::start(&[]);
    let mut link = open(&server.url()).unwrap();
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_eq!(put(&mut link, &all).unwrap(), [b"{k}=", all.as_slice()].concat());
    assert_eq!(put(&mut link, b"").unwrap(), b"{k}=");
}

#[test]
fn another_database_is_selected() {
    let server = Server::start(&[]);
    works(&format!("redis://127.0.0.1:{}/5", server.port()));
    works(&format!("unix:{}?db=6", server.socket().display()));
    let has = |db| server.cli(&["-n", db, "EXISTS", "{k}"]);
    assert_eq!([has("0"), has("5"), has("6")], ["0", "1", "1"]);
    let error = error_of(open(&format!("redis://127.0.0.1:{}/16", server.port())));
    assert_eq!(error.to_string(), "it has no database 16");
}

#[test]
fn a_password_lets_in() {
    let server = Server::start(&["--requirepass", "s/cret"]);
    let at = format!("127.0.0.1:{}", server.port());
    works(&format!("redis://:s%2Fcret@{at}"));
    works(&format!("redis://default:s%2Fcret@{at}/3"));
    works(&format!("unix:{}?pass=s/cret", server.socket().display()));
    for login in [":wrong@", "default:wrong@", "nobody:s%2Fcret@"] {
        let error = error_of(open(&format!("redis://{login}{at}/3")));
        assert!(matches!(error, LinkError::Login) && error.is_lost(), "{login} {error}");
    }
    let error = error_of(open(&format!("redis://{at}")));
    assert!(matches!(error, LinkError::NeedsLogin), "{error}");
    let error = error_of(open(&format!("redis://{at}/3")));
    assert!(matches!(error, LinkError::NeedsLogin), "{error}");
}

#[test]
fn a_password_that_nobody_wants_is_said_to_be_too_much() {
    let server = Server::start(&[]);
    let error = error_of(open(&format!("redis://:secret@127.0.0.1:{}", server.port())));
    assert!(matches!(error, LinkError::NeedsNoLogin), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn a_user_is_let_in_and_kept_to_what_it_may_do() {
    let rules = "--user worker on >pass ~{k} +evalsha +script +set";
    let server = Server::start(&rules.split(' ').collect::<Vec<_>>());
    let at = format!("worker:pass@127.0.0.1:{}", server.port());
    // It may not even PING.
    works(&format!("redis://{at}"));
    let mut link = open(&format!("redis://{at}")).unwrap();
    let error = error_of(link.eval(&Script::new(PUT), "other", b""));
    assert!(matches!(error, LinkError::NoPermission(_)) && !error.is_lost(), "{error}");
    assert!(put(&mut link, b"again").is_ok());
}

#[test]
fn a_script_is_sent_again_when_the_server_has_forgotten_it() {
    let server = Server::start(&[]);
    let mut link = open(&server.url()).unwrap();
    put(&mut link, b"1").unwrap();
    server.cli(&["SCRIPT", "FLUSH"]);
    put(&mut link, b"2").unwrap();
    assert_eq!(server.cli(&["GET", "{k}"]), "2");
    let loaded = server.cli(&["INFO", "commandstats"]);
    assert!(loaded.contains("cmdstat_script|load:calls=2,"), "{loaded}");
}

#[test]
fn a_closed_port_and_a_missing_socket_are_named() {
    let port = free_port();
    let error = error_of(open(&format!("redis://127.0.0.1:{port}")));
    let text = error.to_string();
    assert!(text.starts_with(&format!("can't connect to 127.0.0.1:{port}: ")), "{text}");
    assert!(error.is_lost());
    let error = error_of(open("unix:/nonexistent/redis.sock"));
    assert!(error.to_string().starts_with("can't connect to unix:/nonexistent/redis.sock: "));
    let error = error_of(open("redis://nosuchhost.invalid"));
    assert!(error.to_string().starts_with("no address for \"nosuchhost.invalid\": "), "{error}");
}

#[test]
fn a_server_that_says_nothing_takes_one_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    // With a login and a database there would be three answers to wait for, with TLS a handshake.
    for (url, what) in [
        (format!("redis://u:p@{at}/3"), ""),
        (format!("redis://{at}"), ""),
        (format!("rediss://u:p@{at}/3"), "TLS with "),
    ] {
        let endpoint = Endpoint::parse(&url).unwrap();
        let error = times_out(SHORT, || Link::open(&endpoint, SHORT));
        assert_eq!(error.to_string(), format!("{what}{at} timed out after 400 ms"));
    }
}

#[test]
fn a_server_that_hangs_takes_one_timeout_and_loses_the_link() {
    let server = Server::start(&[]);
    for url in [server.url(), format!("unix:{}", server.socket().display())] {
        let endpoint = Endpoint::parse(&url).unwrap();
        let mut link = Link::open(&endpoint, SHORT).unwrap();
        put(&mut link, b"before").unwrap();
        server.pause();
        times_out(SHORT, || put(&mut link, b"late"));
        times_out(SHORT, || Link::open(&endpoint, SHORT));
        server.resume();
        // The answer to "late" must not be taken for this one's.
        assert!(matches!(error_of(put(&mut link, b"x")), LinkError::Lost));
        works(&url);
    }
}

#[test]
fn a_unix_socket_with_a_full_queue_takes_one_timeout() {
    let server = Server::start(&["--tcp-backlog", "2"]);
    let endpoint = Endpoint::parse(&format!("unix:{}", server.socket().display())).unwrap();
    server.pause();
    let short = Duration::from_millis(150);
    for _ in 0..6 {
        times_out(short, || Link::open(&endpoint, short));
    }
    server.resume();
    works_at(&endpoint);
}

#[test]
fn a_server_that_goes_away_loses_the_link() {
    let mut server = Server::start(&[]);
    let mut link = open(&server.url()).unwrap();
    server.kill();
    let error = error_of(put(&mut link, b"v"));
    assert!(matches!(error, LinkError::Closed { .. }) && error.is_lost(), "{error}");
    server.start_again();
    assert!(matches!(error_of(put(&mut link, b"v")), LinkError::Lost));
    works(&server.url());
}

#[test]
fn something_else_than_redis_is_said_to_be_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 100]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let error = error_of(open(&format!("redis://{at}")));
    assert!(matches!(error, LinkError::Protocol { .. }), "{error}");
}

#[test]
fn data_outlive_a_stop_in_good_order() {
    let mut server = Server::start(&[]);
    works(&server.url());
    server.stop_and_keep_data();
    server.start_again();
    assert_eq!(server.cli(&["GET", "{k}"]), "v");
}

#[test]
fn whoever_waits_is_stopped_at_once() {
    let server = Server::start(&[]);
    let endpoint = Endpoint::parse(&server.url()).unwrap();
    let stop = Stop::new();
    let mut link = Link::open_until(&endpoint, PATIENCE, &stop).unwrap();
    server.pause();
    let thread = thread::spawn(move || (error_of(put(&mut link, b"v")), Instant::now()));
    // It is sooner or later waiting; it must be stopped in either case.
    thread::sleep(Duration::from_millis(50));
    let stopped = Instant::now();
    stop.stop();
    let (error, ended) = thread.join().unwrap();
    assert!(matches!(error, LinkError::Stopped), "{error}");
    assert!(ended - stopped < Duration::from_millis(300));
    let error = error_of(Link::open_until(&endpoint, PATIENCE, &stop));
    assert!(matches!(error, LinkError::Stopped), "{error}");
}
