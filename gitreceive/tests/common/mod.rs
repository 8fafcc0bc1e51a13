//! A world of its own for each test: a server on a free port, repositories and keys in a temporary folder, stock `git`
//! and OpenSSH with a cleared environment, and a gate that is stricter than the real one.
#![allow(dead_code)] // Each test program uses its part.

use async_trait::async_trait;
use flex_gitreceive::{Access, Caller, Gate, GitServer, GitSettings, Push, PushEvent, Refusal, init_repository};
use flex_model::{AppId, AppName, UserId};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    process::Command,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What the gate does with the next pushes.
#[derive(Clone)]
pub struct Plan {
    pub lines: Vec<String>,
    pub verdict: Option<bool>,
    /// One permit is taken between the lines and the verdict.
    pub wait: Option<Arc<Semaphore>>,
}

pub struct TestGate {
    root: PathBuf,
    users: Mutex<HashMap<String, Caller>>,
    apps: BTreeMap<String, AppId>,
    pub plan: Mutex<Plan>,
    /// Pushes that reached the gate, in order.
    pub pushes: Mutex<Vec<Push>>,
    /// Pushes whose verdict has been given.
    pub done: Arc<AtomicUsize>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[async_trait]
impl Gate for TestGate {
    async fn authenticate(&self, openssh: &str) -> Option<Caller> {
        assert_eq!(openssh.split(' ').count(), 2, "algorithm and key, no comment: {openssh:?}");
        self.users.lock().unwrap().get(openssh).cloned()
    }

    async fn authorize(&self, caller: &Caller, app: &str, access: Access) -> Result<(AppId, AppName), Refusal> {
        assert!(self.users.lock().unwrap().values().any(|c| c == caller), "callers come from authenticate");
        let refuse = |line: String| Err(Refusal { lines: vec![line] });
        match self.apps.get(app) {
            None => refuse(format!("There is no app called {app}. flex create {app} makes it.")),
            Some(_) if app == "read-only" && access == Access::Push => refuse("You may read this app only.".into()),
            Some(id) => Ok((*id, app.parse().unwrap())),
        }
    }

    async fn repository(&self, app: AppId) -> Result<PathBuf, Refusal> {
        let path = self.root.join(format!("{app}.git"));
        init_repository(&path).unwrap();
        Ok(path)
    }

    async fn branches(&self, _: AppId) -> Vec<String> {
        vec!["main".into(), "master".into()]
    }

    async fn push(&self, push: Push) -> mpsc::Receiver<PushEvent> {
        check(&push);
        self.pushes.lock().unwrap().push(push);
        let plan = self.plan.lock().unwrap().clone();
        let (send, receive) = mpsc::channel(16);
        let turn = self.turn.clone();
        let busy = turn.clone().try_lock_owned();
        let done = self.done.clone();
        tokio::spawn(async move {
            let _turn = match busy {
                Ok(turn) => turn,
                Err(_) => {
                    let _ = send.send(PushEvent::Line("-----> Waiting for another build".into())).await;
                    turn.lock_owned().await
                }
            };
            for line in plan.lines {
                let _ = send.send(PushEvent::Line(line)).await;
            }
            if let Some(wait) = plan.wait {
                wait.acquire().await.unwrap().forget();
            }
            if let Some(verdict) = plan.verdict {
                let _ = send.send(PushEvent::Verdict(verdict)).await;
            }
            done.fetch_add(1, Ordering::SeqCst);
        });
        receive
    }
}

/// What every push must be: its new objects readable through the quarantine, and without it not there yet.
fn check(push: &Push) {
    assert!(push.repository.is_absolute() && push.repository.join("HEAD").is_file());
    assert!(!push.updates.is_empty());
    let deletes_only = push.updates.iter().all(|u| u.new.bytes().all(|b| b == b'0'));
    assert_eq!(push.quarantine.is_none(), deletes_only, "{push:?}");
    let repository = git2::Repository::open_bare(&push.repository).unwrap();
    for update in &push.updates {
        assert!(update.name.starts_with("refs/heads/") || update.name.starts_with("refs/tags/"));
        let new = git2::Oid::from_str(&update.new).unwrap();
        let current = repository.refname_to_id(&update.name).map_or_else(|_| "0".repeat(40), |id| id.to_string());
        assert_eq!(current, update.old, "the ref has not moved yet");
        if let (Some(quarantine), false) = (&push.quarantine, new.is_zero()) {
            let handle = git2::Repository::open_bare(&push.repository).unwrap();
            handle.odb().unwrap().add_disk_alternate(quarantine.to_str().unwrap()).unwrap();
            let tree = handle.find_object(new, None).unwrap().peel_to_tree().unwrap();
            tree.walk(git2::TreeWalkMode::PreOrder, |_, entry| {
                if entry.kind() == Some(git2::ObjectType::Blob) {
                    handle.find_blob(entry.id()).unwrap();
                }
                git2::TreeWalkResult::Ok
            })
            .unwrap();
        }
    }
}

pub struct World {
    dir: PathBuf,
    /// Removes the folder; a world over another's folder has none.
    _owned: Option<tempfile::TempDir>,
    pub gate: Arc<TestGate>,
    pub port: u16,
    pub server: Option<JoinHandle<()>>,
    pub shutdown: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A running server in a new folder, with the user `ann`, whose key is registered, and the apps `my-app`, `other-app`, `read-only`.
    pub async fn with(change: impl FnOnce(&mut GitSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        for name in ["ann", "stranger"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(dir.path().join(name));
            assert!(keygen.status().await.expect("ssh-keygen (of openssh-client) runs").success());
        }
        let mut world = Self::at(dir.path(), change).await;
        world._owned = Some(dir);
        world
    }

    /// A running server over a folder that [`World::with`] has made.
    pub async fn at(path: &Path, change: impl FnOnce(&mut GitSettings)) -> Self {
        let mut settings = GitSettings::new(
            "127.0.0.1:0".parse().unwrap(),
            path.join("ssh/host_ed25519"),
            env!("CARGO_BIN_EXE_flex-git-hook").into(),
            path.join("run/hook.sock"),
        );
        settings.repositories = Some(path.join("repos"));
        settings.drain = Duration::from_secs(5);
        change(&mut settings);
        let apps = ["my-app", "other-app", "read-only"];
        let gate = Arc::new(TestGate {
            root: path.join("repos"),
            users: Mutex::default(),
            apps: apps.iter().enumerate().map(|(n, a)| ((*a).to_owned(), AppId(Uuid::from_u128(n as u128 + 1)))).collect(),
            plan: Mutex::new(Plan { lines: vec!["-----> Building".into()], verdict: Some(true), wait: None }),
            pushes: Mutex::default(),
            done: Arc::default(),
            turn: Arc::default(),
        });
        let server = GitServer::bind(settings, gate.clone()).await.unwrap();
        let port = server.local_addr().unwrap().port();
        // Any port: the key is one per folder.
        fs::write(path.join("known_hosts"), format!("[127.0.0.1]:* {}\n", server.host_key_openssh())).unwrap();
        let shutdown = CancellationToken::new();
        let server = Some(tokio::spawn(server.serve(shutdown.clone())));
        let world = Self { dir: path.to_owned(), _owned: None, gate, port, server, shutdown };
        world.register("ann");
        world
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Registers a key file's key.
    pub fn register(&self, name: &str) {
        let line = fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
        let key = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let user = Caller { user: UserId(Uuid::from_u128(7)), email: format!("{name}@example.com").parse().unwrap() };
        self.gate.users.lock().unwrap().insert(key, user);
    }

    pub fn url(&self, app: &str) -> String {
        format!("ssh://git@127.0.0.1:{}/{app}.git", self.port)
    }

    pub fn repository(&self, app: &str) -> PathBuf {
        self.path("repos").join(format!("{}.git", self.gate.apps[app]))
    }

    pub fn plan(&self, lines: &[&str], verdict: Option<bool>, wait: Option<Arc<Semaphore>>) {
        let lines = lines.iter().map(|l| (*l).to_owned()).collect();
        *self.gate.plan.lock().unwrap() = Plan { lines, verdict, wait };
    }

    fn ssh_options(&self, key: &str) -> Vec<String> {
        let option = |o: &str, v: String| format!("-o{o}={v}");
        vec![
            "-Fnone".into(),
            option("UserKnownHostsFile", self.path("known_hosts").display().to_string()),
            option("StrictHostKeyChecking", "yes".into()),
            option("IdentitiesOnly", "yes".into()),
            option("IdentityFile", self.path(key).display().to_string()),
        ]
    }

    fn clean(&self, mut command: Command) -> Command {
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.path("home"));
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("LC_ALL", "C.UTF-8").kill_on_drop(true).stdin(Stdio::null());
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ann").env(format!("GIT_{who}_EMAIL"), "ann@example.com");
        }
        command
    }

    /// `git` in the folder `at`, signing in with `key`.
    pub fn git_as(&self, key: &str, at: &str, args: &[&str]) -> Command {
        let mut command = self.clean(Command::new("git"));
        command.args(["-c", "init.defaultBranch=main", "-c", "protocol.version=2"]).args(args);
        command.current_dir(self.path(at)).env("GIT_SSH_COMMAND", format!("ssh {}", self.ssh_options(key).join(" ")));
        command
    }

    pub async fn git(&self, at: &str, args: &[&str]) -> Done {
        Done::of(self.git_as("ann", at, args)).await
    }

    /// The OpenSSH client with further arguments.
    pub fn ssh_as(&self, key: &str, args: &[&str]) -> Command {
        let mut command = self.clean(Command::new("ssh"));
        command.args(self.ssh_options(key)).args(["-p", &self.port.to_string()]).args(args);
        command
    }

    /// A repository with one commit, ready to push to `my-app` as `flex`.
    pub async fn source(&self, at: &str) {
        fs::create_dir(self.path(at)).unwrap();
        self.git(at, &["init", "-q"]).await.ok();
        self.commit(at, "web.txt", b"hello").await;
        self.git(at, &["remote", "add", "flex", &self.url("my-app")]).await.ok();
    }

    /// Commits one file; returns the commit's id.
    pub async fn commit(&self, at: &str, file: &str, content: &[u8]) -> String {
        fs::write(self.path(at).join(file), content).unwrap();
        self.git(at, &["add", "-A"]).await.ok();
        self.git(at, &["commit", "-q", "-m", file]).await.ok();
        self.head(at).await
    }

    pub async fn head(&self, at: &str) -> String {
        self.git(at, &["rev-parse", "HEAD"]).await.ok().out.trim().to_owned()
    }

    /// The id a ref of the app's repository has, empty if none.
    pub fn stored(&self, app: &str, name: &str) -> String {
        let Ok(repository) = git2::Repository::open_bare(self.repository(app)) else { return String::new() };
        repository.refname_to_id(name).map(|id| id.to_string()).unwrap_or_default()
    }

    /// Waits until no quarantine is left, then lets git check everything.
    pub async fn healthy(&self, app: &str) {
        let repository = self.repository(app);
        until("no quarantine is left", || quarantines(&repository).is_empty()).await;
        self.fsck(app).await;
    }

    pub async fn fsck(&self, app: &str) {
        let repository = self.repository(app);
        let path = repository.to_str().unwrap();
        self.git(".", &["-C", path, "fsck", "--full", "--strict", "--no-dangling"]).await.ok();
    }
}

pub fn quarantines(repository: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(repository.join("objects")) else { return Vec::new() };
    entries.map(|e| e.unwrap().path()).filter(|p| p.to_string_lossy().contains("tmp_objdir")).collect()
}

/// How a client ended.
#[derive(Debug)]
pub struct Done {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    pub async fn of(mut command: Command) -> Self {
        let output = tokio::time::timeout(Duration::from_secs(60), command.output());
        output.await.unwrap_or_else(|_| panic!("{command:?} hangs")).unwrap().into()
    }
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, Some(0), "{self:#?}");
        self
    }
    #[track_caller]
    pub fn fails(self, text: &str) -> Self {
        assert!(self.status != Some(0) && self.err.contains(text), "wanted {text:?} in {self:#?}");
        self
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Self { status: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// Waits for a condition; a minute is for ever.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
