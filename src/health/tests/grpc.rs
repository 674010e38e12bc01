//! Answers of gRPC servers.

use httlib_hpack::{Decoder, Encoder};

use super::*;

/// HTTP/2's kinds of frames, and flags.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITIZED: u8 = 0x20;

const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])
}

/// A header block, encoded as the flags of `Encoder` say.
fn block(fields: &[(&str, &str)], how: u8) -> Vec<u8> {
    // Its table is of size 0, as we ask for.
    let mut encoder = Encoder::with_dynamic_size(0);
    let mut block = Vec::new();
    for (name, value) in fields {
        let field = (name.as_bytes().to_vec(), value.as_bytes().to_vec(), how);
        encoder.encode(field, &mut block).unwrap();
    }
    block
}

fn headers(end: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    let how = Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE | Encoder::BEST_FORMAT;
    frame(HEADERS, END_HEADERS | end, 1, &block(fields, how))
}

/// The head of an answer that goes on.
fn head() -> Vec<u8> {
    headers(0, &[(":status", "200"), ("content-type", "application/grpc")])
}

fn data(payload: &[u8]) -> Vec<u8> {
    frame(DATA, 0, 1, payload)
}

fn trailers(status: &str) -> Vec<u8> {
    headers(END_STREAM, &[("grpc-status", status), ("grpc-message", "")])
}

/// The verdict on these frames, behind the settings that each answer begins with.
fn verdict(frames: &[Vec<u8>]) -> Verdict {
    judge(&check("type=grpc"), &[settings(), frames.concat()].concat())
}

/// Takes a request apart: its frames, and nothing else.
fn frames_of(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        frames.push((bytes[3], bytes[4], stream, bytes[9..9 + length].to_vec()));
        bytes = &bytes[9 + length..];
    }
    frames
}

#[test]
fn the_request_asks_about_the_service() {
    let long = "s".repeat(200);
    for (line, path, authority, message) in [
        ("type=grpc".to_owned(), None, PEER, vec![]),
        ("type=grpc host=app.internal".to_owned(), Some("/p"), "app.internal", vec![]),
        ("type=grpc service=a.B".to_owned(), None, PEER, b"\x0a\x03a.B".to_vec()),
        (
            format!("type=grpc service={long}"),
            None,
            PEER,
            [b"\x0a\xc8\x01", long.as_bytes()].concat(),
        ),
        (format!("type=grpc host={long}"), None, &long, vec![]),
    ] {
        let (_, request) = Talk::open(&check(&line), PEER, path);
        let frames = frames_of(request.strip_prefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap());
        let kinds: Vec<_> =
            frames.iter().map(|(kind, flags, stream, _)| (*kind, *flags, *stream)).collect();
        assert_eq!(kinds, [(SETTINGS, 0, 0), (HEADERS, END_HEADERS, 1), (DATA, END_STREAM, 1)]);

        let mut fields = Vec::new();
        Decoder::default().decode(&mut frames[1].3.clone(), &mut fields).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let fields: Vec<_> =
            fields.into_iter().map(|(name, value, _)| (text(name), text(value))).collect();
        let expected = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "ngx-upstream-registry (health check)"),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));

        let length = message.len() as u32;
        assert_eq!(frames[2].3, [&[0], &length.to_be_bytes()[..], &message].concat());
    }
}

#[test]
fn a_server_that_is_serving_passes_before_its_trailers_come() {
    let check = check("type=grpc");
    let answer = [settings(), head(), data(&SERVING)].concat();
    assert_eq!(at_once(&check, &answer), Some(Ok(())));
    assert_eq!(at_once(&check, &answer[..answer.len() - 1]), None);
    assert_eq!(judge(&check, &answer), Ok(()));
    assert_eq!(verdict(&[head(), data(&SERVING), trailers("0")]), Ok(()));
    assert_eq!(verdict(&[head(), frame(DATA, END_STREAM, 1, &SERVING)]), Ok(()));
    // What says nothing about it changes nothing, nor does padding or a message in parts.
    assert_eq!(
        verdict(&[
            frame(SETTINGS, ACK, 0, &[]),
            frame(WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]),
            headers(0, &[(":status", "103")]),
            frame(PRIORITY, 0, 3, &[0; 5]),
            head(),
            frame(WINDOW_UPDATE, 0, 1, &[0, 1, 0, 0]),
            frame(77, 0xff, 9, b"from the future"),
            data(&[]),
            data(&SERVING[..3]),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
            frame(DATA, PADDED, 1, &[&[4][..], &SERVING[3..6], &[0; 4]].concat()),
            // The first bit of a stream's number means nothing.
            frame(DATA, 0, 0x8000_0001, &SERVING[6..]),
        ]),
        Ok(())
    );
}

#[test]
fn settings_and_pings_are_acknowledged() {
    let ping = frame(PING, 0, 0, b"12345678");
    let answer = [settings(), ping, frame(PING, ACK, 0, b"87654321"), head(), settings()].concat();
    let (verdict, sent) = hear(&check("type=grpc"), [&answer[..]]);
    assert_eq!(verdict, Err(Trouble::Closed));
    let ack = frame(SETTINGS, ACK, 0, &[]);
    assert_eq!(sent, [&ack[..], &frame(PING, ACK, 0, b"12345678"), &ack].concat());
    assert_eq!(judge(&check("type=grpc"), &answer), Err(Trouble::Closed));
}

#[test]
fn a_server_that_is_not_serving_fails() {
    for (message, verdict_of) in [
        (&[][..], Err(Trouble::Serving(0))),
        (&[8, 0], Err(Trouble::Serving(0))),
        (&[8, 1], Ok(())),
        (&[8, 2], Err(Trouble::Serving(2))),
        (&[8, 3], Err(Trouble::Serving(3))),
        (&[8, 0x81, 0], Ok(())),
        (&[8, 0xc8, 1], Err(Trouble::Serving(9))),
        // -1
        (&[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], Err(Trouble::Serving(9))),
        // The last one counts, and what is not known is passed over.
        (&[8, 2, 8, 1], Ok(())),
        (&[0x10, 5, 0x1a, 2, 8, 2, 0x25, 1, 2, 3, 4, 0x29, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1], Ok(())),
        (&[8, 1, 0x1a, 0], Ok(())),
        // Not such a message.
        (&[8], Err(Trouble::Garbage)),
        (&[8, 0x81], Err(Trouble::Garbage)),
        (&[10, 1], Err(Trouble::Garbage)),
        (&[10, 1, 1], Err(Trouble::Garbage)),
        (&[0, 1], Err(Trouble::Garbage)),
        (&[0x13], Err(Trouble::Garbage)),
        (&[0x1a, 2, 1], Err(Trouble::Garbage)),
        (&[0x1a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], Err(Trouble::Garbage)),
        (&[0x25, 1, 2, 3], Err(Trouble::Garbage)),
        (&[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], Err(Trouble::Garbage)),
        (b"<html></html>", Err(Trouble::Garbage)),
    ] {
        let prefix = [&[0][..], &(message.len() as u32).to_be_bytes()].concat();
        assert_eq!(
            verdict(&[head(), data(&[&prefix, message].concat())]),
            verdict_of,
            "{message:?}"
        );
    }
}

#[test]
fn statuses_of_http_and_of_grpc_decide() {
    for (frames, trouble) in [
        (vec![headers(END_STREAM, &[(":status", "404")])], Trouble::Status(404)),
        (vec![headers(0, &[("server", "nginx"), (":status", "502")])], Trouble::Status(502)),
        (vec![headers(0, &[(":status", "302")])], Trouble::Status(302)),
        (
            vec![headers(END_STREAM, &[(":status", "503"), ("grpc-status", "14")])],
            Trouble::Status(503),
        ),
        // UNIMPLEMENTED, and nothing but trailers.
        (
            vec![headers(END_STREAM, &[(":status", "200"), ("grpc-status", "12")])],
            Trouble::Grpc(12),
        ),
        (vec![head(), trailers("5")], Trouble::Grpc(5)),
        (vec![head(), trailers("16")], Trouble::Grpc(16)),
        (vec![head(), trailers("99")], Trouble::Grpc(99)),
        (vec![head(), trailers("9999")], Trouble::Grpc(99)),
        (vec![head(), data(&SERVING[..6]), trailers("13")], Trouble::Grpc(13)),
        (vec![head(), data(&[]), trailers("1")], Trouble::Grpc(1)),
        // It is well, and says nothing.
        (vec![head(), trailers("0")], Trouble::Garbage),
        (vec![headers(END_STREAM, &[(":status", "200"), ("grpc-status", "0")])], Trouble::Garbage),
        (vec![headers(END_STREAM, &[(":status", "200")])], Trouble::Garbage),
        (vec![head(), frame(DATA, END_STREAM, 1, &SERVING[..6])], Trouble::Garbage),
        (vec![head(), frame(DATA, END_STREAM, 1, &[])], Trouble::Garbage),
        (vec![head(), data(&SERVING[..6]), trailers("0")], Trouble::Garbage),
    ] {
        assert_eq!(verdict(&frames), Err(trouble), "{frames:?}");
        let answer = [settings(), frames.concat()].concat();
        assert_eq!(at_once(&check("type=grpc"), &answer), Some(Err(trouble)), "{frames:?}");
    }
}

#[test]
fn a_server_that_gives_up_has_closed() {
    let goaway = |last: u8| frame(GOAWAY, 0, 0, &[0x80, 0, 0, last, 0, 0, 0, 0, b'b', b'y', b'e']);
    for frames in [
        vec![],
        vec![head()],
        vec![head(), data(&SERVING[..6])],
        vec![frame(RST_STREAM, 0, 1, &[0, 0, 0, 7])],
        vec![head(), frame(RST_STREAM, 0, 1, &[0; 4])],
        vec![goaway(0)],
        vec![goaway(1)],
    ] {
        assert_eq!(verdict(&frames), Err(Trouble::Closed), "{frames:?}");
    }
    let check = check("type=grpc");
    assert_eq!(at_once(&check, &[settings(), goaway(0)].concat()), Some(Err(Trouble::Closed)));
    assert_eq!(at_once(&check, &[settings(), goaway(1)].concat()), None);
}

#[test]
fn what_breaks_http2_is_garbage() {
    let check = check("type=grpc");
    for answer in [
        // HTTP/1.1, whose first letters are a length.
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"SSH-2.0-x\r\n".to_vec(),
        // Theirs begins with settings, and not with an acknowledgement.
        head(),
        frame(PING, 0, 0, &[0; 8]),
        frame(SETTINGS, ACK, 0, &[]),
    ] {
        assert_eq!(at_once(&check, &answer), Some(Err(Trouble::Garbage)), "{answer:?}");
        assert_eq!(judge(&check, &answer), Err(Trouble::Garbage), "{answer:?}");
    }
    for frames in [
        vec![frame(SETTINGS, 0, 1, &[])],
        vec![frame(SETTINGS, 0, 0, &[0; 5])],
        vec![frame(SETTINGS, ACK, 0, &[0; 6])],
        vec![frame(PING, 0, 0, &[0; 7])],
        vec![frame(PING, 0, 1, &[0; 8])],
        vec![frame(GOAWAY, 0, 0, &[0; 7])],
        vec![frame(GOAWAY, 0, 1, &[0; 8])],
        vec![frame(RST_STREAM, 0, 1, &[0; 3])],
        vec![frame(RST_STREAM, 0, 0, &[0; 4])],
        vec![frame(PUSH_PROMISE, 0, 1, &[0, 0, 0, 2])],
        vec![frame(CONTINUATION, END_HEADERS, 1, &[0x88])],
        vec![frame(HEADERS, END_HEADERS, 3, &[0x88])],
        vec![frame(HEADERS, END_HEADERS | PADDED, 1, &[])],
        vec![frame(HEADERS, END_HEADERS | PADDED, 1, &[2, 0x88])],
        vec![frame(HEADERS, END_HEADERS | PRIORITIZED, 1, &[0; 4])],
        vec![frame(HEADERS, 0, 1, &[0x88]), frame(PING, 0, 0, &[0; 8])],
        vec![frame(HEADERS, 0, 1, &[0x88]), frame(CONTINUATION, 4, 3, &[])],
        vec![frame(HEADERS, 0, 1, &[0x88]), head()],
        // A message without a head, a head without a status, two heads, trailers that don't end.
        vec![data(&SERVING)],
        vec![headers(0, &[("server", "x")])],
        vec![headers(END_STREAM, &[("grpc-status", "0")])],
        vec![headers(END_STREAM, &[(":status", "100")])],
        vec![head(), head()],
        vec![head(), headers(0, &[("grpc-status", "0")])],
        vec![head(), frame(DATA, 0, 3, &SERVING)],
        vec![head(), frame(DATA, PADDED, 1, &[])],
        vec![head(), frame(DATA, PADDED, 1, &[7, 0, 0, 0, 0, 2, 8])],
        // Compressed, or longer than any such message.
        vec![head(), data(&[1, 0, 0, 0, 2, 8, 1])],
        vec![head(), data(&[0, 0, 0, 4, 1])],
        vec![head(), data(&[0, 255, 255, 255, 255])],
        vec![head(), data(b"<html>")],
        // No number.
        vec![headers(0, &[(":status", "2x0")])],
        vec![headers(0, &[(":status", "99")])],
        vec![head(), trailers("")],
        vec![head(), trailers("-1")],
        vec![head(), trailers("10000")],
        // More than a frame may have; of what comes of it nothing is kept.
        vec![frame(77, 0, 0, &[0; 16_385])],
    ] {
        let answer = [settings(), frames.concat()].concat();
        assert_eq!(judge(&check, &answer), Err(Trouble::Garbage), "{frames:?}");
    }
    assert_eq!(verdict(&[frame(77, 0, 0, &[0; 16_384]), head(), data(&SERVING)]), Ok(()));
}

#[test]
fn header_blocks_may_come_in_parts_padded_and_up_to_16k() {
    let fields = block(&[(":status", "200"), ("server", "x")], Encoder::BEST_FORMAT);
    let (a, b) = fields.split_at(4);
    let padded = [&[3][..], &[0, 0, 0, 9, 200], a, &[0; 3]].concat();
    assert_eq!(
        verdict(&[
            frame(HEADERS, PADDED | PRIORITIZED, 1, &padded),
            frame(CONTINUATION, 0, 1, &[]),
            frame(CONTINUATION, END_HEADERS, 1, b),
            data(&SERVING),
        ]),
        Ok(())
    );
    // The end of the stream stands at the block's beginning.
    assert_eq!(
        verdict(&[frame(HEADERS, END_STREAM, 1, a), frame(CONTINUATION, END_HEADERS, 1, b)]),
        Err(Trouble::Garbage)
    );
    let long = |n| {
        let parts = [0x88; 16 * 1024];
        [
            frame(HEADERS, 0, 1, &parts[n..]),
            frame(CONTINUATION, END_HEADERS, 1, &parts[..n]),
            data(&SERVING),
        ]
    };
    assert_eq!(verdict(&long(100)), Ok(()));
    let [first, second, _] = long(100);
    let one_more = frame(CONTINUATION, 0, 1, &[0x88]);
    assert_eq!(verdict(&[first, one_more, second]), Err(Trouble::TooLong));
}
