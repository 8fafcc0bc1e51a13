//! Living with an app: one-off commands and their limits, how things ended, and that no value is quoted.

use crate::common::World;
use crate::common::parts::{Outcome, product};
use flex_model::{Ended, ExitInfo, HostId, Report, Timestamp, Uuid};
use reqwest::Method;
use serde_json::{Value, json};

async fn deployed() -> (World, flex_model::AppId) {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    (w, app)
}

async fn log_of(w: &World, process: &str) -> String {
    let url = w.post("/apps/demo/log-sessions", json!({ "lines": 50, "dyno": process })).await["logplex_url"].clone();
    reqwest::get(url.as_str().unwrap()).await.unwrap().text().await.unwrap()
}

/// The newest event of a kind: its outcome and what it says.
async fn told(w: &World, kind: &str) -> (String, String) {
    let all = w.get("/apps/demo/events").await;
    let found = all.as_array().unwrap().iter().filter(|e| e["kind"] == kind).max_by_key(|e| e["at"].to_string());
    let found = found.unwrap_or_else(|| panic!("no {kind} in {all}"));
    (found["outcome"].as_str().unwrap().to_owned(), found["message"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_has_the_size_that_it_asks_for() {
    let (w, app) = deployed().await;
    w.builders.then(Outcome::Good(product("up-2", &[("web", "serve"), ("worker", "work")])));
    assert!(w.push(app).await.0);
    let scale = json!({ "updates": [{ "type": "worker", "quantity": 0, "size": "256M", "cpu_millis": 250, "cpu_shares": 99 }] });
    w.patch("/apps/demo/formation", scale).await;
    for (body, memory, shares, millis, shown) in [
        (json!({ "command": "ls" }), 512, 1024, None, "512M"),
        (json!({ "command": "ls", "size": "Small" }), 128, 256, Some(500), "small"),
        (json!({ "command": "ls", "size": "1G" }), 1024, 1024, None, "1G"),
        (json!({ "command": "ls", "size": "Standard-1X" }), 512, 1024, None, "512M"),
        (json!({ "type": "worker", "command": "" }), 256, 99, Some(250), "256M"),
        (json!({ "type": "worker", "command": "ls", "size": "64M" }), 64, 99, Some(250), "64M"),
    ] {
        let run = w.post("/apps/demo/dynos", body.clone()).await;
        assert_eq!(run["size"], shown, "{body}");
        let jobs = w.runs.jobs.lock().unwrap();
        let spec = &jobs.last().unwrap().spec;
        assert_eq!((spec.memory.mib(), spec.cpu_shares, spec.cpu_millis), (memory, shares, millis), "{body}");
    }
    let (status, answer) =
        w.send(Method::POST, "/apps/demo/dynos", &w.admin, Some(json!({ "command": "ls", "size": "huge" }))).await;
    assert!(status == 422 && answer["message"].as_str().unwrap().contains("There are: small"), "{answer}");
    let sizes: Vec<Value> = w.get("/apps/demo/runs").await.as_array().unwrap().iter().map(|r| r["size"].clone()).collect();
    assert!(sizes.contains(&json!("small")) && sizes.contains(&json!("64M")), "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_limited_in_number_and_in_time() {
    let (w, _) = deployed().await;
    let (day, hour) = (24 * 3600, 3600);
    // What is attached waits for its client, so that it is there to be counted.
    let held = |more: Value| {
        let mut body = json!({ "command": "cat", "attach": true });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (more, life) in [(json!({}), day), (json!({ "time_to_live": 3600 }), hour), (json!({ "time_to_live": 10 * day }), day)] {
        let run = w.post("/apps/demo/dynos", held(more)).await;
        let id = run["id"].as_str().unwrap();
        let (records, _) = w.store.list("runs/").await.unwrap();
        let mut records = records.iter().map(|e| serde_json::from_slice::<Value>(&e.value).unwrap());
        let record = records.find(|r| r["id"] == id).unwrap();
        let at = |field: &str| serde_json::from_value::<Timestamp>(record[field].clone()).unwrap();
        assert_eq!(at("deadline").since(at("started_at")).as_secs(), life, "{record}");
    }
    for _ in 3..50 {
        w.post("/apps/demo/dynos", held(json!({}))).await;
    }
    for attach in [true, false] {
        let body = json!({ "command": "ls", "attach": attach });
        let (status, answer) = w.send(Method::POST, "/apps/demo/dynos", &w.admin, Some(body)).await;
        let said = answer["message"].as_str().unwrap();
        assert!(status == 422 && said.contains("50 one-off commands of demo run already, which is the limit"), "{answer}");
    }
    // Of one app alone.
    let other = w.create("other").await;
    assert!(w.push(other).await.0);
    w.post("/apps/other/dynos", json!({ "command": "ls", "attach": true })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_needs_more_memory_says_so() {
    let (w, _) = deployed().await;
    let run = w.post("/apps/demo/dynos", json!({ "command": "greedy", "size": "small" })).await;
    let name = run["name"].as_str().unwrap().to_owned();
    let r15 = "Error R15 (Memory quota vastly exceeded): the process was killed at its memory limit of 128M. More: flex run --size 256M";
    w.until("its end is in the log", async || log_of(&w, &name).await.contains("State changed from up to crashed")).await;
    let log = log_of(&w, &name).await;
    assert!(log.contains(r15) && log.contains("Process exited with status 137"), "{log}");
    let past = w.get("/apps/demo/runs").await[0].clone();
    assert_eq!((&past["status"], &past["oom"]), (&json!(137), &json!(true)), "{past}");
    let (outcome, message) = told(&w, "run.end").await;
    assert_eq!(outcome, "failed");
    assert!(message.contains("exited with status 137 at its memory limit of 128M after"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_what_failed() {
    let (w, app) = deployed().await;
    w.builders.then(Outcome::Fail("failed to compile Python app."));
    assert!(!w.push(app).await.0);
    let failed = |message: &str| ("failed".to_owned(), message.to_owned());
    let done = |message: &str| ("done".to_owned(), message.to_owned());
    assert_eq!(told(&w, "build.failed").await, failed("Build failed: failed to compile Python app."));
    assert_eq!(told(&w, "build.create").await.0, "done");
    w.builders.then(Outcome::Good(product("crash-2", &[("web", "serve")])));
    assert!(!w.push(app).await.0);
    assert_eq!(told(&w, "release.failed").await.0, "failed");
    // That a release failed is no second failure of its build.
    let builds = w.get("/apps/demo/events").await.to_string().matches("build.failed").count();
    assert_eq!(builds, 1);
    let exec = |argv: &str| (Method::POST, "/apps/demo/dynos/web.1/exec", json!({ "argv": [argv] }));
    let (method, path, body) = exec("ls");
    w.ok(method, path, Some(body)).await;
    assert_eq!(told(&w, "instance.exec").await, done("Ran `ls` in web.1"));
    let (method, path, body) = exec("nowhere");
    assert_eq!(w.send(method, path, &w.admin, Some(body)).await.0, 422);
    assert_eq!(told(&w, "instance.exec").await, failed("Could not run `nowhere` in web.1: no such file"));
    let run = async |command: &str| {
        let name = w.post("/apps/demo/dynos", json!({ "command": command })).await["name"].as_str().unwrap().to_owned();
        let ended = async || w.get("/apps/demo/runs").await.as_array().unwrap().iter().all(|r| !r["ended_at"].is_null());
        w.until("it has ended", ended).await;
        w.until("its end is told", async || told(&w, "run.end").await.1.starts_with(&name)).await;
        told(&w, "run.end").await.0
    };
    assert_eq!(run("ls").await, "failed", "it exits with status 3");
    assert_eq!(run("good").await, "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_phase_is_tried_again() {
    let (w, app) = deployed().await;
    w.patch("/apps/demo/config-vars", json!({ "PHASE_EXIT": "4" })).await;
    w.until("v2 made it", async || w.get("/apps/demo/releases/2").await["status"] == "succeeded").await;
    w.builders.then(Outcome::Good(product("up-3", &[("web", "serve"), ("release", "migrate")])));
    assert!(!w.push(app).await.0);
    assert_eq!(w.get("/apps/demo/releases/3").await["status"], "failed");
    let retry = async |v: u64| w.send(Method::POST, &format!("/apps/demo/releases/{v}/actions/retry"), &w.admin, None).await;
    let (status, answer) = retry(2).await;
    assert!(status == 422 && answer["message"].as_str().unwrap().contains("v2 did not fail"), "{answer}");
    // With what is wrong still wrong, and then mended.
    assert_eq!(retry(3).await.1["version"], 4);
    w.until("it failed again", async || w.get("/apps/demo/releases/4").await["status"] == "failed").await;
    w.patch("/apps/demo/config-vars", json!({ "PHASE_EXIT": "0" })).await;
    let (_, made) = retry(4).await;
    assert_eq!((&made["version"], &made["description"]), (&json!(6), &json!("Retry of v4: Retry of v3: Deploy 01234567")));
    w.until("it serves", async || w.versions_up("demo").await == [6]).await;
    let phases = w.runs.jobs.lock().unwrap().iter().filter(|j| j.name.starts_with("release.")).count();
    assert_eq!(phases, 3, "once for each try");
    assert_eq!(told(&w, "release.retry").await.0, "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_instances_ended_is_kept() {
    let (w, app) = deployed().await;
    let at = w.controller.now();
    let id = |d: &Value| d["id"].as_str().unwrap().parse().unwrap();
    let first = w.get("/apps/demo/dynos").await[0].clone();
    let end = |instance, attempt, status, oom, stopped, message: Option<&str>| Ended {
        instance,
        app,
        name: "web.1".into(),
        attempt,
        started_at: at,
        at: at.plus(std::time::Duration::from_secs(attempt.into())),
        exit: Some(ExitInfo { status, oom, at }),
        stopped,
        message: message.map(str::to_owned),
    };
    // A host that has no assignment: what it tells of ends counts, and nothing else of it does.
    let report = |ended: Vec<Ended>| Report {
        host: HostId(Uuid::from_u128(77)),
        epoch: w.controller.epoch,
        revision: 0,
        at,
        instances: Vec::new(),
        ended,
    };
    let limit = "killed at its memory limit of 512M";
    let killed = end(id(&first), 1, 137, true, false, Some(limit));
    let crashed = end(id(&first), 2, 3, false, false, None);
    w.controller.take_report(report(vec![killed.clone(), crashed]));
    // Told again, as hosts do until they know that it was heard.
    w.controller.take_report(report(vec![killed]));
    w.patch("/apps/demo/formation", json!({ "updates": [{ "type": "web", "quantity": 0 }] })).await;
    w.until("it is let go of", async || w.get("/apps/demo/dynos").await == json!([])).await;
    w.controller.take_report(report(vec![end(id(&first), 3, 143, false, true, None)]));
    w.until("all of it is kept", async || w.get("/apps/demo/history").await.as_array().unwrap().len() >= 3).await;
    let past = w.get("/apps/demo/history").await;
    let past = past.as_array().unwrap();
    assert_eq!(past.len(), 3, "{past:?}");
    for (n, (exit, oom, stopped, reason)) in
        [(137, true, false, limit), (3, false, false, "exited with status 3"), (143, false, true, "not wanted any more")]
            .into_iter()
            .enumerate()
    {
        let p = &past[n];
        assert_eq!((&p["exit_status"], &p["oom"], &p["stopped"]), (&json!(exit), &json!(oom), &json!(stopped)), "{p}");
        assert!(p["reason"].as_str().unwrap().starts_with(reason), "{p}");
        assert_eq!((&p["name"], &p["version"], &p["lines"][0]), (&json!("web.1"), &json!(1), &json!("up-1 says hello")), "{p}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_is_quoted() {
    let (w, _) = deployed().await;
    let secret = 4_711_081_547_u64;
    for (method, path, body) in [
        (Method::PATCH, "/apps/demo/config-vars", json!({ "PIN": secret })),
        (Method::PATCH, "/apps/demo/config-vars", json!({ "PIN": { "x": secret } })),
        (Method::PATCH, "/apps/demo/config-vars", json!({ format!("{secret}"): "x" })),
        (Method::PATCH, "/apps/demo/config-vars", json!(secret)),
        (Method::POST, "/apps/demo/dynos", json!({ "command": "ls", "env": { "PIN": secret } })),
        (Method::POST, "/apps/demo/dynos", json!({ "command": "ls", "env": { format!("{secret}"): "x" } })),
        (Method::POST, "/apps/demo/dynos/web.1/exec", json!({ "argv": ["ls"], "env": secret })),
        (Method::POST, "/apps/demo/log-drains", json!({ "url": secret })),
        (Method::POST, "/apps/demo/sni-endpoints", json!({ "certificate_chain": "x", "private_key": secret })),
    ] {
        let (status, answer) = w.send(method.clone(), path, &w.admin, Some(body.clone())).await;
        assert!(status.is_client_error() && !answer.to_string().contains("4711081547"), "{body}: {answer}");
    }
    let (_, answer) = w.send(Method::PATCH, "/apps/demo/config-vars", &w.admin, Some(json!({ "PIN": secret }))).await;
    assert!(answer["message"].as_str().unwrap().contains("config var PIN: expected a text in quotes"), "{answer}");
    let events = w.get("/apps/demo/events").await.to_string();
    assert!(!events.contains("4711081547"), "{events}");
}
