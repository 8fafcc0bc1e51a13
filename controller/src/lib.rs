//! The control plane: the HTTP API, who may do what, the loops, and the way from a push to a served release.
//!
//! Invariants: every change of desired state is one commit together with its event; permissions are declared in one table
//! (`http/table.rs`) and what is not declared is denied; what an order tells a host was committed first.
//!
//! Must not: know Docker, git's protocol, or a concrete store; keep anything in memory that a crash may not take.

mod acme;
mod apps;
mod canary;
mod certificates;
mod core;
pub mod crypt;
mod db;
mod deploy;
mod drains;
mod gate;
mod history;
mod hostnames;
pub mod http;
mod loops;
mod owners;
mod passwords;
pub mod ports;
mod processes;
mod pushes;
mod releases;
mod retention;
mod routes;
mod routing;
mod runs;
mod sessions;
mod signals;
mod users;

pub use crate::acme::{AcmeSettings, ChallengeKind, base64url};
pub use crate::certificates::{covers, read as read_certificate};
pub use crate::core::{Actor, Controller, Deps, RunLimits, Settings};
pub use deploy::{DeployEvent, DeployRequest};
pub use gate::{GitCaller, GitPush, GitUpdate};
pub use http::Exposes;
pub use pushes::{Moving, Refs};
pub use runs::{RunRequest, Started};
pub use sessions::ExecRequest;

use flex_api::{ApiError, ErrorId};

/// A commit's failure where a conflict is not expected to go away by itself.
fn core_error(e: db::CommitError) -> ApiError {
    match e {
        db::CommitError::Conflict(key) => {
            ApiError::new(ErrorId::Conflict, format!("Another change to {key} came first. Try again."))
        }
        db::CommitError::Api(e) => e,
    }
}
