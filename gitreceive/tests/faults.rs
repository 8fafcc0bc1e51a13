//! What is left when something dies in the middle of a push: always a repository that git finds whole.

mod common;

use common::{Done, World, quarantines, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, path::Path, process::Stdio, sync::Arc, time::Duration};
use tokio::{
    process::{Child, Command},
    sync::Semaphore,
};

/// Incompressible bytes, different for every `seed`.
fn noise(megabytes: usize, mut seed: u64) -> Vec<u8> {
    let words = megabytes << 17;
    let mut out = Vec::with_capacity(words * 8);
    for _ in 0..words {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        out.extend_from_slice(&seed.to_le_bytes());
    }
    out
}

async fn big_source(world: &World, megabytes: usize) {
    world.source("src").await;
    // Noise does not compress and has no deltas; trying takes longer than the push.
    world.git("src", &["config", "core.compression", "0"]).await.ok();
    world.git("src", &["config", "core.bigFileThreshold", "1m"]).await.ok();
    for n in 0..megabytes / 8 {
        fs::write(world.path("src").join(format!("noise{n}")), noise(8, n as u64 + 1)).unwrap();
    }
    world.commit("src", "last", b"x").await;
}

/// Starts a push whose ssh client can be killed: `git` dies with it.
fn start_push(world: &World) -> Child {
    let mut command = world.git_as("ann", "src", &["push", "flex", "main"]);
    command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

async fn kill_group(mut child: Child) {
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::killpg(pid, Signal::SIGKILL).unwrap();
    child.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_while_sending() {
    let world = World::new().await;
    big_source(&world, 64).await;
    let push = start_push(&world);
    let repository = world.repository("my-app");
    until("objects arrive", || !quarantines(&repository).is_empty()).await;
    kill_group(push).await;
    world.healthy("my-app").await;
    assert!(world.gate.pushes.lock().unwrap().is_empty());
    assert_eq!(world.stored("my-app", "refs/heads/main"), "");
    world.git("src", &["push", "flex", "main"]).await.ok();
    world.healthy("my-app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_during_its_build() {
    let world = World::new().await;
    world.source("src").await;
    let go = Arc::new(Semaphore::new(0));
    world.plan(&["-----> Building"], Some(true), Some(go.clone()));
    let push = start_push(&world);
    until("the push is at the gate", || world.gate.pushes.lock().unwrap().len() == 1).await;
    kill_group(push).await;
    go.add_permits(1);
    let head = world.head("src").await;
    until("the build ends and the branch moves", || world.stored("my-app", "refs/heads/main") == head).await;
    world.healthy("my-app").await;
}

/// The process ids of hooks that this world's git started.
fn hooks(world: &World) -> Vec<i32> {
    let name = world.path("run/hooks/pre-receive");
    let processes = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse::<i32>().ok());
    let is_hook = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(name.as_os_str().as_encoded_bytes())
    };
    processes.filter(is_hook).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_is_killed_refuses() {
    let world = World::new().await;
    world.source("src").await;
    let go = Arc::new(Semaphore::new(0));
    world.plan(&["-----> Building"], Some(true), Some(go.clone()));
    let push = tokio::spawn(Done::of(world.git_as("ann", "src", &["push", "flex", "main"])));
    until("the hook waits", || world.gate.pushes.lock().unwrap().len() == 1 && hooks(&world).len() == 1).await;
    kill(Pid::from_raw(hooks(&world)[0]), Signal::SIGKILL).unwrap();
    push.await.unwrap().fails("pre-receive hook declined");
    assert_eq!(world.stored("my-app", "refs/heads/main"), "");
    world.healthy("my-app").await;
    go.add_permits(1);
}

/// Not a test of its own: the server process of the tests below, which kill it.
#[tokio::test(flavor = "multi_thread")]
async fn serve_until_killed() {
    let Ok(root) = std::env::var("FLEX_TEST_SERVE") else { return };
    let world = World::at(Path::new(&root), |_| {}).await;
    if fs::exists(world.path("hold")).unwrap() {
        world.plan(&["-----> Building"], Some(true), Some(Arc::new(Semaphore::new(0))));
    }
    fs::write(world.path("port.new"), world.port.to_string()).unwrap();
    fs::rename(world.path("port.new"), world.path("port")).unwrap();
    std::future::pending::<()>().await;
}

/// A server in a process of its own, over the folder of `world`, which talks to it from now on.
async fn server_process(world: &mut World) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "serve_until_killed", "--nocapture"]).env("FLEX_TEST_SERVE", world.dir());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let port = world.path("port");
    until("the server listens", || port.exists()).await;
    world.port = fs::read_to_string(&port).unwrap().parse().unwrap();
    fs::remove_file(port).unwrap();
    world.git("src", &["remote", "set-url", "flex", &world.url("my-app")]).await.ok();
    child
}

async fn killed_server(hold: bool) {
    let mut world = World::new().await;
    big_source(&world, if hold { 8 } else { 64 }).await;
    world.shutdown.cancel();
    world.server.take().unwrap().await.unwrap();
    if hold {
        fs::write(world.path("hold"), "").unwrap();
    }
    let mut server = server_process(&mut world).await;
    let repository = world.repository("my-app");
    let push = tokio::spawn(Done::of(world.git_as("ann", "src", &["push", "flex", "main"])));
    if hold {
        until("the build waits", || hooks(&world).len() == 1).await;
    } else {
        until("objects arrive", || !quarantines(&repository).is_empty()).await;
    }
    server.kill().await.unwrap();
    assert_ne!(push.await.unwrap().status, Some(0), "the client is told");
    assert_eq!(world.stored("my-app", "refs/heads/main"), "");
    world.fsck("my-app").await;
    let _ = fs::remove_file(world.path("hold"));
    let mut server = server_process(&mut world).await;
    world.healthy("my-app").await;
    world.git("src", &["push", "flex", "main"]).await.ok();
    assert_eq!(world.stored("my-app", "refs/heads/main"), world.head("src").await);
    world.healthy("my-app").await;
    server.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_receiving() {
    killed_server(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_during_a_build() {
    killed_server(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_quarantines_are_swept_at_the_start() {
    let world = World::new().await;
    world.source("src").await;
    world.git("src", &["push", "flex", "main"]).await.ok();
    let stale = world.repository("my-app").join("objects/tmp_objdir-incoming-AbCdEf");
    fs::create_dir(&stale).unwrap();
    fs::File::open(&stale).unwrap().set_modified(std::time::SystemTime::now() - Duration::from_secs(600)).unwrap();
    let root = world.dir().to_owned();
    let again = World::at(&root, |s| s.socket_path = root.join("run2/hook.sock")).await;
    until("the sweep has come by", || !stale.exists()).await;
    again.healthy("my-app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_have_limits_and_words() {
    let world = World::with(|s| {
        s.limits.max_pack_bytes = 12 << 20;
        s.limits.max_object_bytes = 10 << 20;
        s.limits.max_refs = 3;
    })
    .await;
    world.source("src").await;
    let first = world.head("src").await;
    // A small pack that inflates to a large file.
    world.commit("src", "zeros", &vec![0; 32 << 20]).await;
    let push = world.git("src", &["push", "flex", "main"]).await.fails("larger than Flex takes");
    assert!(push.err.contains("The push has a file"), "{push:?}");
    world.git("src", &["reset", "-q", "--hard", &first]).await.ok();
    fs::write(world.path("src/a"), noise(8, 1)).unwrap();
    world.commit("src", "b", &noise(8, 2)).await;
    let push = world.git("src", &["push", "flex", "main"]).await.fails("larger than Flex takes");
    assert!(push.err.contains("The push is larger"), "{push:?}");
    world.git("src", &["reset", "-q", "--hard", &first]).await.ok();
    let many = ["push", "flex", "main", "main:a", "main:b", "main:c"];
    world.git("src", &many).await.fails("moves 4 branches and tags; 3 at a time");
    world.git("src", &many[..5]).await.ok();
    world.healthy("my-app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_trees_are_refused() {
    let world = World::new().await;
    world.source("src").await;
    let blob = world.git("src", &["rev-parse", "HEAD:web.txt"]).await.ok().out.trim().to_owned();
    for (mode, name) in [("100644", ".git"), ("40000", ".GIT"), ("40000", ".."), ("120000", ".gitmodules")] {
        let object = if mode == "40000" { world.git("src", &["rev-parse", "HEAD^{tree}"]).await.ok().out } else { blob.clone() };
        let id: Vec<u8> = (0..40).step_by(2).map(|n| u8::from_str_radix(&object.trim()[n..n + 2], 16).unwrap()).collect();
        let tree = [format!("{mode} {name}\0").as_bytes(), &id].concat();
        fs::write(world.path("tree"), tree).unwrap();
        let hash = ["hash-object", "-w", "--literally", "-t", "tree", "../tree"];
        let tree = world.git("src", &hash).await.ok().out.trim().to_owned();
        let commit = world.git("src", &["commit-tree", "-m", "bad", &tree]).await.ok().out.trim().to_owned();
        let refspec = format!("{commit}:refs/heads/bad");
        world.git("src", &["push", "flex", &refspec]).await.fails("remote: fatal: fsck error");
    }
    assert!(world.gate.pushes.lock().unwrap().is_empty(), "the gate never sees them");
    world.healthy("my-app").await;
}

/// `FLEX_TEST_PUSH_MB=200` for the size that the receiver is judged by.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_push_arrives_whole() {
    let world = World::new().await;
    let megabytes = std::env::var("FLEX_TEST_PUSH_MB").map_or(32, |mb| mb.parse().unwrap());
    big_source(&world, megabytes).await;
    world.git("src", &["push", "flex", "main"]).await.ok();
    world.git(".", &["clone", "-q", &world.url("my-app"), "copy"]).await.ok();
    assert_eq!(world.head("copy").await, world.head("src").await);
    assert_eq!(fs::read(world.path("copy/noise0")).unwrap(), noise(8, 1));
    world.healthy("my-app").await;
}
