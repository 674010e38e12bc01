use super::*;

#[test]
fn policies_are_found_by_their_names() {
    for policy in POLICIES {
        assert_eq!(by_name(policy.name()).map(Policy::name), Some(policy.name()));
    }
    assert!(by_name("fastest").is_none());
    assert_eq!(POLICIES[0].name(), "least_conn", "the default");
}
