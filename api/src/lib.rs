//! What the HTTP API and its clients share: error ids and the messages of an attached run.
//!
//! The API is the Heroku Platform API v3 where Heroku has the resource, plus Flex's own resources.
//! Must not: know how either side works.

pub mod error;
pub mod run;

pub use error::{ApiError, ErrorId};
