//! Answers of gRPC servers.

use super::*;

#[test]
fn the_request_asks_about_the_service() {
    let (_, request) = Talk::open(&check("type=grpc service=a.B host=app"), PEER, Some("/path"));
    let rest = request.strip_prefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    assert!(rest.ends_with(b"\0\0\x0a\0\x01\0\0\0\x01\0\0\0\0\x05\x0a\x03a.B"));
}
