//! Why a build ended without an image, by who must act: the app's author, nobody (a limit was reached), the operator of
//! this installation, or whoever cancelled it.
//!
//! Invariant: no variant carries a config var's value or another secret; texts are made here or cut from the source.

use flex_runtime::RuntimeError;

/// Which limit a build ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Time,
    Memory,
    Disk,
    Output,
    /// The source itself: files or bytes.
    Source,
    /// The finished slug.
    Slug,
}

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The app's author must change something: the sentence says what.
    #[error("{message}")]
    User {
        /// Stable, for programs: `no_buildpack`, `compile_failed`, `procfile`, …
        code: &'static str,
        message: String,
    },
    /// A limit was reached and the build was ended.
    #[error("{message}")]
    Limit { limit: Limit, message: String },
    /// This installation cannot build now; the same source may build later.
    #[error("the platform could not build this: {0}")]
    Platform(String),
    /// Someone asked for it to stop.
    #[error("the build was cancelled")]
    Cancelled,
}

impl BuildError {
    /// The author must act.
    pub(crate) fn user(code: &'static str, message: impl Into<String>) -> Self {
        Self::User { code, message: message.into() }
    }
    /// A limit was reached.
    pub(crate) fn limit(limit: Limit, message: impl Into<String>) -> Self {
        Self::Limit { limit, message: message.into() }
    }
    /// The operator must act: what was being done, and the cause.
    pub(crate) fn platform(doing: &str, cause: impl std::fmt::Display) -> Self {
        Self::Platform(format!("{doing}: {cause}"))
    }
    /// A short stable name of the failure, for logs and the API.
    pub fn code(&self) -> &'static str {
        match self {
            Self::User { code, .. } => code,
            Self::Limit { limit, .. } => match limit {
                Limit::Time => "time_limit",
                Limit::Memory => "memory_limit",
                Limit::Disk => "disk_limit",
                Limit::Output => "output_limit",
                Limit::Source => "source_limit",
                Limit::Slug => "slug_limit",
            },
            Self::Platform(cause) if cause.contains("No space left on device") => "disk_full",
            Self::Platform(_) => "platform",
            Self::Cancelled => "cancelled",
        }
    }
}

impl From<RuntimeError> for BuildError {
    fn from(e: RuntimeError) -> Self {
        Self::Platform(e.to_string())
    }
}
