//! Which addresses containers may open connections to, as packet filter rules of the installation's own.
//!
//! From the installation's bridges nothing gets to this machine itself, to other containers, to link-local addresses
//! (where clouds keep credentials) or to the ranges that are denied; name servers, the router's ports and what the
//! operator allows are let through, and answers to connections that came from outside.
//!
//! Invariants: what is decided (`rules`) is pure; what is kept (`keep`) is idempotent and reads what is there first; only
//! chains or a table with the installation's own name are written, so that two installations never meet. Must not: flush,
//! reorder or count on anybody else's rules.

pub(crate) mod keep;
pub(crate) mod rules;
mod targets;

pub use targets::{Net, Target, targets_in};

use std::path::PathBuf;

/// What is let through and what is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardSettings {
    /// Ranges that containers do not reach.
    pub deny: Vec<Net>,
    /// What they reach all the same.
    pub allow: Vec<Target>,
    /// Places named elsewhere (mirrors, proxies): what of them is on a denied range or on this machine is let through too.
    pub used: Vec<Target>,
    /// TCP ports of this machine that they reach: the router's.
    pub host_ports: Vec<u16>,
    /// Where the name servers are found.
    pub resolvers: Vec<PathBuf>,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            deny: Net::private(),
            allow: Vec::new(),
            used: Vec::new(),
            host_ports: Vec::new(),
            // The second is what the engine uses where the first names a local stub. The third is where it is told of others.
            resolvers: ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/etc/docker/daemon.json"]
                .map(PathBuf::from)
                .into(),
        }
    }
}

/// Whether the rules are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Nobody asked for rules.
    #[default]
    Off,
    /// Asked for, and not yet known.
    Starting,
    /// They are: by this program.
    Kept(&'static str),
    /// They are not, for this reason: containers reach what this machine reaches.
    Missing(String),
}
