use super::*;

#[test]
fn policies_are_found_by_their_names() {
    for policy in POLICIES {
        assert_eq!(by_name(policy.name()).map(Policy::name), Some(policy.name()));
    }
    assert!(by_name("fastest").is_none());
    assert_eq!(POLICIES[0].name(), "least_conn", "the default");
}

/// What a line is read as: the policy's name, or the error.
fn read(line: &str) -> Result<&'static str, String> {
    parse(&line.split(' ').collect::<Vec<_>>()).map(|(policy, _)| policy.name())
}

#[test]
fn lines_are_read_and_errors_say_what_may_be_there() {
    assert_eq!(read("round_robin"), Ok("round_robin"));
    assert_eq!(read("random"), Ok("random"));
    assert_eq!(read("random two"), Ok("random two"));
    assert_eq!(read("random two least_conn"), Ok("random two"));
    assert_eq!(read("ip_hash"), Ok("ip_hash"));
    assert_eq!(read("hash $uri"), Ok("hash KEY"));
    assert_eq!(read("hash $uri consistent"), Ok("hash KEY consistent"));
    assert_eq!(parse(&["hash", "$a $b"]).unwrap().1, Some("$a $b"));
    for (line, why) in [
        ("hash", "\"registry_balance hash\" needs a key: write hash KEY or hash KEY consistent"),
        (
            "hash $uri consistant",
            "invalid parameter \"consistant\" of \"hash\": it may be consistent",
        ),
        ("ip_hash x", "invalid balancing method \"ip_hash x\": it may be least_conn, "),
        ("random three", "invalid parameter \"three\" of \"random\": it may be two"),
        (
            "random two least_time",
            "invalid parameter \"least_time\" of \"random two\": it may be least_conn",
        ),
        ("random two least_conn x", "invalid parameter \"x\" of \"random two\""),
        ("fastest", "invalid balancing method \"fastest\": it may be least_conn, "),
    ] {
        let got = read(line).unwrap_err();
        assert!(got.starts_with(why), "{line}: {got}");
    }
}

#[test]
fn clients_are_told_apart_by_network_or_by_address() {
    let of = |ip: &str| digest_of_client(Some(ip.parse().unwrap()));
    assert_eq!(of("10.1.2.3"), of("10.1.2.200"), "the same three octets");
    assert_ne!(of("10.1.2.3"), of("10.1.3.3"));
    assert_ne!(of("fe80::1"), of("fe80::2"), "all of an IPv6 address");
    assert_eq!(of("::1"), of("::1"));
}

#[test]
fn digests_are_those_of_all_nodes_and_versions() {
    assert_eq!(digest(b""), 0xf52a_15e9_a9b5_e89b);
    assert_eq!(digest(b"/index.html"), 0xf6ad_651c_57d6_4427);
}
