//! The agent over a real Docker engine: what only real containers can show.

mod docker;
mod support;

use docker::{Docker, with_docker};
use flex_logs::LogQuery;
use flex_model::{InstanceState, LogSource, LogText, WorkItem};
use flex_runtime::{LogForm, Observed};
use std::{
    process::Command,
    time::{Duration, Instant},
};
use support::{Host, PATIENCE, app, item, of};
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

/// What the app's processes printed, oldest first.
async fn printed(host: &Host) -> Vec<LogText> {
    let query = LogQuery { source: Some(LogSource::App), ..LogQuery::newest(10_000) };
    host.logs.query(app(), query).await.unwrap().into_iter().map(|l| l.text).collect()
}

/// Also over restarts of the agent, a line longer than the engine's pieces, and a last line without an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_in_the_log_as_it_was_printed() {
    with_docker("agent-bytes", async |docker| {
        let dir = TempDir::new().unwrap();
        let host = Host::start(dir.path(), docker.runtime());
        let line = r#"i=0; all=
            while [ $i -lt 256 ]; do
                byte=$(printf '\\%03o' $i)
                printf "$i:$byte:\n"
                [ $i = 10 ] || all="$all$byte"
                i=$((i+1))
            done
            i=0; while [ $i -lt 80 ]; do printf "$all"; i=$((i+1)); done; echo
            while [ ! -e /go ]; do sleep 0.1; done
            printf 'no \377 end'"#;
        host.assign(1, vec![work(docker, 1, line, None)]);
        host.until_logged("255:").await;
        assert_eq!(containers(docker).await[0].log_file.as_ref().map(|l| l.form), Some(LogForm::Local));
        host.kill().await;
        docker.restart();
        let mut host = Host::start(dir.path(), docker.runtime());
        host.until_state(1, InstanceState::Up).await;
        host.until_logged("[continued] ").await;
        let id = own_containers(docker);
        run("docker", &["exec", &id, "busybox", "touch", "/go"]);
        host.until_logged("no \u{fffd} end").await;
        let each = (0..=255u8).flat_map(|b| [format!("{b}:").as_bytes(), &[b], b":\n"].concat());
        let each: Vec<u8> = each.collect();
        let mut wanted: Vec<LogText> = each.strip_suffix(b"\n").unwrap().split(|b| *b == b'\n').map(LogText::from).collect();
        let all: Vec<u8> = (0..=255u8).filter(|b| *b != b'\n').collect();
        let long = all.repeat(80);
        wanted.extend([LogText::from(&long[..]), LogText::from(&b"no \xff end"[..])]);
        let mut got = Vec::<LogText>::new();
        for text in printed(&host).await {
            match text.as_bytes().strip_prefix(b"[continued] ") {
                Some(more) => {
                    let begun = got.pop().unwrap();
                    got.push([begun.as_bytes(), more].concat().into());
                }
                None => got.push(text),
            }
        }
        // The command ended, and is tried again.
        got.truncate(wanted.len());
        assert_eq!(got, wanted);
        host.assign_as(2, 2, vec![]);
        host.until_empty().await;
        host.stop().await;
    })
    .await;
}

#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn own_containers(docker: &Docker) -> String {
    run("docker", &["ps", "-q", "--no-trunc", "--filter", &format!("label=flex.cluster={}", docker.settings.cluster)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_rotated_quickly_are_read_whole() {
    with_docker("agent-rotated", async |docker| {
        let dir = TempDir::new().unwrap();
        let mut host = Host::start(dir.path(), docker.runtime());
        // 24 MB: two rotations.
        let line = "x=$(busybox head -c 8000 /dev/zero | busybox tr '\\0' x); i=0; \
                    while [ $i -lt 3000 ]; do echo $i $x; i=$((i+1)); done; echo done; exec sleep 1000";
        host.assign(1, vec![work(docker, 1, line, None)]);
        let newest = || host.logs.query(app(), LogQuery { source: Some(LogSource::App), ..LogQuery::newest(1) });
        let deadline = Instant::now() + PATIENCE;
        while newest().await.unwrap().last().is_none_or(|l| l.text != "done") {
            assert!(Instant::now() < deadline, "it never was done: {:?}", newest().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let file = containers(docker).await[0].log_file.clone().unwrap().path;
        let rotated = |n: u32| std::path::PathBuf::from(format!("{}.{n}", file.display()));
        assert!(rotated(1).exists() && rotated(2).exists(), "nothing was rotated at {}", file.display());
        let lines = printed(&host).await;
        let number = |l: &LogText| l.as_str().and_then(|t| t.split(' ').next()?.parse::<u32>().ok());
        assert_eq!(lines.iter().filter_map(number).collect::<Vec<_>>(), (0..3000).collect::<Vec<_>>());
        host.assign(2, vec![]);
        host.until_empty().await;
        host.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_earlier_versions_are_read_on() {
    with_docker("agent-json", async |docker| {
        let dir = TempDir::new().unwrap();
        let items = vec![work(docker, 1, SERVER, Some(5000))];
        let mut host = Host::start(dir.path(), docker.runtime());
        host.assign(1, items.clone());
        host.until_state(1, InstanceState::Up).await;
        host.kill().await;
        // The same container with the driver that was used before.
        let id = own_containers(docker);
        let told = run("docker", &["inspect", "--format", "{{.Name}} {{.HostConfig.NetworkMode}} {{.Config.Image}}", &id]);
        let [name, network, image] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
        let labels = run("docker", &["inspect", "--format", "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}} {{end}}", &id]);
        run("docker", &["rm", "-f", &id]);
        let options =
            ["--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=3", "--entrypoint", "/bin/sh"];
        let labels: Vec<&str> = labels.split(' ').filter(|l| !l.is_empty()).flat_map(|l| ["--label", l]).collect();
        let name = ["run", "-d", "--name", name.trim_start_matches('/'), "--network", network];
        let id = run("docker", &[&name[..], &options, &labels, &[image, "-c", SERVER]].concat());
        docker.restart();
        let dir = TempDir::new().unwrap();
        let mut host = Host::start(dir.path(), docker.runtime());
        host.assign(1, items);
        host.until_state(1, InstanceState::Up).await;
        host.until_logged("web.1: hello").await;
        assert_eq!(own_containers(docker), id, "it was replaced");
        assert_eq!(containers(docker).await[0].log_file.as_ref().map(|l| l.form), Some(LogForm::JsonFile));
        host.assign(2, vec![]);
        host.until_empty().await;
        host.stop().await;
    })
    .await;
}
