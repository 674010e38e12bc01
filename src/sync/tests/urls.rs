//! What `redis` takes.

use super::super::EndpointError as E;
use super::super::endpoint::Kind;
use super::*;

#[test]
fn good_urls_are_shown_without_logins() {
    for (url, shown) in [
        ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
        ("redis://127.0.0.1/", "redis://127.0.0.1:6379/0"),
        ("redis://localhost:7000/15", "redis://localhost:7000/15"),
        ("redis://:secret@a.b-c_d:1/2", "redis://a.b-c_d:1/2"),
        ("redis://user:secret@h:65535", "redis://h:65535/0"),
        ("redis://:@h", "redis://h:6379/0"),
        ("redis://[::1]:7/1", "redis://[::1]:7/1"),
        ("redis://u:secret@[0:0::1]", "redis://[::1]:6379/0"),
        ("REDIS://h", "redis://h:6379/0"),
        ("rediss://h/2147483647", "rediss://h:6379/2147483647"),
        ("valkey://h", "valkey://h:6379/0"),
        ("valkeys://h", "valkeys://h:6379/0"),
        ("unix:/run/redis.sock", "unix:/run/redis.sock"),
        ("unix:///run/redis.sock?db=3&user=u&pass=secret", "unix:/run/redis.sock?db=3"),
        ("redis+unix:///run/a%20b", "unix:/run/a b"),
        ("unix:/a?pass=secret&db=0", "unix:/a"),
        ("redis+sentinel://h1/m", "redis+sentinel://h1:26379/m/0"),
        (
            "rediss+sentinel://u:secret@h1,h2:5/my%2Fmaster/3?sentinel_password=s%40cret",
            "rediss+sentinel://h1:26379,h2:5/my/master/3",
        ),
        (
            "redis+sentinel://h/m?sentinel_user=secret&sentinel_password=sec@ret",
            "redis+sentinel://h:26379/m/0",
        ),
        ("redis+cluster://:secret@h1:7000,[::2],h3", "redis+cluster://h1:7000,[::2]:6379,h3:6379"),
        ("rediss+cluster://h1/0", "rediss+cluster://h1:6379"),
    ] {
        let endpoint = Endpoint::parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
        assert_eq!(endpoint.to_string(), shown, "{url}");
        assert_eq!(endpoint.is_cluster(), url.contains("+cluster"), "{url}");
        let tls = ["rediss", "valkeys"].iter().any(|scheme| url.starts_with(scheme));
        assert_eq!(endpoint.is_tls(), tls, "{url}");
        assert!(!format!("{endpoint:?}").contains("secret"), "{url}");
    }
}

#[test]
fn logins_are_decoded() {
    for (url, user, password) in [
        ("redis://u%3A%40:p%2F%25%c3%A9@h", Some("u:@"), "p/%é"),
        ("redis://:a:b@h", None, "a:b"),
        ("redis+cluster://u:p@h,g", Some("u"), "p"),
        ("unix:/a?user=u%26&pass=a+b%3D=", Some("u&"), "a+b=="),
    ] {
        let login = Endpoint::parse(url).unwrap().login.unwrap();
        assert_eq!(login.user.as_deref(), user.map(str::as_bytes), "{url}");
        assert_eq!(login.password, password.as_bytes(), "{url}");
    }
    assert!(Endpoint::parse("redis://h").unwrap().login.is_none());
    let url = "redis+sentinel://a:b@h/m?sentinel_user=c&sentinel_password=d";
    let Kind::Sentinel { login, .. } = Endpoint::parse(url).unwrap().kind else { panic!() };
    let login = login.unwrap();
    assert_eq!((login.user.unwrap(), login.password), (b"c".to_vec(), b"d".to_vec()));
}

#[test]
fn bad_urls_are_refused_by_what_is_wrong_with_them() {
    for (url, error) in [
        ("", E::Scheme),
        ("127.0.0.1:6379", E::Scheme),
        ("http://h", E::Scheme),
        ("redis+tls://h", E::Scheme),
        ("redis:h", E::Scheme),
        ("redis:/h", E::Scheme),
        ("redis://", E::NoHost),
        ("redis://:6379", E::NoHost),
        ("redis:///0", E::NoHost),
        ("redis://:secret@", E::NoHost),
        ("redis+cluster://h,", E::NoHost),
        ("redis+cluster://,h", E::NoHost),
        ("redis://h h", E::Character),
        ("redis://h#1", E::Character),
        ("redis://:se\tcret@h", E::Character),
        ("redis://:secret%0a@h", E::Character),
        ("unix:/a%00", E::Character),
        ("redis://:secret%2@h", E::Percent),
        ("redis://:secret%+1@h", E::Percent),
        ("redis://:secret%é@h", E::Percent),
        ("redis://:sec/ret@h", E::Login),
        ("redis://:sec?ret@h", E::Login),
        ("redis://:sec?re=t@h", E::Login),
        ("redis://:sec@ret@h", E::Login),
        ("redis+sentinel://:sec/ret@h/m", E::Login),
        ("redis://secret@h", E::NoPassword),
        ("redis://secret:@h", E::NoPassword),
        ("unix:/a?user=secret", E::NoPassword),
        ("redis://h$", E::Host),
        ("redis://[::1", E::Host),
        ("redis://[::1]1", E::Host),
        ("redis://[127.0.0.1]", E::Host),
        ("redis://höst", E::Host),
        ("redis://a,b", E::OneHost),
        ("redis://::1", E::NoHost),
        ("redis://h:", E::Port),
        ("redis://h:0", E::Port),
        ("redis://h:65536", E::Port),
        ("redis://h:+1", E::Port),
        ("redis://h:6379:secret", E::Port),
        ("redis+cluster://h:1,g:x", E::Port),
        ("redis://h/x", E::Database),
        ("redis://h/-1", E::Database),
        ("redis://h/2147483648", E::Database),
        ("redis://h/99999999999", E::Database),
        ("unix:/a?db=x", E::Database),
        ("redis+sentinel://h/m/x", E::Database),
        ("redis+cluster://h/1", E::ClusterDatabase),
        ("redis+sentinel://h", E::NoService),
        ("redis+sentinel://h/", E::NoService),
        ("redis+sentinel://h//0", E::NoService),
        ("redis://h/0/0", E::Path),
        ("redis+sentinel://h/m/0/1", E::Path),
        ("unix:", E::SocketPath),
        ("unix://", E::SocketPath),
        ("unix:redis.sock", E::SocketPath),
        ("unix://run/redis.sock", E::SocketPath),
        ("unix:/run/", E::SocketPath),
        ("unix:?db=1", E::SocketPath),
        ("redis://h?db=1", E::Parameter),
        ("redis://h/0?protocol=resp3", E::Parameter),
        ("unix:/a?password=secret", E::Parameter),
        ("unix:/a?pass=secret&pass=secret", E::Parameter),
        ("redis+sentinel://h/m?sentinel_pass=secret", E::Parameter),
        ("redis+cluster://h?secret", E::Parameter),
    ] {
        let found = Endpoint::parse(url).err().unwrap_or_else(|| panic!("{url} is taken"));
        assert_eq!(found, error, "{url}");
        assert!(!found.to_string().contains("secret"), "{url}");
    }
    let path = format!("unix:/{}", "a".repeat(107));
    assert_eq!(Endpoint::parse(&path).unwrap_err(), E::SocketPath);
}

#[test]
fn certificates_are_looked_at() {
    let tls = || Endpoint::parse("rediss://h").unwrap();
    for (pem, error) in [
        ("", E::NoCertificate),
        ("nothing", E::NoCertificate),
        ("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", E::NoCertificate),
        ("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", E::Certificate(1)),
        ("-----BEGIN CERTIFICATE-----\nMAA=\n", E::Certificate(1)),
    ] {
        assert_eq!(tls().with_certificates(pem.into()).unwrap_err(), error, "{pem}");
    }
    let plain = Endpoint::parse("redis://h").unwrap();
    assert_eq!(plain.with_certificates(Vec::new()).unwrap_err(), E::NotTls);
}
