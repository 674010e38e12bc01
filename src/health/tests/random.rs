//! Answers as strange as chance makes them, as long as malice makes them, and expressions of malice.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::shm::testing::cases;

/// Most that a talk may hold: a head and, if there is something to know about it, a body; or a frame,
/// a header block and a message.
fn held_max(check: &Check) -> usize {
    match (check.kind, &check.body) {
        (Kind::Grpc, _) => 2 * 16 * 1024 + 9 + 2 * (5 + 1024),
        (_, None) => 8 * 1024,
        (_, Some(_)) => 8 * 1024 + BODY_MAX,
    }
}

/// How a talk ends in which these pieces come, while what it holds is watched.
fn watched<'a>(check: &Arc<Check>, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Verdict, usize) {
    let (mut talk, _) = Talk::open(check, PEER, None);
    let (mut out, mut read) = (Vec::new(), 0);
    for piece in pieces {
        out.clear();
        read += piece.len();
        let verdict = talk.received(piece, &mut out);
        assert!(talk.held() <= held_max(check), "{} bytes are held", talk.held());
        assert!(out.len() <= piece.len() + 16, "{} bytes are sent for {}", out.len(), piece.len());
        if let Some(verdict) = verdict {
            return (verdict, read);
        }
    }
    (talk.closed(), read)
}

/// Cut at random places.
fn pieces<'a>(answer: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = answer;
    let mut lengths = lengths.iter().cycle();
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(rest.len().min(*lengths.next()?));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

fn agrees(check: &Arc<Check>, answer: &[u8], lengths: &[usize]) -> Result<(), TestCaseError> {
    let whole = hear(check, [answer]);
    prop_assert_eq!(&hear(check, pieces(answer, lengths)), &whole);
    prop_assert_eq!(&hear(check, answer.chunks(1)), &whole);
    prop_assert_eq!(watched(check, pieces(answer, lengths)).0, whole.0);
    Ok(())
}

/// Parts of answers of HTTP, in a mad order.
fn http() -> impl Strategy<Value = Vec<u8>> {
    let usual = vec![
        "HTTP/1.1 ",
        "HTTP/1.",
        "HTTP/1.0 200 OK\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 500 Oh\n",
        "200",
        "\r\n",
        "\n",
        "\r",
        " ",
        ": ",
        "Content-Length: 4\r\n",
        "Content-Length: ",
        "Transfer-Encoding: chunked\r\n",
        "4\r\n",
        "0\r\n\r\n",
        "ok",
        ";",
        "\0",
    ];
    let part = prop_oneof![
        8 => prop::sample::select(usual).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
        1 => (any::<u8>(), 0..9000usize).prop_map(|(byte, n)| vec![byte; n]),
    ];
    (any::<bool>(), prop::collection::vec(part, 0..20)).prop_map(|(well, parts)| {
        let start: &[u8] = if well { b"HTTP/1.1 200 OK\r\n" } else { b"" };
        [start, &parts.concat()].concat()
    })
}

/// Frames, of which the first ones are most often as they should be.
fn http2() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        Just(vec![0x88]),
        Just(vec![0, 0, 0, 0, 2, 8, 1]),
        Just(vec![0; 8]),
        (0..20_000usize).prop_map(|n| vec![1; n]),
    ];
    let usual = 0..10u8;
    let flags = prop::sample::select(vec![0, 1, 4, 5, 8, 0x20, 0xff]);
    let part = (usual, flags, 0..3u32, payload).prop_map(|(kind, flags, stream, payload)| {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    });
    (0..3u8, prop::collection::vec(part, 0..20)).prop_map(|(well, parts)| {
        let settings: &[u8] = if well > 0 { &[0, 0, 0, 4, 0, 0, 0, 0, 0] } else { b"" };
        let head: &[u8] = if well > 1 { &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88] } else { b"" };
        [settings, head, &parts.concat()].concat()
    })
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1..4usize, 1..100usize, 1..20_000usize], 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(500)))]

    #[test]
    fn fuzz_of_http_gives_the_same_verdict_however_it_is_cut(answer in http(), lengths in lengths()) {
        for line in ["", "status=!599 body~k", "status=!599 body!~ok$"] {
            agrees(&check(line), &answer, &lengths)?;
        }
    }

    #[test]
    fn fuzz_of_grpc_gives_the_same_verdict_however_it_is_cut(answer in http2(), lengths in lengths()) {
        agrees(&check("type=grpc"), &answer, &lengths)?;
    }

    #[test]
    fn fuzz_of_bytes_is_survived(answer in prop::collection::vec(any::<u8>(), 0..200)) {
        for line in ["", "body~ok", "type=grpc"] {
            agrees(&check(line), &answer, &[7])?;
        }
    }

    #[test]
    fn fuzz_of_parameters_is_survived(
        words in prop::collection::vec(
            prop_oneof![
                "[a-z]{0,8}=[a-z0-9./,!-]{0,12}",
                "(type|uri|host|port|interval|jitter|timeout|fails|passes|status|initial|mode|service)=\\PC{0,12}",
                "body!?~\\PC{0,20}",
                "body|~|!~|off|\\PC{0,8}",
            ],
            0..6,
        ),
    ) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let Err(why) = Check::parse(&words) {
            prop_assert!(!why.is_empty() && words.iter().all(|word| word.contains('\n')) || !why.contains('\n'), "{:?}", why);
        }
    }
}

/// A gigabyte in pieces of 16k: `start`, and then `more` again and again.
fn gigabyte<'a>(start: &'a [u8], more: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    std::iter::once(start).chain(std::iter::repeat_n(more, 1 << 16))
}

#[test]
fn answers_without_end_are_judged_after_some_of_them() {
    let body = [b' '; 16 * 1024];
    let line = b"a: b\r\n".repeat(2700);
    let chunk = [b"3fec\r\n", &[b' '; 0x3fec][..], b"\r\n"].concat();
    let small_chunks = b"1\r\n \r\n".repeat(2700);
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunked = format!("{ok}Transfer-Encoding: chunked\r\n\r\n");
    let sized = format!("{ok}Content-Length: 1073741824\r\n\r\n");
    let (no, closed, long) = (Err(Trouble::Body), format!("{ok}\r\n"), Err(Trouble::TooLong));
    for (line, start, more, verdict, most) in [
        ("", ok, &line[..], long, 32 << 10),
        ("", ok, &body, long, 32 << 10),
        ("body~ok", ok, &line, long, 32 << 10),
        ("", &sized, &body, Ok(()), 32 << 10),
        ("body~ok", &sized, &body, no, 300 << 10),
        ("body!~ok", &sized, &body, Ok(()), 300 << 10),
        ("body~ok", &closed, &body, no, 300 << 10),
        ("body~ok", &chunked, &chunk, no, 300 << 10),
        ("body~ok", &chunked, &small_chunks, no, 2 << 20),
    ] {
        let (found, read) = watched(&check(line), gigabyte(start.as_bytes(), more));
        assert_eq!(found, verdict, "{line} {start:?}");
        assert!(read <= most, "{line} {start:?}: {read} bytes were read");
    }
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let headers = [&settings[..], &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88]].concat();
    let open = [&settings[..], &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88]].concat();
    let part = [&[0, 0x10, 0, 9, 0, 0, 0, 0, 1][..], &[0x88; 4096]].concat();
    let parts = [0, 0, 0, 9, 0, 0, 0, 0, 1].repeat(1800);
    let pings = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(900);
    let nothing = [0, 0, 0, 0, 0, 0, 0, 0, 1].repeat(1800);
    let unknown = [&[0, 0x3f, 0xf7, 77, 0, 0, 0, 0, 0][..], &[0; 0x3ff7]].concat();
    let message = [&[0, 0x10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 1][..], &[1; 0xffb]].concat();
    let garbage = Err(Trouble::Garbage);
    for (start, more, verdict, most) in [
        (&open, &part, Err(Trouble::TooLong), 32 << 10),
        (&open, &parts, garbage, 32 << 10),
        (&headers, &pings, garbage, 64 << 10),
        (&headers, &nothing, garbage, 32 << 10),
        (&headers, &unknown, garbage, 17 << 20),
        (&headers, &message, garbage, 32 << 10),
    ] {
        let (found, read) = watched(&check("type=grpc"), gigabyte(start, more));
        assert_eq!(found, verdict, "{more:?}");
        assert!(read <= most, "{more:?}: {read} bytes were read");
    }
}

#[test]
fn no_expression_takes_long() {
    let began = Instant::now();
    for (pattern, body) in [
        ("(a+)+$", "a"),
        ("^(a|aa)+$", "a"),
        ("(.*)*x", "a"),
        ("(a|a)*(a|a)*(a|a)*b", "a"),
        ("[ab]*a[ab]{50}c", "ab"),
        ("(?:a?){50}a{50}b", "a"),
    ] {
        let check = Arc::new(Check::parse(&[&format!("body~{pattern}")]).unwrap().unwrap());
        let body = body.repeat(BODY_MAX / body.len());
        let answer = format!("HTTP/1.1 200 OK\r\n\r\n{}!", &body[1..]);
        let one = Instant::now();
        assert_eq!(
            watched(&check, answer.as_bytes().chunks(100)).0,
            Err(Trouble::Body),
            "{pattern}"
        );
        println!("{pattern} {:?}", one.elapsed());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
