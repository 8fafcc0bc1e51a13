//! What every [`Runtime`] must do, as tests that run on each of them: the fake's keep it honest, Docker's keep it true.
//!
//! Each function is one test on a runtime of its own. They panic where the contract is broken, as tests do.

use crate::{Desired, ExecSpec, Input, JobSpec, Observed, ObservedPhase, Output, Runtime, RuntimeError, SandboxSpec, Session};
use async_trait::async_trait;
use bytes::Bytes;
use flex_model::{AppId, Command, HealthCheck, HealthProbe, ImageRef, InstanceId, InstanceSpec, Memory, Secret, Uuid};
use futures_util::{StreamExt, stream};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Longer than any step takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime under test.
#[async_trait]
pub trait World: Send + Sync {
    /// The runtime.
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// An image that the runtime has; it has a shell with the usual small tools.
    fn image(&self) -> ImageRef;
    /// A new runtime object for the same installation, as after a restart of the process that had the first.
    async fn restart(&mut self);
}

/// An id that no other test has.
fn id() -> Uuid {
    Uuid::new_v4()
}

/// A spec whose command line runs in a shell; the fake understands the lines that are used here.
pub fn spec(image: &ImageRef, line: &str) -> InstanceSpec {
    InstanceSpec {
        proxy_protocol: None,
        image: image.clone(),
        command: Command::Shell(line.to_owned()),
        env: BTreeMap::from([("GREETING".to_owned(), Secret::new("hello"))]),
        port: None,
        memory: Memory::from_mib(64),
        cpu_shares: 1024,
        cpu_millis: None,
        pids: 64,
        stop_grace_seconds: 1,
        read_only_root: false,
        check: HealthCheck {
            probe: HealthProbe::Running { millis: 1 },
            start_seconds: 10,
            interval_seconds: 1,
            timeout_seconds: 1,
            successes: 1,
            failures: 1,
        },
    }
}

/// A wanted instance at attempt 0.
pub fn desired(image: &ImageRef, name: &str, line: &str) -> Desired {
    Desired {
        instance: InstanceId(id()),
        app: AppId(id()),
        app_name: "contract".into(),
        name: name.into(),
        version: 3,
        attempt: 0,
        spec: spec(image, line),
    }
}

fn job(image: &ImageRef, line: &str) -> JobSpec {
    JobSpec {
        instance: InstanceId(id()),
        app: AppId(id()),
        app_name: "contract".into(),
        name: "run.1".into(),
        version: 3,
        spec: spec(image, line),
        tty: None,
        stdin: true,
    }
}

fn sandbox_spec(image: &ImageRef) -> SandboxSpec {
    SandboxSpec {
        id: id().simple().to_string(),
        image: image.reference.clone(),
        env: BTreeMap::new(),
        cache: None,
        read_only_mounts: Vec::new(),
        memory: Memory::from_mib(128),
        pids: 64,
        cpu_millis: None,
        user: None,
    }
}

fn shell(line: &str) -> ExecSpec {
    ExecSpec { argv: vec!["/bin/sh".into(), "-c".into(), line.into()], ..ExecSpec::default() }
}

/// Waits until what is observed satisfies a condition.
pub async fn until(runtime: &dyn Runtime, what: &str, good: impl Fn(&[Observed]) -> bool) -> Vec<Observed> {
    let start = Instant::now();
    let mut changes = runtime.changes();
    loop {
        let seen = runtime.observe().await.expect("observe");
        if good(&seen) {
            return seen;
        }
        assert!(start.elapsed() < PATIENCE, "never came true: {what}; seen: {seen:#?}");
        let _ = timeout(Duration::from_millis(200), changes.changed()).await;
    }
}

fn running(seen: &[Observed], id: InstanceId) -> bool {
    seen.iter().any(|o| o.instance == id && o.phase == ObservedPhase::Running)
}

/// Reads a session to its end: (stdout, stderr, exit status).
pub async fn finish(session: Session) -> (String, String, Result<i64, RuntimeError>) {
    let Session { input, mut output, exit, .. } = session;
    drop(input);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let all = async {
        while let Some(piece) = output.next().await {
            match piece.expect("output") {
                Output::Stdout(b) => out.extend_from_slice(&b),
                Output::Stderr(b) => err.extend_from_slice(&b),
            }
        }
        exit.await.expect("an exit status")
    };
    let status = timeout(PATIENCE, all).await.expect("the session ends");
    (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned(), status)
}

/// Instances start, are seen with all their marks, stay as they are when converged upon again, and go.
pub async fn starts_keeps_and_stops(world: &mut dyn World) {
    let runtime = world.runtime();
    let (a, b) = (desired(&world.image(), "web.1", "sleep 1000"), desired(&world.image(), "web.2", "sleep 1000"));
    runtime.converge(vec![a.clone(), b.clone()]).await.expect("converge");
    let seen = until(&*runtime, "both run", |s| running(s, a.instance) && running(s, b.instance)).await;
    let one = seen.iter().find(|o| o.instance == a.instance).expect("a");
    assert_eq!((one.name.as_str(), one.version, one.attempt, one.app), ("web.1", 3, 0, a.app));
    assert!(one.ip.is_some() && one.pid.is_some() && one.started_at.is_some(), "{one:?}");
    let pids = |s: &[Observed]| s.iter().map(|o| (o.instance, o.pid)).collect::<BTreeMap<_, _>>();
    runtime.converge(vec![a.clone(), b.clone()]).await.expect("converge");
    runtime.converge(vec![b.clone(), a.clone()]).await.expect("converge");
    assert_eq!(pids(&runtime.observe().await.expect("observe")), pids(&seen), "nothing restarts");
    runtime.converge(vec![b.clone()]).await.expect("converge");
    let left = until(&*runtime, "one is gone", |s| !s.iter().any(|o| o.instance == a.instance)).await;
    assert!(running(&left, b.instance));
    runtime.converge(Vec::new()).await.expect("converge");
    until(&*runtime, "all are gone", |s| s.is_empty()).await;
}

/// A process that starts anew finds what runs, touches none of it, and stops only what is no longer wanted.
pub async fn adopts_after_a_restart(world: &mut dyn World) {
    let (a, b) = (desired(&world.image(), "web.1", "sleep 1000"), desired(&world.image(), "web.2", "sleep 1000"));
    let first = world.runtime();
    first.converge(vec![a.clone(), b.clone()]).await.expect("converge");
    let before = until(&*first, "both run", |s| running(s, a.instance) && running(s, b.instance)).await;
    drop(first);
    world.restart().await;
    let second = world.runtime();
    assert_eq!(second.observe().await.expect("observe"), before, "seen without having been told of");
    second.converge(vec![a.clone()]).await.expect("converge");
    let after = until(&*second, "one is gone", |s| s.len() == 1).await;
    assert_eq!(after[0], *before.iter().find(|o| o.instance == a.instance).expect("a"));
    second.converge(Vec::new()).await.expect("converge");
    until(&*second, "all are gone", |s| s.is_empty()).await;
}

/// An instance that ends stays ended with its status, until a higher attempt makes it anew.
pub async fn crashes_are_told_and_made_anew(world: &mut dyn World) {
    let runtime = world.runtime();
    let mut d = desired(&world.image(), "worker.1", "exit 3");
    runtime.converge(vec![d.clone()]).await.expect("converge");
    let exited = |s: &[Observed], attempt: u32| {
        s.iter().any(|o| o.attempt == attempt && matches!(&o.phase, ObservedPhase::Exited(e) if e.status == 3 && !e.oom))
    };
    until(&*runtime, "it exited", |s| exited(s, 0)).await;
    runtime.converge(vec![d.clone()]).await.expect("converge");
    sleep(Duration::from_millis(300)).await;
    assert!(exited(&runtime.observe().await.expect("observe"), 0), "the same attempt is not run twice");
    d.attempt = 1;
    runtime.converge(vec![d.clone()]).await.expect("converge");
    until(&*runtime, "the next attempt exited", |s| s.len() == 1 && exited(s, 1)).await;
    // An agent that lost count must not go back.
    d.attempt = 0;
    runtime.converge(vec![d]).await.expect("converge");
    sleep(Duration::from_millis(300)).await;
    assert!(exited(&runtime.observe().await.expect("observe"), 1), "a newer incarnation stays");
    runtime.converge(Vec::new()).await.expect("converge");
    until(&*runtime, "all are gone", |s| s.is_empty()).await;
}

/// An instance that ignores SIGTERM is killed after its grace, and holds up nobody meanwhile.
pub async fn a_slow_stop_delays_nobody(world: &mut dyn World) {
    let runtime = world.runtime();
    let mut stubborn = desired(&world.image(), "web.1", "trap '' TERM; while :; do sleep 0.1; done");
    stubborn.spec.stop_grace_seconds = 6;
    runtime.converge(vec![stubborn.clone()]).await.expect("converge");
    until(&*runtime, "it runs", |s| running(s, stubborn.instance)).await;
    let next = desired(&world.image(), "web.1", "sleep 1000");
    let started = Instant::now();
    runtime.converge(vec![next.clone()]).await.expect("converge");
    let seen = until(&*runtime, "the next runs", |s| running(s, next.instance)).await;
    let old = seen.iter().find(|o| o.instance == stubborn.instance).expect("the stubborn one is still there");
    assert_eq!(old.phase, ObservedPhase::Stopping);
    until(&*runtime, "the stubborn one is gone", |s| !s.iter().any(|o| o.instance == stubborn.instance)).await;
    assert!(started.elapsed() >= Duration::from_secs(6), "its grace was kept");
    runtime.converge(Vec::new()).await.expect("converge");
    until(&*runtime, "all are gone", |s| s.is_empty()).await;
}

/// What cannot be made is told, with the reason, and is tried again only at a higher attempt.
pub async fn failures_are_told(world: &mut dyn World) {
    let runtime = world.runtime();
    let mut d = desired(&world.image(), "web.1", "sleep 1000");
    let good = d.spec.image.clone();
    d.spec.image.reference = format!("sha256:{}", "0".repeat(64));
    runtime.converge(vec![d.clone()]).await.expect("converge");
    let failed = |s: &[Observed]| s.iter().any(|o| matches!(&o.phase, ObservedPhase::Failed(why) if !why.is_empty()));
    until(&*runtime, "it failed", failed).await;
    runtime.converge(vec![d.clone()]).await.expect("converge");
    assert!(failed(&runtime.observe().await.expect("observe")), "it is not tried again by itself");
    d.spec.image = good;
    d.attempt = 1;
    runtime.converge(vec![d.clone()]).await.expect("converge");
    until(&*runtime, "it runs", |s| running(s, d.instance)).await;
    runtime.converge(Vec::new()).await.expect("converge");
    until(&*runtime, "all are gone", |s| s.is_empty()).await;
}

/// A changed mind in the middle of starting or stopping ends where the last wish points.
pub async fn the_last_wish_wins(world: &mut dyn World) {
    let runtime = world.runtime();
    let a = desired(&world.image(), "web.1", "sleep 1000");
    for _ in 0..3 {
        runtime.converge(vec![a.clone()]).await.expect("converge");
        runtime.converge(Vec::new()).await.expect("converge");
    }
    runtime.converge(vec![a.clone()]).await.expect("converge");
    until(&*runtime, "it runs", |s| s.len() == 1 && running(s, a.instance)).await;
    runtime.converge(vec![Desired { attempt: 1, ..a.clone() }]).await.expect("converge");
    runtime.converge(Vec::new()).await.expect("converge");
    until(&*runtime, "all are gone", |s| s.is_empty()).await;
}

/// Commands run in an instance: streams apart, environment, input to its end, status, a command that is not there.
pub async fn commands_run_in_instances(world: &mut dyn World) {
    let runtime = world.runtime();
    let a = desired(&world.image(), "web.1", "sleep 1000");
    let missing = runtime.exec(a.instance, shell("true")).await;
    assert!(matches!(missing, Err(RuntimeError::NotFound(_))), "no such instance");
    runtime.converge(vec![a.clone()]).await.expect("converge");
    until(&*runtime, "it runs", |s| running(s, a.instance)).await;
    let session = runtime.exec(a.instance, shell("echo out; echo err >&2; exit 5")).await.expect("exec");
    assert_eq!(finish(session).await, ("out\n".into(), "err\n".into(), Ok(5)));
    let session = runtime.exec(a.instance, ExecSpec { stdin: true, ..shell("cat; echo done") }).await.expect("exec");
    session.input.send(Input::Data(Bytes::from_static(b"line\n"))).await.expect("send");
    session.input.send(Input::Eof).await.expect("send");
    assert_eq!(finish(session).await, ("line\ndone\n".into(), String::new(), Ok(0)));
    runtime.converge(Vec::new()).await.expect("converge");
    until(&*runtime, "all are gone", |s| s.is_empty()).await;
}

/// A job runs to its end, is no instance, and leaves nothing behind; without its client it does not run on.
pub async fn jobs_run_once(world: &mut dyn World) {
    let runtime = world.runtime();
    let session = runtime.run_once(job(&world.image(), "echo out; echo err >&2; exit 7")).await.expect("run");
    assert!(runtime.observe().await.expect("observe").is_empty(), "jobs are no instances");
    assert_eq!(finish(session).await, ("out\n".into(), "err\n".into(), Ok(7)));
    let session = runtime.run_once(job(&world.image(), "cat; echo done")).await.expect("run");
    session.input.send(Input::Data(Bytes::from_static(b"line\n"))).await.expect("send");
    assert_eq!(finish(session).await, ("line\ndone\n".into(), String::new(), Ok(0)));
    let session = runtime.run_once(job(&world.image(), "sleep 1000")).await.expect("run");
    session.input.send(Input::Signal(15)).await.expect("send");
    assert_eq!(finish(session).await.2, Ok(143), "SIGTERM reaches it");
    for (line, status) in [("sleep 1000", 129), ("trap '' HUP; sleep 1000", 143)] {
        let Session { input, output, exit, oom } = runtime.run_once(job(&world.image(), line)).await.expect("run");
        drop((input, output));
        let ended = timeout(PATIENCE, exit).await.expect("it is stopped").expect("a status");
        assert_eq!(ended, Ok(status), "SIGHUP first, then SIGTERM: {line}");
        assert!(!oom.load(std::sync::atomic::Ordering::Relaxed), "{line}");
    }
    assert_eq!(runtime.reap(&[]).await.expect("reap"), Vec::<String>::new(), "each was removed at its end");
}

/// A sandbox takes files, runs commands one after another, gives files back, and goes.
pub async fn sandboxes_build(world: &mut dyn World) {
    let runtime = world.runtime();
    let spec = sandbox_spec(&world.image());
    let sandbox = runtime.sandbox(spec.clone()).await.expect("sandbox");
    assert!(runtime.sandbox(spec).await.is_err(), "its id is taken");
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "given", &b"bytes"[..]).expect("tar");
    let archive = archive.into_inner().expect("tar");
    sandbox.put("/tmp", stream::iter([Ok(Bytes::from(archive))]).boxed()).await.expect("put");
    let read = sandbox.exec(shell("cat /tmp/given")).await.expect("exec");
    assert_eq!(finish(read).await, ("bytes".into(), String::new(), Ok(0)));
    let back: Vec<u8> = sandbox.get("/tmp/given").await.expect("get").map(|b| b.expect("bytes").to_vec()).concat().await;
    let mut back = tar::Archive::new(&back[..]);
    let entry = back.entries().expect("tar").next().expect("an entry").expect("an entry");
    assert_eq!((entry.path().expect("path").to_str(), entry.size()), (Some("given"), 5));
    assert!(matches!(sandbox.get("/nowhere").await.map(|_| ()), Err(RuntimeError::NotFound(_))));
    assert!(sandbox.disk_used().await.expect("disk used") >= 5);
    assert!(runtime.observe().await.expect("observe").is_empty(), "sandboxes are no instances");
    assert_eq!(runtime.reap(&[]).await.expect("reap"), Vec::<String>::new(), "a live sandbox is not reaped");
    sandbox.destroy().await.expect("destroy");
    sandbox.destroy().await.expect("destroy again");
    assert!(sandbox.exec(shell("true")).await.is_err(), "it is gone");
}

/// What an earlier run of the process left behind is removed, except for what is to be kept.
pub async fn leftovers_are_reaped(world: &mut dyn World) {
    let first = world.runtime();
    let (left, kept) = (sandbox_spec(&world.image()), sandbox_spec(&world.image()));
    let _gone = first.sandbox(left.clone()).await.expect("sandbox");
    let _kept = first.sandbox(kept.clone()).await.expect("sandbox");
    drop(first);
    world.restart().await;
    let second = world.runtime();
    assert_eq!(second.reap(std::slice::from_ref(&kept.id)).await.expect("reap"), vec![left.id]);
    assert_eq!(second.reap(std::slice::from_ref(&kept.id)).await.expect("reap"), Vec::<String>::new());
    assert_eq!(second.reap(&[]).await.expect("reap"), vec![kept.id]);
}

/// Waking is prompt: a crash is known well before anybody would ask again by the clock.
pub async fn changes_wake(world: &mut dyn World) {
    let runtime = world.runtime();
    let a = desired(&world.image(), "web.1", "sleep 2; exit 1");
    let mut changes = runtime.changes();
    runtime.converge(vec![a.clone()]).await.expect("converge");
    until(&*runtime, "it runs", |s| running(s, a.instance)).await;
    changes.mark_unchanged();
    let exited = |s: &[Observed]| s.iter().any(|o| matches!(o.phase, ObservedPhase::Exited(_)));
    let woken = async {
        while !exited(&runtime.observe().await.expect("observe")) {
            changes.changed().await.expect("changes");
        }
    };
    timeout(PATIENCE, woken).await.expect("woken by the crash alone");
    runtime.converge(Vec::new()).await.expect("converge");
    until(&*runtime, "all are gone", |s| s.is_empty()).await;
}

/// Hands the names of all cases to a macro that makes a test of each, so that no runtime can leave one out.
#[macro_export]
macro_rules! contract_cases {
    ($make:ident) => {
        $make![
            starts_keeps_and_stops,
            adopts_after_a_restart,
            crashes_are_told_and_made_anew,
            a_slow_stop_delays_nobody,
            failures_are_told,
            the_last_wish_wins,
            commands_run_in_instances,
            jobs_run_once,
            sandboxes_build,
            leftovers_are_reaped,
            changes_wake,
        ];
    };
}
