//! The words of Flex: every noun that more than one room speaks of, parsed once and legal ever after.
//!
//! Invariants: a value of a type here obeys the rules that the type documents (names match their grammar, versions
//! start at 1, quantities are in range), because the only ways in are the parsing constructors and serde, which calls them.
//!
//! Must not: do I/O, read a clock, make random ids, or depend on another room. Time and ids come in as arguments.

pub mod app;
pub mod app_json;
pub mod app_list;
pub mod build;
pub mod certificate;
pub mod cidr;
pub mod event;
pub mod exposition;
pub mod host;
pub mod http_policy;
pub mod ids;
pub mod log_line;
pub mod log_text;
pub mod names;
pub mod path;
pub mod placement;
pub mod policy;
pub mod procfile;
pub mod release;
pub mod route;
pub mod secret;
pub mod signals;
pub mod size;
pub mod table_update;
pub mod time;
pub mod trace;
pub mod user;

pub use app::{App, AppLock, Canary, NamedSize, ProcessScale};
pub use build::{Build, BuildPhase, BuildStatus, BuildpackRef, PhaseTime, Slug};
pub use certificate::{Certificate, CertificateTable, CertificateUpdate, Challenge, TICKET_PERIOD, TicketKey};
pub use cidr::Cidr;
pub use event::{Event, Outcome};
pub use host::{Host, HostState};
pub use http_policy::{AppRouting, HttpPolicy};
pub use ids::*;
pub use log_line::{LogLine, LogSource};
pub use log_text::LogText;
pub use names::*;
pub use placement::{
    Assignment, Command, Ended, ExitInfo, InstanceReport, InstanceSpec, InstanceState, Placement, PlacementPhase, Report,
    WorkItem,
};
pub use policy::{Balancing, InstanceProtocol, Policy, ProxyVersion};
pub use release::{HealthCheck, HealthProbe, ImageRef, ProcessSpec, Release, ReleaseStatus};
pub use route::{
    AppRoute, AppState, Backend, CanaryShare, LineForm, Match, PathPrefix, Pool, Route, RouteProblem, RouteTable, RouterStatus,
    TABLE_FORMAT, Target,
};
pub use secret::Secret;
pub use size::{Memory, ParseSizeError};
pub use time::Timestamp;
pub use user::{Collaborator, SshKey, Token, User};

/// A value that a type's grammar refuses, with the rule it broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}{} is not valid: {rule}", .value.as_ref().map(|v| format!(" {v:?}")).unwrap_or_default())]
pub struct Invalid {
    /// The noun, as a user knows it: "app name", "process type".
    pub what: &'static str,
    /// What was given, cut to 80 characters; none where a slip of the hand may put a secret.
    pub value: Option<String>,
    /// The rule that it broke, as a full clause.
    pub rule: String,
}

impl Invalid {
    /// Makes the error, cutting an over-long `value` so that an attacker cannot fill a log with it.
    pub fn new(what: &'static str, value: &str, rule: impl Into<String>) -> Self {
        Self { what, value: Some(value.chars().take(80).collect()), rule: rule.into() }
    }
    /// Makes the error without what was given.
    pub fn unsaid(what: &'static str, rule: impl Into<String>) -> Self {
        Self { what, value: None, rule: rule.into() }
    }
}
