//! Against real servers; each test has its own.

mod certificates;
mod cluster;
mod hearing;
mod refusals;
mod sentinels;
mod servers;
mod urls;

use std::time::{Duration, Instant};

use super::testing::{Server, free_port, wait_until};
use super::*;

/// Long enough for a busy machine where an answer is expected.
const PATIENCE: Duration = Duration::from_secs(5);

/// The timeout where there is none.
const SHORT: Duration = Duration::from_millis(400);

/// Writes its argument, and answers with key and argument.
const PUT: &str = "redis.call('SET', KEYS[1], ARGV[1]) return KEYS[1] .. '=' .. ARGV[1]";

fn open(url: &str) -> Result<Link, LinkError> {
    Link::open(&Endpoint::parse(url).unwrap(), PATIENCE)
}

fn put(link: &mut Link, value: &[u8]) -> Result<Vec<u8>, LinkError> {
    link.eval(&Script::new(PUT), "{k}", value)
}

/// Opens, writes and reads.
fn works(url: &str) {
    works_at(&Endpoint::parse(url).unwrap());
}

fn works_at(endpoint: &Endpoint) {
    let mut link = Link::open(endpoint, PATIENCE).unwrap_or_else(|e| panic!("{endpoint}: {e}"));
    assert_eq!(put(&mut link, b"v").unwrap(), b"{k}=v");
}

/// The error of something that must fail.
fn error_of<T>(result: Result<T, LinkError>) -> LinkError {
    match result {
        Ok(_) => panic!("it did not fail"),
        Err(error) => error,
    }
}

/// Something that must time out, and takes neither less nor half as long again.
fn times_out<T>(timeout: Duration, f: impl FnOnce() -> Result<T, LinkError>) -> LinkError {
    let began = Instant::now();
    let error = error_of(f());
    let took = began.elapsed();
    assert!(matches!(error, LinkError::Timeout { .. }), "{error}");
    assert!(error.is_lost());
    assert!(took >= timeout && took < timeout * 3 / 2, "{took:?}");
    error
}
