//! Round trips; damage of every kind; the file's life on a real disk; and two that share it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::file::LIMIT;
use super::*;
use crate::registry::{Address, HealthPath, SavedServer, Settings, Source, SwitchedOff};

fn head(instance: u64) -> Head {
    let source = Source { instance, next_number: 100, seen: None };
    Head { registry: "main".into(), source }
}

fn server(n: u16) -> SavedServer {
    SavedServer {
        namespace: "backend".into(),
        address: Address::Inet(Ipv4Addr::new(10, 0, 0, 1).into(), n),
        number: u64::from(n),
        weight: 1,
        max_conns: 1000,
        settings: Settings::DEFAULT,
        off: None,
        disabled_at: 0,
        draining: false,
        is_static: false,
        down: false,
        created_at: 1_700_000_000_000,
        updated_at: 1_700_000_000_000,
        heard: 0,
        removed_at: 0,
    }
}

fn draft(head: &Head, servers: &[SavedServer], heartbeats: bool) -> Draft {
    let mut writer = Writer::new(head, heartbeats);
    for server in servers {
        writer.push(server);
    }
    writer.finish()
}

fn written(servers: &[SavedServer]) -> Vec<u8> {
    draft(&head(7), servers, true).seal()
}

fn any_address() -> impl Strategy<Value = (Address, bool)> {
    let v4 = any::<u32>().prop_filter("unspecified", |ip| *ip != 0);
    let v6 = any::<u128>().prop_filter("not canonical", |ip| {
        let ip = Ipv6Addr::from(*ip);
        !ip.is_unspecified() && ip.to_canonical().is_ipv6()
    });
    let ip = prop_oneof![
        v4.prop_map(|ip| IpAddr::from(Ipv4Addr::from(ip))),
        v6.prop_map(|ip| IpAddr::from(Ipv6Addr::from(ip))),
    ];
    prop_oneof![
        (ip, 1..=u16::MAX, any::<bool>()).prop_map(|(ip, port, s)| (Address::Inet(ip, port), s)),
        "[ -~äß\"\\\\]{1,40}".prop_map(|path| (Address::unix(&path).unwrap(), true)),
    ]
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let path = prop_oneof![Just(String::new()), "/[!-\"$-~]{0,47}"];
    (0..9u32, 0..20_000u32, 0..3_600_000u32, any::<[u32; 3]>(), path).prop_map(
        |(max_fails, fail_timeout_ms, slow_start_ms, timeouts_ms, path)| Settings {
            max_fails,
            fail_timeout_ms,
            slow_start_ms,
            timeouts_ms,
            health_path: HealthPath::new(&path).unwrap(),
        },
    )
}

fn any_server() -> impl Strategy<Value = SavedServer> {
    let off = option::of(prop_oneof![Just(SwitchedOff::Manual), Just(SwitchedOff::Configured)]);
    (
        ("[A-Za-z0-9._-]{1,64}", any_address(), any::<u64>()),
        (0..=65_535u32, 0..=i32::MAX as u32, any_settings(), off, any::<bool>(), any::<bool>()),
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()),
    )
        .prop_map(|((namespace, (address, is_static), number), flags, times)| {
            let (weight, max_conns, settings, off, draining, down) = flags;
            let (disabled_at, created_at, updated_at, heard) = times;
            SavedServer {
                namespace,
                address,
                number,
                weight,
                max_conns,
                settings,
                off,
                disabled_at,
                draining,
                is_static,
                down,
                created_at,
                updated_at,
                heard,
                removed_at: 0,
            }
        })
}

fn any_file() -> impl Strategy<Value = (Head, Vec<SavedServer>)> {
    let seen = option::of((1..=u64::MAX, any::<u64>()));
    (".{0,20}", 1..=u64::MAX, any::<u64>(), seen, vec(any_server(), 0..8)).prop_map(
        |(registry, instance, next_number, seen, mut servers)| {
            servers.sort_by_key(SavedServer::key);
            servers.dedup_by_key(|s| s.key());
            (Head { registry, source: Source { instance, next_number, seen } }, servers)
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read((head, servers) in any_file()) {
        let bytes = draft(&head, &servers, true).seal();
        let read = parse(&bytes).unwrap();
        prop_assert_eq!(read.keys.len(), servers.len());
        prop_assert!(servers.iter().all(|s| read.keys.contains(&s.key())));
        prop_assert_eq!((read.head, read.servers), (head, servers));
    }

    #[test]
    fn a_part_of_a_file_is_no_file((head, servers) in any_file(), cut in any::<prop::sample::Index>()) {
        let bytes = draft(&head, &servers, false).seal();
        let cut = cut.index(bytes.len());
        let error = parse(&bytes[..cut]).unwrap_err();
        prop_assert!(matches!(error, ParseError::Empty | ParseError::Truncated | ParseError::Damaged(_)), "{error}");
    }

    #[test]
    fn no_changed_byte_goes_unnoticed(
        (head, servers) in any_file(), at in any::<prop::sample::Index>(), flip in 1..=255u8,
    ) {
        let mut bytes = draft(&head, &servers, false).seal();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(parse(&bytes).is_err());
    }

    #[test]
    fn nothing_makes_it_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn nor_does_json_with_a_good_checksum(json in "[\\[\\]{}\",:0-9a-z]{0,100}") {
        let _ = parse(&sealed(&json));
        let _ = parse(&sealed(&format!("{{\"version\":1,\"servers\":[{json}")));
    }
}

/// With a good trailer behind it.
fn sealed(text: &str) -> Vec<u8> {
    use std::hash::Hasher;
    let mut sum = super::file::Fnv::default();
    sum.write(text.as_bytes());
    format!("{text},\"checksum\":\"{:016x}\"}}\n", sum.finish()).into_bytes()
}

const HEAD: &str = r#"{"version":1,"registry":"main","instance":"0000000000000007","next":9"#;

#[test]
fn each_truncation_is_detected() {
    let bytes = written(&[server(1), server(2)]);
    for end in 0..bytes.len() {
        assert!(parse(&bytes[..end]).is_err(), "{end}");
    }
    assert_eq!(parse(b""), Err(ParseError::Empty));
    assert_eq!(parse(&bytes[..bytes.len() - 1]), Err(ParseError::Truncated));
    assert_eq!(parse(&bytes[..bytes.len() / 2]), Err(ParseError::Truncated));
}

#[test]
fn it_is_for_people_too() {
    let text = String::from_utf8(written(&[server(1)])).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next().unwrap(),
        r#"{"version":1,"registry":"main","instance":"0000000000000007","next":100,"servers":["#
    );
    assert_eq!(
        lines.next().unwrap(),
        r#"{"namespace":"backend","addr":"10.0.0.1:1","number":1,"weight":1,"max_conns":1000,"created_at":1700000000000,"updated_at":1700000000000}"#
    );
    assert!(lines.next().unwrap().starts_with(r#"],"count":1,"checksum":""#));
    assert_eq!(lines.next(), None);
}

#[test]
fn settings_stand_in_the_file_where_they_are_not_the_default() {
    let mut settings = Settings { max_fails: 3, timeouts_ms: [1, 2, 3], ..Settings::DEFAULT };
    settings.health_path = HealthPath::new("/a?b=\"c\"").unwrap();
    let text = String::from_utf8(written(&[SavedServer { settings, ..server(1) }])).unwrap();
    let expected = r#""max_conns":1000,"max_fails":3,"connect_timeout_ms":1,"send_timeout_ms":2,"read_timeout_ms":3,"health_path":"/a?b=\"c\"","created_at""#;
    assert!(text.contains(expected), "{text}");
}

#[test]
fn fields_from_the_future_are_left_unread() {
    let text = format!(
        r#"{HEAD},"comment":["x",{{}}],"servers":[{{"namespace":"a","addr":"[::1]:80","number":1,"weight":2,"max_conns":0,"created_at":3,"zone":"eu"}}],"count":1"#
    );
    let document = parse(&sealed(&text)).unwrap();
    assert_eq!(document.servers[0].address.to_string(), "[::1]:80");
    assert_eq!(document.servers[0].weight, 2);
    // Fields that an older version did not write.
    assert_eq!(document.servers[0].settings, Settings::DEFAULT);
}

#[test]
fn other_versions_are_told_by_their_number() {
    let newer = HEAD.replace("\"version\":1", "\"version\":2");
    let text = format!(r#"{newer},"servers":[],"count":0"#);
    assert_eq!(parse(&sealed(&text)), Err(ParseError::Version(2)));
    assert_eq!(parse(br#"{"version":0,"all":"different"}"#), Err(ParseError::Version(0)));
}

#[test]
fn structure_is_strict() {
    let line = |addr: &str, more: &str| {
        format!(
            r#"{{"namespace":"a","addr":"{addr}","number":1,"weight":1,"max_conns":0,"created_at":3{more}}}"#
        )
    };
    let refused = |servers: &str, count: u64| {
        let text = format!(r#"{HEAD},"servers":[{servers}],"count":{count}"#);
        match parse(&sealed(&text)) {
            Err(ParseError::Damaged(why)) => why,
            other => panic!("{text}: {other:?}"),
        }
    };
    assert!(refused("", 1).contains("0 servers and says 1"));
    let one = line("10.0.0.1:80", "");
    assert!(refused(&format!("{one},{one}"), 2).contains("twice"));
    for bad in [
        "10.0.0.1",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:+80",
        ":80",
        "::1:80",
        "0.0.0.0:80",
        "[10.0.0.1]:80",
        "Example.com:80.",
        "example..com:80",
        "1.2.3:80",
        "unix:/run/a",
        "",
    ] {
        assert!(refused(&line(bad, ""), 1).contains("no such server"), "{bad}");
    }
    for more in [
        r#","weight":2"#,
        r#","disabled":"x""#,
        r#","draining":1"#,
        r#","updated_at":-1"#,
        r#","health_path":"live""#,
        r#","read_timeout_ms":-1"#,
    ] {
        refused(&line("10.0.0.1:80", more), 1);
    }
    refused(&one.replace("\"weight\":1", "\"weight\":65536"), 1);
    refused(&one.replace("\"namespace\":\"a\"", "\"namespace\":\"a b\""), 1);
    refused(&one.replace("\"number\":1,", ""), 1);
    for instance in ["", "7", "0000000000000000", "000000000000000G", "00000000000000AB"] {
        let head = HEAD.replace("0000000000000007", instance);
        let text = format!(r#"{head},"servers":[],"count":0"#);
        assert!(matches!(parse(&sealed(&text)), Err(ParseError::Damaged(_))), "{instance}");
    }
    assert!(matches!(parse(b"\"}\n"), Err(ParseError::Damaged(_))));
}

#[test]
fn what_makes_no_difference_to_a_restart_is_not_content() {
    let content = |s: SavedServer| {
        let mut writer = Writer::new(&head(7), true);
        writer.push(&s);
        writer.content()
    };
    let same = content(server(1));
    assert_eq!(content(SavedServer { heard: 9, updated_at: 9, ..server(1) }), same);
    assert_ne!(content(SavedServer { weight: 9, ..server(1) }), same);
    assert_ne!(content(SavedServer { draining: true, ..server(1) }), same);
    let plain = Settings::DEFAULT;
    for settings in [
        Settings { max_fails: 0, ..plain },
        Settings { fail_timeout_ms: 0, ..plain },
        Settings { slow_start_ms: 1, ..plain },
        Settings { timeouts_ms: [1, 0, 0], ..plain },
        Settings { timeouts_ms: [0, 1, 0], ..plain },
        Settings { timeouts_ms: [0, 0, 1], ..plain },
        Settings { health_path: HealthPath::new("/").unwrap(), ..plain },
    ] {
        assert_ne!(content(SavedServer { settings, ..server(1) }), same, "{settings:?}");
    }
    assert_ne!(content(server(2)), same);
}

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("main.json")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn problem(path: &Path) -> String {
    match read(path) {
        Found::Bad(problem) => problem.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_is_replaced_whole_and_found_again() {
    let dir = Dir::new("replace");
    let path = dir.file();
    assert!(matches!(read(&path), Found::Missing));
    assert_eq!(identity(&path), None);
    fs::write(dir.0.join("main.json.tmp"), "left by a crash").unwrap();
    let first = replace(&path, &written(&[server(1)])).unwrap();
    assert_eq!(identity(&path), Some(first));
    let second = replace(&path, &written(&[server(2)])).unwrap();
    assert_ne!(first, second);
    match read(&path) {
        Found::Whole(document, found) => {
            assert_eq!(found, second);
            assert_eq!(document.servers, [server(2)]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(dir.names(), ["main.json"]);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    replace(&path, b"").unwrap_err();
    assert_eq!(dir.names(), ["main.json"], "nothing is left of a try that failed");
}

#[test]
fn only_regular_files_of_a_sensible_length_are_read() {
    let dir = Dir::new("kinds");
    let path = dir.file();
    fs::create_dir(&path).unwrap();
    assert_eq!(problem(&path), "it is a directory, not a regular file");
    fs::remove_dir(&path).unwrap();
    fs::write(dir.0.join("other"), written(&[])).unwrap();
    symlink(dir.0.join("other"), &path).unwrap();
    assert_eq!(problem(&path), "it is a symbolic link, not a regular file");
    fs::remove_file(&path).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(fifo.success());
    assert_eq!(problem(&path), "it is a fifo, not a regular file");
    fs::remove_file(&path).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(problem(&path), "it is a socket, not a regular file");
    fs::remove_file(&path).unwrap();
    fs::File::create(&path).unwrap().set_len(LIMIT + 1).unwrap();
    assert_eq!(problem(&path), "it is longer than 256 MiB");
    fs::write(&path, "").unwrap();
    assert_eq!(problem(&path), "it is empty");
}

#[test]
fn bad_files_are_kept_and_not_without_end() {
    let dir = Dir::new("aside");
    let path = dir.file();
    for n in 1..=12 {
        fs::write(&path, n.to_string()).unwrap();
        let kept = set_aside(&path).unwrap();
        assert_eq!(fs::read_to_string(kept).unwrap(), n.to_string());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let names = dir.names();
    assert_eq!(names.len(), 9, "{names:?}");
    assert_eq!(names[0], "main.json.bad");
    let kept: Vec<u32> = names
        .iter()
        .map(|name| fs::read_to_string(dir.0.join(name)).unwrap().parse().unwrap())
        .collect();
    assert_eq!(*kept.iter().min().unwrap(), 4, "the oldest went: {kept:?}");

    fs::write(&path, "good").unwrap();
    let kept = link_aside(&path).unwrap();
    assert_eq!(fs::read_to_string(kept).unwrap(), "good");
    assert!(path.exists());
}

fn begun(report: Report) -> (Content, bool) {
    match report {
        Report::Began(Began::Ready { content, others }) => (content, others),
        other => panic!("{other:?}"),
    }
}

/// Begins when whoever else had the file has let go of all locks. Other tests fork, and their
/// children keep what was open here until they end.
fn begun_alone(keeper: &mut Keeper) -> Content {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let report = keeper.work(Job::Begin { known: 0 });
        assert!(
            std::time::Instant::now() < deadline,
            "whoever ends lets go of all locks: {report:?}"
        );
        match report {
            Report::Began(Began::Ready { content, others: false }) => return content,
            Report::Began(Began::Ready { .. }) => drop(keeper.work(Job::Abort)),
            Report::Began(Began::Busy) => {}
            other => panic!("{other:?}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn two_take_turns_and_see_what_the_other_wrote() {
    let dir = Dir::new("turns");
    let mut old = Keeper::new(dir.file(), 7);
    let mut new = Keeper::new(dir.file(), 8);
    let begin = || Job::Begin { known: 0 };

    let (content, others) = begun(old.work(begin()));
    assert!(matches!(content, Content::Missing) && !others);
    assert!(matches!(new.work(begin()), Report::Began(Began::Busy)), "it is the other's turn");
    let Report::Wrote(Ok(first)) = old.work(Job::Write(draft(&head(7), &[server(1)], false)))
    else {
        panic!()
    };

    let (content, others) = begun(new.work(begin()));
    assert!(others, "the other is still there");
    assert!(matches!(content, Content::Foreign(d, id) if d.servers == [server(1)] && id == first));
    let Report::Wrote(Ok(second)) = new.work(Job::Write(draft(&head(8), &[server(2)], false)))
    else {
        panic!()
    };

    match old.work(Job::Look) {
        Report::Looked { identity, others } => assert_eq!((identity, others), (second, true)),
        other => panic!("{other:?}"),
    }
    let (content, _) = begun(old.work(Job::Begin { known: second }));
    assert!(matches!(content, Content::Ours), "what is known is not read again");
    drop(old);
    let content = begun_alone(&mut new);
    assert!(matches!(content, Content::Ours), "the zone's own file is not read either");
    assert!(matches!(new.work(Job::Abort), Report::Aborted));
    match new.work(Job::Write(draft(&head(8), &[], false))) {
        Report::Wrote(Err(e)) => assert!(e.to_string().contains("lock was lost"), "{e}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(identity(&dir.file()), Some(second));
}

#[test]
fn a_lock_file_that_was_removed_is_made_again() {
    let dir = Dir::new("relock");
    let mut old = Keeper::new(dir.file(), 7);
    let mut new = Keeper::new(dir.file(), 8);
    begun(old.work(Job::Begin { known: 0 }));
    old.work(Job::Abort);
    fs::remove_file(dir.0.join("main.json.lock")).unwrap();
    begun(new.work(Job::Begin { known: 0 }));
    assert!(matches!(old.work(Job::Begin { known: 0 }), Report::Began(Began::Busy)));
}

#[test]
fn a_bad_file_makes_room_for_a_good_one() {
    let dir = Dir::new("bad");
    let mut keeper = Keeper::new(dir.file(), 7);
    fs::write(dir.file(), "{").unwrap();
    let (content, _) = begun(keeper.work(Job::Begin { known: 0 }));
    let Content::Bad(problem, Ok(kept)) = content else { panic!("{content:?}") };
    assert_eq!(problem.to_string(), "it is truncated");
    assert_eq!(fs::read_to_string(kept).unwrap(), "{");
    let wrote = keeper.work(Job::Write(draft(&head(7), &[], false)));
    assert!(matches!(wrote, Report::Wrote(Ok(_))));
}

#[test]
fn a_directory_that_is_not_there_is_a_failure_that_says_so() {
    let dir = Dir::new("gone");
    let mut keeper = Keeper::new(dir.0.join("no/main.json"), 7);
    match keeper.work(Job::Begin { known: 0 }) {
        Report::Began(Began::Failed(e)) => {
            let text = e.to_string();
            assert!(text.contains("no/main.json.lock") && text.contains("No such file"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_starts_waits_for_the_latest_of_who_runs() {
    use std::time::{Duration, Instant};
    let dir = Dir::new("latest");
    let path = dir.file();
    let long = Duration::from_secs(20);
    let began = Instant::now();
    ask_for_latest(&path, 8, long);
    let mut old = Keeper::new(path.clone(), 7);
    begun(old.work(Job::Begin { known: 0 }));
    ask_for_latest(&path, 7, long);
    assert!(began.elapsed() < long / 2, "there is nobody to wait for");

    let asks = std::thread::spawn({
        let path = path.clone();
        move || ask_for_latest(&path, 8, long)
    });
    while !matches!(old.work(Job::Look), Report::Looked { others: true, .. }) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!asks.is_finished());
    begun(old.work(Job::Begin { known: 0 }));
    old.work(Job::Write(draft(&head(7), &[], false)));
    asks.join().unwrap();
    assert!(began.elapsed() < long / 2, "what it waited for has come");

    let asked = Instant::now();
    ask_for_latest(&path, 8, Duration::from_millis(30));
    assert!(asked.elapsed() >= Duration::from_millis(30), "but it waits only so long");
}
