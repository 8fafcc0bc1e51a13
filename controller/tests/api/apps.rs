//! Apps: made, configured, scaled, restarted, stopped, locked, with a canary; their names and sizes.

use crate::{common::World, kinds};
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn an_app_from_its_making_to_its_end() {
    let w = World::new().await;
    let made = w.post("/apps", json!({})).await;
    assert!(made["name"].as_str().is_some_and(|n| n.contains('-')), "{made}");
    let id = w.create("demo").await;
    let (status, error) = w.send(Method::POST, "/apps", &w.admin, Some(json!({ "name": "demo" }))).await;
    assert_eq!(
        (status.as_u16(), &error["id"], &error["message"]),
        (422, &json!("invalid_params"), &json!("Name demo is already taken"))
    );
    assert_eq!(w.get(&format!("/apps/{id}")).await["name"], "demo");
    assert_eq!(w.patch("/apps/demo", json!({ "name": "other" })).await["name"], "other");
    let (status, error) = w.send(Method::GET, "/apps/demo", &w.admin, None).await;
    assert_eq!((status.as_u16(), &error["id"], &error["message"]), (404, &json!("not_found"), &json!("Couldn't find that app.")));
    // The name is free again.
    w.create("demo").await;
    let (status, _) = w.send(Method::PATCH, "/apps/demo", &w.admin, Some(json!({ "name": "other" }))).await;
    assert_eq!(status.as_u16(), 422);
    assert_eq!(w.patch("/apps/other", json!({ "maintenance": true })).await["maintenance"], true);
    w.ok(Method::DELETE, "/apps/other", None).await;
    assert_eq!(w.send(Method::GET, "/apps/other", &w.admin, None).await.0.as_u16(), 404);
    let kinds: Vec<String> = kinds(&w.get("/events").await);
    for kind in ["app.create", "app.rename", "app.update", "app.destroy"] {
        assert!(kinds.iter().any(|k| k == kind), "{kind} is missing in {kinds:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_clearly() {
    let w = World::new().await;
    w.create("demo").await;
    let cases: Vec<(Method, &str, Value, u16)> = vec![
        (Method::POST, "/apps", json!({ "name": "Bad Name" }), 422),
        (Method::POST, "/apps", json!({ "name": 3 }), 422),
        (Method::PATCH, "/apps/demo/formation", json!({ "updates": [{ "type": "web", "quantity": "x" }] }), 422),
        (Method::PATCH, "/apps/demo/formation", json!({ "updates": [{ "type": "nope", "quantity": 1 }] }), 404),
        (Method::PATCH, "/apps/demo/config-vars", json!({ "A B": "1" }), 422),
        (Method::PATCH, "/apps/demo/config-vars", json!({ "A": "x".repeat(40_000) }), 422),
        (Method::PATCH, "/apps/demo", json!({ "deploy_branches": ["--x"] }), 422),
        (Method::POST, "/apps/demo/builds", json!({ "source_blob": {} }), 422),
        (Method::POST, "/apps/demo/builds", json!({ "source_blob": { "url": "http://169.254.169.254/x" } }), 422),
        (Method::POST, "/apps/demo/builds", json!({ "source_blob": { "image": "--help" } }), 422),
        (Method::POST, "/apps/demo/dynos", json!({ "command": "ls" }), 422),
        (Method::POST, "/apps/demo/releases", json!({ "release": "v9" }), 404),
        (Method::POST, "/apps/demo/domains", json!({ "hostname": "x.localhost" }), 422),
        (Method::POST, "/apps/demo/collaborators", json!({ "user": "nobody@example.com" }), 422),
        (Method::PUT, "/apps/demo/buildpack-installations", json!({ "updates": [{ "buildpack": "--x" }] }), 422),
        (Method::POST, "/account/keys", json!({ "public_key": "ssh-dss AAAA" }), 422),
        (Method::GET, "/apps/%2e%2e", Value::Null, 404),
        (Method::GET, "/nowhere", Value::Null, 404),
        (Method::PUT, "/apps", Value::Null, 404),
    ];
    for (method, path, body, expected) in cases {
        let url = format!("{}{path}", w.url);
        let request = reqwest::Client::new().request(method.clone(), &url).bearer_auth(&w.admin).json(&body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        assert_eq!(status, expected, "{method} {path} {text}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert!(error["id"].is_string() && error["message"].as_str().is_some_and(|m| m.len() > 5), "{method} {path} {text}");
    }
    let broken =
        reqwest::Client::new().post(format!("{}/apps", w.url)).bearer_auth(&w.admin).body("{\"name\":").send().await.unwrap();
    assert_eq!(broken.status().as_u16(), 400);
    assert!(broken.text().await.unwrap().contains("line 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn config_makes_releases_and_rollback_brings_it_back() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert_eq!(w.patch("/apps/demo/config-vars", json!({ "A": "1", "B": "2" })).await, json!({ "A": "1", "B": "2" }));
    assert!(w.push(app).await.0);
    assert_eq!(w.patch("/apps/demo/config-vars", json!({ "B": null, "A": "3" })).await, json!({ "A": "3" }));
    // Setting what is set already is no change.
    w.patch("/apps/demo/config-vars", json!({ "A": "3" })).await;
    w.until("v3 is up", async || w.versions_up("demo").await == [3]).await;
    let releases = w.get("/apps/demo/releases").await;
    let said: Vec<&str> = releases.as_array().unwrap().iter().map(|r| r["description"].as_str().unwrap()).collect();
    assert_eq!(said, ["Set A, B config vars", "Deploy 01234567", "Set A config vars, Unset B config vars"]);
    let rolled = w.post("/apps/demo/releases", json!({ "release": releases[1]["id"] })).await;
    assert_eq!((rolled["version"].as_u64(), rolled["description"].as_str()), (Some(4), Some("Rollback to v2")));
    assert_eq!(w.get("/apps/demo/config-vars").await, json!({ "A": "1", "B": "2" }));
    assert_eq!(w.get("/apps/demo/releases/3/config-vars").await, json!({ "A": "3" }));
    w.until("v4 is up", async || w.versions_up("demo").await == [4]).await;
    let newest = reqwest::Client::new()
        .get(format!("{}/apps/demo/releases", w.url))
        .bearer_auth(&w.admin)
        .header("Range", "version ..; order=desc,max=1")
        .send()
        .await
        .unwrap();
    assert_eq!(newest.status().as_u16(), 206);
    let newest: Value = serde_json::from_str(&newest.text().await.unwrap()).unwrap();
    assert_eq!((newest.as_array().unwrap().len(), newest[0]["version"].as_u64()), (1, Some(4)));
    // No value is in the store as it is.
    for entry in w.store.list("").await.unwrap().0 {
        assert!(!String::from_utf8_lossy(&entry.value).contains("\"A\":\"3\""), "{}", entry.key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_by_numbers_texts_and_steps() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    for (quantity, count) in [(json!("3"), 3), (json!("-1"), 2), (json!(1), 1), (json!("+1"), 2), (json!(0), 0)] {
        let body = json!({ "updates": [{ "type": "web", "quantity": quantity }] });
        assert_eq!(w.patch("/apps/demo/formation", body).await[0]["quantity"], count);
        w.until(&format!("{count} are up"), async || w.versions_up("demo").await.len() == count && w.routed(app).len() == count)
            .await;
    }
    let (status, _) = w.send(Method::PATCH, "/apps/demo/formation/web", &w.admin, Some(json!({ "quantity": "-1" }))).await;
    assert_eq!(status.as_u16(), 422);
    let one = w.patch("/apps/demo/formation/web", json!({ "quantity": 1, "size": "256M" })).await;
    assert_eq!((one["quantity"].as_u64(), one["size"].as_str()), (Some(1), Some("256M")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_replaces_instances() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    let id = async || w.get("/apps/demo/dynos").await[0]["id"].as_str().unwrap_or_default().to_owned();
    for path in ["/apps/demo/dynos", "/apps/demo/dynos/web.1", "/apps/demo/formations/web"] {
        let before = id().await;
        w.ok(Method::DELETE, path, None).await;
        w.until("another is up alone", async || {
            let now = w.get("/apps/demo/dynos").await;
            now.as_array().unwrap().len() == 1 && now[0]["id"] != before.as_str() && now[0]["state"] == "up"
        })
        .await;
        assert_eq!(w.routed(app), ["web.1"]);
    }
    assert_eq!(w.send(Method::DELETE, "/apps/demo/dynos/web.7", &w.admin, None).await.0.as_u16(), 404);
    let why = w.get("/apps/demo/dynos/web.1/why").await;
    assert!(why["lines"][0].as_str().unwrap().contains("was placed on one"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_world_belong_to_one_app() {
    let w = World::new().await;
    w.create("demo").await;
    w.create("other").await;
    let made = w.post("/apps/demo/domains", json!({ "hostname": "www.example.com" })).await;
    assert_eq!((made["kind"].as_str(), made["cname"].as_str()), (Some("custom"), Some("demo.localhost")));
    let (status, error) =
        w.send(Method::POST, "/apps/other/domains", &w.admin, Some(json!({ "hostname": "www.example.com" }))).await;
    assert_eq!(status.as_u16(), 422, "{error}");
    w.until("it is in the table", async || {
        let table = w.controller.routes().borrow().clone();
        table.apps.iter().any(|a| a.name.as_str() == "demo" && a.domains.iter().any(|d| d.as_str() == "www.example.com"))
    })
    .await;
    w.ok(Method::DELETE, "/apps/demo", None).await;
    w.post("/apps/other/domains", json!({ "hostname": "www.example.com" })).await;
    w.ok(Method::DELETE, "/apps/other/domains/www.example.com", None).await;
    assert_eq!(w.get("/apps/other/domains").await.as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stopped_stays_so_and_says_why() {
    let w = World::new().await;
    let app = w.create("demo").await;
    w.builders.then(crate::common::parts::Outcome::Good(crate::common::parts::product(
        "up-x",
        &[("web", "serve"), ("worker", "work")],
    )));
    assert!(w.push(app).await.0);
    w.patch(
        "/apps/demo/formation",
        json!({ "updates": [{ "type": "web", "quantity": 2 }, { "type": "worker", "quantity": 1 }] }),
    )
    .await;
    let settled = async || w.get("/apps/demo/rollout?wait=1&ready=9").await["settled"] == true;
    w.until("all are up", settled).await;
    let names = async || -> Vec<String> {
        let dynos = w.get("/apps/demo/dynos").await;
        dynos
            .as_array()
            .unwrap()
            .iter()
            .filter(|d| d["message"] != "draining")
            .map(|d| d["name"].as_str().unwrap().to_owned())
            .collect()
    };
    w.post("/apps/demo/dynos/web.2/actions/stop", json!({})).await;
    w.until("web.2 is gone", async || names().await == ["web.1", "worker.1"]).await;
    // Until it is drained, it says so.
    let why = async |name: &str| w.get(&format!("/apps/demo/dynos/{name}/why")).await["lines"][0].as_str().unwrap().to_owned();
    w.until("web.2 says how to start it", async || why("web.2").await.contains("flex ps:start web.2")).await;
    let third = why("web.3").await;
    assert!(third.contains("flex ps:scale web=3"), "{third}");
    // A release does not start it.
    w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
    w.until("v2 is up", async || settled().await && w.versions_up("demo").await == [2, 2]).await;
    assert_eq!(names().await, ["web.1", "worker.1"]);
    w.post("/apps/demo/actions/stop", json!({})).await;
    w.until("all are gone", async || names().await.is_empty()).await;
    assert_eq!(w.get("/apps/demo/formation/web").await["stopped"], true);
    w.post("/apps/demo/actions/start", json!({})).await;
    w.until("all are back", async || settled().await && names().await.len() == 3).await;
    let (status, _) = w.send(Method::POST, "/apps/demo/dynos/web.9/actions/stop", &w.admin, Some(json!({}))).await;
    assert_eq!(status.as_u16(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_without_a_restart_reaches_what_is_started_later() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    w.until("v1 is up", async || w.versions_up("demo").await == [1]).await;
    let settled = async || w.get("/apps/demo/rollout").await["settled"] == true;
    for n in 2..4 {
        w.patch("/apps/demo/config-vars?restart=false", json!({ "A": n.to_string() })).await;
        assert_eq!(w.get(&format!("/apps/demo/releases/{n}")).await["status"], "succeeded");
    }
    w.until("nothing is to be done", settled).await;
    assert_eq!(w.versions_up("demo").await, [1]);
    w.ok(Method::DELETE, "/apps/demo/dynos/web.1", None).await;
    w.until("the newest config runs", async || w.versions_up("demo").await == [3]).await;
    w.patch("/apps/demo/config-vars", json!({ "A": "5" })).await;
    w.until("an ordinary change restarts", async || w.versions_up("demo").await == [4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_locks_owners_and_checks() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    let size = async |body: Value| w.send(Method::PATCH, "/apps/demo/formation/web", &w.admin, Some(body)).await;
    assert_eq!(size(json!({ "size": "Small" })).await.1["size"], "small");
    let now = w.get("/apps/demo/formation/web").await;
    assert_eq!((now["cpu_millis"].as_u64(), now["cpu_shares"].as_u64()), (Some(500), Some(256)), "{now}");
    w.until("it is resized", async || w.get("/apps/demo/dynos").await[0]["size"] == "small").await;
    let (status, answer) = size(json!({ "size": "huge" })).await;
    assert!(status.as_u16() == 422 && answer["message"].as_str().unwrap().contains("There are: small"), "{answer}");
    assert_eq!(size(json!({ "size": "Standard-1X" })).await.1["size"], "small", "Heroku's names change nothing");
    let limit = json!({ "updates": [{ "type": "web", "size": "256M", "cpu_millis": 0, "cpu_shares": 1024 }] });
    assert_eq!(w.patch("/apps/demo/formation", limit).await[0]["cpu_millis"], Value::Null);
    // A lock keeps code out, and nothing else.
    w.ok(Method::PUT, "/apps/demo/lock", Some(json!({ "reason": "audit" }))).await;
    let (good, said) = w.push(app).await;
    assert!(!good && said.contains("locked by admin@example.com (audit)") && said.contains("flex apps:unlock"), "{said}");
    w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
    let (status, _) = w.send(Method::POST, "/apps/demo/releases", &w.admin, Some(json!({ "release": "v1" }))).await;
    assert_eq!(status.as_u16(), 403);
    w.ok(Method::DELETE, "/apps/demo/lock", None).await;
    assert!(w.push(app).await.0);
    // A check is a release, and a deploy keeps it.
    let check = json!({ "path": "/health", "start_seconds": 90, "failures": 2 });
    let set = w.ok(Method::PUT, "/apps/demo/checks/web", Some(check)).await;
    assert_eq!((&set["kind"], &set["path"], &set["source"]), (&json!("http"), &json!("/health"), &json!("set")));
    assert!(w.push(app).await.0);
    assert_eq!(w.get("/apps/demo/checks").await[0]["start_seconds"], 90);
    let bad = async |path: &str, body: Value| w.send(Method::PUT, path, &w.admin, Some(body)).await.0.as_u16();
    assert_eq!(bad("/apps/demo/checks/web", json!({ "path": "health" })).await, 422);
    assert_eq!(bad("/apps/demo/checks/web", json!({ "interval_seconds": 0 })).await, 422);
    assert_eq!(bad("/apps/demo/checks/nope", json!({})).await, 404);
    w.ok(Method::DELETE, "/apps/demo/checks/web", None).await;
    assert_eq!(w.get("/apps/demo/checks").await[0]["source"], "default");
    // Who gives an app away stays a collaborator.
    let (me, you) = (w.user("me@example.com").await, w.user("you@example.com").await);
    assert_eq!(w.send(Method::POST, "/apps", &me, Some(json!({ "name": "mine" }))).await.0.as_u16(), 201);
    let give = async |token: &str, to: &str| {
        w.send(Method::POST, "/apps/mine/transfer", token, Some(json!({ "recipient": to }))).await.0.as_u16()
    };
    assert_eq!(give(&you, "you@example.com").await, 404);
    assert_eq!(give(&me, "nobody@example.com").await, 422);
    assert_eq!(give(&me, "you@example.com").await, 200);
    assert_eq!(give(&me, "me@example.com").await, 403);
    assert_eq!(w.send(Method::GET, "/apps/mine", &me, None).await.1["owner"]["email"], "you@example.com");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_serves_beside_what_runs() {
    use crate::common::parts::{Outcome, product};
    let w = World::new().await;
    let app = w.create("demo").await;
    let refused = async |method: Method, path: &str, body: Value| w.send(method, path, &w.admin, Some(body)).await.0.as_u16();
    assert_eq!(refused(Method::GET, "/apps/demo/canary", json!({})).await, 404);
    // Nothing to stand beside.
    assert_eq!(refused(Method::PUT, "/apps/demo/canary", json!({ "weight": 10 })).await, 422);
    assert!(w.push(app).await.0);
    w.patch("/apps/demo/formation/web", json!({ "quantity": 4 })).await;
    w.until("four serve", async || w.routed(app).len() == 4).await;
    for bad in [json!({ "weight": 0 }), json!({ "weight": 100 }), json!({ "weight": 5, "release": "v1" })] {
        assert_eq!(refused(Method::PUT, "/apps/demo/canary", bad).await, 422);
    }
    assert_eq!(refused(Method::POST, "/apps/demo/canary/actions/promote", json!({})).await, 404);
    // The next push is one: half of four is two, and what runs goes on.
    let waiting = w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "weight": 50 }))).await;
    assert_eq!((&waiting["state"], &waiting["version"], &waiting["stable"]), (&json!("waiting"), &Value::Null, &json!(1)));
    let (good, said) = w.push(app).await;
    assert!(good, "{said}");
    let canary = async || w.get("/apps/demo/canary").await;
    w.until("both instances of it serve", async || canary().await["instances"] == 2).await;
    assert_eq!((&canary().await["state"], &canary().await["version"]), (&json!("serving"), &json!(2)));
    let table = || w.controller.routes().borrow().app(app).cloned().unwrap();
    assert_eq!((table().backends.len(), table().canary.map(|c| (c.version, c.weight))), (4, Some((2, 50))));
    let mut versions = w.versions_up("demo").await;
    versions.sort_unstable();
    assert_eq!(versions, [1, 1, 1, 1, 2, 2]);
    assert!(said.contains("Released v2 as a canary: 50 % of the requests"), "{said}");
    let rolled_out = async |version: u64| {
        let all_up = w.versions_up("demo").await.iter().filter(|v| **v == version).count() == 4;
        all_up && w.get(&format!("/apps/demo/releases/{version}")).await["status"] == "succeeded"
    };
    // A change of config and another share leave it where it is.
    w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
    w.until("what runs has the config", async || rolled_out(3).await).await;
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "release": "v2", "weight": 25 }))).await;
    w.until("one is enough", async || w.versions_up("demo").await.iter().filter(|v| **v == 2).count() == 1).await;
    let way = w.get("/routes/trace?host=demo.localhost").await;
    let shares: Vec<_> = way["targets"].as_array().unwrap().iter().map(|t| (t["release"].clone(), t["share"].clone())).collect();
    assert_eq!(shares, [(Value::Null, json!(0.75)), (json!(2), json!(0.25))]);
    // It has what was stopped as little as anything else has; nothing of it is left running.
    w.post("/apps/demo/actions/stop", json!({})).await;
    w.until("nothing runs", async || w.versions_up("demo").await.is_empty()).await;
    w.post("/apps/demo/actions/start", json!({})).await;
    w.until("all run", async || w.versions_up("demo").await.len() == 5).await;
    // A lock keeps its code from everyone, and lets it be ended only.
    w.ok(Method::PUT, "/apps/demo/lock", Some(json!({ "reason": "audit" }))).await;
    assert_eq!(refused(Method::POST, "/apps/demo/canary/actions/promote", json!({})).await, 403);
    assert_eq!(refused(Method::PUT, "/apps/demo/canary", json!({ "release": "v2", "weight": 99 })).await, 403);
    w.ok(Method::DELETE, "/apps/demo/lock", None).await;
    // Further code takes its place, at its share; what runs stays. What was never more than a canary is nothing to go back to.
    assert!(w.push(app).await.0);
    w.until("the next one serves", async || canary().await["state"] == "serving" && canary().await["version"] == 4).await;
    let second = w.get("/apps/demo/releases/2").await;
    assert_eq!((&second["status"], &second["eligible_for_rollback"]), (&json!("failed"), &json!(false)), "{second}");
    assert_eq!(w.get("/apps/demo/releases/3").await["current"], true);
    // Promoted, it is what runs: itself, since nothing came after it.
    let promoted = w.post("/apps/demo/canary/actions/promote", json!({})).await;
    assert_eq!((&promoted["version"], &promoted["current"]), (&json!(4), &json!(true)));
    w.until("it serves alone", async || w.versions_up("demo").await == [4, 4, 4, 4]).await;
    assert!(table().canary.is_none() && table().backends.len() == 4);
    // After a change of config it is promoted with the config of today.
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "weight": 25 }))).await;
    assert_eq!(refused(Method::POST, "/apps/demo/canary/actions/promote", json!({})).await, 409);
    assert!(w.push(app).await.0);
    w.patch("/apps/demo/config-vars", json!({ "A": "2" })).await;
    w.until("what runs has the config", async || rolled_out(6).await).await;
    let promoted = w.post("/apps/demo/canary/actions/promote", json!({})).await;
    assert_eq!((&promoted["version"], &promoted["description"]), (&json!(7), &json!("Promote canary v5")));
    assert_eq!(w.get("/apps/demo/releases/7/config-vars").await["A"], "2");
    w.until("it serves alone", async || w.versions_up("demo").await == [7, 7, 7, 7]).await;
    // Going back ends one that stands beside what runs.
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "weight": 25 }))).await;
    assert!(w.push(app).await.0);
    w.post("/apps/demo/releases", json!({ "release": "v4" })).await;
    assert_eq!(refused(Method::GET, "/apps/demo/canary", json!({})).await, 404);
    assert_eq!(w.get("/apps/demo/releases/8").await["status"], "failed");
    w.until("it serves alone", async || w.versions_up("demo").await == [9, 9, 9, 9]).await;
    // One that crashes is given up: the push says so, and nothing else changes.
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "weight": 10 }))).await;
    w.builders.then(Outcome::Good(product("crash-1", &[("web", "serve")])));
    assert!(!w.push(app).await.0);
    assert_eq!(refused(Method::GET, "/apps/demo/canary", json!({})).await, 404);
    w.until("it is gone", async || w.versions_up("demo").await == [9, 9, 9, 9]).await;
    // An earlier release can be one too, and be given up, and be gone back to.
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "release": "v1", "weight": 10 }))).await;
    w.until("it serves", async || canary().await["state"] == "serving").await;
    w.ok(Method::DELETE, "/apps/demo/canary", None).await;
    w.until("it is gone", async || w.versions_up("demo").await == [9, 9, 9, 9]).await;
    assert_eq!(w.get("/apps/demo/releases/1").await["eligible_for_rollback"], true);
    let events = w.get("/apps/demo/events").await.to_string();
    for kind in ["canary.update", "canary.promote", "canary.abort"] {
        assert!(events.contains(kind), "{kind}: {events}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cover_one_another_belong_to_people_who_work_together() {
    let w = World::new().await;
    let (ann, bob) = (w.user("ann@example.com").await, w.user("bob@example.com").await);
    for (app, owner) in [("annes", &ann), ("annes-two", &ann), ("bobs", &bob)] {
        assert_eq!(w.send(Method::POST, "/apps", owner, Some(json!({ "name": app }))).await.0.as_u16(), 201);
    }
    let add = async |who: &str, app: &str, name: &str| {
        let (status, answer) =
            w.send(Method::POST, &format!("/apps/{app}/domains"), who, Some(json!({ "hostname": name }))).await;
        (status.as_u16(), answer["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(add(&bob, "bobs", "www.shop.test").await.0, 201);
    // Bob's name, and anything below a top-level domain.
    for name in ["*.shop.test", "*.test", "*.localhost"] {
        let (status, why) = add(&ann, "annes", name).await;
        assert!(status == 422 && !why.is_empty(), "{name}: {status} {why}");
    }
    assert!(add(&ann, "annes", "*.shop.test").await.1.contains("*.shop.test covers www.shop.test"));
    assert!(add(&ann, "annes", "*.com").await.1.contains("too wide"));
    // The other way round: a name of somebody else's wildcard. One's own is.
    assert_eq!(add(&ann, "annes", "*.mine.test").await.0, 201);
    assert_eq!(add(&ann, "annes-two", "api.mine.test").await.0, 201);
    for name in ["login.mine.test", "*.deep.mine.test"] {
        assert_eq!(add(&bob, "bobs", name).await.0, 422, "{name}");
    }
    // Nor is TLS of it passed through to somebody else; of one's own wildcard it is.
    let sni = async |who: &str, app: &str, host: &str| {
        let body = json!({ "kind": "sni", "host": host });
        w.send(Method::POST, &format!("/apps/{app}/routes"), who, Some(body)).await.0.as_u16()
    };
    assert_eq!((sni(&bob, "bobs", "*.mine.test").await, sni(&bob, "bobs", "*.shop.test").await), (422, 422));
    assert_eq!(sni(&ann, "annes", "*.mine.test").await, 201);
    // Two at one time: one of them.
    for n in 0..10 {
        let (wide, narrow) = (format!("*.n{n}.test"), format!("www.n{n}.test"));
        let (one, two) = tokio::join!(add(&ann, "annes-two", &wide), add(&bob, "bobs", &narrow));
        assert_eq!([one.0, two.0].iter().filter(|s| **s == 201).count(), 1, "{one:?} {two:?}");
    }
    // Who works on both may have both.
    w.ok(Method::POST, "/apps/bobs/collaborators", Some(json!({ "user": "ann@example.com" }))).await;
    assert_eq!(add(&ann, "annes", "*.shop.test").await.0, 201);
}
