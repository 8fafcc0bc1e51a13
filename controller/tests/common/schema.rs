//! Holds what the API sends against what its OpenAPI document says: as strict as the document is, and stricter in one
//! thing, since a field that the document does not name is one that it forgot.

use flex_controller::http::table::{Route, all};
use reqwest::Method;
use serde_json::Value;

/// The route of a path that was asked for. What is spelled out goes before what stands for anything.
pub fn route_of(method: &Method, path: &str) -> Option<&'static Route> {
    let path = path.split('?').next().unwrap();
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |route: &&Route| {
        let wanted: Vec<&str> = route.path.split('/').collect();
        route.method == *method
            && wanted.len() == parts.len()
            && wanted.iter().zip(&parts).all(|(w, p)| w == p || (w.starts_with('{') && !p.is_empty()))
    };
    all().iter().filter(fits).min_by_key(|r| r.path.matches('{').count())
}

/// Panics where an answer is not what the document says.
pub fn check(document: &Value, method: &Method, path: &str, status: u16, content_type: &str, answer: &Value) {
    let Some(route) = route_of(method, path) else {
        return assert_eq!(status, 404, "{method} {path} is no route, and answered {status}");
    };
    let said = &document["paths"][route.path][route.method.as_str().to_lowercase()]["responses"][status.to_string()];
    let told = format!("{method} {path}: {status} {answer}");
    assert!(said.is_object(), "the document does not know this status: {told}");
    let Some(contents) = said["content"].as_object() else { return };
    let media = content_type.split(';').next().unwrap();
    if media == "application/json" {
        let content = contents.get(media).unwrap_or_else(|| panic!("the document does not know this kind: {told}"));
        let problems = problems(document, &content["schema"], answer, "");
        assert!(problems.is_empty(), "{told}\n{}", problems.join("\n"));
    }
}

/// What about a value is not as a schema (JSON Schema 2020-12, as far as the document uses it) says.
pub fn problems(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference} is not there"));
        return problems(document, target, value, at);
    }
    for (word, least, most) in [("oneOf", 1, 1), ("anyOf", 1, usize::MAX), ("allOf", usize::MAX, usize::MAX)] {
        let Some(choices) = schema[word].as_array() else { continue };
        let fit = choices.iter().filter(|c| problems(document, c, value, at).is_empty()).count();
        if fit < least.min(choices.len()) || fit > most {
            return vec![format!("{at}: {fit} of {} in {word} fit {value}", choices.len())];
        }
        return Vec::new();
    }
    let mut out = Vec::new();
    let types: Vec<&str> = match &schema["type"] {
        Value::String(t) => vec![t],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = types.is_empty() || types.contains(&is) || (is == "integer" && types.contains(&"number"));
    if !fits {
        out.push(format!("{at}: {value} is {is} and not {}", types.join(" or ")));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        out.push(format!("{at}: {value} is not among {allowed:?}"));
    }
    if let (Some(least), Some(n)) = (schema["minimum"].as_i64(), value.as_i64())
        && n < least
    {
        out.push(format!("{at}: {n} is below {least}"));
    }
    if let Some(text) = value.as_str() {
        let good = match schema["format"].as_str() {
            Some("uuid") => text.parse::<flex_model::Uuid>().is_ok(),
            Some("date-time") => text.parse::<flex_model::Timestamp>().is_ok() && text.ends_with('Z') && text.len() == 20,
            Some("email") => text.contains('@'),
            _ => true,
        };
        if !good {
            out.push(format!("{at}: {text} is no {}", schema["format"]));
        }
    }
    if let Some(items) = value.as_array() {
        for (i, item) in items.iter().enumerate() {
            out.extend(problems(document, &schema["items"], item, &format!("{at}/{i}")));
        }
    }
    if let Some(fields) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                out.push(format!("{at}: {name} is missing"));
            }
        }
        for (name, field) in fields {
            let (known, others) = (&schema["properties"][name], &schema["additionalProperties"]);
            if !known.is_null() {
                out.extend(problems(document, known, field, &format!("{at}/{name}")));
            } else if others.is_object() {
                out.extend(problems(document, others, field, &format!("{at}/{name}")));
            } else if schema["properties"].is_object() {
                out.push(format!("{at}: {name} is not in the document"));
            }
        }
    }
    out
}
