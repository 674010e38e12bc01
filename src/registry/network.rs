//! Networks in CIDR notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Address;

/// All addresses with the same first bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

/// Not a network: neither an address nor an address with a prefix length.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("write it as 10.0.0.0/8, 2001:db8::/32 or a single address")]
pub struct NetworkError;

impl Network {
    /// Reads "10.0.0.0/8", "2001:db8::/32" or a single address. Bits behind the prefix are dropped;
    /// the second value tells that there were any. A network of IPv4 addresses mapped into IPv6 is
    /// the network of these.
    ///
    /// # Errors
    ///
    /// [`NetworkError`].
    pub fn parse(text: &str) -> Result<(Self, bool), NetworkError> {
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits)),
            None => (text, None),
        };
        let written: IpAddr = ip.parse().map_err(|_| NetworkError)?;
        let width = if written.is_ipv4() { 32 } else { 128 };
        let bits: u8 = match bits {
            None => width,
            Some(bits) if !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) => {
                bits.parse().ok().filter(|bits| *bits <= width).ok_or(NetworkError)?
            }
            Some(_) => return Err(NetworkError),
        };
        let base = masked(written, bits);
        let network = match (base, base.to_canonical()) {
            (IpAddr::V6(_), base @ IpAddr::V4(_)) => Self { base, bits: bits.saturating_sub(96) },
            _ => Self { base, bits },
        };
        Ok((network, base != written))
    }

    /// Whether a list of networks (`allow_servers`) lets a server in: an empty list lets in every one
    /// that has an IP address. A name is always let in: each address that it has will be asked for.
    pub fn admit(networks: &[Self], address: &Address) -> bool {
        match address {
            Address::Inet(ip, _) => Self::admit_ip(networks, *ip),
            Address::Name(..) => true,
            Address::Unix(_) => false,
        }
    }

    /// The same of an IP address.
    pub(super) fn admit_ip(networks: &[Self], ip: IpAddr) -> bool {
        networks.is_empty() || networks.iter().any(|network| network.contains(ip))
    }

    /// Whether an address is in it. Addresses are compared in their canonical form.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.base.is_ipv4() && masked(ip, self.bits) == self.base
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(network: &str, ip: &str) -> bool {
        Network::parse(network).unwrap().0.contains(ip.parse().unwrap())
    }

    #[test]
    fn members() {
        assert!(has("10.0.0.0/8", "10.255.255.255"));
        assert!(!has("10.0.0.0/8", "11.0.0.0"));
        assert!(has("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(has("0.0.0.0/0", "203.0.113.7"));
        assert!(!has("0.0.0.0/0", "2001:db8::1"));
        assert!(has("::/0", "2001:db8::1"));
        assert!(!has("::/0", "10.0.0.1"));
        assert!(has("192.0.2.1", "192.0.2.1"));
        assert!(!has("192.0.2.1", "192.0.2.2"));
        assert!(has("2001:db8::/33", "2001:db8:7fff::1"));
        assert!(!has("2001:db8::/33", "2001:db8:8000::1"));
    }

    #[test]
    fn mapped_networks_are_those_of_ipv4() {
        assert!(has("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(!has("::ffff:10.0.0.0/104", "11.0.0.1"));
        assert!(has("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(has("::ffff:0:0/96", "203.0.113.7"));
        assert!(!has("::/80", "10.0.0.1"));
    }

    #[test]
    fn low_bits_mean_nothing() {
        for (text, network, low) in [
            ("10.0.0.1/8", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.0.0.0/8", false),
            ("192.0.2.1", "192.0.2.1/32", false),
            ("2001:db8::1/32", "2001:db8::/32", true),
            ("::ffff:10.1.0.0/104", "10.0.0.0/8", true),
            ("::ffff:10.1.0.0/80", "::/80", true),
        ] {
            let (parsed, meaningless) = Network::parse(text).unwrap();
            assert_eq!((parsed.to_string().as_str(), meaningless), (network, low), "{text}");
        }
    }

    #[test]
    fn refused() {
        for bad in
            ["", "/8", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0/8", "a/8", "10.0.0.0/-1"]
        {
            assert_eq!(Network::parse(bad), Err(NetworkError), "{bad}");
        }
    }
}
