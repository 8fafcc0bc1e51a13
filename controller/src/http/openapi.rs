//! The OpenAPI document, made from the table of routes and the signatures of their handlers: what a handler takes
//! ([`Part`]) and gives ([`Reply`]) says what the document is to say of it. So it cannot name a route that is not there, nor
//! miss one that is, nor describe another body than the one that is read and written.

use super::answer::Answer;
use super::answer::Json;
use super::table::{Needs, Route, all};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use flex_api::{ErrorBody, ErrorId};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

type Named = Vec<(String, RefOr<Schema>)>;

/// What a body holds.
pub enum Content {
    /// JSON: one of a type, or a list of them; with the schemas that it refers to.
    Json { schema: Value, named: Named },
    /// Of this media type; empty: no body.
    Media(&'static str),
}

impl Content {
    /// One `T`. What has no name of its own (a list, say) stands in place.
    pub fn one<T: ToSchema>() -> Self {
        let (schema, named) = referred::<T>();
        Self::Json { schema, named }
    }

    /// A list of `T`.
    pub fn many<T: ToSchema>() -> Self {
        let (schema, named) = referred::<T>();
        Self::Json { schema: json!({ "type": "array", "items": schema }), named }
    }
}

fn referred<T: ToSchema>() -> (Value, Named) {
    let mut named = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut named);
    (json!(Ref::from_schema_name(T::name())), named)
}

/// What the document says of one route's bodies.
#[derive(Default)]
pub struct Operation {
    pub body: Option<Content>,
    /// It is a list that heeds `Range`.
    pub ranges: bool,
    answers: Vec<(StatusCode, Content)>,
}

impl Operation {
    pub fn answer(&mut self, status: StatusCode, content: Content) {
        self.answers.push((status, content));
    }
}

/// Something that a handler takes.
pub trait Part {
    fn describe(_: &mut Operation) {}
}

/// Something that a handler gives.
pub trait Reply: IntoResponse {
    fn describe(operation: &mut Operation);
}

/// A handler: a function from parts to an answer.
pub trait Described<Parts> {
    fn describe() -> Operation;
}

macro_rules! described {
    ($($part:ident)*) => {
        impl<F, Fut, R, $($part),*> Described<($($part,)*)> for F
        where
            F: Fn($($part),*) -> Fut,
            Fut: Future<Output = Answer<R>>,
            R: Reply,
            $($part: Part,)*
        {
            fn describe() -> Operation {
                let mut operation = Operation::default();
                $($part::describe(&mut operation);)*
                R::describe(&mut operation);
                operation
            }
        }
    };
}

described!();
described!(A);
described!(A B);
described!(A B C);
described!(A B C D);
described!(A B C D E);

/// What is to be said of a handler.
pub fn operation<P, H: Described<P>>(_: H) -> Operation {
    H::describe()
}

pub async fn document() -> Answer<Json> {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(build);
    Ok(Json(axum::Json(&*DOCUMENT).into_response()))
}

/// The errors that a route may answer with.
fn errors(route: &Route, operation: &Operation) -> Vec<ErrorId> {
    let writes = route.method != axum::http::Method::GET;
    let signed_in = route.needs != Needs::Nothing || route.path == "/oauth/authorizations";
    let mut out = vec![ErrorId::BadRequest, ErrorId::Internal, ErrorId::Unavailable];
    if signed_in {
        out.extend([ErrorId::Unauthorized, ErrorId::Forbidden, ErrorId::RateLimit]);
    }
    if route.path.contains('{') || route.path == "/routes/trace" {
        out.push(ErrorId::NotFound);
    }
    if writes {
        out.extend([ErrorId::InvalidParams, ErrorId::Conflict]);
    }
    if operation.ranges || route.path.starts_with("/v2/") {
        out.push(ErrorId::RequestedRangeNotSatisfiable);
    }
    out
}

/// In an answer every field is there.
fn all_required(schema: &mut Value) {
    if let Some(names) = schema.get("properties").and_then(Value::as_object).map(|p| p.keys().cloned().collect::<Vec<_>>()) {
        schema["required"] = json!(names);
    }
}

fn content(content: &Content, schemas: &mut Map<String, Value>, is_answer: bool) -> Value {
    match content {
        Content::Media("") => json!({}),
        Content::Media(media) => json!({ "content": { *media: {} } }),
        Content::Json { schema, named } => {
            for (name, schema) in named {
                let mut schema = json!(schema);
                if is_answer {
                    all_required(&mut schema);
                }
                schemas.insert(name.clone(), schema);
            }
            json!({ "content": { "application/json": { "schema": schema } } })
        }
    }
}

fn answers(route: &Route, operation: &Operation, schemas: &mut Map<String, Value>) -> Map<String, Value> {
    let mut out = Map::new();
    for (status, what) in &operation.answers {
        let mut answer = content(what, schemas, true);
        answer["description"] = json!(status.canonical_reason().unwrap_or("Success"));
        let header = |text: &str| json!({ "description": text, "schema": { "type": "string" } });
        let mut headers = Map::new();
        headers.insert("Request-Id".into(), header("The answer's name"));
        if operation.ranges {
            headers.insert("Accept-Ranges".into(), header("What the list can be sorted by"));
            headers.insert("Content-Range".into(), header("The first and last of what is here"));
        }
        if *status == StatusCode::PARTIAL_CONTENT && operation.ranges {
            headers.insert("Next-Range".into(), header("The Range that goes on where this ended"));
        }
        answer["headers"] = Value::Object(headers);
        out.insert(status.as_str().to_owned(), answer);
    }
    for id in errors(route, operation) {
        let registry = route.path.starts_with("/v2/");
        let schema = if registry { "RegistryErrors" } else { "ErrorBody" };
        let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
        out.insert(
            id.status().to_string(),
            json!({ "description": id.name(), "content": { "application/json": { "schema": schema } } }),
        );
    }
    out
}

fn parameters(route: &Route, operation: &Operation) -> Vec<Value> {
    let in_path = route.path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}'));
    let mut out: Vec<Value> = in_path
        .map(|name| {
            let what = match name {
                "app" => "The app's name or id",
                "secret" => "Part of a URL that another answer gave",
                "release" => "A release's number (3 or v3) or id",
                "dyno" => "An instance (web.1) or a process type (web)",
                "key" => "A key's id or fingerprint",
                "domain" => "A domain's host name or id",
                _ => "Which one",
            };
            json!({ "name": name, "in": "path", "required": true, "description": what, "schema": { "type": "string" } })
        })
        .collect();
    if operation.ranges {
        out.push(json!({
            "name": "Range", "in": "header", "required": false, "schema": { "type": "string" },
            "description": "PROPERTY FIRST..LAST; order=desc,max=N", "example": "id ..; max=100"
        }));
    }
    out
}

fn build() -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for route in all() {
        let operation = (route.describe)();
        let method = route.method.as_str().to_lowercase();
        let name: String = route.path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let mut said = json!({
            "summary": route.summary,
            "operationId": format!("{method}{name}"),
            "tags": [route.handler_name.split("::").next().unwrap_or_default().trim()],
            "parameters": parameters(route, &operation),
            "responses": answers(route, &operation, &mut schemas),
            "security": match route.needs {
                Needs::Nothing => json!([]),
                Needs::Router => json!([{ "router": [] }]),
                Needs::User | Needs::App | Needs::AppOwner | Needs::Admin => json!([{ "token": [] }, { "basic": [] }]),
            }
        });
        if let Some(body) = &operation.body {
            said["requestBody"] = content(body, &mut schemas, false);
        }
        paths.entry(route.path).or_insert_with(|| json!({}))[method] = said;
    }
    let mut error = json!(ErrorBody::schema());
    all_required(&mut error);
    schemas.insert("ErrorBody".into(), error);
    schemas.insert("ErrorId".into(), json!(ErrorId::schema()));
    let text = json!({ "type": "string" });
    let one = json!({ "type": "object", "required": ["code", "message"], "properties": { "code": text, "message": text } });
    schemas.insert(
        "RegistryErrors".into(),
        json!({ "type": "object", "required": ["errors"], "properties": { "errors": { "type": "array", "items": one } } }),
    );
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Flex", "version": env!("CARGO_PKG_VERSION"), "description": "The Heroku Platform API v3 where Heroku has the resource, and Flex's own resources." },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer" },
                "router": { "type": "http", "scheme": "bearer", "description": "A router's token: flexd router:token NAME" },
                "basic": { "type": "http", "scheme": "basic", "description": "A token as the password" }
            },
            "schemas": schemas
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_with_what_it_gives() {
        let document = build();
        let schemas = &document["components"]["schemas"];
        for route in all() {
            let said = &document["paths"][route.path][route.method.as_str().to_lowercase()];
            assert!(said["summary"].is_string(), "{} {}", route.method, route.path);
            let good = said["responses"].as_object().unwrap().iter().find(|(s, _)| s.starts_with(['1', '2'])).unwrap();
            let is_upgrade = good.0 == "101";
            assert!(is_upgrade || good.1["content"].is_object(), "{} {} says nothing of its answer", route.method, route.path);
            assert_eq!(said["security"] == json!([]), route.needs == Needs::Nothing, "{}", route.path);
        }
        // Nothing refers to what is not there.
        let text = document.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas[name].is_object(), "{name} is not there");
        }
        assert_eq!(schemas["App"]["required"].as_array().unwrap().len(), schemas["App"]["properties"].as_object().unwrap().len());
        assert!(schemas["CreateApp"]["required"].is_null());
    }
}
