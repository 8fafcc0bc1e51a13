//! What people do with git, and what happens to it: pushes of every kind, two at a time, clients and servers that vanish.

use flex_tests::{Repo, Server, User, wait_for};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const SERVER: &str = r#"
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = open("page.txt", "rb").read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), H).serve_forever()
"#;
/// Builds at once, or, where the app says so, when somebody makes /tmp/go in the container.
const COMPILE: &str = "#!/bin/sh\nif [ -e \"$1/hold\" ]; then echo holding; until [ -e /tmp/go ]; do sleep 0.05; done; fi\n";
const APP: &[(&str, &str)] = &[
    ("bin/detect", "#!/bin/sh\necho Inline\n"),
    ("bin/compile", COMPILE),
    ("bin/release", "#!/bin/sh\necho 'default_process_types:'\necho '  web: exec python3 server.py'\n"),
    ("server.py", SERVER),
    ("page.txt", "first"),
];
const PATIENCE: Duration = Duration::from_secs(90);

/// A push under way, in a process group of its own.
struct Pushing(Child);

impl Pushing {
    fn start(repo: &Repo, args: &[&str]) -> Self {
        let mut command = repo.user.command("git", &repo.dir, args);
        Self(command.process_group(0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }
    /// Ends git and its ssh at once, as a laptop that is shut.
    fn vanish(mut self) {
        killpg(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGKILL).unwrap();
        self.0.wait().unwrap();
    }
    fn ended(self) -> (bool, String) {
        let Output { status, stderr, .. } = self.0.wait_with_output().unwrap();
        (status.success(), String::from_utf8_lossy(&stderr).into_owned())
    }
}

fn docker(args: &[&str]) -> String {
    let out = Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The containers that builds of this server have.
fn sandboxes(server: &Server) -> Vec<String> {
    let cluster = format!("label=flex.cluster={}", server.cluster());
    let list = docker(&["ps", "-q", "--filter", &cluster, "--filter", "label=flex.kind=sandbox"]);
    list.lines().map(str::to_owned).collect()
}

/// Waits for the build that holds; gives its container.
fn holding(server: &Server, repo: &Repo) -> String {
    wait_for("the build to hold", PATIENCE, || {
        let sandbox = sandboxes(server).into_iter().next()?;
        let build = newest(repo)["id"].as_str()?.to_owned();
        let log = server.dir.path().join("builds");
        let log = walk(&log).into_iter().find(|p| p.to_string_lossy().ends_with(&format!("{build}.log")))?;
        std::fs::read_to_string(log).ok()?.contains("holding").then_some(sandbox)
    })
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.flat_map(|e| if e.path().is_dir() { walk(&e.path()) } else { vec![e.path()] }).collect()
}

fn newest(repo: &Repo) -> serde_json::Value {
    serde_json::from_str(&repo.flex(&["builds:info", "--json"]).out).unwrap_or_default()
}

/// The app's repository on the server.
fn repository(server: &Server) -> PathBuf {
    let mut all = std::fs::read_dir(server.dir.path().join("repositories")).unwrap();
    all.next().unwrap().unwrap().path()
}

/// Objects of a push that is being received.
fn quarantines(server: &Server) -> usize {
    let objects = std::fs::read_dir(repository(server).join("objects")).into_iter().flatten().flatten();
    objects.filter(|e| e.file_name().to_string_lossy().starts_with("tmp_objdir-")).count()
}

/// Whole, and without remains of a push.
fn assert_whole(server: &Server) {
    wait_for("no quarantine to be left", PATIENCE, || (quarantines(server) == 0).then_some(()));
    let fsck = Command::new("git").arg("-C").arg(repository(server)).args(["fsck", "--full", "--strict"]).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&fsck.stdout), String::from_utf8_lossy(&fsck.stderr));
    assert!(fsck.status.success() && !said.contains("missing") && !said.contains("corrupt"), "{said}");
}

fn served(server: &Server, text: &str) {
    wait_for(text, PATIENCE, || (server.page("demo", "/").body == text).then_some(()));
}

fn head(repo: &Repo) -> String {
    repo.git(&["rev-parse", "HEAD"]).ok().out.trim().to_owned()
}

fn remote_main(repo: &Repo) -> String {
    repo.git(&["ls-remote", "flex", "refs/heads/main"]).ok().out.split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn pushes_of_every_kind() {
    let server = Server::start();
    let user = server.admin();
    let repo = user.repo("demo", APP);
    let said = repo.push().ok().err;
    assert!(said.contains("Released v1"), "{said}");

    // The same commit again: git has nothing to send. By another branch that deploys, it is a deploy again.
    assert!(repo.push().ok().err.contains("Everything up-to-date"));
    let again = repo.git(&["push", "flex", "main:master"]).ok().err;
    assert!(again.contains("Released v2"), "{again}");

    repo.git(&["commit", "-q", "--allow-empty", "-m", "Nothing"]).ok();
    assert!(repo.push().ok().err.contains("Released v3"));

    // A rewritten history: git asks for force, and with it the app is deployed.
    std::fs::write(repo.dir.join("page.txt"), "rewritten").unwrap();
    repo.git(&["commit", "-q", "-a", "--amend", "-m", "Rewritten"]).ok();
    repo.push().fails_with("non-fast-forward");
    repo.git(&["push", "--force", "flex", "main"]).ok();
    assert_eq!(server.page("demo", "/").body, "rewritten");

    // Tags and other branches are stored; the branch that deploys cannot be deleted.
    repo.git(&["tag", "v1.0"]).ok();
    let tag = repo.git(&["push", "flex", "v1.0"]).ok().err;
    assert!(tag.contains("v1.0: stored, not deployed"), "{tag}");
    assert!(tag.contains("To deploy it: git push flex 'v1.0^{}:refs/heads/main'"), "{tag}");
    repo.git(&["push", "flex", "v1.0^{}:refs/heads/main"]).ok();
    // An annotated tag is no commit, and as a branch it is told apart.
    repo.git(&["tag", "-a", "-m", "Two", "v2.0"]).ok();
    repo.git(&["push", "--force", "flex", "v2.0:refs/heads/main"]).fails_with("v2.0^{}:main");
    let topic = repo.git(&["push", "flex", "main:topic"]).ok().err;
    assert!(topic.contains("topic: stored, not deployed") && topic.contains("main, master"), "{topic}");
    assert!(topic.contains("To deploy it: git push flex topic:main"), "{topic}");
    let deleted = repo.git(&["push", "flex", ":topic"]).ok().err;
    assert!(deleted.contains("topic: deleted"), "{deleted}");
    repo.git(&["push", "flex", ":main"]).fails_with("main is deployed from and cannot be deleted");
    assert_eq!(remote_main(&repo), head(&repo));

    // A submodule is told of and not fetched: its address would take for ever.
    let modules = "[submodule \"lib\"]\n\tpath = lib\n\turl = http://127.0.0.1:9/lib.git\n";
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{},lib", "12".repeat(20))]).ok();
    std::fs::write(repo.dir.join(".gitmodules"), modules).unwrap();
    repo.git(&["add", ".gitmodules"]).ok();
    repo.git(&["commit", "-q", "-m", "Add a submodule"]).ok();
    let said = repo.push().ok().err;
    assert!(said.contains("Submodule lib (1212121) is not fetched"), "{said}");

    // From a clone that has one commit only.
    let shallow = user.home.path().join("shallow");
    let from = format!("file://{}", repo.dir.display());
    user.run("git", user.home.path(), &["clone", "-q", "--depth", "1", &from, shallow.to_str().unwrap()]).ok();
    let clone = Repo { user: &user, dir: shallow, app: "demo".into() };
    let url = repo.git(&["remote", "get-url", "flex"]).ok().out;
    clone.git(&["remote", "add", "flex", url.trim()]).ok();
    std::fs::write(clone.dir.join("page.txt"), "shallow").unwrap();
    clone.git(&["commit", "-q", "-a", "-m", "From a shallow clone"]).ok();
    // To a branch that was chosen to deploy; a clone follows.
    repo.flex(&["apps:branches", "no..branch"]).fails_with("no..branch");
    assert_eq!(repo.flex(&["apps:branches", "production"]).ok().out, "production\n");
    let said = clone.git(&["push", "flex", "main:production"]).ok().err;
    assert!(said.contains("Verifying deploy... done."), "{said}");
    assert_eq!(server.page("demo", "/").body, "shallow");
    user.run("git", user.home.path(), &["clone", "-q", url.trim(), "copy"]).ok();
    let copy = user.home.path().join("copy");
    assert_eq!(user.run("git", &copy, &["rev-parse", "--abbrev-ref", "HEAD"]).ok().out, "production\n");
    assert_eq!(repo.flex(&["apps:branches"]).ok().out, "production\n");
    assert_whole(&server);

    strangers_learn_what_to_do(&server, &user, &repo, url.trim());
    the_host_key_goes_where_ssh_looks(&user, &repo);
}

/// `HOME` is not the home that the user database gives, which is the one of ssh: so it is under sudo, and in some containers.
fn the_host_key_goes_where_ssh_looks(user: &User, repo: &Repo) {
    let real = tempfile::Builder::new().prefix("flex-real-").tempdir().unwrap();
    let (ssh, mine) = (real.path().join(".ssh"), user.home.path().join(".ssh"));
    std::fs::create_dir(&ssh).unwrap();
    std::fs::copy(mine.join("id_ed25519"), ssh.join("id_ed25519")).unwrap();
    let passwd = real.path().join("passwd");
    let (id, home) = (nix::unistd::Uid::current(), real.path().display());
    std::fs::write(&passwd, format!("me:x:{id}:0:me:{home}:/bin/sh\n")).unwrap();
    // A user database of its own, which nobody else sees.
    let there = |args: &[&str]| {
        let with = "mount --bind \"$1\" /etc/passwd && shift && exec \"$@\"";
        let mut command = user.command("unshare", &repo.dir, &["--mount", "sh", "-c", with, "sh", passwd.to_str().unwrap()]);
        let out = command.args(args).env_remove("GIT_SSH_COMMAND").output().unwrap();
        (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    };
    let (push, known) =
        (["git", "push", "--dry-run", "flex", "HEAD:refs/heads/other"], std::fs::read(mine.join("known_hosts")).unwrap());
    let (good, said) = there(&push);
    assert!(!good && said.contains("Host key verification failed"), "{said}");
    let flex = flex_tests::binary("flex").display().to_string();
    for _ in 0..2 {
        let (good, said) = there(&[&flex, "git:remote", "-a", "demo"]);
        assert!(good, "{said}");
    }
    let (good, said) = there(&push);
    assert!(good, "{said}");
    assert_eq!(std::fs::read_to_string(ssh.join("known_hosts")).unwrap().lines().count(), 1);
    assert_eq!(std::fs::read(mine.join("known_hosts")).unwrap(), known, "no other file is written to");
}

fn strangers_learn_what_to_do(server: &Server, user: &User, repo: &Repo, url: &str) {
    let stranger = User::new(server, "stranger@example.com", false);
    let known = ".ssh/known_hosts";
    std::fs::copy(user.home.path().join(known), stranger.home.path().join(known)).unwrap();
    let theirs = Repo { user: &stranger, dir: repo.dir.clone(), app: "demo".into() };
    theirs.git(&["push", url, "main"]).fails_with("There is no app demo that you may use.");
    // A key that nobody has registered.
    let key = stranger.home.path().join(".ssh/id_ed25519");
    std::fs::remove_file(&key).unwrap();
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
    assert!(made.success());
    let shown = Command::new("ssh-keygen").arg("-lf").arg(key.with_extension("pub")).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let refused = theirs.git(&["push", url, "main"]).fails_with("not registered with Flex").err;
    assert!(refused.contains(shown.split_whitespace().nth(1).unwrap()), "{refused}");
    assert!(refused.contains("flex keys:add ~/.ssh/id_ed25519.pub"), "{refused}");
}

#[test]
fn a_second_push_waits_and_the_first_can_be_cancelled() {
    let server = Server::start();
    let user = server.admin();
    let repo = user.repo("demo", APP);
    repo.commit(&[("hold", "")]);
    let first = Pushing::start(&repo, &["push", "flex", "main"]);
    holding(&server, &repo);
    let held = newest(&repo)["id"].as_str().unwrap().to_owned();
    repo.git(&["rm", "-q", "hold"]).ok();
    repo.commit(&[("page.txt", "second")]);
    let second = Pushing::start(&repo, &["push", "flex", "main"]);
    wait_for("the second build to wait", PATIENCE, || (newest(&repo)["id"] != held.as_str()).then_some(()));
    let listed = repo.flex(&["builds"]).ok().out;
    assert_eq!(listed.matches("pending").count(), 2, "{listed}");
    repo.flex(&["builds:cancel", &held]).ok();
    let (good, said) = first.ended();
    assert!(!good && said.contains("cancelled") && said.contains("pre-receive hook declined"), "{said}");
    let (good, said) = second.ended();
    assert!(good && said.contains("Another build of this app is running; this one waits for it"), "{said}");
    served(&server, "second");
    let kept = repo.flex(&["builds:output", &held]).ok().out;
    assert!(kept.contains("holding") && kept.contains("cancelled"), "{kept}");
    let listed = repo.flex(&["builds"]).ok().out;
    assert!(listed.contains("failed") && listed.contains("succeeded"), "{listed}");

    // What is released and hangs in its release phase is cancelled as well; what serves goes on.
    let before = remote_main(&repo);
    wait_for("one container to be left", PATIENCE, || (server.containers().len() == 1).then_some(()));
    repo.commit(&[("Procfile", "web: exec python3 server.py\nrelease: echo migrating; sleep infinity\n"), ("page.txt", "third")]);
    let push = Pushing::start(&repo, &["push", "flex", "main"]);
    wait_for("the release phase", PATIENCE, || repo.flex(&["logs", "-p", "release"]).out.contains("migrating\n").then_some(()));
    repo.flex(&["builds:cancel"]).ok();
    let (good, said) = push.ended();
    assert!(!good && said.contains("migrating") && said.contains("Push rejected, it was cancelled"), "{said}");
    wait_for("the release phase's container to go", PATIENCE, || (server.containers().len() == 1).then_some(()));
    assert_eq!((server.page("demo", "/").body.as_str(), remote_main(&repo)), ("second", before));
    repo.flex(&["builds:cancel"]).fails_with("over already");
}

/// What serves is this page, of the commit that `main` is at.
#[track_caller]
fn agree(server: &Server, repo: &Repo, page: &str) {
    assert_eq!(server.page("demo", "/").body, page);
    let releases: serde_json::Value = serde_json::from_str(&repo.flex(&["releases", "--json"]).ok().out).unwrap();
    let current: Vec<_> = releases.as_array().unwrap().iter().filter(|r| r["current"] == true).collect();
    assert_eq!(current.len(), 1, "{releases:#}");
    assert_eq!(current[0]["commit"], remote_main(repo), "{releases:#}");
}

/// Two pushes of one branch from one place: the first holds in its build until the second is there. Gives what the
/// second said, which must have failed.
#[track_caller]
fn race(server: &Server, first: &Repo, second: &Repo, args: &[&str]) -> String {
    let one = Pushing::start(first, &["push", "flex", "main"]);
    holding(server, first);
    let held = newest(first)["id"].clone();
    let two = Pushing::start(second, args);
    wait_for("the second push to wait", PATIENCE, || (newest(first)["id"] != held).then_some(()));
    for sandbox in sandboxes(server) {
        docker(&["exec", &sandbox, "touch", "/tmp/go"]);
    }
    let (good, said) = one.ended();
    assert!(good, "{said}");
    let (good, said) = two.ended();
    assert!(!good && said.contains("pre-receive hook declined"), "{said}");
    assert!(said.contains("main has moved since this push began") && said.contains("[branch_moved]"), "{said}");
    let phases = newest(first)["phases"].clone();
    assert_eq!(phases.as_array().unwrap().iter().map(|p| &p["phase"]).collect::<Vec<_>>(), ["receive"], "it was built");
    said
}

/// Exit status 0 means that the branch is where what serves came from, and nothing else does.
#[test]
fn of_two_pushes_of_a_branch_one_succeeds() {
    let server = Server::start();
    let user = server.admin();
    let repo = user.repo("demo", APP);
    repo.push().ok();
    agree(&server, &repo, "first");
    let dir = user.home.path().join("other");
    user.run("git", user.home.path(), &["clone", "-q", repo.dir.to_str().unwrap(), dir.to_str().unwrap()]).ok();
    let other = Repo { user: &user, dir, app: "demo".into() };
    let url = repo.git(&["remote", "get-url", "flex"]).ok().out;
    other.git(&["remote", "add", "flex", url.trim()]).ok();

    // Both could succeed.
    repo.commit(&[("hold", ""), ("page.txt", "one of two")]);
    other.commit(&[("other.txt", "")]);
    let said = race(&server, &repo, &other, &["push", "flex", "main"]);
    agree(&server, &repo, "one of two");
    // Then as it says.
    assert!(said.contains("git pull --rebase flex main"), "{said}");
    other.git(&["pull", "-q", "--rebase", "flex", "main"]).ok();
    other.git(&["rm", "-q", "hold"]).ok();
    other.commit(&[("page.txt", "two of two")]);
    other.push().ok();
    agree(&server, &repo, "two of two");

    // The second is forced, from where the branch was.
    repo.git(&["pull", "-q", "--rebase", "flex", "main"]).ok();
    repo.commit(&[("hold", ""), ("page.txt", "not forced")]);
    std::fs::write(other.dir.join("page.txt"), "forced").unwrap();
    other.git(&["commit", "-q", "-a", "--amend", "-m", "Rewritten"]).ok();
    race(&server, &repo, &other, &["push", "--force", "flex", "main"]);
    agree(&server, &repo, "not forced");
    other.git(&["push", "--force", "flex", "main"]).ok();
    agree(&server, &repo, "forced");

    // One that never listens, whose pusher gives up and pushes what mends it.
    other.commit(&[("server.py", "import time\ntime.sleep(3600)\n"), ("page.txt", "hangs")]);
    let hangs = Pushing::start(&other, &["push", "flex", "main"]);
    let statuses = || {
        let releases: serde_json::Value = serde_json::from_str(&repo.flex(&["releases", "--json"]).ok().out).unwrap();
        releases.as_array().unwrap().iter().map(|r| r["status"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    wait_for("it to be released", PATIENCE, || statuses().contains(&"pending".to_owned()).then_some(()));
    hangs.vanish();
    other.commit(&[("server.py", SERVER), ("page.txt", "mended")]);
    other.push().ok();
    agree(&server, &repo, "mended");
    assert_eq!(remote_main(&repo), head(&other));
    assert_eq!(statuses().iter().filter(|s| *s == "failed").count(), 1, "{:?}", statuses());
    assert_whole(&server);
}

#[test]
fn what_vanishes_in_the_middle_leaves_no_trace() {
    let mut server = Server::start();
    let user = server.admin();
    let repo = user.repo("demo", APP);
    repo.push().ok();

    // The client, in its build: the build goes on, is deployed, and can be read.
    repo.commit(&[("hold", ""), ("page.txt", "built alone")]);
    let push = Pushing::start(&repo, &["push", "flex", "main"]);
    let sandbox = holding(&server, &repo);
    push.vanish();
    docker(&["exec", &sandbox, "touch", "/tmp/go"]);
    served(&server, "built alone");
    wait_for("the ref to move", PATIENCE, || (remote_main(&repo) == head(&repo)).then_some(()));
    let kept = repo.flex(&["builds:output"]).ok().out;
    assert!(kept.contains("holding") && kept.contains("Verifying deploy... done."), "{kept}");
    assert_eq!(newest(&repo)["status"], "succeeded");
    assert_whole(&server);

    // The client, while it sends: nothing changes, and the container that was made ahead goes.
    let before = remote_main(&repo);
    noise(&repo.dir.join("noise"), 192);
    repo.git(&["add", "-A"]).ok();
    repo.git(&["commit", "-q", "-m", "Noise"]).ok();
    let push = Pushing::start(&repo, &["push", "flex", "main"]);
    wait_for("the push to be received", PATIENCE, || (quarantines(&server) > 0).then_some(()));
    push.vanish();
    assert_whole(&server);
    assert_eq!(remote_main(&repo), before);
    wait_for("the container made ahead to go", PATIENCE, || sandboxes(&server).is_empty().then_some(()));
    assert_eq!(server.page("demo", "/").body, "built alone");
    repo.git(&["reset", "-q", "--hard", &before]).ok();

    // The server, in a build: its container goes soon after the start, the build counts as failed, the same push works.
    repo.git(&["commit", "-q", "--allow-empty", "-m", "Again"]).ok();
    let push = Pushing::start(&repo, &["push", "flex", "main"]);
    holding(&server, &repo);
    server.end(Signal::SIGKILL);
    let (good, said) = push.ended();
    assert!(!good, "{said}");
    server.up();
    wait_for("the build container to be reaped", Duration::from_secs(10), || sandboxes(&server).is_empty().then_some(()));
    assert_eq!(newest(&repo)["status"], "failed");
    assert_eq!(remote_main(&repo), before);
    assert_whole(&server);
    repo.git(&["rm", "-q", "hold"]).ok();
    repo.commit(&[("page.txt", "after all")]);
    repo.push().ok();
    served(&server, "after all");
}

/// A file that does not compress.
fn noise(path: &Path, mebibytes: u64) {
    let mut random = std::io::Read::take(std::fs::File::open("/dev/urandom").unwrap(), mebibytes << 20);
    std::io::copy(&mut random, &mut std::fs::File::create(path).unwrap()).unwrap();
}

/// 1 GiB; `FLEX_TEST_REPOSITORY_MIB` makes it another size.
#[test]
fn a_large_repository_is_received_in_little_memory() {
    let mebibytes: u64 = std::env::var("FLEX_TEST_REPOSITORY_MIB").map_or(1024, |n| n.parse().unwrap());
    let server = Server::start();
    let user = server.admin();
    let repo = user.repo("demo", APP);
    for setting in ["core.compression", "pack.compression", "pack.window"] {
        repo.git(&["config", setting, "0"]).ok();
    }
    repo.git(&["config", "core.looseCompression", "0"]).ok();
    // History that is large under a tree that is not.
    for n in 0..mebibytes / 32 {
        noise(&repo.dir.join(format!("noise-{n}")), 32);
    }
    repo.git(&["add", "-A"]).ok();
    repo.git(&["commit", "-q", "-m", "Large files"]).ok();
    repo.git(&["rm", "-q", "noise-*"]).ok();
    repo.commit(&[("page.txt", "large")]);
    repo.push().ok();
    assert_eq!(server.page("demo", "/").body, "large");
    let peak = server.peak_memory_mib();
    assert!(peak < 150, "flexd took {peak} MiB for a repository of {mebibytes} MiB");
    assert_whole(&server);
}
