//! Networks in CIDR notation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All addresses with the same first bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

/// Not a network.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetworkError {
    /// Neither an address nor an address with a prefix length.
    #[error("write it as 10.0.0.0/8, 2001:db8::/32 or a single address")]
    Syntax,
    /// Bits are set behind the prefix.
    #[error("its low address bits are not zero; did you mean {0}?")]
    LowBits(String),
}

impl Network {
    /// Reads "10.0.0.0/8", "2001:db8::/32" or a single address.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, NetworkError> {
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits)),
            None => (text, None),
        };
        let base: IpAddr = ip.parse().map_err(|_| NetworkError::Syntax)?;
        let width = if base.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) if !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) => {
                bits.parse().ok().filter(|bits| *bits <= width).ok_or(NetworkError::Syntax)?
            }
            Some(_) => return Err(NetworkError::Syntax),
        };
        let network = Self { base: masked(base, bits), bits };
        if network.base != base {
            return Err(NetworkError::LowBits(format!("{}/{bits}", network.base)));
        }
        Ok(network)
    }

    /// Whether an address is in it. Addresses are compared in their canonical form.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.base.is_ipv4() && masked(ip, self.bits) == self.base
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
        Network::parse(network).unwrap().contains(ip.parse().unwrap())
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
    fn refused() {
        for bad in
            ["", "/8", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0/8", "a/8", "10.0.0.0/-1"]
        {
            assert_eq!(Network::parse(bad), Err(NetworkError::Syntax), "{bad}");
        }
        assert_eq!(Network::parse("10.0.0.1/8"), Err(NetworkError::LowBits("10.0.0.0/8".into())));
    }
}
