//! Who may: signing in and out, and what tokens may do.

use crate::common::World;
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn signing_in_with_a_password_and_out_again() {
    let w = World::new().await;
    w.post("/users", json!({ "email": "me@example.com", "password": "correct horse" })).await;
    let sign_in = async |password: &str| {
        let request = reqwest::Client::new().post(format!("{}/oauth/authorizations", w.url));
        let response = request.basic_auth("me@example.com", Some(password)).send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str::<Value>(&response.text().await.unwrap()).unwrap())
    };
    assert_eq!(sign_in("wrong horse").await.0, 401);
    let (status, made) = sign_in("correct horse").await;
    assert_eq!((status, made["user"]["email"].as_str()), (201, Some("me@example.com")));
    let token = made["access_token"]["token"].as_str().unwrap();
    assert!(token.starts_with("flx_") && token.len() == 68, "{token}");
    assert_eq!(w.send(Method::GET, "/account", token, None).await.1["email"], "me@example.com");
    for entry in w.store.list("").await.unwrap().0 {
        let text = String::from_utf8_lossy(&entry.value).into_owned();
        assert!(!text.contains(token) && !text.contains("correct horse"), "{}", entry.key);
    }
    for _ in 0..5 {
        assert_eq!(sign_in("wrong horse").await.0, 401);
    }
    assert_eq!(sign_in("correct horse").await.0, 429);
    let id = made["id"].as_str().unwrap();
    assert_eq!(w.send(Method::DELETE, &format!("/oauth/authorizations/{id}"), token, None).await.0.as_u16(), 200);
    assert_eq!(w.send(Method::GET, "/account", token, None).await.0.as_u16(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_do_no_more_than_they_may_and_no_longer() {
    let w = World::new().await;
    w.create("demo").await;
    let make = async |token: &str, body: Value| w.send(Method::POST, "/oauth/authorizations", token, Some(body)).await;
    let text = |made: &Value| made["access_token"]["token"].as_str().unwrap().to_owned();
    let (_, made) = make(&w.admin, json!({ "scope": ["read", "identity"], "expires_in": 3600 })).await;
    assert_eq!(made["scope"], json!(["identity", "read"]));
    assert!((3500..=3600).contains(&made["access_token"]["expires_in"].as_u64().unwrap()), "{made}");
    let read = text(&made);
    for (method, path, expected) in [
        (Method::GET, "/apps/demo", 200),
        (Method::GET, "/account", 200),
        (Method::GET, "/apps/demo/config-vars", 403),
        (Method::PATCH, "/apps/demo/config-vars", 403),
        (Method::POST, "/apps", 403),
        (Method::GET, "/account/keys", 403),
        (Method::GET, "/users", 403),
    ] {
        let body = (method != Method::GET).then(|| json!({}));
        let (status, answer) = w.send(method.clone(), path, &read, body).await;
        assert_eq!(status.as_u16(), expected, "{method} {path} {answer}");
    }
    // It cannot make itself a better one.
    assert_eq!(make(&read, json!({ "scope": ["global"] })).await.0.as_u16(), 403);
    for bad in [json!({ "scope": ["all"] }), json!({ "expires_in": 0 }), json!({ "expires_in": u64::MAX })] {
        assert_eq!(make(&w.admin, bad.clone()).await.0.as_u16(), 422, "{bad}");
    }
    // Nor one that outlives it.
    let short = text(&make(&w.admin, json!({ "expires_in": 1 })).await.1);
    let (status, made) = make(&short, json!({})).await;
    if status.as_u16() == 201 {
        assert!(made["access_token"]["expires_in"].as_u64().unwrap() <= 1, "{made}");
        let late = text(&made);
        w.until("it has expired", async || w.send(Method::GET, "/account", &late, None).await.0.as_u16() == 401).await;
    }
    w.until("it has expired", async || w.send(Method::GET, "/account", &short, None).await.0.as_u16() == 401).await;
    assert_eq!(w.get("/account").await["email"], "admin@example.com");
}
