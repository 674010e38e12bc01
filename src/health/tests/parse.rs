//! What may stand behind `health_check`.

use super::*;
use crate::registry::Initial;

#[test]
fn all_that_is_not_said_has_a_default() {
    let check = check("");
    assert_eq!(check.kind, Kind::Http);
    assert_eq!((check.uri.as_str(), &check.host, check.port), ("/", &None, None));
    assert_eq!((check.interval, check.jitter, check.timeout), (5000, 0, 2000));
    assert_eq!((check.fails, check.passes), (3, 2));
    assert_eq!(check.status, Statuses::default());
    assert!(check.body.is_none());
    assert_eq!((check.initial, check.idle), (Initial::Up, false));
    assert_eq!(check.service, "");
}

#[test]
fn all_can_be_said() {
    let http = check(
        "uri=/api/status?x=1 type=https host=app.internal:8443 port=9000 interval=1m30s jitter=90s \
         timeout=2m fails=1 passes=1000 status=!500 body~^ok initial=probe mode=idle",
    );
    assert_eq!((http.kind, http.uri.as_str()), (Kind::Https, "/api/status?x=1"));
    assert_eq!((http.host.as_deref(), http.port), (Some("app.internal:8443"), Some(9000)));
    assert_eq!((http.interval, http.jitter, http.timeout), (90_000, 90_000, 120_000));
    assert_eq!((http.fails, http.passes), (1, 1000));
    assert!(http.status.contains(404) && !http.status.contains(500));
    assert!(http.body.is_some());
    assert_eq!((http.initial, http.idle), (Initial::Probe, true));

    let grpc = check("service=a.B type=grpc host=[::1]:80 initial=down mode=always timeout=1ms");
    assert_eq!((grpc.kind, grpc.service.as_str()), (Kind::Grpc, "a.B"));
    assert_eq!((grpc.initial, grpc.idle, grpc.timeout), (Initial::Down, false, 1));

    // Seconds are meant where no unit stands; the shortest and the longest times.
    assert_eq!(check("interval=10ms jitter=10ms").interval, 10);
    assert_eq!(check("interval=86400 timeout=1d").interval, 86_400_000);
    assert!(Check::parse(&["off"]).unwrap().is_none());
}

#[test]
fn a_body_is_matched_by_one_word_or_by_three() {
    for (words, passes, fails) in [
        (&["body~^o k"][..], "o k", "not"),
        (&["body", "~", "^o k"], "o k", "not"),
        (&["body!~err"], "o k", "an error"),
        (&["body", "!~", "err"], "o k", "an error"),
        // "=" in it parts nothing.
        (&["body~a=b"], "a=b", "a"),
        (&["body~~"], "~", "a"),
        (&["body", "!~", "off"], "on", "off"),
    ] {
        let check = Arc::new(Check::parse(words).unwrap().unwrap());
        let answer = |body: &str| format!("HTTP/1.1 200 OK\r\n\r\n{body}").into_bytes();
        assert_eq!(judge(&check, &answer(passes)), Ok(()), "{words:?}");
        assert_eq!(judge(&check, &answer(fails)), Err(Trouble::Body), "{words:?}");
    }
}

/// The error of a line whose words are parted by two spaces, or by one if there are none of two.
fn error(line: &str) -> String {
    let parted = if line.contains("  ") { "  " } else { " " };
    let words: Vec<&str> = line.split(parted).collect();
    match Check::parse(&words) {
        Err(why) => why,
        Ok(check) => panic!("{line}: {check:?}"),
    }
}

const KNOWN: &str = "it may be type=, uri=, host=, port=, interval=, jitter=, timeout=, fails=, passes=, \
     status=, body~, body!~, initial=, mode= or service=, or off alone";

#[test]
fn what_is_wrong_is_named_with_what_may_be_there() {
    for (line, why) in [
        ("type=udp", "type may be http, https, tcp or grpc"),
        ("type=", "type may be http, https, tcp or grpc"),
        ("type=HTTP", "type may be http, https, tcp or grpc"),
        ("interval=0", "interval may be a time from 10ms to 1d"),
        ("interval=9ms", "interval may be a time from 10ms to 1d"),
        ("interval=1d1ms", "interval may be a time from 10ms to 1d"),
        ("interval=soon", "interval may be a time from 10ms to 1d"),
        ("interval=", "interval may be a time from 10ms to 1d"),
        ("interval=-1", "interval may be a time from 10ms to 1d"),
        ("jitter=x", "jitter may be a time of at most the interval"),
        ("jitter=5001ms", "jitter may be a time of at most the interval"),
        ("timeout=0", "timeout may be a time from 1ms to 1d"),
        ("timeout=2d", "timeout may be a time from 1ms to 1d"),
        ("port=0", "port may be a number from 1 to 65535"),
        ("port=65536", "port may be a number from 1 to 65535"),
        ("port=+80", "port may be a number from 1 to 65535"),
        ("port=http", "port may be a number from 1 to 65535"),
        ("fails=0", "fails may be a number from 1 to 1000"),
        ("fails=1001", "fails may be a number from 1 to 1000"),
        ("passes=", "passes may be a number from 1 to 1000"),
        ("passes=1.5", "passes may be a number from 1 to 1000"),
        ("initial=unknown", "initial may be up, down or probe"),
        ("mode=busy", "mode may be always or idle"),
        ("host=", "host may be a name or an address, with or without a port"),
        ("host=a/b", "host may be a name or an address, with or without a port"),
        ("host=bücher.example", "host may be a name or an address, with or without a port"),
        ("keepalive=1", KNOWN),
        ("uri", KNOWN),
        ("=", KNOWN),
        ("", KNOWN),
        ("Type=http", KNOWN),
        ("on", KNOWN),
        ("body=ok", "write it as body~REGEX or body!~REGEX"),
        ("body~", "the regular expression is missing"),
        ("body!~", "the regular expression is missing"),
        ("body~(", "bad regular expression: unclosed group"),
        ("body~a{", "bad regular expression: unclosed counted repetition"),
        ("body~.{300}", "the regular expression is too large"),
        ("body~a{99999999999}", "bad regular expression: decimal literal invalid"),
        (
            "body~(?=ok)",
            "bad regular expression: look-around, including look-ahead and look-behind, is not supported",
        ),
        (
            "body~(?<!not)ok",
            "bad regular expression: look-around, including look-ahead and look-behind, is not supported",
        ),
        (r"body~(a)\1", "bad regular expression: backreferences are not supported"),
        ("body~(?>a)", "bad regular expression: unrecognized flag"),
    ] {
        assert_eq!(error(line), format!("invalid parameter \"{line}\": {why}"));
    }
    let uri = "uri may be a path such as /api/status, of visible ASCII (others as %XX) and at most 1024 bytes";
    let long = format!("uri=/{}", "a".repeat(1024));
    for line in ["uri=", "uri=status", "uri=/a b", "uri=/a\r\nX:", "uri=/ü", "uri=/a#b", &long] {
        let why = Check::parse(&[line]).unwrap_err();
        assert_eq!(why, format!("invalid parameter \"{line}\": {uri}"));
    }
    let status = "status may be codes and ranges from 100 to 599 such as 200-399,401, or all but these: !500,502";
    for line in ["status=", "status=99", "status=600", "status=2xx", "status=399-200", "status=ok"]
    {
        assert_eq!(error(line), format!("invalid parameter \"{line}\": {status}"));
    }
    let long = format!("service={}", "a".repeat(256));
    for line in ["service=", "service=ä", &long] {
        let why = Check::parse(&["type=grpc", line]).unwrap_err();
        let may_be =
            "service may be the name of a gRPC service, of at most 255 visible ASCII characters";
        assert_eq!(why, format!("invalid parameter \"{line}\": {may_be}"));
    }
}

#[test]
fn parameters_that_make_no_sense_together_are_refused() {
    for (line, why) in [
        (
            "type=tcp uri=/x",
            "invalid parameter \"uri=/x\": uri goes with type=http or type=https, not with type=tcp",
        ),
        (
            "uri=/x type=grpc",
            "invalid parameter \"uri=/x\": uri goes with type=http or type=https, not with type=grpc",
        ),
        (
            "type=tcp status=200",
            "invalid parameter \"status=200\": status goes with type=http or type=https, not with \
             type=tcp",
        ),
        (
            "type=grpc body~ok",
            "invalid parameter \"body~ok\": body goes with type=http or type=https, not with type=grpc",
        ),
        (
            "type=tcp host=a",
            "invalid parameter \"host=a\": host goes with type=http, type=https or type=grpc, not with \
             type=tcp",
        ),
        (
            "service=a",
            "invalid parameter \"service=a\": service goes with type=grpc, not with type=http",
        ),
        (
            "service=a type=https",
            "invalid parameter \"service=a\": service goes with type=grpc, not with type=https",
        ),
        ("type=http type=http", "duplicate parameter \"type=http\""),
        ("uri=/a uri=/b", "duplicate parameter \"uri=/b\""),
        ("body~a body!~b", "duplicate parameter \"body!~b\""),
        ("body~a body ~ b", "duplicate parameter \"body ~ b\""),
        ("off type=http", "\"off\" of \"health_check\" goes with no other parameter"),
        ("uri=/x off", "\"off\" of \"health_check\" goes with no other parameter"),
        (
            "interval=1s jitter=2s",
            "invalid parameter \"jitter=2s\": jitter may be a time of at most the interval",
        ),
        (
            "jitter=2s interval=1s",
            "invalid parameter \"jitter=2s\": jitter may be a time of at most the interval",
        ),
        ("body", "invalid parameter \"body\": write it as body~REGEX or body!~REGEX"),
        ("body = ok", "invalid parameter \"body = ok\": write it as body~REGEX or body!~REGEX"),
        ("body ~", "invalid parameter \"body ~\": the regular expression is missing"),
    ] {
        assert_eq!(error(line), why);
    }
}
