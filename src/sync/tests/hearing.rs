//! What is published.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{Builder, JoinHandle};

use socket2::{Domain, Socket, Type};

use super::*;

/// A listener, what it hears, and its thread.
pub(super) struct Ear {
    listener: Listener,
    heard: Receiver<Vec<u8>>,
    thread: JoinHandle<()>,
}

impl Ear {
    pub(super) fn open(url: &str, timeout: Duration) -> Self {
        let (sender, heard) = channel();
        let mut thread = None;
        let listener = Listener::start(
            Endpoint::parse(url).unwrap(),
            "c",
            timeout,
            |run| {
                thread = Some(Builder::new().spawn(run)?);
                Ok(())
            },
            move |payload| drop(sender.send(payload.to_vec())),
        );
        Self { listener: listener.unwrap(), heard, thread: thread.unwrap() }
    }

    pub(super) fn hears(&self, payload: &[u8]) {
        let heard = self.heard.recv_timeout(Duration::from_secs(20));
        assert_eq!(heard.expect("nothing is heard"), payload);
    }

    /// Ends it; it must not take long.
    pub(super) fn stop(self) {
        let began = Instant::now();
        drop(self.listener);
        assert!(began.elapsed() < Duration::from_millis(50));
        self.thread.join().unwrap();
        assert!(began.elapsed() < Duration::from_millis(300), "{:?}", began.elapsed());
    }
}

#[test]
fn what_is_published_is_heard_and_the_end_comes_at_once() {
    let server = Server::start(&[]);
    for url in [server.url(), format!("unix:{}", server.socket().display())] {
        let ear = Ear::open(&url, PATIENCE);
        ear.hears(b"");
        assert_eq!(ear.listener.trouble(), None);
        for payload in ["one", "two", &"x".repeat(100_000)] {
            assert_eq!(server.cli(&["PUBLISH", "c", payload]), "1");
            ear.hears(payload.as_bytes());
        }
        server.cli(&["PUBLISH", "other", "not this"]);
        server.cli(&["PUBLISH", "c", "three"]);
        ear.hears(b"three");
        ear.stop();
    }
}

#[test]
fn after_a_restart_it_is_subscribed_again_and_says_so() {
    let mut server = Server::start(&[]);
    let ear = Ear::open(&server.url(), PATIENCE);
    ear.hears(b"");
    server.kill();
    wait_until("it is noticed", || {
        ear.listener.trouble().is_some_and(|deaf| deaf.why.contains("can't connect"))
    });
    server.start_again();
    ear.hears(b"");
    assert_eq!(ear.listener.trouble(), None);
    server.cli(&["PUBLISH", "c", "again"]);
    ear.hears(b"again");
    ear.stop();
}

#[test]
fn a_user_that_may_not_listen_is_trouble_and_stops_at_once() {
    let rules = "--user u on >p ~* +@all resetchannels";
    let server = Server::start(&rules.split(' ').collect::<Vec<_>>());
    let ear = Ear::open(&format!("redis://u:p@127.0.0.1:{}", server.port()), PATIENCE);
    wait_until("it is refused", || ear.listener.trouble().is_some());
    assert!(ear.listener.trouble().unwrap().why.contains("permission (ACL)"));
    let again = |deaf: Deaf| deaf.attempts > 2;
    wait_until("it has tried again", || ear.listener.trouble().is_some_and(again));
    // It waits for its next attempt.
    ear.stop();
}

#[test]
fn it_stops_while_a_server_does_not_answer() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ear = Ear::open(&format!("redis://{}", silent.local_addr().unwrap()), PATIENCE);
    let _connection = silent.accept().unwrap();
    ear.stop();
}

#[test]
fn it_stops_while_it_connects() {
    // With one connection in a queue of one, the next is never answered.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let at = full.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(at).unwrap();
    let ear = Ear::open(&format!("redis://{at}"), PATIENCE);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(ear.listener.trouble(), None);
    ear.stop();
}

/// A server in a test's hands: takes a connection and reads what comes first.
fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
    let (stream, _) = listener.accept().unwrap();
    let mut stream = BufReader::new(stream);
    expect(&mut stream, "PING");
    stream.get_mut().write_all(b"+PONG\r\n").unwrap();
    expect(&mut stream, "SUBSCRIBE");
    expect(&mut stream, "c");
    stream.get_mut().write_all(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n").unwrap();
    stream
}

/// Reads up to that word.
fn expect(stream: &mut BufReader<TcpStream>, word: &str) {
    let mut line = String::new();
    while line.trim_end() != word {
        line.clear();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0, "{word} does not come");
    }
}

#[test]
fn a_message_in_pieces_survives_the_question_for_a_sign_of_life() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    // Silence is looked after every five seconds: five times the shortest that counts.
    let ear = Ear::open(&url, SHORT);
    let mut stream = accept(&listener);
    ear.hears(b"");
    stream.get_mut().write_all(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhe").unwrap();
    expect(&mut stream, "PING");
    stream.get_mut().write_all(b"llo\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n").unwrap();
    ear.hears(b"hello");
    // The next question stays without an answer.
    expect(&mut stream, "PING");
    let mut second = accept(&listener);
    ear.hears(b"");
    second.get_mut().write_all(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$3\r\nnew\r\n").unwrap();
    ear.hears(b"new");
    ear.stop();
}

#[test]
fn a_message_that_is_too_long_ends_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ear = Ear::open(&format!("redis://{}", listener.local_addr().unwrap()), PATIENCE);
    let mut stream = accept(&listener);
    ear.hears(b"");
    let head = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$100000000\r\n";
    let _ = stream.get_mut().write_all(head);
    let _ = stream.get_mut().write_all(&vec![b'x'; 8 << 20]);
    // Much sooner than silence would be noticed.
    stream.get_mut().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let end = stream.read(&mut [0; 1]).map_err(|error| error.kind());
    assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{end:?}");
    let _second = accept(&listener);
    ear.hears(b"");
    ear.stop();
}
