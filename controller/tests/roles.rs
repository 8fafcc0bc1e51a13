//! Every route of the table, asked by everybody who could ask.

mod common;

use common::World;
use flex_controller::http::table::{Needs, all};
use reqwest::Method;
use serde_json::json;

/// Who asks, in the order of what they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Anonymous,
    Stranger,
    Collaborator,
    Owner,
    Admin,
}

/// What the middleware must answer, or nothing: the request reaches its handler.
fn refusal(who: Who, needs: Needs) -> Option<(u16, &'static str)> {
    match (needs, who) {
        (Needs::Nothing, _) => None,
        (_, Who::Anonymous) => Some((401, "unauthorized")),
        (Needs::User, _) | (_, Who::Admin) => None,
        (Needs::Admin, _) => Some((403, "forbidden")),
        (Needs::App | Needs::AppOwner, Who::Stranger) => Some((404, "not_found")),
        (Needs::AppOwner, Who::Collaborator) => Some((403, "forbidden")),
        (Needs::App | Needs::AppOwner, _) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_as_every_role() {
    let w = World::new().await;
    let tokens = [
        (Who::Anonymous, String::new()),
        (Who::Stranger, w.user("stranger@example.com").await),
        (Who::Collaborator, w.user("collaborator@example.com").await),
        (Who::Owner, w.user("owner@example.com").await),
        (Who::Admin, w.admin.clone()),
    ];
    let token = |who: Who| tokens.iter().find(|(w, _)| *w == who).unwrap().1.clone();
    let mut asked = 0;
    for route in all() {
        for (who, credentials) in &tokens {
            asked += 1;
            // Destroying it is among what is asked.
            if w.send(Method::GET, "/apps/walked", &token(Who::Owner), None).await.0.as_u16() == 404 {
                let (status, _) = w.send(Method::POST, "/apps", &token(Who::Owner), Some(json!({ "name": "walked" }))).await;
                assert_eq!(status.as_u16(), 201);
                let body = json!({ "user": "collaborator@example.com" });
                let (status, answer) = w.send(Method::POST, "/apps/walked/collaborators", &token(Who::Owner), Some(body)).await;
                assert_eq!(status.as_u16(), 201, "{answer}");
            }
            // Ids that are well formed and name nothing: a handler that is reached answers 404 or 422 of its own.
            let path = route.path.replace("{app}", "walked");
            let path = fill(&path);
            let before = w.store.list("").await.unwrap();
            let body = (route.method != Method::GET).then(|| json!({ "command": "x" }));
            let (status, answer) = w.send(route.method.clone(), &path, credentials, body).await;
            let told = format!("{} {path} as {who:?}: {status} {answer}", route.method);
            match refusal(*who, route.needs) {
                Some((code, _)) if path.starts_with("/v2/") => {
                    // In the shape that registry clients read.
                    assert_eq!(status.as_u16(), code, "{told}");
                    assert!(answer["errors"][0]["code"].is_string(), "{told}");
                }
                Some((code, id)) => {
                    assert_eq!((status.as_u16(), answer["id"].as_str()), (code, Some(id)), "{told}");
                    if code == 404 {
                        assert_eq!(answer["message"], "Couldn't find that app.", "{told}");
                    }
                    let after = w.store.list("").await.unwrap();
                    let desired = |all: &[flex_store::Entry]| -> Vec<String> {
                        all.iter().filter(|e| !e.key.starts_with("releases/")).map(|e| e.key.to_string()).collect()
                    };
                    assert_eq!(desired(&before.0), desired(&after.0), "{told}");
                }
                None => {
                    assert!(status.as_u16() != 403 && status.as_u16() < 500, "{told}");
                    // Signing in needs credentials of its own kind, and so do routers.
                    let own = route.path == "/oauth/authorizations" || route.path.starts_with("/router/");
                    assert!(own || status.as_u16() != 401, "{told}");
                    assert_ne!(answer["message"], "Couldn't find that app.", "{told}");
                }
            }
        }
    }
    assert!(asked > 200);
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
