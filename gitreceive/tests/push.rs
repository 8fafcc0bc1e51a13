//! Stock git against the real server: what a push, a clone and a fetch do.

mod common;

use common::{World, quarantines, until};
use std::sync::Arc;
use tokio::sync::Semaphore;

#[tokio::test(flavor = "multi_thread")]
async fn push_clone_fetch() {
    let world = World::new().await;
    world.source("src").await;
    world.plan(&["-----> Building", "", "       caf\u{e9} ✓"], Some(true), None);
    let push = world.git("src", &["push", "-o", "why=test x", "flex", "main"]).await.ok();
    assert!(push.err.contains("remote: -----> Building"), "{push:?}");
    assert!(push.err.contains("remote:        caf\u{e9} ✓"), "{push:?}");
    assert_eq!(world.stored("my-app", "refs/heads/main"), world.head("src").await);
    {
        let pushes = world.gate.pushes.lock().unwrap();
        assert_eq!(pushes[0].options, ["why=test x"]);
        assert_eq!(pushes[0].caller.email.as_str(), "ann@example.com");
        assert_eq!((pushes[0].app_name.as_str(), pushes[0].updates.len()), ("my-app", 1));
    }

    world.git(".", &["clone", "-q", &world.url("my-app"), "copy"]).await.ok();
    assert_eq!(world.head("copy").await, world.head("src").await);
    let second = world.commit("src", "second", b"2").await;
    world.git("src", &["push", "flex", "main"]).await.ok();
    world.git("copy", &["fetch", "-q"]).await.ok();
    assert_eq!(world.git("copy", &["rev-parse", "origin/main"]).await.ok().out.trim(), second);
    world.git("src", &["push", "flex", "main"]).await.ok();
    assert_eq!(world.gate.pushes.lock().unwrap().len(), 2, "nothing to push does not reach the gate");

    world.git(".", &["clone", "-q", "--depth", "1", &world.url("my-app"), "shallow"]).await.ok();
    assert_eq!(world.git("shallow", &["rev-list", "--count", "HEAD"]).await.ok().out.trim(), "1");
    world.git("shallow", &["fetch", "-q", "--unshallow"]).await.ok();
    assert_eq!(world.git("shallow", &["rev-list", "--count", "HEAD"]).await.ok().out.trim(), "2");
    world.healthy("my-app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_leaves_nothing() {
    let world = World::new().await;
    world.source("src").await;
    world.plan(&["-----> Building", " !     Build failed"], Some(false), None);
    let push = world.git("src", &["push", "flex", "main"]).await.fails("pre-receive hook declined");
    assert!(push.err.contains("remote:  !     Build failed"), "{push:?}");
    assert_eq!(world.stored("my-app", "refs/heads/main"), "");
    world.healthy("my-app").await;
    let repository = git2::Repository::open_bare(world.repository("my-app")).unwrap();
    repository.odb().unwrap().foreach(|id| panic!("{id} was left behind")).unwrap();

    world.plan(&[], None, None);
    world.git("src", &["push", "flex", "main"]).await.fails("Flex stopped working on this push");
    world.plan(&[], Some(true), None);
    world.git("src", &["push", "flex", "main"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_tagged_deleted_empty_and_odd() {
    let world = World::new().await;
    world.source("src").await;
    world.git("src", &["push", "flex", "main"]).await.ok();
    world.git("src", &["commit", "-q", "--amend", "-m", "again"]).await.ok();
    world.git("src", &["push", "flex", "main"]).await.fails("non-fast-forward");
    world.git("src", &["push", "--force", "flex", "main"]).await.ok();
    assert_eq!(world.stored("my-app", "refs/heads/main"), world.head("src").await);

    world.git("src", &["commit", "-q", "--allow-empty", "-m", "empty"]).await.ok();
    world.git("src", &["push", "flex", "main"]).await.ok();
    world.git("src", &["tag", "-a", "-m", "one", "v1"]).await.ok();
    world.git("src", &["tag", "light"]).await.ok();
    world.git("src", &["push", "flex", "--tags"]).await.ok();
    assert_ne!(world.stored("my-app", "refs/tags/v1"), "");
    world.git("src", &["push", "flex", "main:refs/heads/feature/x", ":refs/tags/light"]).await.ok();
    assert_eq!(world.stored("my-app", "refs/heads/feature/x"), world.head("src").await);
    assert_eq!(world.stored("my-app", "refs/tags/light"), "");
    world.git("src", &["push", "flex", ":main", ":feature/x"]).await.ok();
    assert_eq!(world.stored("my-app", "refs/heads/main"), "");
    world.git("src", &["push", "flex", "main:refs/notes/x"]).await.fails("branches and tags only");
    world.git("src", &["push", "flex", "main:refs/flex/x"]).await.fails("remote rejected");
    world.healthy("my-app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn master_alone_can_be_cloned() {
    let world = World::new().await;
    world.source("src").await;
    world.git("src", &["push", "flex", "main:master"]).await.ok();
    let clone = world.git(".", &["clone", &world.url("my-app"), "copy"]).await.ok();
    assert!(!clone.err.contains("nonexistent"), "{clone:?}");
    assert_eq!(world.head("copy").await, world.head("src").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn shallow_clones_can_push() {
    let world = World::new().await;
    world.source("src").await;
    world.commit("src", "second", b"2").await;
    let from = format!("file://{}", world.path("src").display());
    world.git(".", &["clone", "-q", "--depth", "1", &from, "ci"]).await.ok();
    world.git("ci", &["push", &world.url("my-app"), "HEAD:main"]).await.ok();
    world.healthy("my-app").await;
    world.commit("src", "third", b"3").await;
    world.git("src", &["push", "flex", "main"]).await.ok();
    world.git(".", &["clone", "-q", &world.url("my-app"), "copy"]).await.ok();
    assert_eq!(world.head("copy").await, world.head("src").await);
    world.healthy("my-app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_cannot_take_all_places() {
    let world = World::with(|s| s.limits.max_pushes_per_user = 1).await;
    world.source("one").await;
    let go = Arc::new(Semaphore::new(0));
    world.plan(&["-----> Building"], Some(true), Some(go.clone()));
    let second = async {
        until("the first push is at the gate", || world.gate.pushes.lock().unwrap().len() == 1).await;
        let refused = world.git("one", &["push", "flex", "main:other"]).await;
        // Reading is no push.
        world.git("one", &["ls-remote", "flex"]).await.ok();
        go.add_permits(2);
        refused
    };
    let (first, second) = tokio::join!(world.git("one", &["push", "flex", "main"]), second);
    first.ok();
    second.fails("You have 1 push under way, as many as one user may have at a time.");
    world.git("one", &["push", "flex", "main:other"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pushes_at_once() {
    let world = World::new().await;
    world.source("one").await;
    world.source("two").await;
    world.commit("two", "two", b"2").await;
    let go = Arc::new(Semaphore::new(0));
    world.plan(&["-----> Building"], Some(true), Some(go.clone()));
    let pushes =
        async { tokio::join!(world.git("one", &["push", "flex", "main"]), world.git("two", &["push", "flex", "main:other"])) };
    let release = async {
        until("both pushes are at the gate", || world.gate.pushes.lock().unwrap().len() == 2).await;
        go.add_permits(2);
    };
    let ((one, two), ()) = tokio::join!(pushes, release);
    let waited = [one.ok(), two.ok()].iter().filter(|p| p.err.contains("Waiting for another build")).count();
    assert_eq!(waited, 1);
    assert_eq!(world.stored("my-app", "refs/heads/other"), world.head("two").await);
    world.healthy("my-app").await;
    assert!(quarantines(&world.repository("my-app")).is_empty());
}
