//! Text from outside, read into addresses and networks.

use std::net::{IpAddr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::shm::testing::cases;

/// Text made of an example by a few changes, or of nothing.
pub(crate) fn mangled(examples: &'static [&'static str]) -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0..4u8, any::<char>());
    let edits = prop::collection::vec(edit, 0..4);
    let changed = (prop::sample::select(examples), edits).prop_map(|(example, edits)| {
        let mut text: Vec<char> = example.chars().collect();
        for (at, what, new) in edits {
            let at = at.index(text.len() + 1);
            match what {
                0 if at < text.len() => drop(text.remove(at)),
                1 if at < text.len() => text[at] = new,
                2 if at < text.len() => text.insert(at, text[at]),
                _ => text.insert(at, if new.is_ascii() { new } else { '0' }),
            }
        }
        text.into_iter().collect()
    });
    prop_oneof![8 => changed, 1 => any::<String>(), 1 => "[0-9a-fA-F:.\\[\\]/%]{0,40}"]
}

const HOSTS: &[&str] = &[
    "127.0.0.1",
    "010.000.00.009",
    "255.255.255.255",
    "0.0.0.0",
    "::1",
    "[::1]",
    "::",
    "[2001:db8::7]",
    "2001:0DB8:0:0::0001",
    "::ffff:10.0.0.1",
    "[::FFFF:0A00:0001]",
    "fe80::1%eth0",
    "example.com",
];

const NETWORKS: &[&str] = &[
    "10.0.0.0/8",
    "0.0.0.0/0",
    "192.0.2.1",
    "192.0.2.1/32",
    "10.1.2.3/8",
    "::/0",
    "2001:db8::/32",
    "2001:db8::1",
    "::ffff:10.0.0.0/104",
    "::ffff:0:0/96",
    "::ffff:10.0.0.1/95",
    "fe80::/10",
    "/",
    "10.0.0.0/33",
    "::/129",
];

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|v4| IpAddr::V4(v4.into())),
        any::<u128>().prop_map(|v6| IpAddr::V6(v6.into())),
        any::<u32>().prop_map(|v4| IpAddr::V6(std::net::Ipv4Addr::from(v4).to_ipv6_mapped())),
        any::<u128>().prop_map(|low| IpAddr::V6(Ipv6Addr::from(low & 0xffff_ffff))),
    ]
}

/// The first bits of an address.
fn bits(ip: IpAddr, n: u8) -> (bool, String) {
    let all = match ip {
        IpAddr::V4(v4) => format!("{:032b}", u32::from(v4)),
        IpAddr::V6(v6) => format!("{:0128b}", u128::from(v6)),
    };
    (ip.is_ipv4(), all[..usize::from(n)].to_owned())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(2_000), ..ProptestConfig::default() })]

    #[test]
    fn a_host_has_one_form(text in mangled(HOSTS), port in 1..=u16::MAX) {
        if let Ok(host) = parse_host(&text) {
            prop_assert!(!host.is_unspecified(), "{}", text);
            prop_assert_eq!(host, host.to_canonical());
            prop_assert_eq!(parse_host(&host.to_string()), Ok(host));
            if host.is_ipv6() {
                let bracketed = format!("[{host}]");
                prop_assert_eq!(parse_host(&bracketed), Ok(host));
            }
            let printed = Address::Inet(host, port).to_string();
            prop_assert_eq!(printed.parse::<std::net::SocketAddr>().unwrap(), (host, port).into());
            prop_assert!(printed.len() <= crate::shm::NAME_MAX);
        }
    }

    #[test]
    fn what_the_standard_library_reads_is_read_the_same(ip in ip()) {
        let canonical = ip.to_canonical();
        let expected = if canonical.is_unspecified() { Err(AddressError::Unspecified) } else { Ok(canonical) };
        prop_assert_eq!(parse_host(&ip.to_string()), expected);
    }

    #[test]
    fn a_network_has_one_form_and_holds_what_its_bits_say(
        text in mangled(NETWORKS),
        ips in prop::collection::vec(ip(), 1..8),
    ) {
        if let Ok((network, _)) = Network::parse(&text) {
            let printed = network.to_string();
            prop_assert_eq!(Network::parse(&printed), Ok((network, false)));
            let (base, n) = printed.split_once('/').unwrap();
            let (base, n): (IpAddr, u8) = (base.parse().unwrap(), n.parse().unwrap());
            prop_assert_eq!(base, base.to_canonical(), "{}", text);
            prop_assert!(network.contains(base));
            // As it was written, before it was made canonical.
            let (as_written, len) = text.split_once('/').unwrap_or((&text, "128"));
            let as_written: IpAddr = as_written.parse().unwrap();
            for ip in ips {
                let ip = ip.to_canonical();
                if let (IpAddr::V6(v6), IpAddr::V4(v4)) = (as_written, ip)
                    && base.is_ipv4()
                {
                    let len = len.parse().unwrap();
                    let same = bits(v4.to_ipv6_mapped().into(), len) == bits(v6.into(), len);
                    prop_assert_eq!(network.contains(ip), same, "{} in {}", ip, text);
                }
                let inside = ip.is_ipv4() == base.is_ipv4() && bits(ip, n) == bits(base, n);
                prop_assert_eq!(network.contains(ip), inside, "{} in {}", ip, network);
            }
        }
    }

    #[test]
    fn the_name_of_a_namespace_is_what_was_given(name in prop::collection::vec(any::<u8>(), 0..70)) {
        if let Some(valid) = SpaceName::new(&name) {
            prop_assert_eq!(valid.as_str().as_bytes(), &name[..]);
            prop_assert!(!name.is_empty() && name.len() <= 64);
        }
    }
}
