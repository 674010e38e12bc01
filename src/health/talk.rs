//! One check of one server.

use std::sync::Arc;

use super::{Check, Kind, Verdict, grpc, http};
use crate::registry::Trouble;

/// One talk with a server, without its socket. Once it has judged it reads nothing more, and says
/// the same again.
#[derive(Debug)]
pub struct Talk {
    check: Arc<Check>,
    answer: Answer,
    verdict: Option<Verdict>,
}

/// What has come of the answer.
#[derive(Debug)]
enum Answer {
    Tcp,
    Http(http::Answer),
    Grpc(grpc::Answer),
}

impl Talk {
    /// Begins a talk with the server of the printed address `peer`: `HOST:PORT`, `[IPV6]:PORT` or
    /// `unix:PATH`. `path` is asked for instead of the check's `uri`, if it can be (see
    /// [`Check::is_uri`]); only HTTP asks for one. What comes with it is to be sent first, behind the
    /// TLS handshake if there is one; with `tcp` it is empty.
    pub fn open(check: &Arc<Check>, peer: &str, path: Option<&str>) -> (Self, Vec<u8>) {
        let authority = check.authority(peer);
        let (answer, request) = match check.kind {
            Kind::Http | Kind::Https => {
                let path = path.filter(|path| Check::is_uri(path)).unwrap_or(&check.uri);
                (Answer::Http(http::Answer::default()), http::request(path, &authority))
            }
            Kind::Tcp => (Answer::Tcp, Vec::new()),
            Kind::Grpc => {
                (Answer::Grpc(grpc::Answer::default()), grpc::request(&authority, &check.service))
            }
        };
        (Self { check: Arc::clone(check), answer, verdict: None }, request)
    }

    /// The connection is made, and its TLS handshake done. `Some`: that was all.
    pub fn connected(&mut self) -> Option<Verdict> {
        if matches!(self.answer, Answer::Tcp) {
            self.verdict = Some(Ok(()));
        }
        self.verdict
    }

    /// Bytes came; what is to be sent in turn is added to `out`. `Some`: judged, nothing more is to
    /// be read.
    pub fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Option<Verdict> {
        if self.verdict.is_none() {
            self.verdict = match &mut self.answer {
                // It would not speak without being connected.
                Answer::Tcp => Some(Ok(())),
                Answer::Http(answer) => answer.received(&self.check, bytes),
                Answer::Grpc(answer) => answer.received(bytes, out),
            };
        }
        self.verdict
    }

    /// The server closed the connection.
    pub fn closed(&mut self) -> Verdict {
        let verdict = self.verdict.unwrap_or_else(|| match &mut self.answer {
            Answer::Http(answer) => answer.closed(&self.check),
            Answer::Tcp | Answer::Grpc(_) => Err(Trouble::Closed),
        });
        self.verdict = Some(verdict);
        verdict
    }

    /// Bytes of memory that it holds for what came, at most.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        match &self.answer {
            Answer::Tcp => 0,
            Answer::Http(answer) => answer.held(),
            Answer::Grpc(answer) => answer.held(),
        }
    }
}
