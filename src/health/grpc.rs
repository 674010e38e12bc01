//! Checks by gRPC's health protocol: one call of `grpc.health.v1.Health/Check`, on one stream of an
//! HTTP/2 connection that the server expects (RFC 9113, section 3.3).

use super::{Verdict, hpack};
use crate::registry::Trouble;

/// Longest frame, in bytes: what HTTP/2 has when nothing else is announced.
const FRAME_MAX: usize = 16 * 1024;

/// The head of each frame.
const FRAME_HEAD: usize = 9;

/// Most frames of one answer: a handful is usual.
const FRAMES_MAX: u16 = 1000;

/// Longest header block.
const BLOCK_MAX: usize = 16 * 1024;

/// Longest `HealthCheckResponse`, whose only field takes two bytes.
const MESSAGE_MAX: usize = 1024;

/// What stands before a message: whether it is compressed, and its length in four bytes.
const MESSAGE_HEAD: usize = 5;

/// Our one stream.
const STREAM: u32 = 1;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const CONTINUATION: u8 = 9;
}

mod flag {
    pub(super) const END_STREAM: u8 = 0x1;
    pub(super) const ACK: u8 = 0x1;
    pub(super) const END_HEADERS: u8 = 0x4;
    pub(super) const PADDED: u8 = 0x8;
    pub(super) const PRIORITY: u8 = 0x20;
}

/// All that is ever sent unasked. The answer's window is never opened: 64k are more than it may have.
pub(super) fn request(authority: &str, service: &str) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // No table for headers, and no push.
    frame(&mut out, kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);

    // :method POST and :scheme http stand in HPACK's table; the others are literals that no table
    // takes, most with a name of the table.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (&b"\x04"[..], "/grpc.health.v1.Health/Check"),
        (b"\x01", authority),
        (b"\x00\x02te", "trailers"),
        (b"\x0f\x10", "application/grpc"),
        (b"\x0f\x2b", "ngx-upstream-registry (health check)"),
    ] {
        block.extend_from_slice(name);
        string(&mut block, value);
    }
    frame(&mut out, kind::HEADERS, flag::END_HEADERS, STREAM, &block);

    // HealthCheckRequest { service = 1 }
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        length(&mut message, service.len());
        message.extend_from_slice(service.as_bytes());
    }
    let mut data = vec![0];
    data.extend_from_slice(&(message.len() as u32).to_be_bytes());
    data.extend_from_slice(&message);
    frame(&mut out, kind::DATA, flag::END_STREAM, STREAM, &data);
    out
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A string of HPACK, plain.
fn string(block: &mut Vec<u8>, text: &str) {
    if text.len() < 127 {
        block.push(text.len() as u8);
    } else {
        block.push(127);
        length(block, text.len() - 127);
    }
    block.extend_from_slice(text.as_bytes());
}

/// A number in groups of seven bits, the last first, as HPACK and protobuf have it.
fn length(out: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// What has come of an answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The frame that is coming.
    frame: Vec<u8>,
    frames: u16,
    /// A header block that is coming in several frames, and whether the stream ends with it.
    block: Option<(Vec<u8>, bool)>,
    /// The header fields came, with a status of 200.
    answered: bool,
    /// The message that is coming, with what stands before it.
    message: Vec<u8>,
}

/// A frame without its length.
#[derive(Clone, Copy)]
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

/// `None`: not yet.
type Judged = Result<Option<Verdict>, Trouble>;

impl Answer {
    pub(super) fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Option<Verdict> {
        self.frames(bytes, out).unwrap_or_else(|trouble| Some(Err(trouble)))
    }

    fn frames(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Judged {
        while self.fill(&mut bytes, FRAME_HEAD) {
            let length = self.frame[..3].iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
            if length > FRAME_MAX {
                return Err(Trouble::Garbage);
            }
            if !self.fill(&mut bytes, FRAME_HEAD + length) {
                break;
            }
            let mut raw = std::mem::take(&mut self.frame);
            let stream = raw[5..FRAME_HEAD].iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
            let frame = Frame {
                kind: raw[3],
                flags: raw[4],
                stream: stream & 0x7fff_ffff,
                payload: &raw[FRAME_HEAD..],
            };
            let verdict = self.take(frame, out)?;
            if verdict.is_some() {
                return Ok(verdict);
            }
            raw.clear();
            self.frame = raw;
        }
        Ok(None)
    }

    /// Takes what is missing of the first `whole` bytes of a frame. Whether they are there.
    fn fill(&mut self, bytes: &mut &[u8], whole: usize) -> bool {
        let missing = whole.saturating_sub(self.frame.len());
        let (now, rest) = bytes.split_at(missing.min(bytes.len()));
        self.frame.reserve_exact(missing);
        self.frame.extend_from_slice(now);
        *bytes = rest;
        now.len() == missing
    }

    /// One frame.
    fn take(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Judged {
        let Frame { kind, flags, stream, payload } = frame;
        let ack = flags & flag::ACK != 0;
        let end = flags & flag::END_STREAM != 0;
        // Theirs begins with settings, and nothing comes between the parts of a header block.
        let misplaced = (self.frames == 0 && (kind != kind::SETTINGS || ack))
            || self.block.is_some() != (kind == kind::CONTINUATION);
        if misplaced || self.frames == FRAMES_MAX {
            return Err(Trouble::Garbage);
        }
        self.frames += 1;
        match (kind, stream) {
            (kind::DATA, STREAM) if self.answered => self.data(frame.body()?, end),
            (kind::HEADERS, STREAM) => {
                let mut fragment = frame.body()?;
                if flags & flag::PRIORITY != 0 {
                    fragment = fragment.get(5..).ok_or(Trouble::Garbage)?;
                }
                self.block = Some((Vec::new(), end));
                self.fragment(fragment, flags)
            }
            (kind::CONTINUATION, STREAM) => self.fragment(payload, flags),
            (kind::RST_STREAM, STREAM) if payload.len() == 4 => Err(Trouble::Closed),
            (kind::SETTINGS, 0) if ack && payload.is_empty() => Ok(None),
            (kind::SETTINGS, 0) if !ack && payload.len() % 6 == 0 => {
                self::frame(out, kind::SETTINGS, flag::ACK, 0, &[]);
                Ok(None)
            }
            (kind::PING, 0) if payload.len() == 8 => {
                if !ack {
                    self::frame(out, kind::PING, flag::ACK, 0, payload);
                }
                Ok(None)
            }
            // Streams up to the one that it names are still answered.
            (kind::GOAWAY, 0) if payload.len() >= 8 => {
                let last = payload[..4].iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
                if last & 0x7fff_ffff < STREAM { Err(Trouble::Closed) } else { Ok(None) }
            }
            (
                kind::DATA
                | kind::HEADERS
                | kind::RST_STREAM
                | kind::SETTINGS
                | kind::PUSH_PROMISE
                | kind::PING
                | kind::GOAWAY
                | kind::CONTINUATION,
                _,
            ) => Err(Trouble::Garbage),
            // Windows, priorities, and what is not known here.
            _ => Ok(None),
        }
    }

    /// A part of a header block.
    fn fragment(&mut self, fragment: &[u8], flags: u8) -> Judged {
        let Some((block, end)) = &mut self.block else { return Err(Trouble::Garbage) };
        if block.len() + fragment.len() > BLOCK_MAX {
            return Err(Trouble::TooLong);
        }
        block.reserve_exact(fragment.len());
        block.extend_from_slice(fragment);
        if flags & flag::END_HEADERS == 0 {
            return Ok(None);
        }
        let fields = hpack::read(block).ok_or(Trouble::Garbage)?;
        let end = *end;
        self.block = None;
        self.head(fields, end)
    }

    /// A whole header block: the head of the answer, its trailers, or both in one.
    fn head(&mut self, fields: hpack::Fields, end: bool) -> Judged {
        match fields.status {
            None if self.answered && end => {}
            Some(100..200) if !self.answered && !end => return Ok(None),
            Some(200) if !self.answered => self.answered = true,
            Some(status @ 200..1000) if !self.answered => return Err(Trouble::Status(status)),
            _ => return Err(Trouble::Garbage),
        }
        match fields.grpc_status {
            Some(status @ 1..) => Err(Trouble::Grpc(status.min(99) as u8)),
            // It ends well, and there was no message.
            _ if end => Err(Trouble::Garbage),
            _ => Ok(None),
        }
    }

    /// A part of the message.
    fn data(&mut self, mut data: &[u8], end: bool) -> Judged {
        loop {
            let mut whole = MESSAGE_HEAD;
            if self.message.len() >= MESSAGE_HEAD {
                let length = self.message[1..5].iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
                // We said of no compression that we know it.
                if self.message[0] != 0 || length as usize > MESSAGE_MAX {
                    return Err(Trouble::Garbage);
                }
                whole += length as usize;
                if self.message.len() == whole {
                    break;
                }
            }
            if data.is_empty() {
                return if end { Err(Trouble::Garbage) } else { Ok(None) };
            }
            let missing = whole - self.message.len();
            let (now, rest) = data.split_at(missing.min(data.len()));
            self.message.extend_from_slice(now);
            data = rest;
        }
        match serving_status(&self.message[MESSAGE_HEAD..]).ok_or(Trouble::Garbage)? {
            1 => Ok(Some(Ok(()))),
            other => Err(Trouble::Serving(other.min(9) as u8)),
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let block = self.block.as_ref().map_or(0, |(block, _)| block.capacity());
        self.frame.capacity() + block + self.message.capacity()
    }
}

impl<'a> Frame<'a> {
    /// The payload without its padding.
    fn body(&self) -> Result<&'a [u8], Trouble> {
        if self.flags & flag::PADDED == 0 {
            return Ok(self.payload);
        }
        let (&padding, rest) = self.payload.split_first().ok_or(Trouble::Garbage)?;
        let length = rest.len().checked_sub(padding.into()).ok_or(Trouble::Garbage)?;
        Ok(&rest[..length])
    }
}

/// The `status` of a `HealthCheckResponse` (field 1, an enum; 0 when it is left out), past fields
/// that are not known. `None`: no such message.
fn serving_status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let length = match (tag >> 3, tag & 7) {
            (0, _) => return None,
            (1, 0) => {
                status = varint(&mut message)?;
                0
            }
            (1, _) => return None,
            (_, 0) => {
                varint(&mut message)?;
                0
            }
            (_, 1) => 8,
            (_, 2) => usize::try_from(varint(&mut message)?).ok()?,
            (_, 5) => 4,
            _ => return None,
        };
        message = message.get(length..)?;
    }
    Some(status)
}

/// A number of up to 64 bits.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
