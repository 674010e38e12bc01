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
    parse(&line.split(' ').collect::<Vec<_>>()).map(Policy::name)
}

#[test]
fn lines_are_read_and_errors_say_what_may_be_there() {
    assert_eq!(read("round_robin"), Ok("round_robin"));
    assert_eq!(read("random"), Ok("random"));
    assert_eq!(read("random two"), Ok("random two"));
    assert_eq!(read("random two least_conn"), Ok("random two"));
    for (line, why) in [
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
