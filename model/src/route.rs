//! The routing table: all that a router needs to serve, with no call to anyone.

use crate::{AppId, AppName, DomainName, InstanceId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};

/// Where a request of an app may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub instance: InstanceId,
    /// `web.1`, for access lines.
    pub name: String,
    pub address: SocketAddr,
}

/// Why an app has no backends, or what else applies to all of its requests. Decides the H-code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppState {
    /// Has (or had a moment ago) healthy instances.
    Serving,
    /// Instances are on their way: hold requests for a while (then H20).
    Starting,
    /// Every instance crashed: H10.
    Crashed,
    /// Scaled to zero: H14.
    NoWeb,
    /// Nothing was ever deployed: H81.
    Blank,
    /// The owner took it down for a while: H80.
    Maintenance,
}

/// One app's routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRoute {
    pub app: AppId,
    pub name: AppName,
    /// Exact names, and `*.` wildcards that match one or more labels.
    pub domains: Vec<DomainName>,
    pub state: AppState,
    pub backends: Vec<Backend>,
}

/// The whole table at one revision. Replaced as a whole; revisions grow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteTable {
    pub revision: u64,
    pub apps: Vec<AppRoute>,
}

/// What a router says back, so that draining ends when the last request does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouterStatus {
    /// Names the router among several.
    pub router: String,
    /// The revision it routes by now: requests to instances that are not in it were begun earlier.
    pub revision: u64,
    /// Requests and upgraded connections under way; instances with none are left out.
    pub in_flight: BTreeMap<InstanceId, u32>,
}
