//! The OpenAPI document, made from the table of routes: it cannot name a route that is not there, nor miss one that is.

use super::table::{Needs, all};
use super::{Answer, ok};
use serde_json::{Map, Value, json};

pub async fn document() -> Answer {
    ok(&build())
}

fn build() -> Value {
    let mut paths = Map::new();
    for route in all() {
        let parameters: Vec<Value> = route
            .path
            .split('/')
            .filter_map(|p| p.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        let mut operation = json!({
            "summary": route.summary,
            "parameters": parameters,
            "responses": {
                "default": { "description": "An error", "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } } },
                "2XX": { "description": "Success", "content": { "application/json": {} } }
            }
        });
        if route.needs != Needs::Nothing {
            operation["security"] = json!([{ "token": [] }]);
        }
        let entry = paths.entry(route.path).or_insert_with(|| json!({}));
        entry[route.method.as_str().to_lowercase()] = operation;
    }
    let ids: Vec<&str> = flex_api::ErrorId::ALL.iter().map(|i| i.name()).collect();
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Flex", "version": env!("CARGO_PKG_VERSION"), "description": "The Heroku Platform API v3 where Heroku has the resource, and Flex's own resources." },
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": { "Error": {
                "type": "object", "required": ["id", "message"],
                "properties": { "id": { "type": "string", "enum": ids }, "message": { "type": "string" } }
            } }
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_route_is_in_the_document() {
        let document = super::build();
        for route in super::all() {
            assert!(document["paths"][route.path][route.method.as_str().to_lowercase()]["summary"].is_string(), "{}", route.path);
        }
    }
}
