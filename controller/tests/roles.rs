//! Every route of the table, asked by everybody who could ask.

mod common;

use common::World;
use flex_controller::http::table::{Needs, Route, all};
use reqwest::Method;
use serde_json::{Value, json};

/// Who asks, in the order of what they may; at the end one who is no user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Anonymous,
    Stranger,
    Collaborator,
    Owner,
    Admin,
    Router,
}

/// What the middleware must answer, or nothing: the request reaches its handler.
fn refusal(who: Who, needs: Needs) -> Option<(u16, &'static str)> {
    match (needs, who) {
        (Needs::Nothing, _) | (Needs::Router, Who::Router) => None,
        // Whoever they are, users show no router's token, and routers no user's.
        (Needs::Router, _) | (_, Who::Anonymous | Who::Router) => Some((401, "unauthorized")),
        (Needs::User, _) | (_, Who::Admin) => None,
        (Needs::Admin, _) => Some((403, "forbidden")),
        (Needs::App | Needs::AppOwner, Who::Stranger) => Some((404, "not_found")),
        (Needs::AppOwner, Who::Collaborator) => Some((403, "forbidden")),
        (Needs::App | Needs::AppOwner, _) => None,
    }
}

/// What each of them shows.
async fn tokens(w: &World) -> [(Who, String); 6] {
    [
        (Who::Anonymous, String::new()),
        (Who::Stranger, w.user("stranger@example.com").await),
        (Who::Collaborator, w.user("collaborator@example.com").await),
        (Who::Owner, w.user("owner@example.com").await),
        (Who::Admin, w.admin.clone()),
        (Who::Router, w.controller.router_token("edge").await.unwrap().expose().to_owned()),
    ]
}

/// The app of these tests, with its collaborator.
async fn make_app(w: &World, owner: &str) {
    let (status, _) = w.send(Method::POST, "/apps", owner, Some(json!({ "name": "walked" }))).await;
    assert_eq!(status.as_u16(), 201);
    let body = json!({ "user": "collaborator@example.com" });
    let (status, answer) = w.send(Method::POST, "/apps/walked/collaborators", owner, Some(body)).await;
    assert_eq!(status.as_u16(), 201, "{answer}");
}

/// A body by which a route changes something, for those where one is easily said.
fn changing(route: &Route) -> Option<Value> {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me";
    Some(match (route.method.as_str(), route.path) {
        ("PATCH", "/apps/{app}") => json!({ "maintenance": true, "read_only_root": true }),
        ("PATCH", "/apps/{app}/config-vars") => json!({ "A": "changed" }),
        ("PATCH", "/apps/{app}/formation") => json!({ "updates": [{ "type": "web", "quantity": 2 }] }),
        ("PATCH", "/apps/{app}/formation/{type}") => json!({ "quantity": 3 }),
        ("PUT", "/apps/{app}/checks/{type}") => json!({ "path": "/up" }),
        ("PATCH", "/apps/{app}/log-retention") => json!({ "max_age_seconds": 86400 }),
        ("PATCH", "/apps/{app}/routing") => json!({ "http": { "https_redirect": true } }),
        ("POST", "/apps/{app}/routes") => json!({ "kind": "http", "host": "walked.localhost", "path": "/api" }),
        ("POST", "/apps/{app}/domains") => json!({ "hostname": "www.example.com" }),
        ("POST", "/apps/{app}/log-drains") => json!({ "url": "syslog://127.0.0.1:9" }),
        ("POST", "/apps/{app}/collaborators") => json!({ "user": "stranger@example.com" }),
        ("PUT", "/apps/{app}/buildpack-installations") => json!({ "updates": [{ "buildpack": "heroku/python" }] }),
        ("PUT", "/apps/{app}/lock") => json!({ "reason": "audit" }),
        ("POST", "/apps/{app}/transfer") => json!({ "recipient": "collaborator@example.com" }),
        ("DELETE", "/apps/{app}/dynos") | ("POST", "/apps/{app}/actions/stop" | "/apps/{app}/acm") => json!({}),
        ("POST", "/apps") => json!({ "name": "another" }),
        ("POST", "/users") => json!({ "email": "new@example.com" }),
        ("POST", "/account/keys") => json!({ "public_key": key }),
        _ => return None,
    })
}

/// Every route is asked by everybody who may not, in a world where nothing else happens: the answer is the table's, and not
/// one value in the store has changed, nor has anything been written. The same requests by an administrator do change it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_changes_nothing() {
    let mut w = World::new().await;
    let tokens = tokens(&w).await;
    let token = |who: Who| tokens.iter().find(|(w, _)| *w == who).unwrap().1.clone();
    make_app(&w, &token(Who::Owner)).await;
    let app = w.get("/apps/walked").await["id"].as_str().unwrap().parse().unwrap();
    w.patch("/apps/walked/config-vars", json!({ "A": "1" })).await;
    assert!(w.push(app).await.0);
    w.quiet().await;
    let before = w.store.list("").await.unwrap();
    let ask = async |route: &Route, credentials: &str| {
        let path = fill(&route.path.replace("{app}", "walked"));
        let body = (route.method != Method::GET).then(|| changing(route).unwrap_or_else(|| json!({ "command": "x" })));
        let (status, answer) = w.send(route.method.clone(), &path, credentials, body).await;
        (status.as_u16(), answer, format!("{} {path}", route.method))
    };
    let mut refused = 0;
    for route in all() {
        for (who, credentials) in &tokens {
            let Some((code, id)) = refusal(*who, route.needs) else { continue };
            refused += 1;
            let (status, answer, told) = ask(route, credentials).await;
            let told = format!("{told} as {who:?}: {status} {answer}");
            if route.path.starts_with("/v2/") {
                // In the shape that registry clients read.
                assert_eq!(status, code, "{told}");
                assert!(answer["errors"][0]["code"].is_string(), "{told}");
            } else {
                assert_eq!((status, answer["id"].as_str()), (code, Some(id)), "{told}");
                if code == 404 {
                    assert_eq!(answer["message"], "Couldn't find that app.", "{told}");
                }
            }
            // Keys, values, the revision of each, and the store's own.
            assert!(w.store.list("").await.unwrap() == before, "it has changed the store: {told}");
        }
    }
    assert!(refused > 200, "{refused}");
    let mut revision = before.1;
    let mut changed = 0;
    for route in all().iter().filter(|r| changing(r).is_some()) {
        let (status, answer, told) = ask(route, &token(Who::Admin)).await;
        let now = w.store.list("").await.unwrap().1;
        assert!((200..300).contains(&status) && now > revision, "{told} as an administrator: {status} {answer}");
        revision = now;
        changed += 1;
    }
    assert!(changed >= 19, "{changed}");
}

/// Whoever the table lets in reaches the handler.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_lets_in_who_may() {
    let w = World::new().await;
    let tokens = tokens(&w).await;
    let owner = &tokens.iter().find(|(w, _)| *w == Who::Owner).unwrap().1;
    let mut reached = 0;
    for route in all() {
        for (who, credentials) in &tokens {
            if refusal(*who, route.needs).is_some() {
                continue;
            }
            reached += 1;
            // Destroying it is among what is asked.
            if w.send(Method::GET, "/apps/walked", owner, None).await.0.as_u16() == 404 {
                make_app(&w, owner).await;
            }
            // Ids that are well formed and name nothing: a handler that is reached answers 404 or 422 of its own.
            let path = fill(&route.path.replace("{app}", "walked"));
            if matches!(route.path, "/router/table" | "/router/certificates") {
                // They go on for as long as the router listens.
                let request = reqwest::Client::new().get(format!("{}{path}", w.url)).bearer_auth(credentials);
                let mut response = request.send().await.unwrap();
                assert_eq!(response.status().as_u16(), 200, "{path} as {who:?}");
                assert!(response.chunk().await.unwrap().is_some(), "{path} as {who:?}");
                continue;
            }
            let body = (route.method != Method::GET).then(|| json!({ "command": "x" }));
            let (status, answer) = w.send(route.method.clone(), &path, credentials, body).await;
            let told = format!("{} {path} as {who:?}: {status} {answer}", route.method);
            assert!(status.as_u16() != 403 && status.as_u16() < 500, "{told}");
            // Signing in needs credentials of its own kind.
            assert!(route.path == "/oauth/authorizations" || status.as_u16() != 401, "{told}");
            assert_ne!(answer["message"], "Couldn't find that app.", "{told}");
        }
    }
    assert!(reached > 200, "{reached}");
}

fn fill(path: &str) -> String {
    let fill = |part: &str| match part {
        "{type}" | "{dyno}" => "web".to_owned(),
        "{user}" => "nobody@example.com".to_owned(),
        "{release}" => "v99".to_owned(),
        p if p.starts_with('{') => "00000000-0000-0000-0000-00000000abcd".to_owned(),
        p => p.to_owned(),
    };
    path.split('/').map(fill).collect::<Vec<_>>().join("/")
}

/// What is done to an app, and what is opened into it, is told with who did it and where they were.
#[tokio::test(flavor = "multi_thread")]
async fn events_name_who_and_from_where() {
    use common::parts::{Outcome, product};
    let w = World::new().await;
    let owner = w.user("owner@example.com").await;
    let them = w.user("collaborator@example.com").await;
    make_app(&w, &owner).await;
    let app = w.get("/apps/walked").await["id"].as_str().unwrap().parse().unwrap();
    assert!(w.push(app).await.0);
    let ask = async |method: Method, path: &str, body: Value| {
        let (status, answer) = w.send(method.clone(), &format!("/apps/walked{path}"), &them, Some(body)).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    };
    let (post, put, delete) = (Method::POST, Method::PUT, Method::DELETE);
    let canary = async |state: &str| w.get("/apps/walked/canary").await["state"] == state;
    ask(put.clone(), "/canary", json!({ "weight": 10 })).await;
    assert!(w.push(app).await.0);
    w.until("the canary serves", async || canary("serving").await).await;
    ask(post.clone(), "/canary/actions/promote", json!({})).await;
    w.until("it serves alone", async || w.versions_up("walked").await == [2]).await;
    ask(put.clone(), "/canary", json!({ "release": "v1", "weight": 10 })).await;
    ask(delete.clone(), "/canary", json!({})).await;
    w.builders.then(Outcome::Good(product("crash-1", &[("web", "serve")])));
    assert!(!w.push(app).await.0);
    ask(post.clone(), "/releases/v3/actions/retry", json!({})).await;
    w.until("what served serves", async || w.versions_up("walked").await == [2]).await;
    let run = ask(post.clone(), "/dynos", json!({ "command": "cat", "attach": true })).await;
    ask(delete, &format!("/dynos/{}", run["name"].as_str().unwrap()), json!({})).await;
    ask(post.clone(), "/dynos/web.1/exec", json!({ "argv": ["ls"] })).await;
    // Looking on changes nothing and is no event; a port that is reached is one, however often.
    ask(post, "/dynos/web.1/attach", json!({})).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for _ in 0..2 {
        let url = format!("{}/apps/walked/dynos/web.1/ports/{port}", w.url.replacen("http", "ws", 1));
        let mut request = tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request(url).unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {them}").parse().unwrap());
        let _open = tokio_tungstenite::connect_async(request).await.unwrap();
        listener.accept().await.unwrap();
    }
    let events = w.get("/apps/walked/events").await;
    let events = events.as_array().unwrap();
    for (kind, times, says) in [
        ("canary.update", 2, "10"),
        ("canary.promote", 1, "v2"),
        ("canary.abort", 1, "v1"),
        ("release.retry", 1, "v3"),
        ("run.start", 1, "`cat`"),
        ("run.stop", 1, "`cat`"),
        ("instance.exec", 1, "`ls` in web.1"),
        ("instance.port", 1, &format!("port {port} of web.1")),
        ("instance.attach", 0, ""),
    ] {
        let of: Vec<_> = events.iter().filter(|e| e["kind"] == kind).collect();
        assert_eq!(of.len(), times, "{kind}: {events:#?}");
        for e in of {
            let told = (e["actor_name"].as_str(), e["from"].as_str());
            assert_eq!(told, (Some("collaborator@example.com"), Some("127.0.0.1")), "{e}");
            assert!(e["message"].as_str().unwrap().contains(says), "{e}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_declared_is_denied() {
    let w = World::new().await;
    w.create("demo").await;
    for (method, path) in
        [(Method::PUT, "/apps/demo"), (Method::POST, "/hosts"), (Method::DELETE, "/users"), (Method::GET, "/x/y")]
    {
        let (status, answer) = w.send(method.clone(), path, &w.admin, Some(json!({}))).await;
        assert_eq!((status.as_u16(), answer["id"].as_str()), (404, Some("not_found")), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_users_things_are_not_anothers() {
    let w = World::new().await;
    let (mine, theirs) = (w.user("me@example.com").await, w.user("they@example.com").await);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me";
    let (status, made) = w.send(Method::POST, "/account/keys", &mine, Some(json!({ "public_key": key }))).await;
    assert_eq!(status.as_u16(), 201);
    let (status, error) = w.send(Method::POST, "/account/keys", &theirs, Some(json!({ "public_key": key }))).await;
    assert_eq!(status.as_u16(), 422, "{error}");
    let path = format!("/account/keys/{}", made["id"].as_str().unwrap());
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(w.send(method, &path, &theirs, None).await.0.as_u16(), 404);
    }
    let tokens = w.send(Method::GET, "/oauth/authorizations", &mine, None).await.1;
    let path = format!("/oauth/authorizations/{}", tokens[0]["id"].as_str().unwrap());
    assert_eq!(w.send(Method::DELETE, &path, &theirs, None).await.0.as_u16(), 404);
    assert_eq!(w.send(Method::GET, "/apps", &mine, None).await.1, json!([]));
    // A build of one app is not to be had through another.
    let mut ids = Vec::new();
    for (name, token) in [("mine", &mine), ("theirs", &theirs)] {
        w.send(Method::POST, "/apps", token, Some(json!({ "name": name }))).await;
        let body = json!({ "source_blob": { "image": "nginx:1" } });
        let (status, build) = w.send(Method::POST, &format!("/apps/{name}/builds"), token, Some(body)).await;
        assert_eq!(status.as_u16(), 201, "{build}");
        ids.push(build["id"].as_str().unwrap().to_owned());
    }
    let (status, _) = w.send(Method::GET, &format!("/apps/mine/builds/{}", ids[1]), &mine, None).await;
    assert_eq!(status.as_u16(), 404);
    // Git asks the same.
    let user = async |email: &str| w.controller.user_by_email(&email.parse().unwrap()).await.unwrap().unwrap().id;
    assert!(w.controller.authorize_git(user("me@example.com").await, "mine").await.is_ok());
    let refused = w.controller.authorize_git(user("they@example.com").await, "mine").await.unwrap_err().join("\n");
    assert!(refused.contains("flex create") && refused.contains("flex access:add"), "{refused}");
}
