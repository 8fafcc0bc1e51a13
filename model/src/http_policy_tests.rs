use super::*;
use serde_json::json;

fn read(value: serde_json::Value) -> Result<HttpPolicy, String> {
    let serde_json::Value::Object(fields) = value else { panic!("no object") };
    HttpPolicy::read(fields)
}

#[test]
fn special_settings_lie_over_general_ones() {
    let app =
        read(json!({ "timeout_seconds": 60, "rate_limit": { "requests": 5 }, "headers": { "X-A": "1", "X-B": "2" } })).unwrap();
    let route = read(json!({ "rate_limit": false, "headers": { "x-b": false }, "https_redirect": true })).unwrap();
    let both = route.clone().over(app.clone());
    assert_eq!(both.timeout_seconds.on(), Some(&60));
    assert_eq!((both.rate_limit.on(), both.https_redirect), (None, Some(true)));
    assert_eq!(serde_json::to_value(&both.headers).unwrap(), json!({ "x-a": "1", "x-b": false }));
    assert_eq!(HttpPolicy::default().over(app.clone()), app);
    assert_eq!(app.clone().over(HttpPolicy::default()), app);
    assert_eq!(serde_json::to_string(&HttpPolicy::default()).unwrap(), "{}");
    for p in [app, route, both] {
        assert_eq!(serde_json::from_str::<HttpPolicy>(&serde_json::to_string(&p).unwrap()).unwrap(), p);
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (value, why) in [
        (json!({ "timeout": 3 }), "unknown field `timeout`"),
        (json!({ "timeout_seconds": 0 }), "timeout_seconds"),
        (json!({ "hsts": true, "timeout_seconds": "3" }), "hsts: "),
        (json!({ "timeout_seconds": "3" }), "timeout_seconds: "),
        (json!({ "allow": ["10.0.0.0/33"] }), "allow: "),
        (json!({ "allow": [] }), "allow"),
        (json!({ "compress": ["deflate"] }), "compress: "),
        (json!({ "compress": [] }), "compress"),
        (json!({ "rate_limit": { "requests": 0 } }), "rate_limit.requests"),
        (json!({ "rate_limit": { "request": 1 } }), "rate_limit: "),
        (json!({ "headers": { "Content-Length": "1" } }), "headers: "),
        (json!({ "headers": { "X-A": "a\r\nB: c" } }), "headers"),
        (json!({ "headers": { "X A": "a" } }), "headers: "),
        (json!({ "basic_auth": { "users": { "a:b": "x" } } }), "basic_auth.users"),
        (json!({ "basic_auth": { "users": { "a": HIDDEN } } }), "basic_auth.users"),
        (json!({ "basic_auth": { "users": { "a": "b" }, "realm": "a\"b" } }), "basic_auth.realm"),
        (json!({ "canonical_host": "a b" }), "canonical_host: "),
    ] {
        let error = read(value.clone()).unwrap_err();
        assert!(error.contains(why), "{value}: {error}");
    }
}

#[test]
fn no_password_is_shown() {
    let p = read(json!({ "basic_auth": { "users": { "ann": "geheim" } } })).unwrap();
    let shown = format!("{p:?} {}", serde_json::to_string(&p.hidden()).unwrap());
    assert!(!shown.contains("geheim") && shown.contains(HIDDEN) && shown.contains("ann"), "{shown}");
    assert_eq!(p.names(), ["basic_auth"]);
    let hash = format!("pbkdf2-sha256$10${}${}", "0".repeat(32), "f".repeat(64));
    assert_eq!(Hashed::parse(&hash).unwrap().to_string(), hash);
    for bad in ["geheim", "pbkdf2-sha256$0$$", "pbkdf2-sha256$10$zz$ff"] {
        assert!(Hashed::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn places_and_pages_read_as_they_are_written() {
    for text in ["*", "/api", "www.example.com/", "www.example.com/api"] {
        assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
    }
    assert_eq!("www.example.com".parse::<Place>().unwrap().to_string(), "www.example.com/");
    assert!("a b".parse::<Place>().is_err() && "/a b".parse::<Place>().is_err() && "".parse::<Place>().is_err());
    assert_eq!("h12".parse::<PageKind>().unwrap().as_str(), "H12");
    for bad in ["H1", "503", "Hxx", "H123", "", "é12"] {
        assert!(bad.parse::<PageKind>().is_err(), "{bad}");
    }
}
