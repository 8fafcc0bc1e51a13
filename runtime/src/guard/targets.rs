//! Ranges of addresses and places in them, as people and other programs' settings write them. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A range of addresses: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Net {
    address: IpAddr,
    bits: u8,
}

impl Net {
    /// The range of one address.
    pub const fn one(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Private addresses (RFC 1918), those of carriers (RFC 6598) and IPv6's unique local ones (RFC 4193).
    pub fn private() -> Vec<Self> {
        let v4 = |a, b, bits| Self { address: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), bits };
        let v6 = Self { address: IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), bits: 7 };
        vec![v4(10, 0, 8), v4(172, 16, 12), v4(192, 168, 16), v4(100, 64, 10), v6]
    }

    /// Link-local addresses of both families.
    pub(crate) fn link_local() -> [Self; 2] {
        let v6 = Self { address: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), bits: 10 };
        [Self { address: IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), bits: 16 }, v6]
    }

    pub(crate) const fn is_v4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether the address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                masked(u128::from(a.to_bits()) << 96, self.bits) == masked(u128::from(b.to_bits()) << 96, self.bits)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => masked(a.to_bits(), self.bits) == masked(b.to_bits(), self.bits),
            _ => false,
        }
    }
}

fn masked(value: u128, bits: u8) -> u128 {
    if bits == 0 { 0 } else { value >> (128 - u32::from(bits)) }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl FromStr for Net {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range of addresses: write 10.1.0.0/16 or one address");
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let one = Self::one(address.parse().map_err(|_| wrong())?);
        let Some(bits) = bits else { return Ok(one) };
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        if bits > one.bits { Err(wrong()) } else { Ok(Self { bits, ..one }) }
    }
}

/// A place that containers may reach: a range, an address or a name, with a TCP port or with all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Net(Net, Option<u16>),
    Name(String, Option<u16>),
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no place: write 10.1.0.0/16, 10.1.2.3:5432, [fd00::1]:443 or db.internal:5432");
        if let Ok(net) = text.parse() {
            return Ok(Self::Net(net, None));
        }
        let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map(str::parse).transpose().map_err(|_| wrong())?;
        if let Ok(net) = host.parse() {
            return Ok(Self::Net(net, port));
        }
        let label = |l: &str| !l.is_empty() && l.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        let name = host.strip_suffix('.').unwrap_or(host);
        if name.len() <= 253 && name.split('.').all(label) { Ok(Self::Name(name.to_owned(), port)) } else { Err(wrong()) }
    }
}

/// The places that a text names by URL: an environment variable's value, a list of package sources. `proxy` also takes
/// `10.0.0.1:3128`, as proxies are often written.
pub fn targets_in(text: &str, proxy: bool) -> Vec<Target> {
    let lines = text.lines().filter(|l| !l.trim_start().starts_with(['#', ';']) && !l.trim_start().starts_with("//"));
    let words = lines.flat_map(|l| l.split(|c: char| c.is_whitespace() || matches!(c, ',' | '|' | ';' | '"' | '\'')));
    words.filter_map(|word| target_of_url(word).or_else(|| target_of_pair(word, proxy))).collect()
}

fn target_of_url(word: &str) -> Option<Target> {
    let (scheme, rest) = word.split_once("://")?;
    // `git+https`, `sparse+https`.
    let port = match scheme.rsplit('+').next()?.to_ascii_lowercase().as_str() {
        "http" | "ws" => 80,
        "https" | "wss" => 443,
        "socks" | "socks4" | "socks4a" | "socks5" | "socks5h" => 1080,
        "ftp" => 21,
        "ssh" => 22,
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    match host.parse().ok()? {
        Target::Net(net, None) => Some(Target::Net(net, Some(port))),
        Target::Name(name, None) => Some(Target::Name(name, Some(port))),
        other => Some(other),
    }
}

fn target_of_pair(word: &str, proxy: bool) -> Option<Target> {
    if !proxy || word.contains("://") {
        return None;
    }
    match word.trim_end_matches('/').rsplit('@').next()?.parse().ok()? {
        Target::Net(_, None) | Target::Name(_, None) => None,
        with_port => Some(with_port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_hold_what_is_in_them() {
        let net = |s: &str| s.parse::<Net>().unwrap();
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("172.16.0.0/12", "172.31.255.255", "172.32.0.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("fc00::/7", "fd12::1", "fe80::1"),
            ("169.254.169.254/32", "169.254.169.254", "169.254.169.253"),
        ] {
            assert!(net(range).contains(inside.parse().unwrap()), "{range}");
            assert!(!net(range).contains(outside.parse().unwrap()), "{range}");
        }
        assert!(net("0.0.0.0/0").contains("1.2.3.4".parse().unwrap()) && !net("0.0.0.0/0").contains("::1".parse().unwrap()));
        for bad in ["10.0.0.0/33", "::/129", "x", "", "10.0.0/8", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert!(bad.parse::<Net>().is_err(), "{bad}");
        }
    }

    #[test]
    fn places_are_read_as_people_write_them() {
        assert_eq!(target("10.1.2.3:5432"), Target::Net("10.1.2.3/32".parse().unwrap(), Some(5432)));
        assert_eq!(target("10.1.0.0/16"), Target::Net("10.1.0.0/16".parse().unwrap(), None));
        assert_eq!(target("[fd00::1]:443"), Target::Net("fd00::1".parse().unwrap(), Some(443)));
        assert_eq!(target("fd00::1"), Target::Net("fd00::1".parse().unwrap(), None));
        assert_eq!(target("db.internal.:5432"), Target::Name("db.internal".into(), Some(5432)));
        for bad in ["", "a b", "db:port", "-j ACCEPT", "a..b", "x:70000", "a/b", "10.0.0.1\n-j"] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn urls_in_settings_are_found() {
        let all = |text, proxy| targets_in(text, proxy).into_iter().collect::<Vec<_>>();
        assert_eq!(all("http://user:p%40ss@10.9.8.7:3128/", true), [target("10.9.8.7:3128")]);
        assert_eq!(all("10.9.8.7:3128", true), [target("10.9.8.7:3128")]);
        assert_eq!(all("10.9.8.7:3128", false), []);
        let go = "https://proxy.corp/go,sparse+https://b.corp/index|direct";
        assert_eq!(all(go, false), [target("proxy.corp:443"), target("b.corp:443")]);
        let apt = "# deb http://old/ x\nTypes: deb\nURIs: http://mirror.corp:8081/debian https://[fd00::9]/x\n";
        assert_eq!(all(apt, false), [target("mirror.corp:8081"), target("[fd00::9]:443")]);
        assert_eq!(all("Acquire::http::Proxy \"http://10.0.0.1:3142\";", false), [target("10.0.0.1:3142")]);
        assert_eq!(all("file:///etc/x http:// on http://bad_[host", true), []);
    }
}
