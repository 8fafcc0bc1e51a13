//! The agent over a real Docker engine: what only real containers can show.

mod docker;
mod support;

use docker::{Docker, with_docker};
use flex_model::{InstanceState, WorkItem};
use flex_runtime::Observed;
use support::{Host, item, of};
use tempfile::TempDir;

/// Listens on every address.
const SERVER: &str = "echo hello; exec httpd -f -p 5000";

fn work(docker: &Docker, n: u128, line: &str, port: Option<u16>) -> WorkItem {
    item(n, &docker.image, line, port)
}

async fn containers(docker: &Docker) -> Vec<Observed> {
    docker.runtime().observe().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_adopts_and_stops() {
    with_docker("agent-life", async |docker| {
        let dir = TempDir::new().unwrap();
        let mut host = Host::start(dir.path(), docker.runtime());
        let deaf = "trap '' TERM; echo deaf; while true; do sleep 1; done";
        let items = vec![work(docker, 1, SERVER, Some(5000)), work(docker, 2, deaf, None)];
        host.assign(1, items.clone());
        let up = |r: &flex_model::Report| [1, 2].iter().all(|n| of(r, *n).is_some_and(|i| i.state == InstanceState::Up));
        let report = host.until("both are up", up).await;
        tokio::net::TcpStream::connect(of(&report, 1).unwrap().address.unwrap()).await.expect("it is reachable there");
        host.until_logged("web.1: hello").await;
        host.until_logged("web.2: deaf").await;
        let before = containers(docker).await;
        host.kill().await;
        docker.restart();
        let mut host = Host::start(dir.path(), docker.runtime());
        host.until("both are found again", up).await;
        assert_eq!(containers(docker).await, before, "nothing was restarted");
        host.assign_as(2, 2, vec![items[0].clone()]);
        host.until("the deaf one is gone", |r| of(r, 2).is_none()).await;
        let log = host.log().await;
        let has = |text: &str| log.iter().any(|l| l.starts_with(text));
        assert!(has("web.2: Stopping all processes with SIGTERM") && has("web.2: Error R12 (Exit timeout)"), "{log:#?}");
        assert_eq!(log.iter().filter(|l| *l == "web.1: hello").count(), 1, "{log:#?}");
        host.assign_as(2, 3, vec![]);
        host.until_empty().await;
        host.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_are_told_with_their_last_words_and_retried() {
    with_docker("agent-crash", async |docker| {
        let dir = TempDir::new().unwrap();
        let mut host = Host::start(dir.path(), docker.runtime());
        let many = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; echo last words >&2; exit 3";
        host.assign(1, vec![work(docker, 1, many, None)]);
        let crashed = host.until_state(1, InstanceState::Crashed).await;
        assert_eq!(crashed.exit.unwrap().status, 3);
        let log = host.log().await;
        assert!(log.contains(&"web.1: last words".to_owned()), "{log:#?}");
        assert!(log.contains(&"web.1: line 199".to_owned()));
        host.until("it is tried again", |r| of(r, 1).is_some_and(|i| i.restarts >= 2)).await;
        host.assign(2, vec![]);
        host.until_empty().await;
        host.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_out_of_memory_is_told() {
    with_docker("agent-oom", async |docker| {
        let dir = TempDir::new().unwrap();
        let mut host = Host::start(dir.path(), docker.runtime());
        host.assign(1, vec![work(docker, 1, "dd if=/dev/zero of=/dev/null bs=200M", None)]);
        let crashed = host.until("it was killed", |r| of(r, 1).is_some_and(|i| i.exit.is_some())).await;
        let exit = of(&crashed, 1).unwrap().exit.clone().unwrap();
        assert!(exit.oom && exit.status == 137, "{exit:?}");
        host.until_logged("Error R15 (Memory quota vastly exceeded)").await;
        host.assign(2, vec![]);
        host.until_empty().await;
        host.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_port_is_named() {
    with_docker("agent-port", async |docker| {
        let dir = TempDir::new().unwrap();
        let mut host = Host::start(dir.path(), docker.runtime());
        let mut wrong = work(docker, 1, "exec httpd -f -p 127.0.0.1:3000", Some(5000));
        wrong.spec.check.start_seconds = 2;
        host.assign(1, vec![wrong]);
        let crashed = host.until_state(1, InstanceState::Crashed).await;
        let message = crashed.message.unwrap();
        assert!(message.starts_with("Error R10 (Boot timeout)"), "{message}");
        assert!(message.contains("bound port 3000 on 127.0.0.1 instead of 0.0.0.0:5000. Listen on 0.0.0.0"), "{message}");
        host.until("it is tried again", |r| of(r, 1).is_some_and(|i| i.restarts >= 1)).await;
        host.assign(2, vec![]);
        host.until_empty().await;
        host.stop().await;
    })
    .await;
}
