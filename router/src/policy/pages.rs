//! Pages of an app's own, for answers that the router makes.

use crate::{Code, codes::Prefer};
use flex_model::http_policy::Pages;

/// The page for a code: its own, else the one for all errors of the app or the platform. Only people get one: a program that
/// asks for JSON is better served by the code.
pub(super) fn find(pages: &Pages, code: Code, prefer: Prefer) -> Option<&str> {
    if prefer != Prefer::Html {
        return None;
    }
    let named = |name: &str| pages.iter().find(|(kind, _)| kind.as_str() == name).map(|(_, text)| &**text);
    named(code.code()).or_else(|| match code {
        Code::Maintenance => named("maintenance"),
        _ if code.status() >= 500 => named("error"),
        _ => None,
    })
}
