//! Every route against the document of the API, and the event of each that changes something.

use crate::common::World;
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;

/// The event of each route that changes something.
const EVENTS: &[(&str, &str)] = &[
    ("POST /oauth/authorizations", "token.create"),
    ("DELETE /oauth/authorizations/{id}", "token.delete"),
    ("POST /account/keys", "key.create"),
    ("DELETE /account/keys/{key}", "key.delete"),
    ("POST /users", "user.create"),
    ("POST /apps", "app.create"),
    ("PATCH /apps/{app}", "app.update"),
    ("DELETE /apps/{app}", "app.destroy"),
    ("PUT /apps/{app}/lock", "app.lock"),
    ("DELETE /apps/{app}/lock", "app.unlock"),
    ("POST /apps/{app}/transfer", "app.transfer"),
    ("PATCH /apps/{app}/config-vars", "config.update"),
    ("PATCH /apps/{app}/formation", "formation.update"),
    ("PATCH /apps/{app}/formation/{type}", "formation.update"),
    ("PUT /apps/{app}/checks/{type}", "checks.update"),
    ("DELETE /apps/{app}/checks/{type}", "checks.update"),
    ("DELETE /apps/{app}/dynos", "ps.restart"),
    ("DELETE /apps/{app}/dynos/{dyno}", "ps.restart"),
    ("DELETE /apps/{app}/formations/{dyno}", "ps.restart"),
    ("POST /apps/{app}/dynos/{dyno}/actions/stop", "ps.stop"),
    ("POST /apps/{app}/dynos/{dyno}/actions/start", "ps.start"),
    ("POST /apps/{app}/actions/stop", "ps.stop"),
    ("POST /apps/{app}/actions/start", "ps.start"),
    ("POST /apps/{app}/dynos", "run.start"),
    ("POST /apps/{app}/dynos/{dyno}/exec", "instance.exec"),
    ("POST /apps/{app}/releases", "release.rollback"),
    ("PUT /apps/{app}/canary", "canary.update"),
    ("DELETE /apps/{app}/canary", "canary.abort"),
    ("POST /apps/{app}/canary/actions/promote", "canary.promote"),
    ("POST /apps/{app}/releases/{release}/actions/retry", "release.retry"),
    ("POST /apps/{app}/builds", "build.create"),
    ("DELETE /apps/{app}/builds/{build}", "build.cancel"),
    ("PATCH /apps/{app}/builds/{build}", "build.cancel"),
    ("DELETE /apps/{app}/build-cache", "build-cache.delete"),
    ("PUT /apps/{app}/buildpack-installations", "buildpacks.update"),
    ("POST /apps/{app}/collaborators", "collaborator.create"),
    ("DELETE /apps/{app}/collaborators/{user}", "collaborator.delete"),
    ("POST /apps/{app}/domains", "domain.create"),
    ("DELETE /apps/{app}/domains/{domain}", "domain.delete"),
    ("POST /apps/{app}/sni-endpoints", "sni-endpoint.update"),
    ("PATCH /apps/{app}/sni-endpoints/{endpoint}", "sni-endpoint.update"),
    ("DELETE /apps/{app}/sni-endpoints/{endpoint}", "sni-endpoint.delete"),
    ("POST /apps/{app}/acm", "acm.enable"),
    ("DELETE /apps/{app}/acm", "acm.disable"),
    ("POST /apps/{app}/log-drains", "log-drain.create"),
    ("DELETE /apps/{app}/log-drains/{drain}", "log-drain.delete"),
    ("PATCH /apps/{app}/log-retention", "log-retention.update"),
    ("POST /apps/{app}/routes", "route.create"),
    ("PATCH /apps/{app}/routes/{route}", "route.update"),
    ("DELETE /apps/{app}/routes/{route}", "route.delete"),
    ("PATCH /apps/{app}/routing", "routing.update"),
];

/// Routes that take something and change nothing that lasts.
const WITHOUT_EVENT: &[(&str, &str)] = &[
    ("PATCH /apps/{app}/acm", "what comes of it is told: certificate.issue or certificate.fail"),
    ("POST /sources", "a promise that ends by itself"),
    ("PUT /sources/{id}/{secret}", "the build that uses it is the event"),
    ("POST /apps/{app}/log-sessions", "it reads"),
    ("POST /apps/{app}/dynos/{dyno}/attach", "it looks on"),
    ("POST /router/status", "observed, not desired"),
    ("POST /router/lines", "observed, not desired"),
    ("POST /router/signals", "observed, not desired"),
];

/// One good answer of each route, each held against the document (`World::send` does that for all that is asked).
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one line for each route")]
async fn every_route_answers_as_the_document_says() {
    use std::collections::BTreeSet;
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    assert!(w.push(app).await.0);
    w.until("v2 is up", async || w.versions_up("demo").await == [2]).await;
    w.user("you@example.com").await;
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let build = text(&w.get("/apps/demo/builds").await[0]["id"]);
    let output = text(&w.get(&format!("/apps/demo/builds/{build}")).await["output_stream_url"]);
    let slug = text(&w.get("/apps/demo/releases/1").await["slug"]["id"]);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me";
    let mut seen = BTreeSet::new();
    let happened = async |kind: &str| {
        let entries = w.store.list("events/").await.unwrap().0;
        let events = entries.iter().map(|e| serde_json::from_slice::<Value>(&e.value).unwrap());
        events.filter(|e| e["kind"] == kind && e["actor_name"] == "admin@example.com" && e["from"] == "127.0.0.1").count()
    };
    let mut ask = async |method: Method, path: &str, body: Value| {
        let route = crate::common::schema::route_of(&method, path.strip_prefix(&w.url).unwrap_or(path)).unwrap();
        let kind = EVENTS.iter().find(|(r, _)| *r == format!("{} {}", route.method, route.path)).map(|(_, kind)| *kind);
        let before = happened(kind.unwrap_or_default()).await;
        let body = (method != Method::GET).then_some(body);
        let path = path.strip_prefix(&w.url).unwrap_or(path);
        let (status, answer) = w.send(method.clone(), path, &w.admin, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        if let Some(kind) = kind {
            assert!(happened(kind).await > before, "{method} {path} is no event {kind}");
        }
        seen.insert(format!("{} {}", route.method, route.path));
        answer
    };
    let none = || json!({});
    let (get, post, patch, put, delete) = (Method::GET, Method::POST, Method::PATCH, Method::PUT, Method::DELETE);
    for path in [
        "/health",
        "/openapi.json",
        "/errors/not_found",
        "/flex/server",
        "/oauth/authorizations",
        "/account",
        "/users/~",
        "/account/keys",
        "/users",
        "/events",
        "/hosts",
        "/stacks",
        "/regions",
        "/apps",
        "/users/~/apps",
        "/apps/demo",
        "/v2/",
        "/apps/demo/config-vars",
        "/apps/demo/checks",
        "/apps/demo/history",
        "/apps/demo/rollout",
        "/apps/demo/releases/v1/output",
        "/dyno-sizes",
        "/apps/demo/formation",
        "/apps/demo/formation/web",
        "/apps/demo/dynos",
        "/apps/demo/dynos/web.1",
        "/apps/demo/dynos/web.1/why",
        "/apps/demo/releases",
        "/apps/demo/releases/v1",
        "/apps/demo/releases/1/config-vars",
        "/apps/demo/builds",
        "/apps/demo/collaborators",
        "/apps/demo/domains",
        "/apps/demo/domains/demo.localhost",
        "/apps/demo/events",
        "/apps/demo/metrics?seconds=5",
        "/metrics",
        "/routers",
        "/routes/trace?host=demo.localhost&path=/x",
        "/v2/demo/tags/list",
        &output,
        &format!("/apps/demo/builds/{build}"),
        &format!("/apps/demo/builds/{build}/output"),
        &format!("/apps/demo/slugs/{slug}"),
    ] {
        ask(get.clone(), path, Value::Null).await;
    }
    let made =
        ask(post.clone(), "/oauth/authorizations", json!({ "description": "x", "expires_in": 60, "scope": ["read"] })).await;
    for method in [&get, &delete] {
        ask(method.clone(), &format!("/oauth/authorizations/{}", text(&made["id"])), none()).await;
    }
    let made = ask(post.clone(), "/account/keys", json!({ "public_key": key })).await;
    for method in [&get, &delete] {
        ask(method.clone(), &format!("/account/keys/{}", text(&made["id"])), none()).await;
    }
    ask(post.clone(), "/users", json!({ "email": "new@example.com" })).await;
    let source = ask(post.clone(), "/sources", none()).await;
    ask(put.clone(), &text(&source["source_blob"]["put_url"]), json!("an archive")).await;
    ask(post.clone(), "/apps", json!({ "name": "other", "stack": "heroku-24", "region": "eu" })).await;
    ask(patch.clone(), "/apps/other", json!({ "maintenance": true })).await;
    ask(patch.clone(), "/apps/other", json!({ "build_stack": "flex-0" })).await;
    ask(delete.clone(), "/apps/other", none()).await;
    ask(patch.clone(), "/apps/demo/config-vars", json!({ "A": "1", "B": null })).await;
    ask(patch.clone(), "/apps/demo/formation", json!({ "updates": [{ "type": "web", "quantity": "+1" }] })).await;
    ask(patch.clone(), "/apps/demo/formation/web", json!({ "quantity": 1, "size": "256M" })).await;
    ask(put.clone(), "/apps/demo/checks/web", json!({ "path": "/up", "interval_seconds": 9 })).await;
    ask(delete.clone(), "/apps/demo/checks/web", none()).await;
    ask(post.clone(), "/apps/demo/actions/stop", none()).await;
    ask(post.clone(), "/apps/demo/actions/start", none()).await;
    ask(post.clone(), "/apps/demo/dynos/web.1/actions/stop", none()).await;
    ask(post.clone(), "/apps/demo/dynos/web.1/actions/start", none()).await;
    ask(put.clone(), "/apps/demo/lock", json!({ "reason": "audit" })).await;
    ask(delete.clone(), "/apps/demo/lock", none()).await;
    ask(post.clone(), "/apps/demo/dynos", json!({ "command": "say hello" })).await;
    ask(post.clone(), "/apps/demo/dynos", json!({ "command": "cat", "attach": true })).await;
    ask(post.clone(), "/apps/demo/dynos/web.1/exec", json!({ "argv": ["ls"] })).await;
    ask(post.clone(), "/apps/demo/dynos/web.1/attach", none()).await;
    ask(get.clone(), "/apps/demo/runs", Value::Null).await;
    for path in ["/apps/demo/dynos", "/apps/demo/dynos/web.1", "/apps/demo/formations/web", "/apps/demo/build-cache"] {
        ask(delete.clone(), path, none()).await;
    }
    ask(post.clone(), "/apps/demo/releases", json!({ "release": "v1" })).await;
    ask(put.clone(), "/apps/demo/buildpack-installations", json!({ "updates": [{ "buildpack": "heroku/python" }] })).await;
    ask(get.clone(), "/apps/demo/buildpack-installations", Value::Null).await;
    ask(post.clone(), "/apps/demo/collaborators", json!({ "user": "you@example.com" })).await;
    ask(delete.clone(), "/apps/demo/collaborators/you@example.com", none()).await;
    ask(post.clone(), "/apps/demo/domains", json!({ "hostname": "www.example.com" })).await;
    let made = rcgen::generate_simple_self_signed(vec!["www.example.com".to_owned()]).unwrap();
    let body = json!({ "certificate_chain": made.cert.pem(), "private_key": made.signing_key.serialize_pem() });
    let name = text(&ask(post.clone(), "/apps/demo/sni-endpoints", body.clone()).await["name"]);
    ask(get.clone(), "/apps/demo/sni-endpoints", Value::Null).await;
    ask(patch.clone(), &format!("/apps/demo/sni-endpoints/{name}"), body).await;
    ask(get.clone(), &format!("/apps/demo/sni-endpoints/{name}"), Value::Null).await;
    ask(delete.clone(), &format!("/apps/demo/sni-endpoints/{name}"), none()).await;
    ask(post.clone(), "/apps/demo/acm", json!({})).await;
    ask(patch.clone(), "/apps/demo/acm", json!({ "acm_refresh": true })).await;
    ask(delete.clone(), "/apps/demo/acm", none()).await;
    ask(delete.clone(), "/apps/demo/domains/www.example.com", none()).await;
    let route = json!({ "kind": "http", "host": "demo.localhost", "path": "/api", "policy": { "sticky": true } });
    let route = text(&ask(post.clone(), "/apps/demo/routes", route).await["id"]);
    ask(get.clone(), "/apps/demo/routes", Value::Null).await;
    ask(get.clone(), &format!("/apps/demo/routes/{route}"), Value::Null).await;
    ask(patch.clone(), &format!("/apps/demo/routes/{route}"), json!({ "policy": { "sticky": null, "queue": 9 } })).await;
    ask(delete.clone(), &format!("/apps/demo/routes/{route}"), none()).await;
    let url = json!({ "url": "syslog://127.0.0.1:9" });
    let drain = text(&ask(post.clone(), "/apps/demo/log-drains", url).await["id"]);
    ask(get.clone(), "/apps/demo/log-drains", Value::Null).await;
    ask(get.clone(), &format!("/apps/demo/log-drains/{drain}"), Value::Null).await;
    ask(delete.clone(), &format!("/apps/demo/log-drains/{drain}"), none()).await;
    ask(get.clone(), "/apps/demo/log-retention", Value::Null).await;
    ask(patch.clone(), "/apps/demo/log-retention", json!({ "max_age_seconds": 86400 })).await;
    ask(patch.clone(), "/apps/demo/routing", json!({ "http": { "https_redirect": true }, "pages": { "error": "<p>" } })).await;
    ask(get.clone(), "/apps/demo/routing", Value::Null).await;
    let session = ask(post.clone(), "/apps/demo/log-sessions", json!({ "lines": 5 })).await;
    ask(get.clone(), &text(&session["logplex_url"]), Value::Null).await;
    for method in [&delete, &patch] {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        w.builders.then(crate::common::parts::Outcome::Held(gate, crate::common::parts::product("up-x", &[("web", "serve")])));
        let body = json!({ "source_blob": { "url": source["source_blob"]["get_url"], "version": "x" } });
        let held = text(&ask(post.clone(), "/apps/demo/builds", body).await["id"]);
        ask(method.clone(), &format!("/apps/demo/builds/{held}"), none()).await;
        w.until("it is over", async || w.get(&format!("/apps/demo/builds/{held}")).await["status"] == "failed").await;
    }
    ask(post.clone(), "/apps/demo/transfer", json!({ "recipient": "you@example.com" })).await;
    // Attaching, release phases, failed releases and the images of a registry have tests of their own.
    let elsewhere = [
        "POST /apps/{app}/releases/{release}/actions/retry",
        "GET /release-output/{app_id}/{release}/{secret}",
        "GET /runs/{secret}",
        "GET /apps/{app}/dynos/{dyno}/ports/{port}",
        "GET /v2/{app}/manifests/{reference}",
        "GET /v2/{app}/blobs/{digest}",
        "GET /router/table",
        "GET /router/certificates",
        "POST /router/status",
        "POST /router/lines",
        "POST /router/signals",
        "GET /apps/{app}/canary",
        "PUT /apps/{app}/canary",
        "DELETE /apps/{app}/canary",
        "POST /apps/{app}/canary/actions/promote",
    ];
    let every = flex_controller::http::table::all().iter().map(|r| format!("{} {}", r.method, r.path));
    let missed: Vec<_> = every.filter(|r| !seen.contains(r) && !elsewhere.contains(&r.as_str())).collect();
    assert!(missed.is_empty(), "never asked: {missed:?}");
    // A new route that changes something has to say here which event tells of it, or why none does.
    let changing = flex_controller::http::table::all().iter().filter(|r| r.method != Method::GET);
    let silent: Vec<_> = changing
        .map(|r| format!("{} {}", r.method, r.path))
        .filter(|r| !EVENTS.iter().any(|(e, _)| e == r) && !WITHOUT_EVENT.iter().any(|(e, _)| e == r))
        .collect();
    assert!(silent.is_empty(), "no event is known of: {silent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_parts_and_are_not_sent_twice() {
    let w = World::new().await;
    w.create("demo").await;
    for n in 1..=5 {
        w.patch("/apps/demo/config-vars", json!({ "N": n.to_string() })).await;
    }
    let ask = async |range: &str, tag: &str| {
        let request = reqwest::Client::new().get(format!("{}/apps/demo/releases", w.url)).bearer_auth(&w.admin);
        let response = request.header("Range", range).header("If-None-Match", tag).send().await.unwrap();
        let header = |n: &str| response.headers().get(n).map(|v| v.to_str().unwrap().to_owned());
        let told = (response.status().as_u16(), header("next-range"), header("content-range"), header("etag"));
        assert!(header("request-id").is_some() && header("ratelimit-remaining").is_some());
        let text = response.text().await.unwrap();
        let versions: Vec<u64> = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|all| Some(all.as_array()?.iter().map(|r| r["version"].as_u64().unwrap()).collect()))
            .unwrap_or_default();
        (told, versions, text)
    };
    let ((status, next, content, tag), versions, _) = ask("version ..; order=desc,max=2", "\"x\"").await;
    assert_eq!((status, versions, content.as_deref()), (206, vec![5, 4], Some("version 5..4")));
    let ((status, next, _, _), versions, _) = ask(&next.unwrap(), "").await;
    assert_eq!((status, versions), (206, vec![3, 2]));
    let ((status, next, _, _), versions, _) = ask(&next.unwrap(), "").await;
    assert_eq!((status, versions, next), (200, vec![1], None));
    let ((status, ..), _, text) = ask("version ..; order=desc,max=2", &tag.unwrap()).await;
    assert_eq!((status, text.as_str()), (304, ""));
    let ((status, ..), _, text) = ask("colour ..", "").await;
    assert_eq!(status, 416);
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(error["id"], "requested_range_not_satisfiable");
    let page = reqwest::get(error["url"].as_str().unwrap()).await.unwrap().text().await.unwrap();
    assert!(page.starts_with("# `requested_range_not_satisfiable` (416)"), "{page}");
}
