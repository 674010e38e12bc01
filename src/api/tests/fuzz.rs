//! Requests from outside, as strange as chance makes them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::api::params::Params;
use crate::registry::Registry;
use crate::shm::testing::cases;

const NAMES: [&str; 9] =
    ["ns", "host", "port", "weight", "max_conns", "action", "ready", "nothing", "pört"];

/// Values that are right, nearly right, and anything.
fn value() -> impl Strategy<Value = String> {
    let usual = vec![
        "a",
        "A-z_0.9",
        "10.0.0.1",
        "[::1]",
        "::ffff:10.0.0.1",
        "0.0.0.0",
        "localhost",
        "1",
        "80",
        "0",
        "65535",
        "65536",
        "2147483647",
        "2147483648",
        "18446744073709551616",
        "-1",
        "+1",
        "1.0",
        "1e3",
        "0x50",
        " 80",
        "",
        "enable",
        "disable",
        "null",
        "\0",
        "\u{feff}80",
        "８０",
    ];
    prop_oneof![
        6 => prop::sample::select(usual).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => "[0-9]{1,40}",
        1 => ".{60,80}",
    ]
}

fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = prop_oneof![
        12 => prop::sample::select(NAMES.to_vec()).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    prop::collection::vec((name, value()), 0..6)
}

/// JSON that may hold anything, anywhere.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        value().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let name =
            prop_oneof![prop::sample::select(NAMES.to_vec()).prop_map(str::to_owned), value()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn form(fields: &[(String, String)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

/// Changes a few bytes.
fn mangle(mut text: Vec<u8>, edits: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    for (at, what, byte) in edits {
        let at = at.index(text.len() + 1);
        match what % 4 {
            0 if at < text.len() => drop(text.remove(at)),
            1 if at < text.len() => text[at] = *byte,
            2 => text.truncate(at.max(text.len() / 2)),
            _ => text.insert(at, *byte),
        }
    }
    text
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    let edit = (any::<prop::sample::Index>(), any::<u8>(), any::<u8>());
    prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(edit, 1..4)]
}

fn kind() -> impl Strategy<Value = BodyKind> {
    prop::sample::select(vec![BodyKind::Form, BodyKind::Json, BodyKind::Other])
}

/// What the getters make of the parameters, as text.
fn read_all(params: &Params) -> Vec<String> {
    let text = |r: Result<String, Reply>| r.unwrap_or_else(|e| e.error.unwrap_or_default());
    vec![
        text(params.host().map(|v| format!("{v:?}"))),
        text(params.port().map(|v| format!("{v:?}"))),
        text(params.weight().map(|v| format!("{v:?}"))),
        text(params.required_weight().map(|v| format!("{v:?}"))),
        text(params.max_conns().map(|v| format!("{v:?}"))),
        text(params.enable().map(|v| format!("{v:?}"))),
        text(params.namespace().map(|v| format!("{v:?}"))),
        params.has("ready").to_string(),
    ]
}

/// An error names what it is about.
fn names_the_input(error: &Reply) -> bool {
    let message = error.error.as_deref().unwrap_or_default();
    [
        "Parameter \"",
        "Unknown parameter \"",
        "Malformed JSON: ",
        "Malformed percent-encoding in the query string",
        "Malformed percent-encoding in the body",
        "Content-Type must be ",
    ]
    .iter()
    .any(|start| message.starts_with(start))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(1_000), ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_is_read_or_refused_by_name(
        query in (fields(), edits()),
        body in (fields(), json_value(), any::<bool>(), edits()),
        kind in kind(),
    ) {
        let query = mangle(form(&query.0).into_bytes(), &query.1);
        let (fields, json, as_json, edits) = body;
        let body = if as_json { json.to_string() } else { form(&fields) };
        let body = mangle(body.into_bytes(), &edits);
        match Params::parse(&query, &body, kind) {
            Ok(params) => drop(read_all(&params)),
            Err(reply) => {
                read(&reply);
                prop_assert!([400, 415].contains(&reply.status));
                prop_assert!(names_the_input(&reply), "{:?}", reply.error);
                prop_assert!(reply.body.len() < 1_000, "{} bytes", reply.body.len());
            }
        }
    }

    #[test]
    fn a_form_and_json_say_the_same(fields in fields()) {
        let known: BTreeMap<&str, &str> = fields
            .iter()
            .filter(|(name, _)| NAMES[..7].contains(&name.as_str()))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let pairs: Vec<_> = known.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let of_form = Params::parse(b"", form(&pairs).as_bytes(), BodyKind::Form).unwrap();
        let of_query = Params::parse(form(&pairs).as_bytes(), b"", BodyKind::Form).unwrap();
        let json = serde_json::to_vec(&known).unwrap();
        let of_json = Params::parse(b"", &json, BodyKind::Json).unwrap();
        prop_assert_eq!(read_all(&of_form), read_all(&of_json));
        prop_assert_eq!(read_all(&of_form), read_all(&of_query));
    }

    #[test]
    fn an_endpoint_is_one_of_ten_or_404(name in any::<String>()) {
        match Endpoint::by_name(&name) {
            Ok(endpoint) => prop_assert_eq!(name, format!("{endpoint:?}").to_lowercase()),
            Err(reply) => {
                prop_assert_eq!(read(&reply).0, 404);
                prop_assert!(reply.error.is_some_and(|e| e.contains(&name)));
            }
        }
    }

    #[test]
    fn a_file_of_tokens_is_taken_line_by_line_or_refused_without_showing_any(
        lines in prop::collection::vec(
            prop_oneof![4 => "[!-~]{1,20}", 1 => Just(String::new()), 1 => "[ -~]{0,20}\r?", 1 => any::<String>()],
            0..8,
        ),
        edits in edits(),
        guess in "[!-~]{1,20}",
    ) {
        let text = mangle(lines.join("\n").into_bytes(), &edits);
        let file = TokenFile::new(&text);
        let given: Vec<&[u8]> =
            text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|l| !l.is_empty()).collect();
        let mut tokens = Tokens::default();
        match tokens.add_file(&file.0) {
            Ok(()) => {
                let opens = |token: &[u8]| tokens.admit(None, std::iter::once(token));
                prop_assert!(!given.is_empty() && given.iter().all(|token| opens(token)));
                prop_assert_eq!(opens(guess.as_bytes()), given.contains(&guess.as_bytes()));
                prop_assert!(!opens(b""));
            }
            Err(e) => {
                let said = e.to_string().replace(file.0.to_str().unwrap(), "");
                prop_assert!(said.len() < 200);
                for token in given.iter().filter(|token| token.len() > 12) {
                    prop_assert!(!said.as_bytes().windows(token.len()).any(|w| w == *token));
                }
            }
        }
    }
}

/// A file that is gone at the end.
struct TokenFile(PathBuf);

impl TokenFile {
    fn new(text: &[u8]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("registry-fuzz-{}-{n}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(60), ..ProptestConfig::default() })]

    /// Calls of the API one after the other: each reply is JSON of its status, and the zone whole.
    #[test]
    fn any_calls_leave_a_whole_zone(
        calls in prop::collection::vec(
            (
                prop::sample::select(vec![
                    "add", "add", "add", "remove", "toggle", "refresh", "weight", "drain", "status", "health", "reset",
                    "cleanup",
                ]),
                (fields(), fields(), json_value()),
                kind(),
                prop::sample::select(vec![Method::Get, Method::Post, Method::Post, Method::Other]),
                0..40_000u64,
            ),
            1..40,
        ),
        allow_get in any::<bool>(),
    ) {
        let mut site = Site::new();
        site.access.allow_get = allow_get;
        for (endpoint, (query, body, json), kind, method, later) in calls {
            site.now.mono += later / 10;
            let body = match kind {
                BodyKind::Form => form(&body),
                _ => json.to_string(),
            };
            let (status, value) = site.ask(method, endpoint, &form(&query), body.as_bytes(), kind);
            prop_assert!([200, 400, 404, 405, 409, 415, 507].contains(&status), "{} {}", status, value);
        }
        prop_assert_eq!(Registry::lock(site.zone).unwrap().check(), Ok(()));
    }
}
