//! Whole talks: what is sent, and what is made of the answer, however it is cut into pieces.

mod grpc;
mod http;
mod parse;
mod random;

use std::sync::Arc;

use super::*;
use crate::registry::Trouble;

const PEER: &str = "10.0.0.1:8080";

/// What the line says.
fn check(line: &str) -> Arc<Check> {
    let words: Vec<&str> = line.split_whitespace().collect();
    Arc::new(Check::parse(&words).unwrap_or_else(|e| panic!("{line}: {e}")).unwrap())
}

/// How a talk ends in which these pieces come, and then the end of the connection; and what was sent
/// in turn.
fn hear<'a>(check: &Arc<Check>, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Verdict, Vec<u8>) {
    let (mut talk, _) = Talk::open(check, PEER, None);
    assert_eq!(talk.connected(), None);
    let mut out = Vec::new();
    for piece in pieces {
        if let Some(verdict) = talk.received(piece, &mut out) {
            assert_eq!(talk.received(b"more", &mut out), Some(verdict), "it stays so");
            assert_eq!(talk.closed(), verdict, "it stays so");
            return (verdict, out);
        }
    }
    (talk.closed(), out)
}

/// The verdict on an answer that comes at once. Cut in two at any byte, and in pieces of one byte, it
/// must be the same, and so must be what is sent in turn.
fn judge(check: &Arc<Check>, answer: &[u8]) -> Verdict {
    let whole = hear(check, [answer]);
    assert_eq!(hear(check, answer.chunks(1)), whole, "byte by byte");
    let step = (answer.len() / 1000).max(1);
    for at in (0..answer.len()).step_by(step) {
        let (a, b) = answer.split_at(at);
        assert_eq!(hear(check, [a, b]), whole, "cut at {at}");
    }
    whole.0
}

/// Whether a talk judges as soon as these bytes are there, without the end of the connection.
fn at_once(check: &Arc<Check>, answer: &[u8]) -> Option<Verdict> {
    let (mut talk, _) = Talk::open(check, PEER, None);
    talk.received(answer, &mut Vec::new())
}

#[test]
fn tcp_is_done_with_the_connection() {
    let (mut talk, request) = Talk::open(&check("type=tcp"), PEER, Some("/path"));
    assert_eq!(request, b"");
    assert_eq!(talk.connected(), Some(Ok(())));
    assert_eq!(talk.closed(), Ok(()));
}

#[test]
fn only_https_needs_a_handshake() {
    for kind in Kind::ALL {
        assert_eq!(kind.is_tls(), kind == Kind::Https);
    }
}

#[test]
fn a_connection_that_ends_too_early_is_closed() {
    for line in ["type=http", "type=https", "type=grpc"] {
        assert_eq!(judge(&check(line), b""), Err(Trouble::Closed), "{line}");
    }
}
