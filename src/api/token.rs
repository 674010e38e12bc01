//! Tokens that open the API.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use subtle::{Choice, ConstantTimeEq};

/// Longest token, in bytes.
const MAX: usize = 512;

/// Longest file of tokens, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// A token can't be used. The token itself is never part of the message.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Empty, too long, or with characters that a header can't carry.
    #[error("a token must be 1 to {MAX} printable ASCII characters without spaces")]
    Syntax,
    /// The same, of a line of a file.
    #[error("a token must be 1 to {MAX} printable ASCII characters without spaces, in \"{0}\":{1}")]
    Line(String, usize),
    /// The file can't be read.
    #[error("can't read \"{0}\": {1}")]
    File(String, io::Error),
    /// A directory, a pipe, a device.
    #[error("\"{0}\" is not a regular file")]
    NotAFile(String),
    /// The file can't be a list of tokens.
    #[error("\"{0}\" is longer than {MAX_FILE} bytes: write one token on each line")]
    TooLong(String),
    /// The file has no token in it.
    #[error("there is no token in \"{0}\": write one on each line")]
    Empty(String),
}

/// The tokens that are good. None: everybody is let in.
#[derive(Default)]
pub struct Tokens(Vec<Vec<u8>>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a token.
    ///
    /// # Errors
    ///
    /// [`TokenError::Syntax`].
    pub fn add(&mut self, token: &[u8]) -> Result<(), TokenError> {
        let printable = |b: &u8| (0x21..=0x7e).contains(b);
        if token.is_empty() || token.len() > MAX || !token.iter().all(printable) {
            return Err(TokenError::Syntax);
        }
        self.0.push(token.to_vec());
        Ok(())
    }

    /// Adds the tokens of a file, one on each line; empty lines do not count.
    ///
    /// # Errors
    ///
    /// [`TokenError`] of any kind.
    pub fn add_file(&mut self, path: &Path) -> Result<(), TokenError> {
        let name = || path.display().to_string();
        let text = read(path).map_err(|e| match e {
            Unread::Io(e) => TokenError::File(name(), e),
            Unread::NotAFile => TokenError::NotAFile(name()),
            Unread::TooLong => TokenError::TooLong(name()),
        })?;
        let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).zip(1..);
        let mut found = false;
        for (line, number) in lines.filter(|(line, _)| !line.is_empty()) {
            self.add(line).map_err(|_| TokenError::Line(name(), number))?;
            found = true;
        }
        if found { Ok(()) } else { Err(TokenError::Empty(name())) }
    }

    /// Whether a request is let in, by its `Authorization: Bearer T` or `X-API-Token: T`.
    ///
    /// How long this takes does not tell how much of a wrong token was right.
    pub fn admit<'a>(
        &self,
        authorization: Option<&'a [u8]>,
        x_api_token: impl Iterator<Item = &'a [u8]>,
    ) -> bool {
        if self.is_empty() {
            return true;
        }
        let bearer = authorization.and_then(|value| {
            let (scheme, token) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
        });
        let given: Vec<&[u8]> = bearer.into_iter().chain(x_api_token).collect();
        let mut good = Choice::from(0);
        for token in &self.0 {
            for given in &given {
                good |= token.as_slice().ct_eq(given);
            }
        }
        good.into()
    }
}

enum Unread {
    Io(io::Error),
    NotAFile,
    TooLong,
}

/// Reads a small regular file. Opening a pipe would wait for who writes into it, and nginx with it:
/// O_NONBLOCK keeps it from that, and means nothing for files.
fn read(path: &Path) -> Result<Vec<u8>, Unread> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(Unread::Io)?;
    if !file.metadata().map_err(Unread::Io)?.is_file() {
        return Err(Unread::NotAFile);
    }
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(Unread::Io)?;
    if text.len() as u64 > MAX_FILE { Err(Unread::TooLong) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(all: &[&str]) -> Tokens {
        let mut tokens = Tokens::default();
        all.iter().for_each(|t| tokens.add(t.as_bytes()).unwrap());
        tokens
    }

    fn admits(tokens: &Tokens, authorization: &str, x: &[&str]) -> bool {
        let authorization = Some(authorization.as_bytes()).filter(|a| !a.is_empty());
        tokens.admit(authorization, x.iter().map(|x| x.as_bytes()))
    }

    #[test]
    fn without_tokens_everybody_is_let_in() {
        assert!(admits(&Tokens::default(), "", &[]));
    }

    #[test]
    fn any_of_the_tokens_opens_by_either_header() {
        let tokens = tokens(&["old-one", "new-one"]);
        assert!(admits(&tokens, "Bearer old-one", &[]));
        assert!(admits(&tokens, "bearer  new-one ", &[]));
        assert!(admits(&tokens, "", &["new-one"]));
        assert!(admits(&tokens, "Basic eA==", &["wrong", "old-one"]));
        for wrong in ["", "Bearer", "Bearer ", "Bearer old-on", "Bearer old-onee", "old-one"] {
            assert!(!admits(&tokens, wrong, &["OLD-ONE", ""]), "{wrong}");
        }
    }

    #[test]
    fn tokens_come_from_a_file_one_on_each_line() {
        let path = std::env::temp_dir().join(format!("registry-token-{}", std::process::id()));
        std::fs::write(&path, "first\r\n\n  second  \n").unwrap();
        let mut tokens = Tokens::default();
        tokens.add_file(&path).unwrap();
        assert!(admits(&tokens, "", &["first"]) && admits(&tokens, "", &["second"]));
        std::fs::write(&path, "\n \n").unwrap();
        assert!(matches!(tokens.add_file(&path), Err(TokenError::Empty(_))));
        std::fs::write(&path, "two words\n").unwrap();
        let error = tokens.add_file(&path).unwrap_err();
        assert!(matches!(error, TokenError::Line(_, 1)));
        assert!(!error.to_string().contains("words"), "{error}");
        std::fs::write(&path, vec![b'a'; MAX + 1]).unwrap();
        assert!(matches!(tokens.add_file(&path), Err(TokenError::Line(_, 1))));
        std::fs::write(&path, "good\n".repeat(20_000)).unwrap();
        assert!(matches!(tokens.add_file(&path), Err(TokenError::TooLong(_))));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(tokens.add_file(&path), Err(TokenError::File(..))));
        for other in ["/", "/dev/zero", "/dev/null"] {
            assert!(matches!(tokens.add_file(Path::new(other)), Err(TokenError::NotAFile(_))));
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let tokens = tokens(&["secret"]);
        assert_eq!(format!("{tokens:?}"), "1 tokens");
        let mut tokens = Tokens::default();
        let error = tokens.add(b"se cret").unwrap_err();
        assert!(!error.to_string().contains("cret"));
    }
}
