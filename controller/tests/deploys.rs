//! From a push to a served release, and back when it fails.

mod common;

use common::parts::{Outcome, Pushed, product};
use common::{COMMIT, OTHER, World, finish, update};
use flex_controller::DeployEvent;
use reqwest::Method;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::Semaphore;

#[tokio::test(flavor = "multi_thread")]
async fn a_push_becomes_a_served_release() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let (good, text) = w.push(app).await;
    assert!(good, "{text}");
    for part in [
        "Building source:",
        "-----> Building",
        "       Last line",
        "-----> Launching...",
        "       Released v1",
        "http://demo.localhost:8080/ deployed",
        "receive",
        "compile",
        "routed",
        "Verifying deploy... done.",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert_eq!(w.routed(app), ["web.1"]);
    let build = &w.get("/apps/demo/builds").await[0];
    assert_eq!((build["status"].as_str(), build["release"]["version"].as_u64()), (Some("succeeded"), Some(1)));
    let url = build["output_stream_url"].as_str().unwrap();
    let output = w.get(url).await;
    assert!(output.as_str().unwrap().contains("Verifying deploy... done."), "{output}");
    let release = &w.get("/apps/demo/releases").await[0];
    assert_eq!(release["status"], "succeeded");
    assert_eq!(release["current"], true);
    assert_eq!(release["description"], "Deploy 01234567");
    // The same commit again is a deploy again.
    let (good, text) = w.push(app).await;
    assert!(good && text.contains("Released v2"), "{text}");
    assert_eq!(w.versions_up("demo").await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fails_changes_nothing() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    w.builders.then(Outcome::Fail("failed to compile Python app."));
    let (good, text) = w.push(app).await;
    assert!(!good);
    assert!(text.contains(" !     Push rejected, failed to compile Python app."), "{text}");
    assert_eq!(w.get("/apps/demo/releases").await.as_array().unwrap().len(), 1);
    assert_eq!(w.routed(app), ["web.1"]);
    assert_eq!(w.get("/apps/demo/builds").await[1]["status"], "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_crashes_leaves_the_old_one_and_shows_its_lines() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    w.builders.then(Outcome::Good(product("crash-2", &[("web", "serve")])));
    let (good, text) = w.push(app).await;
    assert!(!good);
    assert!(text.contains("Release v2 failed"), "{text}");
    assert!(text.contains("crash-2 says hello"), "{text}");
    assert!(text.contains("v1 keeps serving"), "{text}");
    let releases = w.get("/apps/demo/releases").await;
    assert_eq!((&releases[1]["status"], &releases[0]["current"]), (&json!("failed"), &json!(true)));
    w.until("only v1 is left", async || w.versions_up("demo").await == [1]).await;
    assert_eq!(w.routed(app), ["web.1"]);
    // Numbers leave no gaps and are not used twice.
    let (good, text) = w.push(app).await;
    assert!(good && text.contains("Released v3"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_push_waits_for_the_build_and_says_so() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let gate = Arc::new(Semaphore::new(0));
    w.builders.then(Outcome::Held(gate.clone(), product("up-a", &[("web", "serve")])));
    let first = w.start_push(app, vec![update("refs/heads/main", COMMIT)]).await;
    w.until("the first builds", async || w.builders.jobs.lock().unwrap().len() == 1).await;
    let mut second = w.start_push(app, vec![update("refs/heads/master", COMMIT)]).await;
    loop {
        let event = tokio::time::timeout(common::PATIENCE, second.recv()).await.unwrap().unwrap();
        assert!(!matches!(event, DeployEvent::Verdict(_)));
        if matches!(event, DeployEvent::Line(l) if l.contains("waits")) {
            break;
        }
    }
    gate.add_permits(1);
    let (good, text) = finish(first).await;
    assert!(good, "{text}");
    let (good, text) = finish(second).await;
    assert!(good && text.contains("Released v2"), "{text}");
}

/// Where `main` is.
fn main_at(w: &World, app: flex_model::AppId) -> String {
    Pushed::new(w.heads.clone(), app).at("refs/heads/main")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_push_of_a_branch_that_moved_is_refused_before_it_is_built() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let gate = Arc::new(Semaphore::new(0));
    w.builders.then(Outcome::Held(gate.clone(), product("up-a", &[("web", "serve")])));
    let first = w.start_push(app, vec![update("refs/heads/main", COMMIT)]).await;
    w.until("the first builds", async || w.builders.jobs.lock().unwrap().len() == 1).await;
    let second = w.start_push(app, vec![update("refs/heads/main", OTHER)]).await;
    let same = w.start_push(app, vec![update("refs/heads/main", COMMIT)]).await;
    w.until("all are there", async || w.get("/apps/demo/builds").await.as_array().unwrap().len() == 3).await;
    gate.add_permits(1);
    let (good, text) = finish(first).await;
    assert!(good, "{text}");
    let (good, text) = finish(second).await;
    assert!(!good && text.contains(" !     Push rejected, main has moved since this push began"), "{text}");
    assert!(text.contains("it is at 01234567 now") && text.contains("git pull --rebase flex main"), "{text}");
    let (good, text) = finish(same).await;
    assert!(!good && text.contains("another push has deployed this very commit to main"), "{text}");
    assert_eq!(w.builders.jobs.lock().unwrap().len(), 1, "nothing was built for them");
    assert_eq!(w.get("/apps/demo/releases").await.as_array().unwrap().len(), 1);
    assert_eq!(w.get("/apps/demo/builds").await[1]["status"], "failed");
    assert_eq!(main_at(&w, app), COMMIT);
    // Once more, from where the branch is.
    let (good, text) = finish(w.start_push(app, vec![update("refs/heads/main", OTHER)]).await).await;
    assert!(good && text.contains("Released v2") && !text.contains("waits"), "{text}");
    assert_eq!(main_at(&w, app), OTHER);
}

/// The first is up while the second builds, because nobody seemed to wait for it, and its git takes its time.
#[tokio::test(flavor = "multi_thread")]
async fn no_release_is_made_over_one_that_is_up_and_has_not_moved_its_branch() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let mut refs = Pushed::new(w.heads.clone(), app);
    refs.git = Arc::new(Semaphore::new(0));
    refs.left.cancel();
    let git = refs.git.clone();
    let first = w.start_push_with(vec![update("refs/heads/main", COMMIT)], refs).await;
    w.until("v1 is up", async || {
        w.get("/apps/demo/releases").await.as_array().unwrap().iter().any(|r| r["status"] == "succeeded")
    })
    .await;
    let mut second = w.start_push(app, vec![update("refs/heads/main", OTHER)]).await;
    loop {
        let event = tokio::time::timeout(common::PATIENCE, second.recv()).await.unwrap().unwrap();
        assert!(!matches!(event, DeployEvent::Verdict(_)), "{event:?}");
        if matches!(event, DeployEvent::Line(l) if l.contains("is up after all")) {
            break;
        }
    }
    git.add_permits(1);
    assert!(finish(first).await.0);
    let (good, text) = finish(second).await;
    assert!(!good && text.contains("main has moved"), "{text}");
    assert_eq!(w.get("/apps/demo/releases").await.as_array().unwrap().len(), 1);
    assert_eq!((main_at(&w, app).as_str(), w.versions_up("demo").await), (COMMIT, vec![1]));
}

/// A change of config vars is not another push: what serves is the pushed commit, and the push says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_code_goes_on_under_another_release_succeeds() {
    let w = World::new().await;
    let app = w.create("demo").await;
    w.builders.then(Outcome::Good(product("up-1", &[("web", "serve"), ("release", "cat")])));
    let push = w.start_push(app, vec![update("refs/heads/main", COMMIT)]).await;
    w.until("the release phase runs", async || w.runs.jobs.lock().unwrap().len() == 1).await;
    w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
    let (good, text) = finish(push).await;
    assert!(good && text.contains("v2 takes its place, with the same code"), "{text}");
    assert_eq!((main_at(&w, app).as_str(), w.versions_up("demo").await), (COMMIT, vec![2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_push_overtakes_a_release_that_hangs() {
    let w = World::with(|s| s.overtake_after = std::time::Duration::from_millis(50)).await;
    let app = w.create("demo").await;
    w.builders.then(Outcome::Good(product("hang-1", &[("web", "serve")])));
    let first = w.start_push(app, vec![update("refs/heads/main", COMMIT)]).await;
    w.until("v1 is launched", async || w.get("/apps/demo/releases").await.as_array().unwrap().len() == 1).await;
    let (good, text) = finish(w.start_push(app, vec![update("refs/heads/main", OTHER)]).await).await;
    assert!(good && text.contains("takes its place when it is built"), "{text}");
    let (good, text) = finish(first).await;
    assert!(!good && text.contains("newer release, v2, took over before"), "{text}");
    assert_eq!(main_at(&w, app), OTHER, "the branch is where what serves came from");
    let releases = w.get("/apps/demo/releases").await;
    assert_eq!(releases[0]["status"], "failed");
    assert!(releases[0]["failure"].as_str().unwrap().contains("v2"), "{releases}");
    assert_eq!(releases[0]["superseded_by"], 2);
    assert_eq!((&releases[1]["status"], &releases[1]["superseded_by"]), (&json!("succeeded"), &json!(null)));
    let (status, refused) = w.send(Method::POST, "/apps/demo/releases", &w.admin, Some(json!({ "release": "v1" }))).await;
    assert!(status == 422 && refused["message"].as_str().unwrap().contains("v2 took its place"), "{refused}");
    w.until("only v2 is left", async || w.versions_up("demo").await == [2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_nobody_waits_for_is_overtaken_at_once() {
    let w = World::new().await;
    let app = w.create("demo").await;
    w.builders.then(Outcome::Good(product("hang-1", &[("web", "serve")])));
    let refs = Pushed::new(w.heads.clone(), app);
    refs.left.cancel();
    let first = w.start_push_with(vec![update("refs/heads/main", COMMIT)], refs).await;
    w.until("v1 is launched", async || w.get("/apps/demo/releases").await.as_array().unwrap().len() == 1).await;
    let (good, text) = finish(w.start_push(app, vec![update("refs/heads/main", OTHER)]).await).await;
    assert!(good, "{text}");
    assert!(!finish(first).await.0);
    assert_eq!(main_at(&w, app), OTHER);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_can_be_cancelled_in_its_phase_and_while_it_comes_up() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    for (n, hangs) in [(2, product("up-2", &[("web", "serve"), ("release", "cat")])), (3, product("hang-3", &[("web", "serve")]))]
    {
        w.builders.then(Outcome::Good(hangs));
        let push = w.start_push(app, vec![update("refs/heads/main", OTHER)]).await;
        w.until("it is released", async || w.get("/apps/demo/releases").await.as_array().unwrap().len() == n).await;
        if n == 2 {
            w.until("its phase runs", async || w.runs.jobs.lock().unwrap().len() == 1).await;
        }
        let build = w.get("/apps/demo/builds").await[n - 1]["id"].as_str().unwrap().to_owned();
        w.ok(Method::DELETE, &format!("/apps/demo/builds/{build}"), None).await;
        let (good, text) = finish(push).await;
        assert!(!good && text.contains("it was cancelled"), "{text}");
        assert_eq!(w.get("/apps/demo/releases").await[n - 1]["status"], "failed");
        assert_eq!(w.versions_up("demo").await, [1]);
        let (status, said) = w.send(Method::DELETE, &format!("/apps/demo/builds/{build}"), &w.admin, None).await;
        assert!(status == 422 && said["message"].as_str().unwrap().contains("over already"), "{said}");
    }
    w.until("the phase's process was ended", async || *w.runs.ended.lock().unwrap() == [129]).await;
    assert_eq!(main_at(&w, app), COMMIT);
    assert!(w.push(app).await.0, "nothing stands in the way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_phase_has_a_limit() {
    let w = World::with(|s| s.runs.release_phase = std::time::Duration::from_secs(1)).await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    w.builders.then(Outcome::Good(product("up-2", &[("web", "serve"), ("release", "cat")])));
    let (good, text) = w.push(app).await;
    assert!(!good && text.contains("its release phase took longer than 1 second and was stopped"), "{text}");
    w.until("its process was ended", async || *w.runs.ended.lock().unwrap() == [129]).await;
    assert_eq!(w.versions_up("demo").await, [1]);
    assert!(w.push(app).await.0, "nothing stands in the way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_can_be_cancelled_while_it_runs_and_while_it_waits() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let gate = Arc::new(Semaphore::new(0));
    w.builders.then(Outcome::Held(gate.clone(), product("up-a", &[("web", "serve")])));
    let first = w.start_push(app, vec![update("refs/heads/main", COMMIT)]).await;
    w.until("the first builds", async || w.builders.jobs.lock().unwrap().len() == 1).await;
    let second = w.start_push(app, vec![update("refs/heads/main", COMMIT)]).await;
    w.until("both are there", async || w.get("/apps/demo/builds").await.as_array().unwrap().len() == 2).await;
    let builds = w.get("/apps/demo/builds").await;
    for i in [1, 0] {
        let path = format!("/apps/demo/builds/{}", builds[i]["id"].as_str().unwrap());
        w.ok(Method::DELETE, &path, None).await;
    }
    for events in [second, first] {
        let (good, text) = finish(events).await;
        assert!(!good && text.contains("cancelled"), "{text}");
    }
    assert_eq!(w.get("/apps/demo/releases").await, json!([]));
    assert!(w.push(app).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_release_phase_runs_first_and_its_failure_leaves_the_old_release() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    w.builders.then(Outcome::Good(product("up-2", &[("web", "serve"), ("release", "migrate; exit 3")])));
    let (good, text) = w.push(app).await;
    assert!(!good);
    assert!(text.contains("ran migrate") && text.contains("status 3"), "{text}");
    // What was under way by then is told as well, and kept.
    assert!(text.contains("       release ") && text.contains("       in all "), "{text}");
    assert_eq!(w.versions_up("demo").await, [1]);
    w.builders.then(Outcome::Good(product("up-3", &[("web", "serve"), ("release", "migrate")])));
    let (good, text) = w.push(app).await;
    assert!(good && text.contains("Released v3"), "{text}");
    let dynos = w.get("/apps/demo/dynos").await;
    assert!(dynos.as_array().unwrap().iter().all(|d| d["type"] == "web"), "{dynos}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refs_that_do_not_deploy_are_told_so() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let push = async |refs: Vec<flex_controller::GitUpdate>| finish(w.start_push(app, refs).await).await;
    let zeros = "0".repeat(40);
    let (good, text) = push(vec![update("refs/heads/topic", COMMIT), update("refs/tags/v1", COMMIT)]).await;
    assert!(good && text.contains("topic: stored, not deployed") && text.contains("v1: stored"), "{text}");
    assert!(text.contains("git push flex topic:main") && text.contains("git push flex 'v1^{}:refs/heads/main'"), "{text}");
    let (good, text) = push(vec![update("refs/heads/topic", &zeros)]).await;
    assert!(good && text.contains("deleted"), "{text}");
    let (good, text) = push(vec![update("refs/heads/main", &zeros)]).await;
    assert!(!good && text.contains("cannot be deleted"), "{text}");
    let (good, text) = push(vec![update("refs/heads/main", COMMIT), update("refs/heads/master", COMMIT)]).await;
    assert!(!good && text.contains("one of them"), "{text}");
    assert!(w.builders.jobs.lock().unwrap().is_empty());
    w.patch("/apps/demo", json!({ "deploy_branches": ["topic"] })).await;
    let (good, text) = push(vec![update("refs/heads/topic", COMMIT)]).await;
    assert!(good && text.contains("Released v1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn app_json_applies_at_the_first_deploy() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let text = r#"{"env": {"NEEDED": {"description": "x"}, "SET": "1", "MADE": {"generator": "secret"}, "MINE": "theirs"},
        "formation": {"worker": {"quantity": 2}, "web": {"quantity": 1}}, "scripts": {"postdeploy": "seed"}}"#;
    let made = || {
        let mut p = product("up-1", &[("web", "serve"), ("worker", "work")]);
        p.app_json = flex_model::app_json::parse(text).unwrap();
        Outcome::Good(p)
    };
    w.builders.then(made());
    let (good, text) = w.push(app).await;
    assert!(!good && text.contains("NEEDED"), "{text}");
    w.patch("/apps/demo/config-vars", json!({ "NEEDED": "x", "MINE": "mine" })).await;
    w.builders.then(made());
    let (good, text) = w.push(app).await;
    assert!(good, "{text}");
    let vars = w.get("/apps/demo/config-vars").await;
    assert_eq!((&vars["SET"], &vars["MINE"], &vars["NEEDED"]), (&json!("1"), &json!("mine"), &json!("x")));
    assert_eq!(vars["MADE"].as_str().unwrap().len(), 64);
    assert_eq!(w.get("/apps/demo/dynos").await.as_array().unwrap().len(), 3);
    w.until("postdeploy ran", async || w.runs.jobs.lock().unwrap().len() == 1).await;
    // What was scaled ahead of the first deploy wins over the file, and only then is it taken.
    let other = w.create("other").await;
    let ahead = json!({ "updates": [{ "type": "worker", "quantity": 1, "size": "256M" }], "ahead": true });
    let kept = w.patch("/apps/other/formation", ahead.clone()).await;
    assert_eq!((&kept[0]["type"], &kept[0]["quantity"]), (&json!("worker"), &json!(1)));
    w.patch("/apps/other/config-vars", json!({ "NEEDED": "x" })).await;
    assert_eq!(w.get("/apps/other/formation").await[0]["size"], "256M");
    w.builders.then(made());
    assert!(w.push(other).await.0);
    assert_eq!(w.get("/apps/other/dynos").await.as_array().unwrap().len(), 2);
    let mut unknown = ahead;
    unknown["updates"][0]["type"] = json!("nope");
    assert_eq!(w.send(Method::PATCH, "/apps/other/formation", &w.admin, Some(unknown)).await.0, 404);
    w.until("its postdeploy ran", async || w.runs.jobs.lock().unwrap().len() == 2).await;
    w.runs.jobs.lock().unwrap().pop();
    // Later deploys leave what people changed since.
    w.patch("/apps/demo/formation", json!({ "updates": [{ "type": "worker", "quantity": 0 }] })).await;
    w.builders.then(made());
    assert!(w.push(app).await.0);
    w.until("one is up", async || w.get("/apps/demo/dynos").await.as_array().unwrap().len() == 1).await;
    assert_eq!(w.get("/apps/demo/config-vars").await["MADE"], vars["MADE"]);
    assert_eq!(w.runs.jobs.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_images_go_and_are_not_gone_back_to() {
    let w = World::new().await;
    let app = w.create("demo").await;
    w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
    for _ in 0..27 {
        assert!(w.push(app).await.0);
    }
    let releases = w.get("/apps/demo/releases").await;
    let eligible: Vec<u64> =
        (0..28usize).filter(|i| releases[*i]["eligible_for_rollback"] == true).map(|i| i as u64 + 1).collect();
    assert_eq!(eligible, (9..=28).collect::<Vec<_>>());
    let refused = async |release: &str| {
        let (status, error) = w.send(Method::POST, "/apps/demo/releases", &w.admin, Some(json!({ "release": release }))).await;
        assert_eq!(status.as_u16(), 422, "{error}");
        error["message"].as_str().unwrap().to_owned()
    };
    assert!(refused("v1").await.contains("no code"));
    assert!(refused("v8").await.contains("not kept"));
    assert_eq!(w.post("/apps/demo/releases", json!({ "release": "v9" })).await["version"], 29);
    w.until("v29 is up", async || w.versions_up("demo").await == [29]).await;
    // The next controller tidies up when it starts.
    let store = w.store.clone();
    let w = w.again(store).await;
    w.until("garbage was collected", async || !w.builders.kept.lock().unwrap().is_empty()).await;
    let kept = w.builders.kept.lock().unwrap()[0].clone();
    assert_eq!(kept.len(), 25);
    assert!(kept.contains("up-8") && kept.contains("up-27") && kept.contains("up-3") && !kept.contains("up-2"), "{kept:?}");
}
