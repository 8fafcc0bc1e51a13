//! The server dies after each commit of a deploy in turn; a new one on the same store must set everything right.

mod common;

use common::parts::{Outcome, product};
use common::{COMMIT, Cut, World, finish, update};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

async fn settled(w: &World, what: &str) {
    w.until(what, async || {
        let releases = w.get("/apps/demo/releases").await;
        let builds = w.get("/apps/demo/builds").await;
        let open = |list: &Value| list.as_array().unwrap().iter().any(|v| v["status"] == "pending");
        let dynos = w.get("/apps/demo/dynos").await;
        let moving = dynos.as_array().unwrap().iter().any(|d| d["state"] != "up");
        !open(&releases) && !open(&builds) && !moving
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_dies_at_any_commit() {
    let mut finished = false;
    for commits in 0..40 {
        let inner: Arc<dyn flex_store::StateStore> = Arc::new(flex_store::memory().unwrap());
        let cut = Arc::new(Cut { inner: inner.clone(), left: AtomicU64::new(u64::MAX) });
        let w = World::on(cut.clone()).await;
        let app = w.create("demo").await;
        w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
        assert!(w.push(app).await.0);
        let served = w.versions_up("demo").await;
        assert_eq!(served, [2]);
        cut.left.store(commits, Ordering::SeqCst);
        let events = w.start_push(app, vec![update("refs/heads/main", COMMIT)]).await;
        let good = if commits < 3 {
            let (good, _) = finish(events).await;
            good
        } else {
            // It may wait for what can no longer be stored: as long as there are commits left, it gets on.
            w.until("all commits are used, or it is over", async || {
                cut.left.load(Ordering::SeqCst) == 0 || settled_now(&w).await
            })
            .await;
            settled_now(&w).await
        };
        // What was served before is still served, whatever happens.
        assert_eq!(w.routed(app).len(), 1, "after {commits} commits");
        let w = w.again(inner.clone()).await;
        settled(&w, &format!("all is settled after {commits} commits")).await;
        w.until("one instance is routed", async || w.routed(app) == ["web.1"]).await;
        let releases = w.get("/apps/demo/releases").await;
        let current: Vec<&Value> = releases.as_array().unwrap().iter().filter(|r| r["current"] == true).collect();
        assert_eq!(current.len(), 1, "after {commits} commits: {releases}");
        assert_eq!(current[0]["status"], "succeeded", "after {commits} commits: {releases}");
        let versions: Vec<u64> = releases.as_array().unwrap().iter().map(|r| r["version"].as_u64().unwrap()).collect();
        assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<_>>(), "after {commits} commits");
        assert_eq!(w.versions_up("demo").await, [current[0]["version"].as_u64().unwrap()]);
        // And it takes the next push.
        let (pushed, text) = w.push(app).await;
        assert!(pushed, "after {commits} commits: {text}");
        if good {
            finished = true;
            break;
        }
    }
    assert!(finished, "a deploy needs more commits than were tried");
}

/// Whatever the commit after which the server dies, what the first deploy owes is run, and run once.
#[tokio::test(flavor = "multi_thread")]
async fn postdeploy_is_run_once_though_the_server_dies_at_any_commit() {
    let mut finished = false;
    for commits in 0..40 {
        let inner: Arc<dyn flex_store::StateStore> = Arc::new(flex_store::memory().unwrap());
        let cut = Arc::new(Cut { inner: inner.clone(), left: AtomicU64::new(u64::MAX) });
        let w = World::on(cut.clone()).await;
        let app = w.create("demo").await;
        let made = || {
            let mut p = product("up-1", &[("web", "serve")]);
            p.app_json = flex_model::app_json::parse(r#"{"scripts": {"postdeploy": "seed"}}"#).unwrap();
            Outcome::Good(p)
        };
        w.builders.then(made());
        cut.left.store(commits, Ordering::SeqCst);
        let events = w.start_push(app, vec![update("refs/heads/main", COMMIT)]).await;
        let left = async || inner.list("postdeploys/").await.unwrap().0.len();
        w.until("all commits are used, or it is over", async || {
            let used = cut.left.load(Ordering::SeqCst) == 0;
            used || (!w.runs.ended.lock().unwrap().is_empty() && left().await == 0)
        })
        .await;
        finished = cut.left.load(Ordering::SeqCst) > 0;
        drop(events);
        let before = w.runs.clone();
        let w = w.again(inner.clone()).await;
        settled(&w, &format!("all is settled after {commits} commits")).await;
        if w.get("/apps/demo/releases").await.as_array().unwrap().is_empty() {
            w.builders.then(made());
            assert!(w.push(app).await.0, "after {commits} commits");
        }
        w.until("nothing is owed any more", async || left().await == 0).await;
        w.builders.then(made());
        assert!(w.push(app).await.0, "after {commits} commits");
        let runs = before.jobs.lock().unwrap().len() + w.runs.jobs.lock().unwrap().len();
        assert_eq!((runs, left().await), (1, 0), "after {commits} commits");
        if finished {
            break;
        }
    }
    assert!(finished, "a first deploy needs more commits than were tried");
}

async fn settled_now(w: &World) -> bool {
    let releases = w.get("/apps/demo/releases").await;
    releases.as_array().unwrap().len() == 3
        && releases[2]["status"] == "succeeded"
        && w.get("/apps/demo/dynos").await.as_array().unwrap().len() == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_adopted_by_the_next_controller() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    let before = w.get("/apps/demo/dynos").await[0]["id"].clone();
    let store = w.store.clone();
    let w = w.again(store).await;
    w.until("it is routed again", async || w.routed(app) == ["web.1"]).await;
    assert_eq!(w.get("/apps/demo/dynos").await[0]["id"], before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_master_key_is_noticed_at_the_start() {
    let w = World::new().await;
    w.create("demo").await;
    w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
    std::fs::remove_file(w.dir.path().join("master.key")).unwrap();
    let deps = flex_controller::Deps {
        store: w.store.clone(),
        data_dir: w.dir.path().to_owned(),
        clock: Arc::new(flex_controller::ports::SystemClock),
        builders: w.builders.clone(),
        runs: w.runs.clone(),
        machine: Arc::new(common::parts::Checks),
        logs: w.logs.clone(),
        drains: w.controller.deps.drains.clone(),
        settings: w.controller.deps.settings.clone(),
    };
    let error = flex_controller::Controller::open(deps).await.err().unwrap();
    assert!(error.contains("master.key"), "{error}");
    assert!(!w.dir.path().join("master.key").exists(), "a key that fits nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_at_once_are_all_kept() {
    let w = World::new().await;
    w.create("demo").await;
    let set = (0..20).map(|i| w.patch("/apps/demo/config-vars", json!({ format!("K{i}"): "v" })));
    let all = futures_util::future::join_all(set);
    all.await;
    assert_eq!(w.get("/apps/demo/config-vars").await.as_object().unwrap().len(), 20);
    let releases = w.get("/apps/demo/releases").await;
    let versions: Vec<u64> = releases.as_array().unwrap().iter().map(|r| r["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, (1..=20).collect::<Vec<_>>());
    w.until("the newest counts and the others are over", async || {
        let releases = w.get("/apps/demo/releases").await;
        releases[19]["status"] == "succeeded" && releases.as_array().unwrap().iter().all(|r| r["status"] != "pending")
    })
    .await;
}
