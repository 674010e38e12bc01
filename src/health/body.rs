//! Bodies: where they end, and what must be in them.

use regex::bytes::{Regex, RegexBuilder};

use super::Verdict;
use crate::registry::Trouble;

/// So much of a body is looked at, in bytes.
pub const BODY_MAX: usize = 256 * 1024;

/// A body is matched when it has so many bytes, then when it has grown fourfold, and at its end.
const FIRST_LOOK: usize = 64;

const GROWTH: usize = 4;

/// Most memory that a compiled expression may take, in bytes. A usual one takes a tenth, and a
/// millisecond for all of a body; the worst one of this size takes a second for the worst body, and
/// larger ones more, in proportion.
const REGEX_MAX: usize = 16 * 1024;

/// Longest extensions of a chunk, in bytes.
const EXTENSION_MAX: u16 = 1024;

/// What must be in a body, or must not.
#[derive(Clone, Debug)]
pub struct BodyRule {
    regex: Regex,
    /// False: the expression must not match.
    matches: bool,
    /// What matches the beginning of a body matches all of it, too.
    early: bool,
}

impl BodyRule {
    /// Compiles an expression. It sees bytes, as nginx's do: `.` is one byte and `\w` is ASCII.
    ///
    /// # Errors
    ///
    /// Why it can't be one.
    pub fn new(pattern: &str, matches: bool) -> Result<Self, String> {
        if pattern.is_empty() {
            return Err("the regular expression is missing".to_owned());
        }
        let built = RegexBuilder::new(pattern)
            .unicode(false)
            .size_limit(REGEX_MAX)
            .dfa_size_limit(BODY_MAX)
            .build();
        let regex = built.map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "the regular expression is too large".to_owned(),
            // Several lines, of which the last one says what is wrong.
            other => {
                let text = other.to_string();
                let why = text.rsplit("error: ").next().unwrap_or_default().trim();
                format!("bad regular expression: {why}")
            }
        })?;
        // More text can take a match away only from what looks ahead of it: `$` and these. To find
        // one that is none (in a class, say) costs nothing but the early look.
        let ahead = ["$", r"\b", r"\B", r"\z", r"\<", r"\>"];
        let early = !ahead.iter().any(|sign| pattern.contains(sign));
        Ok(Self { regex, matches, early })
    }

    /// Whether all of a body is as it must be.
    fn judge(&self, text: &[u8]) -> Verdict {
        if self.regex.is_match(text) == self.matches { Ok(()) } else { Err(Trouble::Body) }
    }

    /// The verdict that no further byte can change, if there is one.
    fn foresee(&self, text: &[u8]) -> Option<Verdict> {
        let found = self.early && self.regex.is_match(text);
        found.then_some(if self.matches { Ok(()) } else { Err(Trouble::Body) })
    }
}

/// A body that is coming.
#[derive(Debug)]
pub(super) struct Body {
    framing: Framing,
    text: Vec<u8>,
    /// When it has so many bytes, it is matched.
    look_at: usize,
}

/// Where a body ends.
#[derive(Debug)]
pub(super) enum Framing {
    /// After so many bytes more.
    Length(u64),
    Chunked(Chunks),
    /// With the connection.
    Close,
}

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        Self { framing, text: Vec::new(), look_at: FIRST_LOOK }
    }

    pub(super) fn received(&mut self, rule: &BodyRule, mut bytes: &[u8]) -> Option<Verdict> {
        loop {
            let piece = match &mut self.framing {
                Framing::Length(left) => {
                    if *left == 0 {
                        return Some(rule.judge(&self.text));
                    }
                    let length = usize::try_from(*left).map_or(bytes.len(), |l| l.min(bytes.len()));
                    let (piece, rest) = bytes.split_at(length);
                    bytes = rest;
                    *left -= length as u64;
                    piece
                }
                Framing::Chunked(chunks) => match chunks.next(&mut bytes) {
                    Ok(Part::Data(piece)) => piece,
                    Ok(Part::More) => return None,
                    Ok(Part::End) => return Some(rule.judge(&self.text)),
                    Err(trouble) => return Some(Err(trouble)),
                },
                Framing::Close => std::mem::take(&mut bytes),
            };
            if piece.is_empty() {
                return None;
            }
            let verdict = self.add(rule, piece);
            if verdict.is_some() {
                return verdict;
            }
        }
    }

    /// The server closed the connection.
    pub(super) fn closed(&mut self, rule: &BodyRule) -> Verdict {
        match self.framing {
            Framing::Close => rule.judge(&self.text),
            _ => Err(Trouble::Closed),
        }
    }

    /// Adds to it, and looks at it whenever it has grown enough: so all looks together cost hardly more
    /// than one at the whole, and don't depend on the pieces that it comes in.
    fn add(&mut self, rule: &BodyRule, mut piece: &[u8]) -> Option<Verdict> {
        while !piece.is_empty() {
            let room = self.look_at - self.text.len();
            let (now, rest) = piece.split_at(room.min(piece.len()));
            self.text.reserve_exact(room);
            self.text.extend_from_slice(now);
            piece = rest;
            if self.text.len() == BODY_MAX {
                return Some(rule.judge(&self.text));
            }
            if self.text.len() == self.look_at {
                let verdict = rule.foresee(&self.text);
                if verdict.is_some() {
                    return verdict;
                }
                self.look_at = (self.look_at * GROWTH).min(BODY_MAX);
            }
        }
        None
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.text.capacity()
    }
}

/// Takes the chunks of a body apart (RFC 9112, section 7.1). Trailers are not waited for.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    /// The size as far as it is read, then what is left of the chunk.
    left: u64,
    /// Digits of the size so far.
    digits: u8,
    /// Bytes of the extensions so far.
    extension: u16,
}

/// What comes next.
#[derive(Clone, Copy, Default, Debug)]
enum At {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
}

enum Part<'a> {
    Data(&'a [u8]),
    More,
    End,
}

impl Chunks {
    fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Part<'a>, Trouble> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let At::Data = self.at {
                let length = usize::try_from(self.left).map_or(bytes.len(), |l| l.min(bytes.len()));
                let (piece, rest) = bytes.split_at(length);
                *bytes = rest;
                self.left -= length as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                return Ok(Part::Data(piece));
            }
            *bytes = rest;
            self.at = match (self.at, byte) {
                (At::Size, _) if byte.is_ascii_hexdigit() && self.digits < 16 => {
                    let digit = char::from(byte).to_digit(16).unwrap_or(0);
                    self.left = self.left << 4 | u64::from(digit);
                    self.digits += 1;
                    At::Size
                }
                (At::Size, b';' | b' ' | b'\t') if self.digits > 0 => At::Extension,
                (At::Size, b'\r') if self.digits > 0 => At::SizeLf,
                (At::Extension, b'\r') => At::SizeLf,
                (At::Size, b'\n') if self.digits > 0 => At::Data,
                (At::Extension | At::SizeLf, b'\n') => At::Data,
                (At::Extension, _) if self.extension < EXTENSION_MAX => {
                    self.extension += 1;
                    At::Extension
                }
                (At::DataCr, b'\r') => At::DataLf,
                (At::DataCr | At::DataLf, b'\n') => {
                    *self = Self::default();
                    At::Size
                }
                _ => return Err(Trouble::Garbage),
            };
            if matches!(self.at, At::Data) && self.left == 0 {
                return Ok(Part::End);
            }
        }
        Ok(Part::More)
    }
}
