//! Ranges of addresses.

use crate::Invalid;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, net::IpAddr, str::FromStr};

/// A range of addresses, `10.0.0.0/8` or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    base: u128,
    bits: u8,
    v4: bool,
}

impl Cidr {
    /// Whether `ip` lies in the range. An IPv4 address in IPv6 clothes (`::ffff:1.2.3.4`) counts as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (value, v4) = number(ip);
        let width = if v4 { 32 } else { 128 };
        v4 == self.v4 && (self.bits == 0 || (value ^ self.base) >> (width - u32::from(self.bits)) == 0)
    }
}

fn number(ip: IpAddr) -> (u128, bool) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), true),
        IpAddr::V6(ip) => (u128::from(ip), false),
    }
}

impl FromStr for Cidr {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || Invalid::new("address range", s, "use an address such as 10.0.0.0/8, 192.0.2.7 or fd00::/8");
        let (address, bits) = s.split_once('/').map_or((s, None), |(a, b)| (a, Some(b)));
        let (base, v4) = number(address.parse().map_err(|_| bad())?);
        let width = if v4 { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), str::parse).ok().filter(|b| *b <= width).ok_or_else(bad)?;
        Ok(Self { base, bits, v4 })
    }
}

impl fmt::Display for Cidr {
    /// A single address without its `/32` or `/128`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.v4 { 32 } else { 128 };
        match u32::try_from(self.base).ok().filter(|_| self.v4) {
            Some(v4) => write!(f, "{}", std::net::Ipv4Addr::from(v4))?,
            None => write!(f, "{}", std::net::Ipv6Addr::from(self.base))?,
        }
        if self.bits == whole { Ok(()) } else { write!(f, "/{}", self.bits) }
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let has = |range: &str, ip: &str| range.parse::<Cidr>().unwrap().contains(ip.parse().unwrap());
        assert!(has("10.0.0.0/8", "10.200.0.1"));
        assert!(!has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("10.0.0.0/8", "::ffff:10.0.0.1"));
        assert!(has("0.0.0.0/0", "1.2.3.4"));
        assert!(!has("0.0.0.0/0", "::1"));
        assert!(has("192.0.2.7", "192.0.2.7"));
        assert!(!has("192.0.2.7", "192.0.2.8"));
        assert!(has("fd00::/8", "fdff::1"));
        for bad in ["", "10.0.0.0/33", "x/8", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        for text in ["10.0.0.0/8", "192.0.2.7", "fd00::/8", "0.0.0.0/0", "::/0"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
    }
}
