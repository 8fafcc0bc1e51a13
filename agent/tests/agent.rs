//! The agent over the fake engine: its loop, its files, its log reader.

mod support;

use flex_model::{HealthProbe, InstanceId, InstanceState, Uuid};
use flex_runtime::FakeRuntime;
use flex_tests::Port;
use std::{sync::Arc, time::Duration};
use support::{Host, PATIENCE, check, item, of};
use tempfile::TempDir;
use tokio::net::TcpListener;

struct World {
    dir: TempDir,
    engine: Arc<FakeRuntime>,
    image: flex_model::ImageRef,
}

impl World {
    fn new() -> Self {
        let (dir, engine) = (TempDir::new().unwrap(), Arc::new(FakeRuntime::new()));
        let output = dir.path().join("output");
        std::fs::create_dir(&output).unwrap();
        engine.set_log_dir(output);
        let image = engine.add_image("sha256:1");
        Self { dir, engine, image }
    }
    fn start(&self) -> Host {
        Host::start(self.dir.path(), self.engine.clone())
    }
    /// As after the end of the process.
    fn restart(&mut self) -> Host {
        self.engine = Arc::new(self.engine.restarted());
        self.start()
    }
    fn starts(&self, n: u128) -> u32 {
        self.engine.starts(InstanceId(Uuid::from_u128(n)))
    }
}

#[tokio::test]
async fn from_assignment_to_up_and_away() {
    let world = World::new();
    let mut host = world.start();
    let reserved = Port::reserve();
    let port = reserved.number();
    host.assign(3, vec![item(1, &world.image, "echo hello; while true; do sleep 1; done", Some(port))]);
    let starting = host.until("it has an address", |r| of(r, 1).is_some_and(|i| i.address.is_some())).await;
    assert_eq!((starting.epoch, starting.revision, starting.host), (1, 3, support::host()));
    let address = of(&starting, 1).unwrap().address.unwrap();
    assert_eq!(address.port(), port);
    let listener = TcpListener::bind(address).await.unwrap();
    let up = host.until_state(1, InstanceState::Up).await;
    assert!(up.was_up && up.restarts == 0);
    host.until_logged("web.1: hello").await;
    drop(listener);
    let unhealthy = host.until_state(1, InstanceState::Unhealthy).await;
    assert!(unhealthy.message.unwrap().contains(&port.to_string()));
    host.assign(4, vec![]);
    host.until_empty().await;
    let log = host.log().await;
    for line in [
        "web.1: Starting process with command `echo hello; while true; do sleep 1; done`",
        "web.1: State changed from starting to up",
        "web.1: State changed from up to unhealthy",
        "web.1: Stopping all processes with SIGTERM",
    ] {
        assert!(log.contains(&line.to_owned()), "{line}: {log:#?}");
    }
    host.stop().await;
}

#[tokio::test]
async fn last_words_are_in_the_log_when_the_crash_is_reported() {
    let world = World::new();
    let mut host = world.start();
    host.assign(1, vec![item(1, &world.image, "echo one; echo two >&2; echo last words; exit 3", None)]);
    let crashed = host.until_state(1, InstanceState::Crashed).await;
    assert_eq!((crashed.exit.unwrap().status, crashed.message.as_deref()), (3, Some("exited with status 3")));
    let log = host.log().await;
    let last = log.iter().rposition(|l| l == "web.1: last words").expect("the last words");
    let exit = log.iter().rposition(|l| l == "web.1: Process exited with status 3").expect("the end");
    assert!(last < exit, "{log:#?}");
    host.until("it is tried again and again", |r| of(r, 1).is_some_and(|i| i.restarts >= 2)).await;
    host.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_touches_nothing_and_loses_no_line() {
    let mut world = World::new();
    let mut host = world.start();
    let line = "echo a; sleep 0.3; echo b; sleep 0.3; echo c; sleep 0.3; echo d; while true; do sleep 1; done";
    host.assign(5, vec![item(1, &world.image, line, None), item(2, &world.image, line, None)]);
    host.until_state(1, InstanceState::Up).await;
    host.until_state(2, InstanceState::Up).await;
    host.until_logged("web.1: a").await;
    host.kill().await;
    // No word from a control plane: the assignment on disk counts.
    let mut host = world.restart();
    let up = |r: &flex_model::Report| [1, 2].iter().all(|n| of(r, *n).is_some_and(|i| i.state == InstanceState::Up));
    let report = host.until("both are up", up).await;
    assert_eq!((report.revision, report.epoch), (5, 1));
    host.until_logged("web.1: d").await;
    let log = host.log().await;
    for word in ["a", "b", "c", "d"] {
        assert!(log.contains(&format!("web.1: {word}")), "{word}: {log:#?}");
    }
    assert_eq!((world.starts(1), world.starts(2)), (1, 1));
    // Refused: older; different at the same revision. Taken: the same from a new controller.
    host.assign_as(2, 4, vec![]);
    host.assign_as(1, 5, vec![]);
    host.assign_as(2, 5, vec![item(1, &world.image, line, None), item(2, &world.image, line, None)]);
    let report = host.until("the new epoch is echoed", |r| r.epoch == 2).await;
    assert!(up(&report), "{report:#?}");
    assert_eq!((world.starts(1), world.starts(2)), (1, 1));
    host.stop().await;
}

#[tokio::test]
async fn an_engine_that_is_away_changes_nothing() {
    let world = World::new();
    let mut host = world.start();
    host.assign(1, vec![item(1, &world.image, "while true; do sleep 1; done", None)]);
    host.until_state(1, InstanceState::Up).await;
    world.engine.set_down(true);
    host.assign(2, vec![item(1, &world.image, "while true; do sleep 1; done", None), item(2, &world.image, "exit 0", None)]);
    let report = host.until("the new revision is known", |r| r.revision == 2).await;
    assert_eq!(of(&report, 1).unwrap().state, InstanceState::Up);
    assert_eq!(of(&report, 2).unwrap().state, InstanceState::Starting);
    world.engine.set_down(false);
    host.until_state(2, InstanceState::Crashed).await;
    assert_eq!(world.starts(1), 1);
    host.stop().await;
}

#[tokio::test]
async fn too_slow_a_start_says_so() {
    let world = World::new();
    let mut host = world.start();
    let port = Port::reserve();
    let mut slow = item(1, &world.image, "while true; do sleep 1; done", Some(port.number()));
    slow.spec.check.start_seconds = 1;
    host.assign(1, vec![slow]);
    let crashed = host.until_state(1, InstanceState::Crashed).await;
    assert!(!crashed.was_up);
    assert!(crashed.message.unwrap().starts_with("Error R10 (Boot timeout)"));
    host.until("the next attempt starts", |r| of(r, 1).is_some_and(|i| i.restarts >= 1)).await;
    host.stop().await;
}

#[tokio::test]
async fn what_cannot_be_made_says_why() {
    let world = World::new();
    let mut host = world.start();
    world.engine.refuse(InstanceId(Uuid::from_u128(1)), Some("no space left on device"));
    host.assign(1, vec![item(1, &world.image, "while true; do sleep 1; done", None)]);
    let down = host.until_state(1, InstanceState::Down).await;
    assert_eq!(down.message.as_deref(), Some("no space left on device"));
    world.engine.refuse(InstanceId(Uuid::from_u128(1)), None);
    host.until_state(1, InstanceState::Up).await;
    host.stop().await;
}

#[tokio::test]
async fn commands_and_http_prove_health() {
    let world = World::new();
    let mut host = world.start();
    let reserved = Port::reserve();
    let port = reserved.number();
    let forever = "while true; do sleep 1; done";
    let mut by_command = item(1, &world.image, forever, Some(port));
    by_command.spec.check = check(HealthProbe::Command { argv: vec!["true".into()] });
    let mut by_http = item(2, &world.image, forever, Some(port));
    by_http.spec.check = check(HealthProbe::Http { path: "/health".into() });
    host.assign(1, vec![by_command, by_http]);
    let report = host.until("it has an address", |r| of(r, 2).is_some_and(|i| i.address.is_some())).await;
    let listener = TcpListener::bind(of(&report, 2).unwrap().address.unwrap()).await.unwrap();
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for answer in ["HTTP/1.1 503 No\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        listener
    });
    host.until_state(2, InstanceState::Up).await;
    host.until_state(1, InstanceState::Up).await;
    drop(tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap());
    host.stop().await;
}

#[tokio::test]
async fn reports_come_without_a_change_too() {
    let world = World::new();
    let mut host = world.start();
    host.assign(1, vec![]);
    let first = host.until("the first", |r| r.revision == 1).await;
    let next = host.until("the next", |r| r.at > first.at).await;
    assert!(next.at.since(first.at) < Duration::from_secs(20));
    assert_eq!(next.instances, first.instances);
    host.stop().await;
}
