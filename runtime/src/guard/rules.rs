//! The rules as text, for `iptables-restore` and for `nft`. Pure; every word in it is an address, a number, or a name
//! that was checked.

use super::targets::Net;
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

/// Everything that the rules depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Of the installation; see [`tag`].
    pub(crate) tag: String,
    /// The installation's own bridges.
    pub(crate) own: BTreeSet<String>,
    /// The engine's other bridges.
    pub(crate) others: BTreeSet<String>,
    pub(crate) resolvers: BTreeSet<IpAddr>,
    pub(crate) allowed: BTreeSet<(Net, Option<u16>)>,
    pub(crate) denied: BTreeSet<Net>,
    pub(crate) host_ports: BTreeSet<u16>,
}

/// What chains and tables of an installation are called by: its short id, or a digest where that is long. Names of chains
/// end at 28 bytes.
pub(crate) fn tag(cluster: &str) -> String {
    let plain = cluster.len() <= 12 && cluster.chars().all(|c| c.is_ascii_alphanumeric());
    if plain { cluster.to_owned() } else { hex::encode(&Sha256::digest(cluster)[..6]) }
}

/// A name of a network interface that is safe as a word of a rule.
pub(crate) fn interface(name: &str) -> bool {
    (1..=15).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// One rule after another, in the words that both tools share: what is matched, and whether it passes.
enum Rule {
    Answers,
    Resolver(IpAddr),
    HostPort(u16),
    Place(Net, Option<u16>, bool),
    Bridge(String),
    Rest,
}

fn to_host(w: &Wanted) -> Vec<Rule> {
    let mut rules = vec![Rule::Answers];
    rules.extend(w.resolvers.iter().copied().map(Rule::Resolver));
    rules.extend(w.host_ports.iter().copied().map(Rule::HostPort));
    rules.extend(w.allowed.iter().map(|(net, port)| Rule::Place(*net, *port, true)));
    rules.push(Rule::Rest);
    rules
}

fn outward(w: &Wanted) -> Vec<Rule> {
    let mut rules = vec![Rule::Answers];
    // Before what is allowed: a wide range that is allowed may hold the containers' own.
    rules.extend(w.own.iter().cloned().map(Rule::Bridge));
    rules.extend(w.resolvers.iter().copied().map(Rule::Resolver));
    rules.extend(w.allowed.iter().map(|(net, port)| Rule::Place(*net, *port, true)));
    rules.extend(w.others.iter().cloned().map(Rule::Bridge));
    rules.extend(Net::link_local().map(|net| Rule::Place(net, None, false)));
    rules.extend(w.denied.iter().map(|net| Rule::Place(*net, None, false)));
    rules
}

impl Rule {
    /// As arguments of `iptables` or `ip6tables`; none for one of the other family.
    fn iptables(&self, v4: bool, refuse: &str) -> Vec<String> {
        let verdict = |passes: bool| if passes { "RETURN" } else { refuse };
        match self {
            Self::Answers => vec!["-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".into()],
            Self::Resolver(ip) if ip.is_ipv4() == v4 => {
                let to = Net::one(*ip);
                ["udp", "tcp"].map(|p| format!("-d {to} -p {p} -m {p} --dport 53 -j RETURN")).into()
            }
            Self::HostPort(port) => vec![format!("-p tcp -m tcp --dport {port} -j RETURN")],
            Self::Place(net, Some(port), passes) if net.is_v4() == v4 => {
                vec![format!("-d {net} -p tcp -m tcp --dport {port} -j {}", verdict(*passes))]
            }
            Self::Place(net, None, passes) if net.is_v4() == v4 => vec![format!("-d {net} -j {}", verdict(*passes))],
            Self::Bridge(name) => vec![format!("-o {name} -j {refuse}")],
            Self::Rest => vec![format!("-j {refuse}")],
            Self::Resolver(_) | Self::Place(..) => Vec::new(),
        }
    }

    fn nft(&self) -> Vec<String> {
        let ip = |v4: bool| if v4 { "ip" } else { "ip6" };
        let verdict = |passes: bool| if passes { "return" } else { "reject" };
        match self {
            Self::Answers => vec!["ct state established,related return".into()],
            Self::Resolver(a) => ["udp", "tcp"].map(|p| format!("{} daddr {a} {p} dport 53 return", ip(a.is_ipv4()))).into(),
            Self::HostPort(port) => vec![format!("tcp dport {port} return")],
            Self::Place(net, Some(port), passes) => {
                vec![format!("{} daddr {net} tcp dport {port} {}", ip(net.is_v4()), verdict(*passes))]
            }
            Self::Place(net, None, passes) => vec![format!("{} daddr {net} {}", ip(net.is_v4()), verdict(*passes))],
            Self::Bridge(name) => vec![format!("oifname \"{name}\" reject")],
            Self::Rest => vec!["reject".into()],
        }
    }
}

/// Names of the chains that other chains jump to: for what is meant for this machine, and for what goes through it.
pub(crate) fn entries(tag: &str) -> [String; 2] {
    [format!("flex-{tag}-in"), format!("flex-{tag}-fwd")]
}

/// What begins every line about the installation's chains.
pub(crate) fn prefix(tag: &str) -> String {
    format!("flex-{tag}-")
}

/// For `iptables-restore --noflush`, which replaces exactly the chains that are declared, all at once.
pub(crate) fn iptables(w: &Wanted, v4: bool, refuse: &str) -> String {
    let tag = &w.tag;
    let mut out = String::from("*filter\n");
    for chain in ["in", "fwd", "host", "out"] {
        let _ = writeln!(out, ":flex-{tag}-{chain} - [0:0]");
    }
    for bridge in &w.own {
        let _ = writeln!(out, "-A flex-{tag}-in -i {bridge} -g flex-{tag}-host");
        let _ = writeln!(out, "-A flex-{tag}-fwd -i {bridge} -g flex-{tag}-out");
    }
    for (chain, rules) in [("host", to_host(w)), ("out", outward(w))] {
        for rule in rules.iter().flat_map(|r| r.iptables(v4, refuse)) {
            let _ = writeln!(out, "-A flex-{tag}-{chain} {rule}");
        }
    }
    out.push_str("COMMIT\n");
    out
}

/// For `nft -f`: a table of the installation's own, replaced all at once.
pub(crate) fn nft(w: &Wanted) -> String {
    let table = format!("inet flex_{}", w.tag);
    let mut out = format!("add table {table}\ndelete table {table}\ntable {table} {{\n");
    for (chain, rules) in [("host", to_host(w)), ("out", outward(w))] {
        let _ = writeln!(out, "  chain {chain} {{");
        for rule in rules.iter().flat_map(Rule::nft) {
            let _ = writeln!(out, "    {rule}");
        }
        out.push_str("  }\n");
    }
    for (hook, chain) in [("input", "host"), ("forward", "out")] {
        let _ = writeln!(out, "  chain {hook} {{\n    type filter hook {hook} priority -10; policy accept;");
        for bridge in &w.own {
            let _ = writeln!(out, "    iifname \"{bridge}\" goto {chain}");
        }
        out.push_str("  }\n");
    }
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            tag: "c1".into(),
            own: ["br-a".to_owned(), "br-b".to_owned()].into(),
            others: ["docker0".to_owned()].into(),
            resolvers: ["10.0.0.53".parse().unwrap(), "fd00::53".parse().unwrap()].into(),
            allowed: [("10.1.0.0/16".parse().unwrap(), None), ("10.9.9.9".parse().unwrap(), Some(3128))].into(),
            denied: Net::private().into_iter().collect(),
            host_ports: [8080].into(),
        }
    }

    #[test]
    fn the_order_lets_through_before_it_refuses() {
        let text = iptables(&wanted(), true, "REJECT");
        let at = |line: &str| text.lines().position(|l| l == line).unwrap_or_else(|| panic!("no {line:?} in\n{text}"));
        assert_eq!(
            at("-A flex-c1-host -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN") + 1,
            at("-A flex-c1-host -d 10.0.0.53/32 -p udp -m udp --dport 53 -j RETURN")
        );
        assert!(at("-A flex-c1-host -p tcp -m tcp --dport 8080 -j RETURN") < at("-A flex-c1-host -j REJECT"));
        assert!(at("-A flex-c1-out -o br-b -j REJECT") < at("-A flex-c1-out -d 10.1.0.0/16 -j RETURN"), "apps stay apart");
        assert!(
            at("-A flex-c1-out -d 10.9.9.9/32 -p tcp -m tcp --dport 3128 -j RETURN")
                < at("-A flex-c1-out -d 10.0.0.0/8 -j REJECT")
        );
        at("-A flex-c1-out -d 169.254.0.0/16 -j REJECT");
        at("-A flex-c1-out -o docker0 -j REJECT");
        assert!(!text.contains("fd00") && !text.contains("--dport 8080 -j REJECT"));
        // The machine's own port of the router is not a port of every other machine.
        assert!(!text.contains("-A flex-c1-out -p tcp -m tcp --dport 8080"));
        let six = iptables(&wanted(), false, "DROP");
        assert!(six.contains("-A flex-c1-out -d fc00::/7 -j DROP") && six.contains("-d fd00::53/128 -p tcp"), "{six}");
        assert!(!six.contains("10.0"));
    }

    #[test]
    fn installations_have_names_of_their_own() {
        assert_eq!(tag("c5f40d2e"), "c5f40d2e");
        for long in ["test-apart-12345", "a-b", "averylongname00"] {
            assert!(tag(long).len() == 12 && tag(long) != tag("other-long-name"), "{long}");
        }
        assert!(entries(&tag("averyveryverylongname")).iter().all(|c| c.len() <= 28));
        assert!(interface("br-0123456789ab") && !interface("") && !interface("a b") && !interface("x\"y"));
    }

    #[test]
    fn nft_says_the_same() {
        let text = nft(&wanted());
        for line in [
            "iifname \"br-a\" goto host",
            "ip6 daddr fc00::/7 reject",
            "ip daddr 10.9.9.9/32 tcp dport 3128 return",
            "oifname \"docker0\" reject",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
