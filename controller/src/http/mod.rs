//! The HTTP API: the Heroku Platform API v3 where Heroku has the resource, and Flex's own beside it.

pub mod access;
mod accounts;
mod apps;
mod builds;
pub mod logs;
mod openapi;
mod registry;
mod releases;
mod render;
mod run;
pub mod table;

use crate::core::{Controller, invalid};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flex_api::{ApiError, ErrorId};
use serde::de::DeserializeOwned;

/// The largest JSON body: config vars are the largest thing in one.
const MAX_BODY: usize = 256 << 10;

impl Controller {
    /// The whole API.
    pub fn api(&self) -> axum::Router {
        table::router(self.clone())
    }
}

/// An error as a response.
pub struct Failure(pub ApiError);

impl From<ApiError> for Failure {
    fn from(e: ApiError) -> Self {
        Self(e)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.id.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&self.0)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"flex\""));
        }
        response
    }
}

/// What handlers return.
pub type Answer = Result<Response, Failure>;

/// `200` with JSON.
pub fn ok(value: &serde_json::Value) -> Answer {
    Ok(axum::Json(value).into_response())
}

/// Another status with JSON.
pub fn with(status: StatusCode, value: &serde_json::Value) -> Answer {
    Ok((status, axum::Json(value)).into_response())
}

/// A JSON body; an empty one reads as `{}`. Whatever content type it says: Heroku's clients differ.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = axum::body::to_bytes(request.into_body(), MAX_BODY).await.map_err(|_| {
            ApiError::new(ErrorId::BadRequest, format!("The request's body is larger than {} KiB.", MAX_BODY >> 10))
        })?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes).map(Self).map_err(|e| {
            let id = if e.is_data() { ErrorId::InvalidParams } else { ErrorId::BadRequest };
            Failure(ApiError::new(id, format!("The request's body is not valid: {e}")))
        })
    }
}

/// `Range: version ..; order=desc,max=10`: the order and the number that Heroku's clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub descending: bool,
    pub max: usize,
}

impl Range {
    pub fn of(headers: &axum::http::HeaderMap) -> Self {
        let text = headers.get(header::RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let options = text.split_once(';').map_or("", |(_, o)| o);
        let find = |key: &str| {
            options.split([',', ';']).filter_map(|o| o.trim().split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v.trim())
        };
        Self {
            descending: find("order") == Some("desc"),
            max: find("max").and_then(|m| m.parse().ok()).unwrap_or(1000).clamp(1, 1000),
        }
    }

    /// Applies it to a list in ascending order: the part, and whether there is more.
    pub fn apply<T>(self, mut list: Vec<T>) -> (Vec<T>, bool) {
        if self.descending {
            list.reverse();
        }
        let more = list.len() > self.max;
        list.truncate(self.max);
        (list, more)
    }
}

/// A list with the status that says whether it is whole.
pub fn listed(values: Vec<serde_json::Value>, more: bool) -> Answer {
    let status = if more { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    with(status, &serde_json::Value::Array(values))
}

/// A name from a request, parsed.
pub fn parse<T>(text: &str) -> Result<T, ApiError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_clients_send_them() {
        let range = |text: &'static str| Range::of(&[(header::RANGE, HeaderValue::from_static(text))].into_iter().collect());
        assert_eq!(range("version ..; order=desc,max=1"), Range { descending: true, max: 1 });
        assert_eq!(range("id ]abc..; max=200"), Range { descending: false, max: 200 });
        assert_eq!(range("nonsense"), Range { descending: false, max: 1000 });
        assert_eq!(Range { descending: true, max: 2 }.apply(vec![1, 2, 3]), (vec![3, 2], true));
    }
}
