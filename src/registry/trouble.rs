//! Why a health check failed.

use std::fmt;

/// Why a health check failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nobody listens there.
    Refused,
    /// The connection could not be made: no route, or the network is down.
    Unreachable,
    /// Not done within `timeout`.
    Timeout,
    /// The server closed the connection before its answer was complete.
    Closed,
    /// What it answered is not of the protocol.
    Garbage,
    /// The head of its answer is longer than any that makes sense.
    TooLong,
    /// The TLS handshake failed.
    Tls,
    /// The answer's body is not as `body` says.
    Body,
    /// An HTTP status (100 to 999) that `status` does not name.
    Status(u16),
    /// A gRPC status other than 0, up to 99.
    Grpc(u8),
    /// A `ServingStatus` of gRPC's health protocol other than SERVING, up to 9.
    Serving(u8),
}

impl Trouble {
    const PLAIN: [Self; 8] = [
        Self::Refused,
        Self::Unreachable,
        Self::Timeout,
        Self::Closed,
        Self::Garbage,
        Self::TooLong,
        Self::Tls,
        Self::Body,
    ];
    /// Where gRPC's numbers begin.
    const GRPC: u16 = 1000;
    const SERVING: u16 = 1100;

    /// The trouble as a record has it: never 0.
    pub fn to_code(self) -> u16 {
        match self {
            Self::Status(status) => status.clamp(100, 999),
            Self::Grpc(status) => Self::GRPC + u16::from(status.min(99)),
            Self::Serving(status) => Self::SERVING + u16::from(status.min(9)),
            plain => Self::PLAIN.iter().position(|p| *p == plain).unwrap_or(0) as u16 + 1,
        }
    }

    /// The trouble that a record has; `None`: none.
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            100..1000 => Self::Status(code),
            Self::GRPC..Self::SERVING => Self::Grpc((code - Self::GRPC) as u8),
            Self::SERVING.. => Self::Serving((code - Self::SERVING).min(9) as u8),
            _ => *Self::PLAIN.get(usize::from(code.checked_sub(1)?))?,
        })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connect refused",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Closed => "connection closed",
            Self::Garbage => "malformed response",
            Self::TooLong => "response head too large",
            Self::Tls => "TLS handshake failed",
            Self::Body => "body does not match",
            Self::Status(status) => return write!(f, "status {status}"),
            Self::Grpc(status) => return write!(f, "grpc status {status}"),
            Self::Serving(0) => "serving status UNKNOWN",
            Self::Serving(2) => "serving status NOT_SERVING",
            Self::Serving(3) => "serving status SERVICE_UNKNOWN",
            Self::Serving(status) => return write!(f, "serving status {status}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Trouble;

    #[test]
    fn each_is_read_as_it_was_written() {
        let plain = Trouble::PLAIN.into_iter();
        let status = (100..1000).map(Trouble::Status);
        let grpc = (0..100).map(Trouble::Grpc);
        let serving = (0..10).map(Trouble::Serving);
        for trouble in plain.chain(status).chain(grpc).chain(serving) {
            let code = trouble.to_code();
            assert_ne!(code, 0, "{trouble}");
            assert_eq!(Trouble::from_code(code), Some(trouble));
        }
        assert_eq!(Trouble::from_code(0), None);
    }
}
