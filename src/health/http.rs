//! Checks by HTTP/1.1: the request, and the head of the answer.

use super::body::{Body, Chunks, Framing};
use super::{Check, Verdict};
use crate::registry::Trouble;

/// Longest head of an answer, in bytes.
const HEAD_MAX: usize = 8 * 1024;

/// Most fields of a head.
const FIELDS_MAX: usize = 256;

/// Most interim answers (100 Continue and the like) before the final one.
const INTERIM_MAX: u8 = 8;

/// How each answer begins.
const START: &[u8] = b"HTTP/1.";

pub(super) fn request(uri: &str, host: &str) -> Vec<u8> {
    format!(
        "GET {uri} HTTP/1.1\r\n\
         Host: {host}\r\n\
         User-Agent: ngx-upstream-registry (health check)\r\n\
         Accept: */*\r\n\
         Connection: close\r\n\
         \r\n"
    )
    .into_bytes()
}

/// What has come of an answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The head so far.
    head: Vec<u8>,
    /// So much of it has no end of a line that was not seen.
    looked: usize,
    /// How many interim answers came.
    interim: u8,
    /// What comes behind the head, when there is something to know about it.
    body: Option<Body>,
}

/// What the bytes of a head are.
enum Found {
    /// Not all of it.
    Part,
    /// An interim answer of so many bytes.
    Interim(usize),
    /// A head of so many bytes.
    Head(usize, u16, Framing),
}

impl Answer {
    pub(super) fn received(&mut self, check: &Check, mut bytes: &[u8]) -> Option<Verdict> {
        loop {
            if let Some((body, rule)) = self.body.as_mut().zip(check.body.as_ref()) {
                return body.received(rule, bytes);
            }
            self.fill(&mut bytes);
            match self.look() {
                Err(trouble) => return Some(Err(trouble)),
                Ok(Found::Part) if self.head.len() == HEAD_MAX => {
                    return Some(Err(Trouble::TooLong));
                }
                Ok(Found::Part) => return None,
                Ok(Found::Interim(_)) if self.interim == INTERIM_MAX => {
                    return Some(Err(Trouble::TooLong));
                }
                Ok(Found::Interim(length)) => {
                    self.head.drain(..length);
                    self.looked = 0;
                    self.interim += 1;
                }
                Ok(Found::Head(_, status, _)) if !check.status.contains(status) => {
                    return Some(Err(Trouble::Status(status)));
                }
                Ok(Found::Head(length, _, framing)) => {
                    let Some(rule) = &check.body else { return Some(Ok(())) };
                    let head = std::mem::take(&mut self.head);
                    let body = self.body.insert(Body::new(framing));
                    let verdict = body.received(rule, &head[length..]);
                    if verdict.is_some() {
                        return verdict;
                    }
                }
            }
        }
    }

    /// The server closed the connection.
    pub(super) fn closed(&mut self, check: &Check) -> Verdict {
        match self.body.as_mut().zip(check.body.as_ref()) {
            Some((body, rule)) => body.closed(rule),
            None => Err(Trouble::Closed),
        }
    }

    /// Takes as much as a head may have.
    fn fill(&mut self, bytes: &mut &[u8]) {
        let room = HEAD_MAX - self.head.len();
        let (now, rest) = bytes.split_at(room.min(bytes.len()));
        let length = self.head.len() + now.len();
        if length > self.head.capacity() {
            let capacity = length.max(2 * self.head.capacity()).min(HEAD_MAX);
            self.head.reserve_exact(capacity - self.head.len());
        }
        self.head.extend_from_slice(now);
        *bytes = rest;
    }

    /// Reads the head as far as it is there, anew with each line that came: whole lines only, so
    /// that it does not matter where the pieces end.
    fn look(&mut self) -> Result<Found, Trouble> {
        let start = self.head.len().min(START.len());
        if self.head[..start] != START[..start] {
            return Err(Trouble::Garbage);
        }
        let fresh = &self.head[self.looked..];
        let Some(at) = fresh.iter().rposition(|b| *b == b'\n') else {
            self.looked = self.head.len();
            return Ok(Found::Part);
        };
        let lines = &self.head[..self.looked + at + 1];
        self.looked = self.head.len();

        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        // As nginx, which would pass such a line on.
        let mut parser = httparse::ParserConfig::default();
        parser.ignore_invalid_headers_in_responses(true);
        let length = match parser.parse_response(&mut response, lines) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(Found::Part),
            Err(httparse::Error::TooManyHeaders) => return Err(Trouble::TooLong),
            Err(_) => return Err(Trouble::Garbage),
        };
        match response.code {
            // Who switches protocols says nothing more in this one.
            Some(100 | 102..=199) => Ok(Found::Interim(length)),
            Some(status @ (101 | 200..)) => {
                Ok(Found::Head(length, status, framing(status, response.headers)?))
            }
            _ => Err(Trouble::Garbage),
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.head.capacity() + self.body.as_ref().map_or(0, Body::held)
    }
}

/// Where the body ends (RFC 9112, section 6.3).
fn framing(status: u16, fields: &[httparse::Header<'_>]) -> Result<Framing, Trouble> {
    if matches!(status, 101 | 204 | 304) {
        return Ok(Framing::Length(0));
    }
    let of = |name: &'static str| {
        let named = fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii())
    };
    if let Some(codings) = of("transfer-encoding").next_back() {
        let last = codings.rsplit(|b| *b == b',').next().unwrap_or_default();
        return Ok(if last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            Framing::Chunked(Chunks::default())
        } else {
            Framing::Close
        });
    }
    let mut lengths = of("content-length");
    let Some(first) = lengths.next() else { return Ok(Framing::Close) };
    let digits = first.iter().all(u8::is_ascii_digit) && lengths.all(|other| other == first);
    let length = str::from_utf8(first).ok().and_then(|text| text.parse().ok());
    length.filter(|_| digits).map(Framing::Length).ok_or(Trouble::Garbage)
}
