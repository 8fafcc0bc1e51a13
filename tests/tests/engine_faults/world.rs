//! What the scenarios share: an app, what must hold after each fault, and a client that asks all the time.

use crate::tiny;
use flex_tests::{Ran, Repo, Server, Setup, User, get, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const DETECT: &str = "#!/bin/sh\necho Faults\n";
pub const COMPILE: &str =
    "#!/bin/sh\nset -e\necho '-----> Compiling'\nmkdir -p \"$1/www\"\ncp \"$1/page.txt\" \"$1/www/index.html\"\n";
pub const WEB: &str = "web: exec httpd -f -p $PORT -h www\n";

/// An app that shows this page.
pub fn files(page: &str) -> [(&'static str, &str); 4] {
    [("bin/detect", DETECT), ("bin/compile", COMPILE), ("Procfile", WEB), ("page.txt", page)]
}

/// A server of the tiny stack with its first user.
pub fn world(setup: Setup) -> (Server, User) {
    let stack = tiny::stacks(setup.docker.as_deref());
    let server = Server::start_with(Setup { stack: Some((stack, tiny::NAME.into())), ..setup });
    let user = server.admin();
    (server, user)
}

/// Commits another page and pushes it; it is served when the push returns.
#[track_caller]
pub fn push_page(server: &Server, repo: &Repo<'_>, page: &str) {
    repo.commit(&files(page));
    repo.push().ok();
    let answer = server.page(&repo.app, "/");
    assert_eq!((answer.status, answer.body.trim()), (200, page), "after a push");
}

/// What a `--json` listing says.
#[track_caller]
pub fn list(repo: &Repo<'_>, args: &[&str]) -> Vec<Value> {
    let ran = repo.flex(&[args, &["--json"]].concat()).ok();
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", ran.out))
}

/// What must hold once a fault is over: see the crate's page. `pages`: one of these is served; returns which. The next
/// push is the caller's, by [`push_page`].
#[track_caller]
pub fn is_sound(server: &Server, repo: &Repo<'_>, pages: &[&str]) -> String {
    let page = wait_for(&format!("{} to serve one of {pages:?}", repo.app), Duration::from_secs(30), || {
        let answer = get(server.http, &format!("{}.localhost", repo.app), "/")?;
        (answer.status == 200 && pages.contains(&answer.body.trim())).then(|| answer.body.trim().to_owned())
    });
    // What was under way has come to an end.
    wait_for("no release and no build to be pending", Duration::from_secs(60), || {
        let over = |args: &[&str]| list(repo, args).iter().all(|v| v["status"] != "pending");
        (over(&["releases"]) && over(&["builds"])).then_some(())
    });
    let releases = list(repo, &["releases"]);
    let current = releases.iter().filter(|r| r["current"] == true).count();
    assert_eq!(current, 1, "current releases: {releases:#?}");
    only_wanted_containers(server, repo);
    fsck(server);
    page
}

/// Every container of the installation is an instance that runs and that `ps` lists, once.
#[track_caller]
pub fn only_wanted_containers(server: &Server, repo: &Repo<'_>) {
    let label = format!("label=flex.cluster={}", server.cluster());
    let format = "{{.Label \"flex.kind\"}} {{.State}} {{.Names}}";
    let mut seen = Vec::new();
    let started = Instant::now();
    loop {
        seen.clear();
        seen.extend(server.docker(&["ps", "-a", "--filter", &label, "--format", format]));
        let dynos = list(repo, &["ps"]);
        let up = dynos.iter().filter(|d| d["state"] == "up").count();
        if up == dynos.len() && seen.len() == up && seen.iter().all(|c| c.starts_with("instance running ")) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(45), "containers {seen:#?}\nwhere ps says {dynos:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The repositories are whole, and nothing of an interrupted push is left in them.
#[track_caller]
pub fn fsck(server: &Server) {
    for repository in std::fs::read_dir(server.data_dir().join("repositories")).unwrap().flatten().map(|e| e.path()) {
        let mut command = Command::new("git");
        command.args(["-c", "safe.directory=*", "-C"]).arg(&repository).args(["fsck", "--full", "--strict", "--no-dangling"]);
        let out = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "git fsck: {said}");
        wait_for("quarantines to go", Duration::from_secs(30), || {
            let objects = std::fs::read_dir(repository.join("objects")).unwrap().flatten();
            let left = objects.filter(|o| o.file_name().to_string_lossy().starts_with("tmp_objdir")).count();
            (left == 0).then_some(())
        });
    }
}

/// A push under way.
pub struct Pushing {
    child: std::process::Child,
    said: std::thread::JoinHandle<String>,
}

/// Starts a push; `saw` is called with each line that it prints.
pub fn push_in_background(repo: &Repo<'_>, mut saw: impl FnMut(&str) + Send + 'static) -> Pushing {
    let mut command = repo.user.command("git", &repo.dir, &["push", "flex", "main"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let said = std::thread::spawn(move || {
        let mut all = String::new();
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            saw(&text);
            all.push_str(&text);
            line.clear();
        }
        all
    });
    Pushing { child, said }
}

impl Pushing {
    /// Waits for its end.
    pub fn end(mut self) -> Ran {
        let status = self.child.wait().unwrap().code().unwrap_or(-1);
        Ran { status, out: String::new(), err: self.said.join().unwrap() }
    }
}

/// SIGKILL, as the kernel's OOM killer would.
pub fn kill_now(pid: Pid) {
    // One that is gone already is what was wanted.
    let _ = kill(pid, Signal::SIGKILL);
}

/// A client that asks for an app's page at a steady rate.
pub struct Steady {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Tally>,
}

/// What it got.
#[derive(Debug, Default)]
pub struct Tally {
    pub asked: usize,
    /// No connection, or one that broke off.
    pub unanswered: usize,
    /// Anything but the page.
    pub wrong: Vec<String>,
}

/// Between two requests: modest, so that the machine's two cores are left to the fault.
const PACE: Duration = Duration::from_millis(40);

impl Steady {
    /// Asks until told to stop; right are these pages.
    pub fn on(http: SocketAddr, app: &str, pages: &[&str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (host, stopped) = (format!("{app}.localhost"), stop.clone());
        let pages: Vec<String> = pages.iter().map(|p| (*p).to_owned()).collect();
        let thread = std::thread::spawn(move || {
            let mut tally = Tally::default();
            while !stopped.load(Ordering::Relaxed) {
                let started = Instant::now();
                tally.asked += 1;
                match get(http, &host, "/") {
                    None => tally.unanswered += 1,
                    Some(a) if a.status == 200 && pages.iter().any(|p| p == a.body.trim()) => {}
                    Some(a) => tally.wrong.push(format!("after {:?}: {a:?}", started.elapsed())),
                }
                std::thread::sleep(PACE.saturating_sub(started.elapsed()));
            }
            tally
        });
        Self { stop, thread }
    }

    /// Ends it.
    pub fn tally(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }

    /// Ends it; nothing failed.
    #[track_caller]
    pub fn none_failed(self) {
        let tally = self.tally();
        assert!(tally.asked > 0 && tally.unanswered == 0 && tally.wrong.is_empty(), "{tally:#?}");
    }

    /// Ends it; what was answered was right. For faults that take the router with them.
    #[track_caller]
    pub fn none_wrong(self) {
        let tally = self.tally();
        assert!(tally.asked > tally.unanswered && tally.wrong.is_empty(), "{tally:#?}");
    }
}

/// Bytes that do not compress.
pub fn noise(bytes: u64) -> Vec<u8> {
    let mut out = Vec::new();
    std::fs::File::open("/dev/urandom").unwrap().take(bytes).read_to_end(&mut out).unwrap();
    out
}
