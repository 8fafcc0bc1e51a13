//! A flexd of the test's own.

use crate::{Answer, Port, User, get, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A program under test: `target/release/NAME`, or `NAME` in the directory that `FLEX_TEST_BIN` names.
pub fn binary(name: &str) -> PathBuf {
    std::env::var_os("FLEX_TEST_BIN").map_or_else(|| root().join("target/release"), PathBuf::from).join(name)
}

/// `flexd`, not started yet, over a data directory.
pub fn flexd(data_dir: &Path) -> Command {
    let mut command = Command::new(binary("flexd"));
    // Beside the checkout's own binaries they are found without; not beside others.
    command.env("FLEXD_BUILDPACKS", root().join("buildpacks")).arg("--data-dir").arg(data_dir).stdin(Stdio::null());
    command
}

/// How a server differs from the usual one.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// `flexd.toml`.
    pub toml: String,
    /// Another engine's socket.
    pub docker: Option<PathBuf>,
    /// A folder of stacks with the one that apps get, instead of the usual one.
    pub stack: Option<(PathBuf, String)>,
    /// Another file system for the data directory: an empty folder, which the test removes.
    pub data: Option<PathBuf>,
    /// More of flexd's environment.
    pub env: Vec<(&'static str, String)>,
}

/// A server; everything of it goes with the value.
pub struct Server {
    pub dir: tempfile::TempDir,
    setup: Setup,
    child: Option<Child>,
    _ports: [Port; 3],
    pub api: SocketAddr,
    pub http: SocketAddr,
    pub ssh: SocketAddr,
}

/// Where scripts/test put the stack images, or where it would by itself.
pub fn stacks() -> PathBuf {
    let data = std::env::var_os("FLEX_TEST_STACKS").map_or_else(|| root().join("target/test-data"), PathBuf::from);
    let stacks = data.join("stacks");
    assert!(
        stacks.is_dir(),
        "{} is missing: run scripts/test, or flexd --data-dir {} stack build",
        stacks.display(),
        data.display()
    );
    stacks
}

impl Server {
    /// A new installation with all ports free ones.
    pub fn start() -> Self {
        Self::start_with(Setup::default())
    }

    /// As [`Server::start`], set up in another way.
    pub fn start_with(setup: Setup) -> Self {
        let mut server = Self::prepare(setup);
        server.up();
        server
    }

    /// Its directories, and nothing started.
    pub fn prepare(setup: Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("flex-test-").tempdir().unwrap();
        let ports: [Port; 3] = std::array::from_fn(|_| Port::reserve());
        let [api, http, ssh] = ports.each_ref().map(Port::local);
        let server = Self { dir, setup, child: None, _ports: ports, api, http, ssh };
        let stacks = server.setup.stack.as_ref().map_or_else(stacks, |(folder, _)| folder.clone());
        std::os::unix::fs::symlink(stacks, server.data_dir().join("stacks")).unwrap();
        if !server.setup.toml.is_empty() {
            std::fs::write(server.data_dir().join("flexd.toml"), &server.setup.toml).unwrap();
        }
        server
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> &Path {
        self.setup.data.as_deref().unwrap_or(self.dir.path())
    }

    /// `flexd` over its data directory, with its settings, not started yet.
    pub fn flexd(&self) -> Command {
        let mut command = flexd(self.data_dir());
        if let Some(socket) = &self.setup.docker {
            command.env("FLEXD_DOCKER", socket);
        }
        if let Some((_, name)) = &self.setup.stack {
            command.env("FLEXD_STACK", name);
        }
        command.envs(self.setup.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it (again), on the ports that it had.
    pub fn up(&mut self) {
        if let Err(said) = self.try_up() {
            panic!("flexd ended: {said}");
        }
    }

    /// As [`Server::up`]; what it said, if it ended instead of serving.
    pub fn try_up(&mut self) -> Result<(), String> {
        self.start_process(&[])
    }

    /// Starts another process that takes over from the one that runs; when it serves, does this; waits until the old one has ended.
    pub fn upgrade_while(&mut self, work: impl FnOnce(&Self)) {
        let mut old = self.child.take().expect("one that runs");
        if let Err(said) = self.start_process(&["--take-over"]) {
            panic!("flexd ended: {said}");
        }
        work(self);
        let ended = wait_for("the process before to end", Duration::from_secs(60), || old.try_wait().unwrap());
        assert!(ended.success(), "{ended:?}");
    }

    fn start_process(&mut self, more: &[&str]) -> Result<(), String> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("flexd.log")).unwrap();
        let before = log.metadata().unwrap().len();
        let out = std::fs::File::create(self.dir.path().join("flexd.out")).unwrap();
        let child = self
            .flexd()
            .args([
                "--api",
                &self.api.to_string(),
                "--http",
                &self.http.to_string(),
                "--https",
                "127.0.0.1:0",
                "--ssh",
                &self.ssh.to_string(),
            ])
            .args(more)
            .stdout(out)
            .stderr(log)
            .spawn()
            .expect("target/release/flexd: build it with cargo build --release");
        self.child = Some(child);
        let line = wait_for("flexd to serve", Duration::from_secs(30), || {
            let text = std::fs::read_to_string(self.dir.path().join("flexd.out")).unwrap_or_default();
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                let said = self.log().get(usize::try_from(before).unwrap()..).unwrap_or_default().to_owned();
                return Some(Err(said));
            }
            text.lines().find(|l| l.contains(" serves: ")).map(|l| Ok(l.to_owned()))
        });
        let line = line.inspect_err(|_| self.child = None)?;
        let address = |label: &str| line.split(label).nth(1).and_then(|r| r.split(',').next()).unwrap().trim().parse().unwrap();
        (self.api, self.http, self.ssh) = (address("API "), address("HTTP "), address("SSH "));
        Ok(())
    }

    /// The running process.
    pub fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(|c| Pid::from_raw(i32::try_from(c.id()).unwrap()))
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("flexd.log")).unwrap_or_default()
    }

    /// Ends it in this way and waits until it is gone.
    pub fn end(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            // One that has ended by itself already is none to signal.
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal);
            child.wait().unwrap();
        }
    }

    /// The most memory that this run of it has had, in MiB (`VmHWM`).
    pub fn peak_memory_mib(&self) -> u64 {
        self.memory_mib("VmHWM")
    }

    /// What it has now, in MiB (`VmRSS`); [`Server::peak_memory_mib`] begins anew with it.
    pub fn begin_peak_mib(&self) -> u64 {
        let id = self.child.as_ref().unwrap().id();
        // proc(5): 5 sets the peak to what is in use now.
        std::fs::write(format!("/proc/{id}/clear_refs"), "5").unwrap();
        self.memory_mib("VmRSS")
    }

    fn memory_mib(&self, field: &str) -> u64 {
        let id = self.child.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let found = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':')).unwrap();
        found.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
    }

    /// The first user: an administrator, signed in, with an SSH key.
    pub fn admin(&self) -> User {
        User::new(self, "admin@example.com", true)
    }

    /// A token, made on the server.
    pub fn token(&self, email: &str, admin: bool) -> String {
        let mut command = self.flexd();
        command.args(["user:token", email]);
        if admin {
            command.arg("--admin");
        }
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// The app's page through the router.
    pub fn page(&self, app: &str, path: &str) -> Answer {
        get(self.http, &format!("{app}.localhost"), path).expect("the router answers")
    }

    /// The installation's short id.
    pub fn cluster(&self) -> String {
        std::fs::read_to_string(self.data_dir().join("cluster")).unwrap_or_default().trim().to_owned()
    }

    /// Names of the containers of this installation, running or not.
    pub fn containers(&self) -> Vec<String> {
        let cluster = self.cluster();
        if cluster.is_empty() {
            return Vec::new();
        }
        self.docker(&["ps", "-a", "--format", "{{.Names}}", "--filter", &format!("label=flex.cluster={cluster}")])
    }

    /// The lines that docker prints, of the engine that this server uses.
    pub fn docker(&self, args: &[&str]) -> Vec<String> {
        let mut command = Command::new("docker");
        if let Some(socket) = &self.setup.docker {
            command.arg("-H").arg(format!("unix://{}", socket.display()));
        }
        let out = command.args(args).output().unwrap();
        String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- flexd's log ---\n{}", self.log());
        }
        if self.child.is_some() {
            self.end(Signal::SIGTERM);
        }
        let cluster = self.cluster();
        if cluster.is_empty() {
            return;
        }
        let filter = format!("label=flex.cluster={cluster}");
        let images = self.docker(&[
            "image",
            "ls",
            "--format",
            "{{.Repository}}:{{.Tag}}",
            "--filter",
            &format!("reference=flex-{cluster}/*"),
        ]);
        let rules = root().join("scripts/lib/rules.sh");
        let remove = ["-c", ". \"$1\"; remove_rules \"$2\"", "rules"];
        let _ = Command::new("bash").args(remove).arg(rules).arg(&cluster).status();
        for (list, remove) in [
            (&["ps", "-aq"][..], &["rm", "-f"][..]),
            (&["network", "ls", "-q"], &["network", "rm"]),
            (&["volume", "ls", "-q"], &["volume", "rm", "-f"]),
        ] {
            let ids = self.docker(&[list, &["--filter", &filter]].concat());
            if !ids.is_empty() {
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                self.docker(&[remove, &ids].concat());
            }
        }
        if !images.is_empty() {
            let images: Vec<&str> = images.iter().map(String::as_str).collect();
            self.docker(&[&["image", "rm"][..], &images].concat());
        }
    }
}
