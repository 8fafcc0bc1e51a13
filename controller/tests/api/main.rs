//! The API over real HTTP: shapes, errors, and what each change leads to.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod apps;
mod builds;
mod certificates;
mod daily;
mod document;
mod logs;
mod routes;
mod runs;

use serde_json::Value;

/// The kinds of a list of events, in their order.
pub(crate) fn kinds(events: &Value) -> Vec<String> {
    events.as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap().to_owned()).collect()
}
