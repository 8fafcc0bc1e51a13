//! A flexd of the test's own.

use crate::{Answer, User, get, wait_for};
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

/// A server; everything of it goes with the value.
pub struct Server {
    pub dir: tempfile::TempDir,
    child: Option<Child>,
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
        let dir = tempfile::Builder::new().prefix("flex-test-").tempdir().unwrap();
        std::os::unix::fs::symlink(stacks(), dir.path().join("stacks")).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { dir, child: None, api: any, http: any, ssh: any };
        server.up();
        server
    }

    /// Starts it (again), on the ports that it had.
    pub fn up(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("flexd.log")).unwrap();
        let out = std::fs::File::create(self.dir.path().join("flexd.out")).unwrap();
        let child = Command::new(binary("flexd"))
            .args(["--data-dir".into(), self.dir.path().as_os_str().to_owned()])
            // Beside the checkout's own binaries they are found without; not beside others.
            .env("FLEXD_BUILDPACKS", root().join("buildpacks"))
            .args(["--api", &self.api.to_string(), "--http", &self.http.to_string(), "--ssh", &self.ssh.to_string()])
            .stdout(out)
            .stderr(log)
            .spawn()
            .expect("target/release/flexd: build it with cargo build --release");
        self.child = Some(child);
        let line = wait_for("flexd to serve", Duration::from_secs(30), || {
            let text = std::fs::read_to_string(self.dir.path().join("flexd.out")).unwrap_or_default();
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                panic!("flexd ended: {}", self.log());
            }
            text.lines().find(|l| l.contains(" serves: ")).map(str::to_owned)
        });
        let address = |label: &str| line.split(label).nth(1).and_then(|r| r.split(',').next()).unwrap().trim().parse().unwrap();
        (self.api, self.http, self.ssh) = (address("API "), address("HTTP "), address("SSH "));
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

    /// The first user: an administrator, signed in, with an SSH key.
    pub fn admin(&self) -> User {
        User::new(self, "admin@example.com", true)
    }

    /// A token, made on the server.
    pub fn token(&self, email: &str, admin: bool) -> String {
        let mut command = flexd(self.dir.path());
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
        std::fs::read_to_string(self.dir.path().join("cluster")).unwrap_or_default().trim().to_owned()
    }

    /// Names of the containers of this installation, running or not.
    pub fn containers(&self) -> Vec<String> {
        let cluster = self.cluster();
        if cluster.is_empty() {
            return Vec::new();
        }
        docker(&["ps", "-a", "--format", "{{.Names}}", "--filter", &format!("label=flex.cluster={cluster}")])
    }
}

/// The lines that docker prints.
fn docker(args: &[&str]) -> Vec<String> {
    let out = Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
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
        let images =
            docker(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", &format!("reference=flex-{cluster}/*")]);
        let rules = root().join("scripts/lib/rules.sh");
        let remove = ["-c", ". \"$1\"; remove_rules \"$2\"", "rules"];
        let _ = Command::new("bash").args(remove).arg(rules).arg(&cluster).status();
        for (list, remove) in [
            (&["ps", "-aq"][..], &["rm", "-f"][..]),
            (&["network", "ls", "-q"], &["network", "rm"]),
            (&["volume", "ls", "-q"], &["volume", "rm", "-f"]),
        ] {
            let ids = docker(&[list, &["--filter", &filter]].concat());
            if !ids.is_empty() {
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                docker(&[remove, &ids].concat());
            }
        }
        if !images.is_empty() {
            let images: Vec<&str> = images.iter().map(String::as_str).collect();
            docker(&[&["image", "rm"][..], &images].concat());
        }
    }
}
