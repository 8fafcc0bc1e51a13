//! Errors as the API sends them: an HTTP status and `{"id": …, "message": …}`, as Heroku's clients read them.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// The stable names of errors. A client may act on them; each says who must act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
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
    /// A list's `Range` asks for what the list does not have.
    RequestedRangeNotSatisfiable,
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
    pub const ALL: [Self; 10] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::InvalidParams,
        Self::RequestedRangeNotSatisfiable,
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
            Self::RequestedRangeNotSatisfiable => "requested_range_not_satisfiable",
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
            Self::RequestedRangeNotSatisfiable => 416,
            Self::InvalidParams => 422,
            Self::RateLimit => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// What it means and what to do, in Markdown: the page that an error's `url` leads to.
    pub const fn page(self) -> &'static str {
        match self {
            Self::BadRequest => include_str!("../../docs/errors/bad_request.md"),
            Self::Unauthorized => include_str!("../../docs/errors/unauthorized.md"),
            Self::Forbidden => include_str!("../../docs/errors/forbidden.md"),
            Self::NotFound => include_str!("../../docs/errors/not_found.md"),
            Self::InvalidParams => include_str!("../../docs/errors/invalid_params.md"),
            Self::RequestedRangeNotSatisfiable => include_str!("../../docs/errors/requested_range_not_satisfiable.md"),
            Self::Conflict => include_str!("../../docs/errors/conflict.md"),
            Self::RateLimit => include_str!("../../docs/errors/rate_limit.md"),
            Self::Unavailable => include_str!("../../docs/errors/unavailable.md"),
            Self::Internal => include_str!("../../docs/errors/internal.md"),
        }
    }
}

/// An error on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub id: ErrorId,
    /// For people.
    pub message: String,
    /// A page that says more.
    pub url: String,
}

/// An error, wherever it arises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
        for id in ErrorId::ALL {
            let page = id.page();
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
