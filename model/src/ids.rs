//! One type per identity, so that an app's id can never be handed in where a release's is wanted.
//!
//! Ids are UUIDs because Heroku's API promises that to its clients. They are made at the edge and passed in.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
pub use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> { Uuid::from_str(s).map(Self) }
        }
        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self { Self(id) }
        }
    )*};
}

ids! {
    /// An app, for ever: renaming keeps it.
    AppId;
    /// One push, deploy or image hand-in.
    BuildId;
    /// The product of a build.
    SlugId;
    /// A release; its number within the app is [`crate::Release::version`].
    ReleaseId;
    /// One placed copy of a process type. A restart in place keeps it; a replacement gets a new one.
    InstanceId;
    /// A place that an app's log is sent to.
    DrainId;
    /// A machine with an agent.
    HostId;
    /// A person or a robot that signs in.
    UserId;
    /// A registered SSH public key.
    KeyId;
    /// An API token (never its secret).
    TokenId;
    /// A custom domain of an app.
    DomainId;
    /// A certificate that somebody added; Heroku's "SNI endpoint".
    CertificateId;
    /// A route that somebody made.
    RouteId;
    /// One entry of the event history.
    EventId;
    /// A source archive handed in for a build.
    SourceId;
}
