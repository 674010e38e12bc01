//! TLS, with a CA of our own.

use std::path::PathBuf;
use std::process::Command;

use super::super::testing::directory;
use super::*;

/// A CA, and a server's certificate for localhost and 127.0.0.1.
struct Authority(PathBuf);

impl Authority {
    fn new() -> Self {
        let dir = directory();
        let openssl = |args: &str| {
            let output = Command::new("openssl").args(args.split(' ')).current_dir(&dir).output();
            let output = output.expect("openssl is not installed: run scripts/setup");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=ca"));
        openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=redis"));
        std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
        let sign = "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2";
        openssl(&format!("{sign} -extfile names -out server.crt"));
        Self(dir)
    }

    fn server(&self) -> (Server, u16) {
        let file = |name: &str| self.0.join(name).display().to_string();
        let port = free_port();
        let server = Server::start(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &file("server.crt"),
            "--tls-key-file",
            &file("server.key"),
            "--tls-ca-cert-file",
            &file("ca.crt"),
            "--tls-auth-clients",
            "no",
        ]);
        (server, port)
    }

    fn pem(&self) -> Vec<u8> {
        std::fs::read(self.0.join("ca.crt")).unwrap()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn endpoint(url: &str, pem: Vec<u8>) -> Endpoint {
    Endpoint::parse(url).unwrap().with_certificates(pem).unwrap()
}

#[test]
fn a_certificate_of_the_ca_is_trusted_and_no_other() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (server, port) = ours.server();
    let at = |host: &str| format!("rediss://{host}:{port}/1");
    works_at(&endpoint(&at("127.0.0.1"), ours.pem()));
    works_at(&endpoint(&at("localhost"), [theirs.pem(), ours.pem()].concat()));
    assert_eq!(server.cli(&["-n", "1", "GET", "{k}"]), "v");

    let fails = |endpoint: &Endpoint| error_of(Link::open(endpoint, PATIENCE)).to_string();
    let text = fails(&endpoint(&at("127.0.0.1"), theirs.pem()));
    let untrusted = "its certificate is from no trusted CA (see redis_trusted_certificate)";
    assert_eq!(text, format!("no TLS with 127.0.0.1:{port}: {untrusted}"));
    let text = fails(&endpoint(&at("127.0.0.2"), ours.pem()));
    assert!(text.starts_with("can't connect") || text.ends_with("is for another name"), "{text}");
    // The system has never heard of that CA.
    let text = fails(&Endpoint::parse(&at("127.0.0.1")).unwrap());
    assert!(text.ends_with(untrusted) || text.contains("has no CA certificates"), "{text}");
}

#[test]
fn tls_on_one_side_only_is_said_to_be_so() {
    let ours = Authority::new();
    let (server, tls_port) = ours.server();
    let url = format!("rediss://127.0.0.1:{}", server.port());
    // Redis waits for the end of what it takes for a command.
    let error = error_of(Link::open(&endpoint(&url, ours.pem()), SHORT));
    assert!(error.to_string().starts_with("TLS with 127.0.0.1:"), "{error}");
    let error = error_of(open(&format!("redis://127.0.0.1:{tls_port}")));
    assert!(matches!(error, LinkError::Protocol { .. } | LinkError::Closed { .. }), "{error}");
}

#[test]
fn long_answers_come_through_tls() {
    let ours = Authority::new();
    let (server, port) = ours.server();
    let endpoint = endpoint(&format!("rediss://127.0.0.1:{port}"), ours.pem());
    let mut link = Link::open(&endpoint, PATIENCE).unwrap();
    let long = vec![b'x'; 3_000_000];
    assert_eq!(put(&mut link, &long).unwrap().len(), long.len() + 4);
    let mut link = Link::open(&endpoint, SHORT).unwrap();
    server.pause();
    times_out(SHORT, || put(&mut link, b"v"));
    server.resume();
}

/// Two links of one endpoint share what shortens the handshake; both must work.
#[test]
fn an_endpoint_opens_many_links() {
    let ours = Authority::new();
    let (_server, port) = ours.server();
    let endpoint = endpoint(&format!("rediss://localhost:{port}"), ours.pem());
    for _ in 0..3 {
        works_at(&endpoint);
    }
}
