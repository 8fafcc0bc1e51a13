//! What routers see: each app's traffic of the last seconds, the routers themselves, and which way a request would take.

use crate::AppRef;
use crate::schema::{Id, ProcessTypeText, Time};
use flex_model::{InstanceId, Policy, ProcessType, RouteId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use utoipa::ToSchema;

/// An app's traffic of the last seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AppMetrics {
    pub app: AppRef,
    /// What the figures are of: so many seconds up to now.
    pub seconds: u32,
    pub processes: Vec<ProcessMetrics>,
}

/// One process type: the signals that autoscaling decides from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProcessMetrics {
    #[serde(rename = "type")]
    #[schema(value_type = ProcessTypeText)]
    pub process: ProcessType,
    /// Where a route leads to a certain release, as a canary's does.
    pub release: Option<u64>,
    /// Instances that requests are sent to.
    pub instances: u64,
    pub traffic: Traffic,
    /// Second by second, the newest last. Seconds in which nothing happened are left out.
    pub history: Vec<Second>,
}

/// One second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Second {
    pub at: Time,
    pub traffic: Traffic,
}

/// What passed through the routers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Requests (or connections) a second that came.
    pub arrival_rate: f64,
    /// Under way now, waiting ones included.
    pub in_flight: u64,
    /// Of those, waiting for an instance or for a place on one.
    pub queue: u64,
    /// How long instances took, in milliseconds, on average.
    pub service_ms: Option<f64>,
    /// Half of the requests took at most so many milliseconds in the router, as near as classes tell.
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Share of the ended requests with a status of 500 or more, from 0 to 1.
    pub error_share: Option<f64>,
}

/// A router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RouterInfo {
    pub name: String,
    /// It listens to the routing table now. Without, it serves by the last table that it has.
    pub connected: bool,
    pub version: Option<String>,
    /// Revision of the table that it routes by.
    pub revision: u64,
    /// It is the newest.
    pub current: bool,
    /// From the publication of the newest table that it took to its word that it is in force.
    pub lag_ms: Option<u64>,
    /// Client connections open.
    pub connections: Option<u64>,
    /// Requests under way on instances.
    pub in_flight: u64,
    /// Requests a second, over the last ten.
    pub request_rate: f64,
    /// What of the table it could not do.
    pub problems: Vec<String>,
    /// When it last said something.
    pub heard_at: Option<Time>,
}

/// The routers, and the table that they should route by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Routers {
    /// Revision of the newest table.
    pub revision: u64,
    pub apps: u64,
    pub hosts: u64,
    pub routers: Vec<RouterInfo>,
}

/// Which way a request would take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RouteTrace {
    pub host: String,
    pub path: String,
    /// Revision of the table that was looked at.
    pub revision: u64,
    pub app: AppRef,
    /// None: what the app's domain does by itself.
    #[schema(value_type = Option<Id>)]
    pub route: Option<RouteId>,
    /// What matched, such as `www.example.com/api` or `*.example.com/`.
    pub matched: String,
    /// What is not as it is by default.
    #[schema(value_type = Object)]
    pub policy: Policy,
    pub targets: Vec<TraceTarget>,
    /// What is not as one might expect.
    pub notes: Vec<String>,
}

/// One of the places that the route leads to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TraceTarget {
    #[serde(rename = "type")]
    #[schema(value_type = ProcessTypeText)]
    pub process: ProcessType,
    /// Only instances of this release.
    pub release: Option<u64>,
    /// Share of the requests, from 0 to 1.
    pub share: f64,
    /// `serving`, `starting`, `crashed`, `no_web`, `blank` or `maintenance`.
    pub state: String,
    pub instances: Vec<TraceInstance>,
}

/// One instance, with why it gets requests or why not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TraceInstance {
    #[schema(value_type = Id)]
    pub id: InstanceId,
    /// `web.1`
    pub name: String,
    pub release: u64,
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    /// It is in the table.
    pub routed: bool,
    /// Requests under way on it, over all routers.
    pub in_flight: u64,
    pub why: String,
}
