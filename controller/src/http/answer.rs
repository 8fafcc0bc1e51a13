//! What handlers take and give. Each type here also says of itself what the OpenAPI document is to say, so that the
//! document follows from the handlers' signatures.

use super::list::Head;
use super::openapi::{Content, Operation, Part, Reply};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flex_api::{ApiError, ErrorId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

/// The largest JSON body: config vars are the largest thing in one.
const MAX_BODY: usize = 256 << 10;

/// An error as a response. The outermost layer puts its page's URL into it.
#[derive(Debug)]
pub struct Failure(pub ApiError);

impl From<ApiError> for Failure {
    fn from(e: ApiError) -> Self {
        Self(e)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = StatusCode::from_u16(self.0.id.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        if response.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"flex\""));
        }
        response.extensions_mut().insert(self.0);
        response
    }
}

/// What handlers return.
pub type Answer<T> = Result<T, Failure>;

/// JSON with the tag of its content, by which a client can ask whether it changed.
fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let bytes = match serde_json::to_vec(value) {
        Ok(bytes) => bytes,
        Err(e) => return Failure(ApiError::new(ErrorId::Internal, format!("The answer cannot be written: {e}"))).into_response(),
    };
    let tag = format!("\"{}\"", hex::encode(&Sha256::digest(&bytes)[..16]));
    let mut response = (status, bytes).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident $status:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<T>(pub T);
        impl<T: Serialize> IntoResponse for $name<T> {
            fn into_response(self) -> Response { json(StatusCode::$status, &self.0) }
        }
        impl<T: Serialize + ToSchema> Reply for $name<T> {
            fn describe(operation: &mut Operation) {
                operation.answer(StatusCode::$status, Content::one::<T>());
            }
        }
    )*};
}

answers! {
    /// It is there.
    Shown OK;
    /// It was made.
    Made CREATED;
    /// It will be done.
    Begun ACCEPTED;
}

/// A list, or the part of one that was asked for.
#[derive(Debug)]
pub struct Listed<T> {
    pub items: Vec<T>,
    pub head: Head,
}

impl<T: Serialize> IntoResponse for Listed<T> {
    fn into_response(self) -> Response {
        // 206 says that there is more, and only that.
        let status = if self.head.next.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let mut response = json(status, &self.items);
        let mut set = |name: &'static str, value: Option<String>| {
            if let Some(value) = value.and_then(|v| HeaderValue::from_str(&v).ok()) {
                response.headers_mut().insert(name, value);
            }
        };
        set("accept-ranges", Some(self.head.properties));
        set("content-range", self.head.content);
        set("next-range", self.head.next);
        response
    }
}

impl<T: Serialize + ToSchema> Reply for Listed<T> {
    fn describe(operation: &mut Operation) {
        operation.answer(StatusCode::OK, Content::many::<T>());
        operation.answer(StatusCode::PARTIAL_CONTENT, Content::many::<T>());
    }
}

macro_rules! streams {
    ($($(#[$doc:meta])* $name:ident $status:ident $media:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(pub Response);
        impl IntoResponse for $name {
            fn into_response(self) -> Response { self.0 }
        }
        impl Reply for $name {
            fn describe(operation: &mut Operation) {
                operation.answer(StatusCode::$status, Content::Media($media));
            }
        }
    )*};
}

streams! {
    /// Plain text, maybe as it comes.
    Text OK "text/plain";
    /// Lines of a log, as plain text or as server-sent events.
    LogLines OK "text/event-stream";
    /// A page for people.
    Markdown OK "text/markdown";
    /// The OpenAPI document, and what the registry protocol prescribes.
    Json OK "application/json";
    /// A manifest or a blob of an image.
    Octets OK "application/octet-stream";
    /// Another protocol from here on.
    Upgraded SWITCHING_PROTOCOLS "";
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
            let text = e.to_string();
            Failure(if e.is_data() {
                // What is wrong with a value has nothing to do with where in the text it stands.
                let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(t, _)| t);
                ApiError::new(ErrorId::InvalidParams, format!("The request is not valid: {}", unquoted(text)))
            } else {
                ApiError::new(ErrorId::BadRequest, format!("The request's body is no JSON: {text}"))
            })
        })
    }
}

/// What serde says of a value of the wrong type, without the value: it may be a secret in the wrong place.
fn unquoted(text: &str) -> String {
    let said = ["invalid type: ", "invalid value: "].iter().find_map(|kind| {
        let at = text.find(kind)? + kind.len();
        let (what, expected) = text[at..].rsplit_once(", expected ")?;
        let what = what.split(['`', '"']).next().unwrap_or_default().trim_end();
        Some(format!("{}{what}, expected {expected}", &text[..at]))
    });
    said.unwrap_or_else(|| text.to_owned())
}

impl<T: ToSchema> Part for Body<T> {
    fn describe(operation: &mut Operation) {
        operation.body = Some(Content::one::<T>());
    }
}

impl Part for axum::body::Body {
    fn describe(operation: &mut Operation) {
        operation.body = Some(Content::Media("application/octet-stream"));
    }
}

impl Part for HeaderMap {}
impl<S> Part for axum::extract::State<S> {}
impl<T> Part for axum::Extension<T> {}
impl<T> Part for Option<axum::Extension<T>> {}
impl<T> Part for axum::extract::Path<T> {}
impl<T> Part for axum::extract::Query<T> {}
impl<E> Part for Result<axum::extract::ws::WebSocketUpgrade, E> {}

#[cfg(test)]
mod tests {
    #[test]
    fn a_refused_value_is_not_quoted() {
        use flex_api::{CreateDyno, UpdateApp};
        let told = |e: serde_json::Error| super::unquoted(e.to_string().rsplit_once(" at line ").unwrap().0);
        let run = told(serde_json::from_str::<CreateDyno>(r#"{"command":"ls","env":{"PIN":4711}}"#).unwrap_err());
        assert_eq!(run, "invalid type: integer, expected a string");
        let run = told(serde_json::from_str::<CreateDyno>(r#"{"command":"ls","env":"A=4711, expected `x`"}"#).unwrap_err());
        assert_eq!(run, "invalid type: string, expected a map");
        let app = told(serde_json::from_str::<UpdateApp>(r#"{"maintenance":"on"}"#).unwrap_err());
        assert_eq!(app, "invalid type: string, expected a boolean");
        assert_eq!(super::unquoted("missing field `name`"), "missing field `name`");
    }
}
