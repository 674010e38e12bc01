//! What a server says of itself when it registers, besides its weight and its limit.

use super::*;
use crate::registry::{HealthPath, Registry};

#[test]
fn timeouts_and_what_is_checked_are_said_when_a_server_registers() {
    let site = Site::new();
    let add = |more: &str| site.post("add", &format!("ns=a&port=1&{more}"));
    let longest = format!("/{}", "x".repeat(47));
    let good = ["connect_timeout", "send_timeout", "read_timeout"]
        .iter()
        .flat_map(|name| ["0", "1ms", "5s", "500ms", "1m+30s", "1d"].map(|t| format!("{name}={t}")))
        .chain(
            ["", "/", "/live?full=1%26x=%25", "/%22~!", &longest]
                .map(|p| format!("health_path={p}")),
        );
    for good in good {
        assert_eq!(add(&good).0, 200, "{good}");
    }

    for name in ["connect_timeout", "send_timeout", "read_timeout"] {
        for bad in ["", "soon", "-1s", "1.5s", "25h", "86400001ms"] {
            let (status, body) = add(&format!("{name}={bad}"));
            let may = "must be a time of at most 1d, written as 30s, 500ms or 1m 30s";
            let expected = format!("Parameter \"{name}\" {may}");
            assert_eq!((status, body["message"].as_str()), (400, Some(&*expected)), "{bad:?}");
        }
    }
    let too_long = format!("/{}", "x".repeat(48));
    for bad in [
        "live",
        "http://a/",
        "%20/",
        "/a%20b",
        "/a%0d%0aHost:x",
        "/%00",
        "/\u{e9}",
        "/%7f",
        &too_long,
    ] {
        let (status, body) = add(&format!("health_path={bad}"));
        let expected = "Parameter \"health_path\" must be a path that begins with \"/\", of at most 48 \
                        printable ASCII characters and neither space nor \"#\", or empty";
        assert_eq!((status, body["message"].as_str()), (400, Some(expected)), "{bad:?}");
    }
}

#[test]
fn a_heartbeat_by_add_changes_the_settings_that_it_names() {
    let site = Site::new();
    let settings = |more: &str| {
        assert_eq!(site.post("add", &format!("ns=a&port=1&{more}")).0, 200, "{more}");
        let mut copies = Vec::new();
        let registry = Registry::lock(site.zone).unwrap();
        registry.copy(&mut registry.snapshot(), 100, &mut copies);
        copies[0].saved(site.now).settings
    };
    let new = settings("read_timeout=900ms&send_timeout=2&health_path=/live");
    assert_eq!(new.timeouts_ms, [0, 2000, 900]);
    assert_eq!(new.health_path.as_str(), "/live");
    assert_eq!(settings(""), new);
    assert_eq!(settings("read_timeout=0").timeouts_ms, [0, 2000, 0]);
    let last = settings("max_fails=9&connect_timeout=1ms&health_path=");
    assert_eq!((last.max_fails, last.timeouts_ms), (9, [1, 2000, 0]));
    assert_eq!(last.health_path, HealthPath::NONE);
}
