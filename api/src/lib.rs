//! What the HTTP API and its clients share: requests, answers, error ids and the messages of an attached run.
//!
//! The API is the Heroku Platform API v3 where Heroku has the resource, field for field, plus Flex's own resources and
//! fields. Server and CLI use the same types, and the OpenAPI document is made from them. In an answer every field is
//! there, null where it has no value; in a request what is left out is not changed, and fields that are not known are
//! passed over, since Heroku's clients send more than is heeded here.
//!
//! Must not: know how either side works.

pub mod account;
pub mod app;
pub mod build;
pub mod canary;
pub mod certificate;
pub mod dyno;
pub mod error;
pub mod log;
pub mod process;
pub mod refs;
pub mod release;
pub mod route;
pub mod run;
pub mod schema;
pub mod seen;
pub mod server;

pub use account::{AccessToken, Account, AddKey, AddUser, Authorization, CreateAuthorization, Key, TokenUser};
pub use app::{
    AddCollaborator, AddDomain, App, Buildpack, BuildpackInstallation, Collaborator, CollaboratorRole, CreateApp, Domain,
    DomainKind, SetBuildpack, SetBuildpacks, UpdateApp,
};
pub use build::{Build, BuildSource, BuildStatus, CreateBuild, NewSource, PhaseTime, Slug, SlugBlob, Source, SourceUrls};
pub use certificate::{PutSniEndpoint, SniEndpoint, SslCert};
pub use dyno::{
    CreateAttach, CreateDyno, CreateExec, Dyno, DynoState, Formation, RunInfo, Scale, SessionCreated, UpdateFormation,
    UpdateFormations, Why,
};
pub use error::{ApiError, ErrorBody, ErrorId};
pub use log::{AddLogDrain, CreateLogSession, LogDrain, LogDrainStatus, LogRetention, LogSession, SetLogRetention};
pub use process::{CheckKind, CheckSource, DynoSize, LockApp, PastInstance, ProcessCheck, Rollout, SetCheck, TransferApp};
pub use refs::{AppRef, NameRef, ReleaseRef, SlugRef, UserRef};
pub use release::{ConfigChanges, ConfigVars, Release, ReleaseStatus, Rollback};
pub use route::{AddRoute, ErrorPage, PasswordsOf, Route, RouteKind, Routing, UpdateRoute, UpdateRouting};
pub use schema::{Quantity, Time};
pub use server::{Check, Event, Health, Host, ImageTags, Nothing, Provider, Region, Server, SshServer, Stack};
