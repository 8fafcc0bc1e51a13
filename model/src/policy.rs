//! How a route treats what comes through it. Everything has a default, so that an empty policy is a good one and the
//! struct can grow; a field that is here is one that routers obey.

use crate::{HttpPolicy, Invalid};
use serde::{Deserialize, Serialize};

/// A route's policy. What is not set follows the router's own settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Which instance gets the next request or connection.
    #[serde(skip_serializing_if = "is_default")]
    pub balancing: Balancing,
    /// Requests of one client stay with one instance, by a signed cookie. HTTP only.
    #[serde(skip_serializing_if = "is_default")]
    pub sticky: bool,
    /// The PROXY protocol's header before everything that is sent to an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyVersion>,
    /// What instances speak. HTTP only.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: InstanceProtocol,
    /// The most requests (or connections) under way on one instance; none: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_instance: Option<u32>,
    /// How many requests may wait for a place when every instance has its most. More get H11.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// Seconds with no byte either way before a stream, an upgraded connection, a TCP connection or a UDP session ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// The most connections at once over all of a router's listeners; TCP and UDP (sessions) only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// What only HTTP has.
    #[serde(skip_serializing_if = "is_default")]
    pub http: HttpPolicy,
}

/// How an instance is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balancing {
    /// Of two taken at random, the one with fewer under way.
    #[default]
    LeastBusyOfTwo,
    RoundRobin,
    Random,
}

/// Versions of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary, with extensions: the name asked for, what TLS found, a unique id.
    V2,
}

/// What instances speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceProtocol {
    #[default]
    Http1,
    /// HTTP/2 without TLS, from the first byte.
    H2c,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The longest idle time that may be set: a week.
pub const MAX_IDLE_SECONDS: u32 = 7 * 24 * 3600;

impl Policy {
    /// Holds values against their ranges.
    ///
    /// # Errors
    /// The first that is out of range, by its name.
    pub fn check(&self) -> Result<(), Invalid> {
        let range = |name: &'static str, value: Option<u32>, max: u32| match value {
            Some(n) if n == 0 || n > max => Err(Invalid::new(name, &n.to_string(), format!("use 1 to {max}"))),
            _ => Ok(()),
        };
        range("max_per_instance", self.max_per_instance, 1_000_000)?;
        range("queue", self.queue, 100_000)?;
        range("idle_seconds", self.idle_seconds, MAX_IDLE_SECONDS)?;
        range("max_connections", self.max_connections, 1_000_000)?;
        self.http.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_policy_is_the_default_and_a_misspelt_one_is_refused() {
        assert_eq!(serde_json::from_str::<Policy>("{}").unwrap(), Policy::default());
        assert_eq!(serde_json::to_string(&Policy::default()).unwrap(), "{}");
        assert!(serde_json::from_str::<Policy>(r#"{"stick": true}"#).unwrap_err().to_string().contains("stick"));
        let p: Policy = serde_json::from_str(r#"{"balancing":"round_robin","proxy_protocol":"v2","sticky":true}"#).unwrap();
        assert_eq!((p.balancing, p.proxy_protocol, p.sticky), (Balancing::RoundRobin, Some(ProxyVersion::V2), true));
        assert_eq!(serde_json::from_str::<Policy>(&serde_json::to_string(&p).unwrap()).unwrap(), p);
    }

    #[test]
    fn ranges() {
        assert!(Policy { queue: Some(0), ..Policy::default() }.check().is_err());
        assert!(Policy { queue: Some(10), idle_seconds: Some(60), ..Policy::default() }.check().is_ok());
    }
}
