//! The outermost layer: what every answer carries, whatever it is.

use crate::core::Controller;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use flex_api::{ApiError, ErrorBody};

/// Names each answer, by which people can talk about it; writes errors out; and answers 304 where the client has the
/// content already.
pub async fn finish(State(controller): State<Controller>, request: Request, next: Next) -> Response {
    let id = hex::encode(crate::crypt::random::<16>());
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let known = if reads { request.headers().get(header::IF_NONE_MATCH).cloned() } else { None };
    let mut response = next.run(request).await;
    if let Some(e) = response.extensions_mut().remove::<ApiError>() {
        response = write_error(response, &e, &controller.deps.settings.api_url);
    }
    if known.is_some_and(|known| response.status().is_success() && is_known(response.headers(), &known)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(header::CONTENT_TYPE);
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("request-id", id);
    }
    // Answers hold what is for one user alone.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
    response
}

fn write_error(response: Response, e: &ApiError, api: &str) -> Response {
    let (mut parts, _) = response.into_parts();
    let body = ErrorBody { id: e.id, message: e.message.clone(), url: format!("{api}/errors/{}", e.id.name()) };
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(serde_json::to_vec(&body).unwrap_or_default()))
}

/// Whether `If-None-Match` names the answer's tag (RFC 9110 section 13.1.2).
fn is_known(headers: &HeaderMap, known: &HeaderValue) -> bool {
    let Some(tag) = headers.get(header::ETAG).and_then(|v| v.to_str().ok()) else { return false };
    let Ok(known) = known.to_str() else { return false };
    known.split(',').map(str::trim).any(|k| k == "*" || k.strip_prefix("W/").unwrap_or(k) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_as_the_rfc_says() {
        let headers: HeaderMap = [(header::ETAG, HeaderValue::from_static("\"ab\""))].into_iter().collect();
        let known = |text: &'static str| is_known(&headers, &HeaderValue::from_static(text));
        assert!(known("\"ab\"") && known("W/\"ab\"") && known("\"x\", \"ab\"") && known("*"));
        assert!(!known("ab") && !known("\"abc\"") && !known(""));
        assert!(!is_known(&HeaderMap::new(), &HeaderValue::from_static("*")));
    }
}
