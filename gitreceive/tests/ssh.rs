//! The OpenSSH client against the real server: who gets in, and what a session may do.

mod common;

use common::{Done, World, until};
use flex_gitreceive::GitSettings;
use std::{fs, time::Duration};
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    process::Command,
};

async fn fingerprint(world: &World, key: &str) -> String {
    let mut keygen = Command::new("ssh-keygen");
    keygen.arg("-lf").arg(world.path(&format!("{key}.pub")));
    Done::of(keygen).await.ok().out.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_learn_what_to_do() {
    let world = World::new().await;
    world.source("src").await;
    let print = fingerprint(&world, "stranger").await;
    let push = Done::of(world.git_as("stranger", "src", &["push", "flex", "main"])).await;
    let push = push.fails("flex keys:add ~/.ssh/id_ed25519.pub");
    assert_eq!(push.err.matches(&print).count(), 1, "{push:?}");
    assert!(push.err.contains("Permission denied (publickey)"), "{push:?}");
    for args in [&["git@127.0.0.1"][..], &["-oBatchMode=yes", "git@127.0.0.1", "git-upload-pack 'my-app.git'"]] {
        let done = Done::of(world.ssh_as("stranger", args)).await.fails("Permission denied");
        assert_eq!((done.status, done.out.as_str()), (Some(255), ""));
    }
    assert!(world.gate.pushes.lock().unwrap().is_empty());
    assert!(!world.repository("my-app").exists(), "no stranger makes a repository");
    // The same key, once registered, works.
    world.register("stranger");
    Done::of(world.git_as("stranger", "src", &["push", "flex", "main"])).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_of_several_keys_hear_nothing() {
    let world = World::new().await;
    let second = format!("-oIdentityFile={}", world.path("ann").display());
    let done = Done::of(world.ssh_as("stranger", &[&second, "git@127.0.0.1", "nonsense"])).await;
    assert_eq!(done.status, Some(127), "{done:?}");
    assert!(!done.err.contains("not registered"), "{done:?}");

    let mut args = Vec::new();
    for n in 0..6 {
        let mut keygen = Command::new("ssh-keygen");
        let file = world.path(&format!("extra{n}"));
        Done::of({
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file);
            keygen
        })
        .await
        .ok();
        args.push(format!("-oIdentityFile={}", file.display()));
    }
    args.extend(["git@127.0.0.1".into(), "nonsense".into()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = Done::of(world.ssh_as("stranger", &args)).await.fails("IdentitiesOnly");
    assert_eq!(done.status, Some(255), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_gate_are_shown() {
    let world = World::new().await;
    world.source("src").await;
    let url = world.url("no-such-app");
    let push = world.git("src", &["push", &url, "main"]).await.fails("There is no app called no-such-app.");
    assert!(push.err.contains(" !     There is no app"), "{push:?}");
    world.git("src", &["push", &world.url("read-only"), "main"]).await.fails("You may read this app only.");
    world.git(".", &["clone", &world.url("read-only"), "copy"]).await.ok();
    world.git("src", &["push", &world.url("..%2fmy-app"), "main"]).await.fails("does not name an app");
    assert!(world.gate.pushes.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_list_is_run() {
    let world = World::new().await;
    let table = [
        ("id", 127),
        ("sh -c id", 127),
        ("git-receive-pack 'my-app.git'; id", 1),
        ("git-receive-pack '$(id)'", 1),
        ("git-upload-pack '../../etc'", 1),
        ("git-upload-archive 'my-app.git'", 127),
        ("git --version", 127),
        ("scp -t /", 127),
        ("git-receive-pack 'no-such-app'", 1),
    ];
    for (command, status) in table {
        let done = Done::of(world.ssh_as("ann", &["git@127.0.0.1", command])).await;
        assert_eq!((done.status, done.out.as_str()), (Some(status), ""), "{command}: {done:?}");
        assert!(done.err.starts_with(" !     ") && !done.err.contains("uid="), "{command}: {done:?}");
    }
    let shell = Done::of(world.ssh_as("ann", &["git@127.0.0.1"])).await;
    assert_eq!(shell.status, Some(1), "{shell:?}");
    assert!(shell.err.contains("Hello ann@example.com") && shell.err.contains("no shell"), "{shell:?}");
    let pty = Done::of(world.ssh_as("ann", &["-tt", "git@127.0.0.1"])).await;
    assert!(pty.err.contains("no shell") && !pty.err.contains("PTY allocation request failed"), "{pty:?}");
    let done = Done::of(world.ssh_as("ann", &["-s", "git@127.0.0.1", "sftp"])).await;
    done.fails("subsystem request failed");
    let here = format!("127.0.0.1:{}", world.port);
    let done = Done::of(world.ssh_as("ann", &["-W", &here, "git@127.0.0.1"])).await;
    done.fails("administratively prohibited");
    let back = format!("0:{here}");
    let done = Done::of(world.ssh_as("ann", &["-oExitOnForwardFailure=yes", "-NR", &back, "git@127.0.0.1"])).await;
    done.fails("remote port forwarding failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_is_ignored() {
    let world = World::new().await;
    world.source("src").await;
    world.git("src", &["push", "flex", "main"]).await.ok();
    let trace = world.path("trace");
    let upload = "git-upload-pack 'my-app.git'";
    for (protocol, first) in
        [("version=2", "version 2"), ("version=1", "version 1"), ("version=9", world.head("src").await.as_str())]
    {
        let set = format!("SetEnv=GIT_PROTOCOL={protocol} GIT_TRACE={} GIT_DIR=/ LD_PRELOAD=/x", trace.display());
        let done = Done::of(world.ssh_as("ann", &["-o", &set, "git@127.0.0.1", upload])).await;
        assert_eq!(done.out.get(4..4 + first.len()), Some(first), "{done:?}");
        assert!(!trace.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_silent_connections_does_not_stop_a_push() {
    let world = World::with(|s: &mut GitSettings| s.connections.login_grace = Duration::from_secs(2)).await;
    world.source("src").await;
    let mut flood = Vec::new();
    for _ in 0..500 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        flood.push(socket.connect(format!("127.0.0.1:{}", world.port).parse().unwrap()).await.unwrap());
    }
    world.git("src", &["push", "flex", "main"]).await.ok();
    // Those who took a place and showed no key are cut, whatever they wait for.
    for mut silent in flood {
        let mut greeting = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(30), silent.read_to_end(&mut greeting)).await;
        assert!(end.is_ok(), "a silent connection is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_says_so() {
    let world = World::with(|s| s.limits.max_commands = 0).await;
    world.source("src").await;
    world.git("src", &["push", "flex", "main"]).await.fails("at its limit of 0 git commands");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_sessions_and_frees_the_address() {
    let mut world = World::with(|s| s.drain = Duration::from_millis(100)).await;
    let mut idle = world.ssh_as("ann", &["-N", "git@127.0.0.1"]).spawn().unwrap();
    let go = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    world.source("src").await;
    world.plan(&["-----> Building"], Some(true), Some(go));
    let push = tokio::spawn(Done::of(world.git_as("ann", "src", &["push", "flex", "main"])));
    until("the push is at the gate", || !world.gate.pushes.lock().unwrap().is_empty()).await;
    world.shutdown.cancel();
    let server = world.server.take().unwrap();
    tokio::time::timeout(Duration::from_secs(20), server).await.expect("serve returns").unwrap();
    let push = push.await.unwrap().fails("Flex is being restarted");
    assert!(push.err.contains("flex releases") && !push.err.contains("Nothing was changed"), "{push:?}");
    tokio::time::timeout(Duration::from_secs(20), idle.wait()).await.expect("idle sessions end").unwrap();
    assert!(TcpStream::connect(("127.0.0.1", world.port)).await.is_err());
    assert!(!fs::exists(world.path("run/hook.sock")).unwrap());
    assert_eq!(world.stored("my-app", "refs/heads/main"), "");
    world.healthy("my-app").await;
}
