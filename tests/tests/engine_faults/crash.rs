//! kill -9 of the server: idle, in the middle of a pack, of a build and of a release phase, and at each step of a deploy.
//!
//! The steps of a deploy are found from outside, so that the binary under test is the one that users run and nothing in it
//! could be set off by accident: a durable step is a commit, and each one raises the revision in `state.head`, which is
//! watched; a call that changes something in the engine passes [`crate::proxy`], which kills the server when the call has
//! had its effect and before its answer arrives. (What lies before a call is what follows the commit or the call before.)

use crate::proxy::Proxy;
use crate::world::{COMPILE, Steady, WEB, files, is_sound, kill_now, list, noise, push_in_background, push_page, world};
use flex_tests::{Repo, Server, Setup, get, wait_for};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn killed_while_idle_receiving_and_building() {
    let (mut server, user) = world(Setup::default());
    let app = user.repo("kill", &files("one"));
    app.push().ok();

    // Idle: the same containers, adopted within two seconds of serving again.
    is_sound(&server, &app, &["one"]);
    let before = server.containers();
    let client = Steady::on(server.http, "kill", &["one"]);
    server.end(Signal::SIGKILL);
    server.up();
    is_sound(&server, &app, &["one"]);
    assert_eq!(before, server.containers());
    client.none_wrong();

    // In the middle of a pack: large in the history, small in the tree, so that only receiving takes long.
    // More than a hundred objects, or git would unpack them and not keep the pack.
    std::fs::create_dir(app.dir.join("noise")).unwrap();
    for n in 0..128 {
        std::fs::write(app.dir.join(format!("noise/{n}")), noise(96 << 10)).unwrap();
    }
    app.commit(&[]);
    std::fs::remove_dir_all(app.dir.join("noise")).unwrap();
    app.commit(&files("two"));
    let client = Steady::on(server.http, "kill", &["one", "two"]);
    let pushing = push_in_background(&app, |_| {});
    wait_for("a pack to arrive", Duration::from_secs(30), || incoming_bytes(server.data_dir()).filter(|n| *n > 1 << 20));
    server.end(Signal::SIGKILL);
    assert_ne!(pushing.end().status, 0);
    server.up();
    assert_eq!(is_sound(&server, &app, &["one"]), "one");
    app.push().ok();
    assert_eq!(is_sound(&server, &app, &["two"]), "two");
    client.none_wrong();

    // In the middle of a build.
    app.commit(&[("bin/compile", "#!/bin/sh\necho '-----> Never done'\nsleep 1000\n")]);
    let (pid, builds) = (server.pid().unwrap(), list(&app, &["builds"]).len());
    let pushing = push_in_background(&app, move |line| {
        if line.contains("Never done") {
            kill_now(pid);
        }
    });
    let ended = pushing.end();
    assert!(ended.status != 0 && ended.err.contains("Never done"), "{}", ended.err);
    server.end(Signal::SIGKILL);
    let sandbox = |s: &Server| s.containers().iter().filter(|n| n.contains("build")).count();
    server.up();
    let restarted = Instant::now();
    wait_for("the dead build's container to go", Duration::from_secs(10), || (sandbox(&server) == 0).then_some(()));
    println!("the dead build's container was gone after {:?}", restarted.elapsed());
    assert_eq!(is_sound(&server, &app, &["two"]), "two");
    let now = list(&app, &["builds"]);
    assert_eq!(now.len(), builds + 1);
    app.flex(&["builds"]).ok();
    let failed: Vec<_> = now.iter().filter(|b| b["status"] == "failed").collect();
    assert_eq!(failed.len(), 1, "the interrupted build alone: {now:#?}");
    push_page(&server, &app, "three");
    is_sound(&server, &app, &["three"]);
}

/// What was running of it is ended by the next server, which runs it from the start; nobody has to push again.
#[test]
fn killed_in_a_release_phase() {
    let (mut server, user) = world(Setup::default());
    let app = user.repo("phase", &files("one"));
    app.push().ok();
    is_sound(&server, &app, &["one"]);
    let client = Steady::on(server.http, "phase", &["one", "two", "three"]);
    // Sums, so that the command in the log is not taken for what it prints.
    let procfile = format!("{WEB}release: echo \"begun $((20 + 1))\"; sleep 6; echo \"done $((20 + 2))\"\n");
    app.commit(&files("two"));
    app.commit(&[("Procfile", &procfile)]);
    let pid = server.pid().unwrap();
    let pushing = push_in_background(&app, move |line| {
        if line.contains("begun 21") {
            kill_now(pid);
        }
    });
    let ended = pushing.end();
    assert!(ended.status != 0 && ended.err.contains("begun 21") && !ended.err.contains("done 22"), "{}", ended.err);
    assert!(!ended.err.contains("Nothing was changed"), "{}", ended.err);
    server.end(Signal::SIGKILL);
    server.up();
    wait_for("the release to be served", Duration::from_secs(60), || {
        (get(server.http, "phase.localhost", "/")?.body.trim() == "two").then_some(())
    });
    is_sound(&server, &app, &["two"]);
    let said = app.flex(&["releases:output"]).ok().out;
    assert_eq!(said.matches("done 22").count(), 1, "{said}");
    push_page(&server, &app, "three");
    is_sound(&server, &app, &["three"]);
    client.none_wrong();
}

/// Bytes of an answer, more than sockets buffer.
const LONG: usize = 32 << 20;

/// Another process takes over, twice: no request to an app fails, and none to the API; a request that takes long is answered by
/// the process that it came to, while the next one has the data directory.
#[test]
fn an_upgrade_fails_no_request() {
    let (mut server, user) = world(Setup::default());
    let app = user.repo("kept", &files("one"));
    app.commit(&[("bin/compile", &format!("{COMPILE}head -c {LONG} /dev/zero >\"$1/www/long\"\n"))]);
    app.push().ok();
    let clients: Vec<_> = (0..4).map(|_| Steady::on(server.http, "kept", &["one", "two"])).collect();
    // An answer that is not read yet keeps the process before from ending.
    let mut slow = std::net::TcpStream::connect(server.http).unwrap();
    write!(slow, "GET /long HTTP/1.1\r\nHost: kept.localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut first = [0];
    slow.read_exact(&mut first).unwrap();
    let api = server.api;
    let asked = std::thread::spawn(move || {
        let ended = Instant::now() + Duration::from_secs(3);
        let mut failed = 0;
        while Instant::now() < ended {
            failed += usize::from(flex_tests::get(api, "localhost", "/health").is_none_or(|a| a.status != 200));
            std::thread::sleep(Duration::from_millis(20));
        }
        failed
    });
    let began = Instant::now();
    server.upgrade_while(|_| {
        // By now the new process serves everything, and the old one still has this request.
        println!("the new process served after {:?}", began.elapsed());
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).unwrap();
        let head = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        assert_eq!(rest.len() - head - 4, LONG, "{}", String::from_utf8_lossy(&rest[..head]));
    });
    // A connection that has not brought its request when the API stops is closed.
    assert!(asked.join().unwrap() <= 1, "failed requests to the API");
    // What the old process answered last is in the log that the new one keeps.
    wait_for("the line of the long answer", Duration::from_secs(20), || {
        app.flex(&["logs", "-s", "router", "-n", "1000"]).out.contains("path=\"/long\"").then_some(())
    });
    push_page(&server, &app, "two");
    server.upgrade_while(|_| ());
    is_sound(&server, &app, &["two"]);
    // The containers of builds go a moment after them.
    let instances = || server.containers().iter().filter(|name| name.contains("-web.")).count();
    wait_for("one instance and nothing else", Duration::from_secs(30), || {
        (server.containers().len() == 1 && instances() == 1).then_some(())
    });
    for client in clients {
        client.none_failed();
    }
}

/// Bytes of the pack that is being received.
fn incoming_bytes(data: &Path) -> Option<u64> {
    let repositories = std::fs::read_dir(data.join("repositories")).ok()?.flatten();
    let objects = repositories.filter_map(|r| std::fs::read_dir(r.path().join("objects")).ok()).flat_map(Iterator::flatten);
    let packs = objects
        .filter(|o| o.file_name().to_string_lossy().starts_with("tmp_objdir-incoming"))
        .filter_map(|o| std::fs::read_dir(o.path().join("pack")).ok())
        .flat_map(Iterator::flatten);
    packs.filter_map(|p| p.metadata().ok()).map(|m| m.len()).max()
}

/// The last acknowledged revision.
fn revision(data: &Path) -> u64 {
    std::fs::read(data.join("state.head")).ok().and_then(|b| Some(u64::from_be_bytes(b.get(..8)?.try_into().ok()?))).unwrap_or(0)
}

/// Kills at every step of a deploy, one deploy for each; `arm` plans the `n`th death, and says at the end whether it came.
fn sweep(server: &mut Server, app: &Repo<'_>, arm: impl Fn(&Server, Pid, usize) -> Box<dyn FnOnce() -> bool>) -> usize {
    for n in 1..100 {
        let (old, new) = (format!("page {}", n - 1), format!("page {n}"));
        app.commit(&files(&new));
        let client = Steady::on(server.http, &app.app, &[&old, &new]);
        let pid = server.pid().unwrap();
        let died = arm(server, pid, n);
        let ended = push_in_background(app, |_| {}).end();
        // What goes on after a push: old instances drain, the build's container goes.
        let until = Instant::now() + Duration::from_secs(4);
        let gone = || Path::new(&format!("/proc/{pid}/stat")).exists() && is_zombie(pid);
        while ended.status == 0 && !gone() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        if !died() {
            ended.ok();
            client.none_wrong();
            is_sound(server, app, &[&new]);
            return n - 1;
        }
        // Nobody can know that then: the release may be made, and serve after the start.
        assert!(!ended.err.contains("Nothing was changed"), "step {n}: {}", ended.err);
        server.end(Signal::SIGKILL);
        server.up();
        let served = is_sound(server, app, &[&old, &new]);
        // The same commit again: whatever came of it the first time, it is served then.
        app.push().ok();
        assert_eq!(is_sound(server, app, &[&new]), new, "step {n}, after which {served:?} was served: {}", ended.err);
        client.none_wrong();
    }
    panic!("a deploy has no end of steps");
}

fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[test]
fn killed_after_each_commit_of_a_deploy() {
    let (mut server, user) = world(Setup::default());
    let app = user.repo("commits", &files("page 0"));
    app.push().ok();
    is_sound(&server, &app, &["page 0"]);
    let steps = sweep(&mut server, &app, |server, pid, n| {
        let (data, stop, died) =
            (server.data_dir().to_owned(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, dead, at) = (stop.clone(), died.clone(), revision(&data) + n as u64);
        let watcher = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if revision(&data) >= at {
                    kill_now(pid);
                    dead.store(true, Ordering::Relaxed);
                    return;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Box::new(move || {
            stop.store(true, Ordering::Relaxed);
            watcher.join().unwrap();
            died.load(Ordering::Relaxed)
        })
    });
    println!("a deploy has {steps} commits");
    assert!(steps >= 5, "only {steps} commits were seen");
}

#[test]
fn killed_at_each_call_to_the_engine() {
    let doors = tempfile::tempdir().unwrap();
    let proxy = Arc::new(Proxy::open(doors.path().join("docker.sock")));
    let (mut server, user) = world(Setup { docker: Some(proxy.socket.clone()), ..Setup::default() });
    let app = user.repo("calls", &files("page 0"));
    app.push().ok();
    is_sound(&server, &app, &["page 0"]);
    let steps = sweep(&mut server, &app, |_, pid, n| {
        proxy.kill_at(pid, n);
        let proxy = proxy.clone();
        Box::new(move || {
            let (fired, changes) = proxy.spare();
            println!("{n}: {}", changes.get(n - 1).map_or("the end", String::as_str));
            fired
        })
    });
    println!("a deploy has {steps} changing calls");
    assert!(steps >= 6, "only {steps} calls were seen");
}
