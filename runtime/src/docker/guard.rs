//! Keeps the packet filter's rules for this installation's networks: when a network is made, when the engine comes back,
//! and by the clock, since a reload of a firewall tells nobody.

use super::{Inner, engine::QUICK, labels};
use crate::{
    GuardSettings, Isolation, RuntimeError,
    guard::{
        Net, Target,
        keep::Keeper,
        rules::{self, Wanted},
    },
};
use bollard::query_parameters::ListNetworksOptionsBuilder;
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(10);
/// How long the addresses of a name are good for.
const NAMES: Duration = Duration::from_secs(60);
/// A name server that does not answer must not hold up the rules.
const LOOKUP: Duration = Duration::from_secs(2);

/// What the keeper remembers between two looks.
#[derive(Default)]
pub(super) struct Guard {
    keeper: Keeper,
    names: HashMap<(String, Option<u16>), BTreeSet<IpAddr>>,
    asked: Option<Instant>,
    /// The installation is being removed.
    over: bool,
}

/// Keeps the rules for ever.
pub(super) async fn watch(inner: Arc<Inner>) {
    loop {
        inner.guard_now().await;
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = inner.guard_wake.notified() => {}
        }
    }
}

impl Inner {
    /// Makes the rules be there for the networks that there are. Returns when they are, or when it is known why not.
    pub(super) async fn guard_now(&self) {
        let Some(settings) = &self.settings.guard else { return };
        let mut guard = self.guard.lock().await;
        if guard.over {
            return;
        }
        // While the engine is away the rules stay as they are.
        let Ok((own, others)) = self.bridges().await else { return };
        let wanted = Wanted {
            tag: rules::tag(&self.names.cluster),
            own,
            others,
            resolvers: resolvers(&settings.resolvers),
            allowed: guard.allowed(settings).await,
            denied: settings.deny.iter().copied().collect(),
            host_ports: settings.host_ports.iter().copied().collect(),
        };
        let kept = guard.keeper.keep(&wanted).await;
        drop(guard);
        let now = match kept {
            Ok(tool) => Isolation::Kept(tool),
            Err(why) => Isolation::Missing(why),
        };
        let before = std::mem::replace(&mut self.state().isolation, now.clone());
        match &now {
            Isolation::Missing(why) if before != now => tracing::warn!(
                "NO PACKET FILTER RULES: apps and builds can reach this machine's own services and its network. {why}. \
                 Install iptables (or nftables) and run flexd as root, or set [network] rules = false to say that this is meant"
            ),
            Isolation::Kept(tool) if before != now => {
                tracing::info!(tool, "apps and builds are kept off this machine and its network");
            }
            _ => {}
        }
    }

    /// Removes the installation's rules.
    pub(super) async fn unguard(&self) {
        if self.settings.guard.is_some() {
            let mut guard = self.guard.lock().await;
            guard.over = true;
            guard.keeper.clear(&rules::tag(&self.names.cluster)).await;
        }
    }

    /// The engine's bridges: this installation's, and all others.
    async fn bridges(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), RuntimeError> {
        let filter = HashMap::from([("driver".to_owned(), vec!["bridge".to_owned()])]);
        let options = || ListNetworksOptionsBuilder::default().filters(&filter).build();
        let all = self.engine.call("listing its networks", QUICK, async |d| d.list_networks(Some(options())).await).await?;
        let (mut own, mut others) = (BTreeSet::new(), BTreeSet::new());
        for network in all {
            let named = network.options.unwrap_or_default().remove("com.docker.network.bridge.name");
            let made = || network.id.as_deref().and_then(|id| id.get(..12)).map(|id| format!("br-{id}"));
            let Some(bridge) = named.or_else(made).filter(|b| rules::interface(b)) else { continue };
            let ours = network.labels.unwrap_or_default().get(labels::CLUSTER) == Some(&self.names.cluster);
            if ours {
                own.insert(bridge)
            } else {
                others.insert(bridge)
            };
        }
        Ok((own, others))
    }
}

impl Guard {
    /// What is let through: what the operator says, and what of the places in use the rules would cut off.
    async fn allowed(&mut self, settings: &GuardSettings) -> BTreeSet<(Net, Option<u16>)> {
        let names = || settings.allow.iter().chain(&settings.used);
        if self.asked.is_none_or(|at| at.elapsed() >= NAMES) {
            self.asked = Some(Instant::now());
            for target in names() {
                let Target::Name(name, port) = target else { continue };
                let looked = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((name.as_str(), 0))).await;
                // A name that cannot be asked for now keeps the addresses that it had.
                if let Ok(Ok(found)) = looked {
                    self.names.insert((name.clone(), *port), found.map(|a| a.ip()).collect());
                }
            }
        }
        // Other addresses need no exception, and those of a large site change from answer to answer.
        let cut_off = |ip: &IpAddr| {
            !ip.is_loopback()
                && (settings.deny.iter().chain(&Net::link_local()).any(|net| net.contains(*ip)) || on_this_machine(*ip))
        };
        let mut allowed = BTreeSet::new();
        for target in names() {
            match target {
                Target::Net(net, port) => {
                    allowed.insert((*net, *port));
                }
                Target::Name(name, port) => {
                    let found = self.names.get(&(name.clone(), *port)).into_iter().flatten();
                    allowed.extend(found.filter(|ip| cut_off(ip)).map(|ip| (Net::one(*ip), *port)));
                }
            }
        }
        allowed
    }
}

fn on_this_machine(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// The name servers that containers ask, loopback ones left out (the engine asks those itself).
fn resolvers(files: &[PathBuf]) -> BTreeSet<IpAddr> {
    files.iter().filter_map(|f| std::fs::read_to_string(f).ok()).flat_map(|text| resolvers_in(&text)).collect()
}

/// Of a `resolv.conf`, or of the engine's settings in JSON.
fn resolvers_in(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = match serde_json::from_str::<serde_json::Value>(text) {
        Ok(json) => json["dns"].as_array().into_iter().flatten().filter_map(|v| v.as_str()?.parse().ok()).collect(),
        Err(_) => {
            let servers = text.lines().filter_map(|l| l.trim().strip_prefix("nameserver"));
            servers.filter_map(|s| s.trim().split('%').next()?.parse().ok()).collect()
        }
    };
    found.retain(|ip: &IpAddr| !ip.is_loopback());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_found() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let conf = "# x\nnameserver 10.0.0.53\n nameserver\t127.0.0.53\nnameserver fe80::1%eth0\nsearch corp\nnameserver x\n";
        assert_eq!(resolvers_in(conf), [ip("10.0.0.53"), ip("fe80::1")]);
        assert_eq!(resolvers_in(r#"{"live-restore": true, "dns": ["172.17.0.1", 3]}"#), [ip("172.17.0.1")]);
        assert!(resolvers_in("{}").is_empty() && resolvers_in("").is_empty());
    }

    #[tokio::test]
    async fn only_what_the_rules_would_cut_off_is_excepted() {
        let used = ["192.0.2.1:443", "10.1.2.3:3128", "localhost:80"].map(|t| t.parse().unwrap()).into();
        let settings = GuardSettings { used, ..GuardSettings::default() };
        let allowed = Guard::default().allowed(&settings).await;
        let shown: Vec<_> = allowed.iter().map(|(n, p)| format!("{n} {p:?}")).collect();
        assert_eq!(
            shown,
            ["10.1.2.3/32 Some(3128)", "192.0.2.1/32 Some(443)"],
            "a loopback address would be the container's own"
        );
    }
}
