//! What an app cannot do, seen from inside, and that everyone is kept apart.

use super::{Docker, with_docker};
use flex_model::{Command, InstanceId, Memory, Secret};
use flex_runtime::{
    ExecSpec, JobSpec, ObservedPhase, Output, Runtime, SandboxSpec, Session, TtySize,
    contract::{World, desired, finish, spec, until},
};
use futures_util::StreamExt;
use std::{collections::BTreeMap, time::Duration};

pub fn shell(line: &str) -> ExecSpec {
    ExecSpec { argv: vec!["/bin/sh".into(), "-c".into(), line.into()], ..ExecSpec::default() }
}

async fn inside(docker: &Docker, instance: InstanceId, line: &str) -> String {
    let session = docker.docker().exec(instance, shell(line)).await.expect("exec");
    let (out, err, _) = finish(session).await;
    format!("{out}{err}")
}

pub fn sandbox_spec(docker: &Docker, id: &str) -> SandboxSpec {
    SandboxSpec {
        id: id.into(),
        image: docker.image().reference,
        env: BTreeMap::from([("STACK".to_owned(), Secret::new("test"))]),
        cache: None,
        read_only_mounts: Vec::new(),
        memory: Memory::from_mib(128),
        pids: 64,
        cpu_millis: Some(1500),
        user: None,
    }
}

fn job(docker: &Docker, line: &str, tty: Option<TtySize>) -> JobSpec {
    let d = desired(&docker.image(), "run.1", line);
    JobSpec { instance: d.instance, app: d.app, app_name: d.app_name, name: d.name, version: 1, spec: d.spec, tty, stdin: true }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apps_have_no_powers() {
    with_docker("powers", async |docker| {
        let runtime = docker.docker();
        let mut a = desired(&docker.image(), "web.1", "sleep 1000");
        a.spec.read_only_root = true;
        a.spec.pids = 20;
        a.spec.cpu_millis = Some(500);
        runtime.converge(vec![a.clone()]).await.unwrap();
        until(&*runtime, "it runs", |s| s.iter().any(|o| o.phase == ObservedPhase::Running)).await;
        let status = inside(docker, a.instance, "cat /proc/self/status").await;
        let field = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
            line.split_whitespace().nth(1).unwrap_or_default().to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(&format!("{set}:")), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2", "a filter");
        let limits = inside(docker, a.instance, "cat /proc/1/limits").await;
        assert!(limits.lines().any(|l| l.starts_with("Max open files") && l.contains("10000")), "{limits}");
        assert_eq!(inside(docker, a.instance, "echo $GREETING; touch /x; touch /tmp/x && echo ok").await.lines().count(), 3);
        assert!(inside(docker, a.instance, "touch /x").await.contains("Read-only"));
        assert!(inside(docker, a.instance, "cat /proc/1/cmdline").await.contains("init"), "an init process reaps");
        // Microseconds of a tenth of a second: half a core.
        let quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
        assert_eq!(inside(docker, a.instance, quota).await.trim(), "50000", "the hard limit of the processors holds");
        assert!(inside(docker, a.instance, "ls /var/run/docker.sock").await.contains("No such file"));
        for refused in ["mount -t tmpfs x /tmp", "chown 1000 /tmp", "ping -c1 127.0.0.1"] {
            assert!(!inside(docker, a.instance, refused).await.is_empty(), "{refused}");
        }
        // Last, since nothing else can be started until they have ended.
        let forks = "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done";
        assert!(inside(docker, a.instance, forks).await.contains("fork"), "the limit on processes holds");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_limited_and_the_kill_is_told() {
    with_docker("memory", async |docker| {
        let runtime = docker.docker();
        let mut a = desired(&docker.image(), "web.1", "x=$(yes | head -c 100000000); sleep 1000");
        a.spec.memory = Memory::from_mib(16);
        runtime.converge(vec![a.clone()]).await.unwrap();
        let seen = until(&*runtime, "it was killed", |s| s.iter().any(|o| matches!(&o.phase, ObservedPhase::Exited(_)))).await;
        let ObservedPhase::Exited(exit) = &seen[0].phase else { unreachable!() };
        assert!(exit.oom && exit.status == 137, "{exit:?}");
        assert!(exit.at.micros() > 0 && exit.at >= seen[0].started_at.expect("started"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_do_not_reach_each_other_but_the_host_reaches_them() {
    with_docker("apart", async |docker| {
        let runtime = docker.docker();
        let serve = "echo served > /tmp/index.html; exec httpd -f -p 5000 -h /tmp";
        let (a, b) = (desired(&docker.image(), "web.1", serve), desired(&docker.image(), "web.2", serve));
        runtime.converge(vec![a.clone(), b.clone()]).await.unwrap();
        let both = |s: &[flex_runtime::Observed]| s.iter().filter(|o| o.phase == ObservedPhase::Running).count() == 2;
        let seen = until(&*runtime, "both run", both).await;
        let ip = |i: InstanceId| seen.iter().find(|o| o.instance == i).and_then(|o| o.ip).expect("an address");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while tokio::net::TcpStream::connect((ip(a.instance), 5000)).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "the host reaches it");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let fetch = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {} 5000", ip(a.instance));
        assert!(inside(docker, a.instance, &fetch).await.contains("served"), "it reaches itself");
        assert!(!inside(docker, b.instance, &fetch).await.contains("served"), "another instance does not");
        let sandbox = runtime.sandbox(sandbox_spec(docker, "apart")).await.unwrap();
        let (out, _, _) = finish(sandbox.exec(shell(&fetch)).await.unwrap()).await;
        assert!(!out.contains("served"), "nor does a build");
        sandbox.destroy().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn installations_leave_each_other_alone() {
    with_docker("mine", async |mine| {
        with_docker("yours", async |yours| {
            let a = desired(&mine.image(), "web.1", "sleep 1000");
            let b = desired(&yours.image(), "web.1", "sleep 1000");
            mine.docker().converge(vec![a.clone()]).await.unwrap();
            yours.docker().converge(vec![b.clone()]).await.unwrap();
            let running = |s: &[flex_runtime::Observed]| s.len() == 1 && s[0].phase == ObservedPhase::Running;
            until(&*mine.docker(), "mine runs", running).await;
            let before = until(&*yours.docker(), "yours runs", running).await;
            let _build = yours.docker().sandbox(sandbox_spec(yours, "theirs")).await.unwrap();
            assert!(mine.docker().exec(b.instance, shell("true")).await.is_err());
            mine.docker().converge(Vec::new()).await.unwrap();
            until(&*mine.docker(), "mine is gone", |s| s.is_empty()).await;
            assert!(mine.docker().reap(&[]).await.unwrap().is_empty());
            mine.docker().purge().await.unwrap();
            assert_eq!(yours.docker().observe().await.unwrap(), before);
        })
        .await;
    })
    .await;
}

/// The next output that holds `text`.
async fn expect(session: &mut Session, text: &str) -> String {
    let mut all = String::new();
    let wait = async {
        let all = &mut all;
        while !all.contains(text) {
            match session.output.next().await {
                Some(Ok(Output::Stdout(b) | Output::Stderr(b))) => all.push_str(&String::from_utf8_lossy(&b)),
                other => panic!("the session ended before {text:?}: {all:?} {other:?}"),
            }
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(30), wait).await;
    assert!(done.is_ok(), "never said {text:?}, but {all:?}");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminals_have_their_size_from_the_start() {
    use flex_runtime::Input;
    with_docker("tty", async |docker| {
        let runtime = docker.docker();
        let size = TtySize { rows: 33, cols: 101 };
        let mut session = runtime.run_once(job(docker, "stty size; cat; echo bye; exit 4", Some(size))).await.unwrap();
        expect(&mut session, "33 101").await;
        session.input.send(Input::Data("typed\n".into())).await.unwrap();
        session.input.send(Input::Eof).await.unwrap();
        let (out, _, status) = finish(session).await;
        assert!(out.contains("typed") && out.contains("bye") && status == Ok(4), "{out:?} {status:?}");

        let resized = "while [ \"$(stty size)\" != '40 120' ]; do sleep 0.05; done; echo resized; sleep 1000";
        let mut session = runtime.run_once(job(docker, resized, Some(size))).await.unwrap();
        session.input.send(Input::Resize(TtySize { rows: 40, cols: 120 })).await.unwrap();
        expect(&mut session, "resized").await;
        session.input.send(Input::Data("\x03".into())).await.unwrap();
        assert_eq!(finish(session).await.2, Ok(130), "Ctrl-C");

        let sandbox = runtime.sandbox(sandbox_spec(docker, "tty")).await.unwrap();
        // A terminal program may begin with any byte.
        let odd = ExecSpec { tty: Some(size), ..shell("printf '\\001\\000\\000end'") };
        let (out, _, status) = finish(sandbox.exec(odd).await.unwrap()).await;
        assert_eq!((out.as_str(), status), ("\x01\0\0end", Ok(0)));
        let mut session = sandbox.exec(shell("echo here; sleep 1000")).await.unwrap();
        expect(&mut session, "here").await;
        session.input.send(Input::Signal(15)).await.unwrap();
        assert_eq!(finish(session).await.2, Ok(143), "execs can be signalled");
        sandbox.destroy().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_lines_come_through_and_a_slow_reader_costs_nothing() {
    with_docker("flood", async |docker| {
        let runtime = docker.docker();
        let mut session = runtime.run_once(job(docker, "seq 1 1000000; echo end >&2", None)).await.unwrap();
        let (mut bytes, mut err, mut pieces) = (0u64, Vec::new(), 0);
        while let Some(piece) = session.output.next().await {
            match piece.unwrap() {
                Output::Stdout(b) => bytes += b.len() as u64,
                Output::Stderr(b) => err.extend_from_slice(&b),
            }
            pieces += 1;
            if pieces < 5 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        assert_eq!((bytes, err.as_slice(), session.exit.await.unwrap()), (6_888_896, &b"end\n"[..], Ok(0)));
        // Input of some size, all of it, then its end.
        let counted = runtime.run_once(job(docker, "wc -c", None)).await.unwrap();
        for _ in 0..200 {
            counted.input.send(flex_runtime::Input::Data(vec![b'x'; 50_000].into())).await.unwrap();
        }
        assert_eq!(finish(counted).await.0.trim(), "10000000");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_have_their_cache_and_mounts() {
    with_docker("cache", async |docker| {
        let runtime = docker.docker();
        let given = tempfile::tempdir().unwrap();
        std::fs::write(given.path().join("file"), "from the host").unwrap();
        let mut spec = sandbox_spec(docker, "one");
        spec.user = Some("1000:1000".into());
        spec.cache = Some(("app1".into(), "/cache/app".into()));
        spec.read_only_mounts = vec![(given.path().to_owned(), "/given".into())];
        let sandbox = runtime.sandbox(spec.clone()).await.unwrap();
        let line = "id -u; cat /given/file; touch /given/x; echo kept > /cache/app/state; ls /cache/app; echo $STACK";
        let (out, err, _) = finish(sandbox.exec(shell(line)).await.unwrap()).await;
        assert_eq!(out, "1000\nfrom the hoststate\ntest\n", "{err}");
        assert!(err.contains("Read-only"), "{err}");
        let root = ExecSpec { user: Some("0:0".into()), workdir: Some("/tmp".into()), ..shell("id -u; pwd") };
        assert_eq!(finish(sandbox.exec(root).await.unwrap()).await.0, "0\n/tmp\n");
        sandbox.destroy().await.unwrap();
        let again = SandboxSpec { id: "two".into(), ..spec.clone() };
        let sandbox = runtime.sandbox(again).await.unwrap();
        let (out, _, _) =
            finish(sandbox.exec(shell("cat /cache/app/state; echo more >> /cache/app/state && echo ok")).await.unwrap()).await;
        assert_eq!(out, "kept\nok\n");
        assert!(runtime.remove_volume("app1").await.is_err(), "it is in use");
        sandbox.destroy().await.unwrap();
        runtime.remove_volume("app1").await.unwrap();
        runtime.remove_volume("app1").await.unwrap();
        assert!(runtime.remove_volume("../x").await.is_err());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_not_there_is_told() {
    with_docker("nocmd", async |docker| {
        let runtime = docker.docker();
        let mut a = desired(&docker.image(), "web.1", "");
        a.spec = flex_model::InstanceSpec { command: Command::Exec(vec!["/no/such".into()]), ..spec(&docker.image(), "") };
        runtime.converge(vec![a.clone()]).await.unwrap();
        // The init process starts; it cannot start the command, and says so in the log.
        let ended =
            |s: &[flex_runtime::Observed]| s.iter().any(|o| matches!(&o.phase, ObservedPhase::Exited(e) if e.status == 127));
        let seen = until(&*runtime, "it ended", ended).await;
        let log = std::fs::read(&seen[0].log_file.as_ref().unwrap().path).unwrap();
        let log = String::from_utf8_lossy(&log);
        assert!(log.contains("/no/such"), "{log}");
        let sandbox = runtime.sandbox(sandbox_spec(docker, "nocmd")).await.unwrap();
        let session = sandbox.exec(ExecSpec { argv: vec!["/no/such".into()], ..ExecSpec::default() }).await;
        match session {
            Ok(session) => assert!(matches!(finish(session).await.2, Ok(126 | 127))),
            Err(e) => assert!(e.to_string().contains("/no/such"), "{e}"),
        }
        sandbox.destroy().await.unwrap();
    })
    .await;
}
