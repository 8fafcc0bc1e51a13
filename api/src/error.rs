//! Errors as the API sends them: an HTTP status and `{"id": …, "message": …}`, as Heroku's clients read them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The stable names of errors. A client may act on them; each says who must act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorId {
    /// The request cannot be understood: the client's mistake.
    BadRequest,
    /// No token, or one that is not valid: sign in.
    Unauthorized,
    /// Signed in, and not allowed.
    Forbidden,
    /// It does not exist, or is none of the caller's business.
    NotFound,
    /// A value was refused: the user's mistake.
    InvalidParams,
    /// Another change came first: read again, and retry.
    Conflict,
    /// Too many requests: wait, and retry.
    RateLimit,
    /// The platform cannot do it now (disk full, engine away): the operator must act; retry later.
    Unavailable,
    /// The platform's own mistake.
    Internal,
}

impl ErrorId {
    /// Every id, for documents and tests.
    pub const ALL: [Self; 9] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::InvalidParams,
        Self::Conflict,
        Self::RateLimit,
        Self::Unavailable,
        Self::Internal,
    ];

    /// As it is sent.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::InvalidParams => "invalid_params",
            Self::Conflict => "conflict",
            Self::RateLimit => "rate_limit",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::InvalidParams => 422,
            Self::RateLimit => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }
}

/// An error on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct ApiError {
    pub id: ErrorId,
    pub message: String,
}

impl ApiError {
    pub fn new(id: ErrorId, message: impl Into<String>) -> Self {
        Self { id, message: message.into() }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_page() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
        for id in ErrorId::ALL {
            let page = std::fs::read_to_string(pages.join(format!("{}.md", id.name()))).unwrap();
            assert!(page.starts_with(&format!("# `{}` ({})\n", id.name(), id.status())), "{}", id.name());
            assert!(page.contains("**Who acts:**"), "{}", id.name());
        }
    }

    #[test]
    fn names_on_the_wire_are_the_names() {
        for id in ErrorId::ALL {
            assert_eq!(serde_json::to_value(id).unwrap(), id.name());
        }
    }
}
