//! Pure decisions: what runs where ([`plan`]), what is routed ([`routes`]), and what must never be ([`check`]). [`Cluster`]
//! keeps what they are made from, so that the next one looks at what changed alone.
//!
//! Seven rules: commit before acting; ids are chosen in the plan; an order to a host is its whole assignment; silence is
//! not evidence; reports to an earlier controller do not count; the unhealthy go first and the healthy stay until covered;
//! a route is placed ∩ reported healthy.
//!
//! Must not: read a clock, make an id by itself, depend on the order of a hash map, or do any I/O.

pub mod bench;
mod check;
mod cluster;
mod hosts;
mod plan;
mod policies;
mod quality;
mod rollout;
mod routes;
mod view;

pub use check::check;
pub use cluster::Cluster;
pub use plan::{Change, ChangeKind, Pending, Plan, plan};
pub use policies::{covering, effective, places_of};
pub use routes::{RouteChanges, routes};
pub use view::{AppView, Moment, ReportView, Settings, World};

use flex_model::InstanceId;

/// Where the ids of new instances come from.
pub trait IdSource {
    /// An id that was never used.
    fn instance(&mut self) -> InstanceId;
}
