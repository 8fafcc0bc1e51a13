//! The HTTP API: the Heroku Platform API v3 where Heroku has the resource, and Flex's own beside it.
//!
//! A route is a line of `table.rs`; a handler takes and gives the types of `flex-api`, and what it takes and gives is what
//! the OpenAPI document says of it.

pub mod access;
mod accounts;
mod answer;
mod apps;
mod builds;
mod canary;
mod carry;
mod certificates;
mod drains;
mod feed;
mod headers;
pub mod limit;
mod list;
pub mod logs;
pub mod openapi;
mod owners;
mod processes;
mod registry;
mod releases;
mod render;
mod routes;
mod routing;
mod run;
mod seen;
mod server;
mod sessions;
pub mod table;

pub use seen::Exposes;

use crate::core::{Controller, invalid};
use flex_api::ApiError;

impl Controller {
    /// The whole API.
    pub fn api(&self) -> axum::Router {
        table::router(self.clone())
    }
}

/// A name from a request, parsed.
pub fn parse<T>(text: &str) -> Result<T, ApiError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(invalid)
}
