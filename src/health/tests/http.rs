//! Answers of HTTP.

use super::*;

fn request(line: &str, peer: &str, path: Option<&str>) -> String {
    let (_, request) = Talk::open(&check(line), peer, path);
    String::from_utf8(request).unwrap()
}

#[test]
fn the_request_is_one_that_any_server_understands() {
    assert_eq!(
        request("type=http uri=/api/status?a=b", PEER, None),
        "GET /api/status?a=b HTTP/1.1\r\n\
         Host: 10.0.0.1:8080\r\n\
         User-Agent: ngx-upstream-registry (health check)\r\n\
         Accept: */*\r\n\
         Connection: close\r\n\
         \r\n"
    );
}

#[test]
fn the_host_is_the_one_given_or_the_address_that_is_asked() {
    for (line, peer, host) in [
        ("", "10.0.0.1:80", "10.0.0.1:80"),
        ("type=https", "[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("", "app.internal:8080", "app.internal:8080"),
        ("", "unix:/run/app:1.sock", "localhost"),
        ("port=9000", "10.0.0.1:80", "10.0.0.1:9000"),
        ("port=9000", "[2001:db8::1]:80", "[2001:db8::1]:9000"),
        ("port=9000", "unix:/run/app.sock", "localhost"),
        ("host=app.internal port=9000", "10.0.0.1:80", "app.internal"),
    ] {
        let request = request(line, peer, None);
        assert!(request.contains(&format!("\r\nHost: {host}\r\n")), "{line} {peer}: {request}");
    }
}

#[test]
fn a_server_may_have_its_own_path() {
    let line = |path| request("uri=/all", PEER, path).lines().next().unwrap().to_owned();
    assert_eq!(line(None), "GET /all HTTP/1.1");
    assert_eq!(line(Some("/own")), "GET /own HTTP/1.1");
    // What can't be asked for is not.
    for path in ["", "own", "/ own", "/own\r\nX: y", "/\0"] {
        assert_eq!(line(Some(path)), "GET /all HTTP/1.1", "{path:?}");
    }
}

#[test]
fn the_status_decides_when_nothing_is_said_of_the_body() {
    for (line, answer, verdict) in [
        ("", "HTTP/1.1 200 OK\r\n\r\n", Ok(())),
        ("", "HTTP/1.0 200\r\n\r\n", Ok(())),
        ("", "HTTP/1.1 200 OK\n\n", Ok(())),
        ("", "HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", Ok(())),
        // No redirect is followed.
        ("", "HTTP/1.1 301 Moved\r\nLocation: http://x/\r\n\r\n", Ok(())),
        ("status=200", "HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", Err(Trouble::Status(301))),
        ("", "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n", Err(Trouble::Status(404))),
        ("", "HTTP/1.1 503 Busy\r\n\r\nbody", Err(Trouble::Status(503))),
        ("", "HTTP/1.1 999 What\r\n\r\n", Err(Trouble::Status(999))),
        ("status=404", "HTTP/1.1 404 Not Found\r\n\r\n", Ok(())),
        ("status=!500", "HTTP/1.1 404 Not Found\r\n\r\n", Ok(())),
        ("status=!500", "HTTP/1.1 500 Oh\r\n\r\n", Err(Trouble::Status(500))),
        ("status=101", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", Ok(())),
        // A line that is no field is passed over, as by nginx.
        ("", "HTTP/1.1 200 OK\r\nbad line\r\n(x): y\r\n: z\r\nA: b\r\n\r\n", Ok(())),
    ] {
        let check = check(line);
        assert_eq!(at_once(&check, answer.as_bytes()), Some(verdict), "{line} {answer:?}");
        assert_eq!(judge(&check, answer.as_bytes()), verdict, "{line} {answer:?}");
    }
}

#[test]
fn interim_answers_are_passed_over_some_times() {
    let answer =
        |n: usize| "HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n".repeat(n) + "HTTP/1.1 200 OK\r\n\r\n";
    for check in [check(""), check("body!~x")] {
        assert_eq!(judge(&check, answer(1).as_bytes()), Ok(()));
        assert_eq!(judge(&check, answer(8).as_bytes()), Ok(()));
        assert_eq!(judge(&check, answer(9).as_bytes()), Err(Trouble::TooLong));
    }
    assert_eq!(judge(&check(""), b"HTTP/1.1 100 Continue\r\n\r\n"), Err(Trouble::Closed));
    // Each head may be as long as one.
    let long = format!("HTTP/1.1 102 Wait\r\nA: {}\r\n\r\n", "x".repeat(8000)).repeat(3);
    assert_eq!(judge(&check(""), (long + "HTTP/1.1 200 OK\r\n\r\n").as_bytes()), Ok(()));
}

#[test]
fn what_is_not_http_is_garbage_from_the_first_wrong_byte() {
    for answer in [
        "<html>",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "SSH-2.0-x\r\n",
        "\0",
        "http/1.1 200",
    ] {
        assert_eq!(
            at_once(&check(""), answer.as_bytes()),
            Some(Err(Trouble::Garbage)),
            "{answer:?}"
        );
        assert_eq!(judge(&check(""), answer.as_bytes()), Err(Trouble::Garbage), "{answer:?}");
    }
    for answer in [
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1 20\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.7 200 OK\r\n\r\n",
        "HTTP/1.1200 OK\r\n\r\n",
        "HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(judge(&check(""), answer.as_bytes()), Err(Trouble::Garbage), "{answer:?}");
    }
    for answer in ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\nA: b\r\n", "HTT"] {
        assert_eq!(judge(&check(""), answer.as_bytes()), Err(Trouble::Closed), "{answer:?}");
    }
}

#[test]
fn a_head_may_have_8k() {
    let head = |filler: usize| format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(filler));
    let most = 8192 - head(0).len();
    assert_eq!(judge(&check(""), head(most).as_bytes()), Ok(()));
    assert_eq!(judge(&check("body~b"), (head(most) + "abc").as_bytes()), Ok(()));
    assert_eq!(judge(&check(""), head(most + 1).as_bytes()), Err(Trouble::TooLong));
    let endless = format!("HTTP/1.1 200 {}", "x".repeat(20_000));
    assert_eq!(judge(&check(""), endless.as_bytes()), Err(Trouble::TooLong));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(257));
    assert_eq!(judge(&check(""), many.as_bytes()), Err(Trouble::TooLong));
}

#[test]
fn a_body_ends_where_its_head_says() {
    use Trouble::{Body, Closed, Garbage};
    let check = check(r"body~^ok\n?$");
    for (head, body, verdict) in [
        ("", "ok\n", Ok(())),
        ("", "ok not", Err(Body)),
        ("", "", Err(Body)),
        ("Content-Length: 2", "ok", Ok(())),
        ("content-LENGTH:  2 ", "ok not", Ok(())),
        ("Content-Length: 3", "ok", Err(Closed)),
        ("Content-Length: 0", "ok", Err(Body)),
        ("Content-Length: 2\r\nContent-Length: 2", "ok", Ok(())),
        ("Content-Length: 2\r\nContent-Length: 3", "ok", Err(Garbage)),
        ("Content-Length: 2, 2", "ok", Err(Garbage)),
        ("Content-Length: x", "ok", Err(Garbage)),
        ("Content-Length: +2", "ok", Err(Garbage)),
        ("Content-Length:", "ok", Err(Garbage)),
        ("Content-Length: 99999999999999999999", "ok", Err(Garbage)),
        ("Content-Length: 18446744073709551615", "ok", Err(Closed)),
        ("Transfer-Encoding: chunked", "2\r\nok\r\n0\r\n\r\n", Ok(())),
        ("Transfer-Encoding: chunked", "2\r\nok\r\n0\r\nTrailer: x\r\n\r\n", Ok(())),
        ("Transfer-Encoding: chunked", "1\r\no\r\n1\r\nk\r\n0\r\n\r\n", Ok(())),
        ("Transfer-Encoding: chunked", "0002;x=\"y\"\r\nok\r\n000;z\r\n", Ok(())),
        ("Transfer-Encoding: chunked", "2 \nok\n0\n", Ok(())),
        ("Transfer-Encoding: Chunked\r\nContent-Length: 1", "2\r\nok\r\n0\r\n\r\n", Ok(())),
        ("Transfer-Encoding: gzip, chunked", "2\r\nok\r\n0\r\n\r\n", Ok(())),
        ("Transfer-Encoding: gzip", "ok", Ok(())),
        ("Transfer-Encoding: chunked", "0\r\n\r\n", Err(Body)),
        ("Transfer-Encoding: chunked", "2\r\nok\r\n", Err(Closed)),
        ("Transfer-Encoding: chunked", "2\r\nok\r\n0", Err(Closed)),
        ("Transfer-Encoding: chunked", "3\r\nok", Err(Closed)),
        ("Transfer-Encoding: chunked", "", Err(Closed)),
        ("Transfer-Encoding: chunked", "ok", Err(Garbage)),
        ("Transfer-Encoding: chunked", "\r\n2\r\nok\r\n0\r\n\r\n", Err(Garbage)),
        ("Transfer-Encoding: chunked", ";x\r\nok", Err(Garbage)),
        ("Transfer-Encoding: chunked", "2\r\nokay\r\n0\r\n\r\n", Err(Garbage)),
        ("Transfer-Encoding: chunked", "-2\r\nok\r\n", Err(Garbage)),
        ("Transfer-Encoding: chunked", "00000000000000002\r\nok\r\n", Err(Garbage)),
        ("Transfer-Encoding: chunked", "ffffffffffffffff\r\nok", Err(Closed)),
        ("Transfer-Encoding: chunked", "2\rxok\r\n", Err(Garbage)),
    ] {
        let head = if head.is_empty() { String::new() } else { format!("{head}\r\n") };
        let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}");
        assert_eq!(judge(&check, answer.as_bytes()), verdict, "{answer:?}");
    }
    // The status comes first.
    let answer = b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!(judge(&check, answer), Err(Trouble::Status(500)));
    let long =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;{}", "x".repeat(2000));
    assert_eq!(judge(&check, long.as_bytes()), Err(Garbage));
}

#[test]
fn a_body_is_judged_without_waiting_for_the_end_of_the_connection() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
    ] {
        assert_eq!(at_once(&check("body~ok$"), answer.as_bytes()), Some(Ok(())));
        assert_eq!(at_once(&check("body~no$"), answer.as_bytes()), Some(Err(Trouble::Body)));
    }
    for head in ["204 No Content", "304 Not Modified"] {
        let answer = format!("HTTP/1.1 {head}\r\n\r\n");
        assert_eq!(at_once(&check("body~^$"), answer.as_bytes()), Some(Ok(())), "{head}");
    }
    // Nothing that may still come can change these.
    let early = format!("HTTP/1.1 200 OK\r\n\r\nok{}", " ".repeat(62));
    assert_eq!(at_once(&check("body~^ok"), early.as_bytes()), Some(Ok(())));
    assert_eq!(at_once(&check("body!~^ok"), early.as_bytes()), Some(Err(Trouble::Body)));
    // These depend on it.
    for line in
        [r"body~ok\s+$", r"body~ok\s+\z", r"body~ok\s+\B", r"body!~ok\s+$", "body~no", "body!~no"]
    {
        assert_eq!(at_once(&check(line), early.as_bytes()), None, "{line}");
    }
    assert_eq!(judge(&check(r"body~ok\s+$"), early.as_bytes()), Ok(()));
    assert_eq!(judge(&check(r"body~ok\s+$"), (early + "not").as_bytes()), Err(Trouble::Body));
}

#[test]
fn what_comes_behind_256k_of_a_body_is_not_looked_at() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n";
    let answer = |before: usize| {
        let mut answer = [&head[..], &vec![b' '; before], b"ok"].concat();
        answer.resize(head.len() + 300_000, b' ');
        answer
    };
    let (yes, no) = (check("body~ok"), check("body!~ok"));
    assert_eq!(at_once(&yes, &answer(BODY_MAX - 2)), Some(Ok(())));
    assert_eq!(at_once(&no, &answer(BODY_MAX - 2)), Some(Err(Trouble::Body)));
    assert_eq!(at_once(&yes, &answer(BODY_MAX - 1)), Some(Err(Trouble::Body)));
    assert_eq!(at_once(&no, &answer(BODY_MAX - 1)), Some(Ok(())));
}

#[test]
fn expressions_see_bytes() {
    let check = check(r"body~(?i)^\x00.\xff\w+é$");
    assert_eq!(judge(&check, b"HTTP/1.1 200 OK\r\n\r\n\0\x80\xffABC\xc3\xa9"), Ok(()));
    assert_eq!(judge(&check, b"HTTP/1.1 200 OK\r\n\r\n\0\x80\xff\xc3\xa9"), Err(Trouble::Body));
}
