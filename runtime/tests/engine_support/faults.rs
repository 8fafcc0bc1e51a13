//! An engine that hangs, goes away and comes back, seen through a proxy of its socket; nothing is done to the engine.

use super::{Docker, with_docker};
use flex_runtime::{DockerRuntime, DockerSettings, ObservedPhase, Runtime, RuntimeError, contract::*};
use std::{path::PathBuf, sync::Arc};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

/// Passes connections on to the engine until it is dropped, which cuts them.
struct Proxy {
    task: tokio::task::JoinHandle<()>,
    path: PathBuf,
}

impl Proxy {
    fn start(path: PathBuf) -> Self {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut engine) = UnixStream::connect("/var/run/docker.sock").await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut engine).await;
                    }
                });
            }
        });
        Self { task, path }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn behind_proxy(docker: &mut Docker) -> (tempfile::TempDir, Proxy, Arc<DockerRuntime>) {
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(dir.path().join("engine.sock"));
    let settings = DockerSettings { socket: proxy.path.clone(), ..docker.settings.clone() };
    let runtime = Arc::new(DockerRuntime::connect(settings).unwrap());
    (dir, proxy, runtime)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_goes_and_comes_needs_no_help() {
    with_docker("away", async |docker| {
        let (_dir, proxy, runtime) = behind_proxy(docker).await;
        let a = desired(&docker.image(), "web.1", "sleep 1000");
        runtime.converge(vec![a.clone()]).await.unwrap();
        let running = |s: &[flex_runtime::Observed]| s.iter().any(|o| o.phase == ObservedPhase::Running);
        let before = until(&*runtime, "it runs", running).await;
        let session = runtime.exec(a.instance, super::hardening::shell("sleep 1000")).await.unwrap();
        let path = proxy.path.clone();
        drop(proxy);
        assert!(matches!(runtime.observe().await, Err(RuntimeError::Unavailable(_))));
        assert!(matches!(runtime.has_image("x").await, Err(RuntimeError::Unavailable(_))));
        // What is wished meanwhile is done when the engine is back, without being wished again.
        let b = desired(&docker.image(), "web.2", "sleep 1000");
        assert!(matches!(runtime.converge(vec![a.clone(), b.clone()]).await, Err(RuntimeError::Unavailable(_))));
        let _proxy = Proxy::start(path);
        let mut changes = runtime.changes();
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        while !runtime.observe().await.is_ok_and(|s| s.iter().filter(|o| o.phase == ObservedPhase::Running).count() == 2) {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", runtime.observe().await);
            let _ = tokio::time::timeout(std::time::Duration::from_millis(100), changes.changed()).await;
        }
        let after = runtime.observe().await.unwrap();
        assert_eq!(after.iter().find(|o| o.instance == a.instance), before.first(), "it ran on");
        drop(session);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_can_start_before_its_engine() {
    with_docker("early", async |docker| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let settings = DockerSettings { socket: path.clone(), ..docker.settings.clone() };
        let runtime = DockerRuntime::connect(settings).unwrap();
        assert!(matches!(runtime.facts().await, Err(RuntimeError::Unavailable(_))));
        let _proxy = Proxy::start(path);
        let facts = runtime.facts().await.unwrap();
        assert!(facts.cpus > 0 && facts.memory.mib() > 0 && !facts.version.is_empty(), "{facts:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_is_told_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let _hung = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let runtime = DockerRuntime::connect(DockerSettings { socket: path, ..DockerSettings::local("hung") }).unwrap();
    let start = tokio::time::Instant::now();
    let image = flex_model::ImageRef { reference: "sha256:00".into(), manifest: None };
    let a = desired(&image, "web.1", "sleep 1");
    assert!(matches!(runtime.observe().await, Err(RuntimeError::Unavailable(_))));
    assert!(matches!(runtime.converge(vec![a.clone()]).await, Err(RuntimeError::Unavailable(_))));
    assert!(matches!(runtime.exec(a.instance, super::hardening::shell("true")).await, Err(RuntimeError::Unavailable(_))));
    assert!(matches!(runtime.has_image("x").await, Err(RuntimeError::Unavailable(_))));
    assert!(matches!(runtime.reap(&[]).await, Err(RuntimeError::Unavailable(_))));
    assert!(start.elapsed() < std::time::Duration::from_secs(120), "{:?}", start.elapsed());
}

/// Needs an engine that may be killed: `FLEX_TEST_RESTART_ENGINE` names a program that kills it and starts it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kills the engine"]
async fn a_killed_engine_is_survived() {
    let program = std::env::var_os("FLEX_TEST_RESTART_ENGINE").expect("FLEX_TEST_RESTART_ENGINE");
    with_docker("killed", async |docker| {
        let runtime = docker.docker();
        let list: Vec<_> = (1..=4).map(|i| desired(&docker.image(), &format!("web.{i}"), "sleep 1000")).collect();
        let running =
            |n: usize| move |s: &[flex_runtime::Observed]| s.iter().filter(|o| o.phase == ObservedPhase::Running).count() == n;
        runtime.converge(list[..3].to_vec()).await.unwrap();
        let before = until(&*runtime, "three run", running(3)).await;
        let status = tokio::process::Command::new(program).status().await.unwrap();
        assert!(status.success());
        let after = until(&*runtime, "three run", running(3)).await;
        assert_eq!(after, before, "live-restore kept them, and nothing was done to them");
        runtime.converge(list.clone()).await.unwrap();
        until(&*runtime, "four run", running(4)).await;
        let session = runtime.exec(list[0].instance, super::hardening::shell("echo works")).await.unwrap();
        assert_eq!(finish(session).await.0, "works\n");
        runtime.converge(Vec::new()).await.unwrap();
        until(&*runtime, "all are gone", |s| s.is_empty()).await;
    })
    .await;
}
