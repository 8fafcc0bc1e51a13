//! An engine of the test's own, which may be killed: dockerd and containerd as two processes, with their own directories and
//! sockets, in a network namespace of their own, so that neither bridges nor packet filter rules meet those of the
//! machine's engine. The thread that makes it moves into that namespace, and with it all that it starts.

use crate::world::kill_now;
use flex_tests::wait_for;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub struct Engine {
    dir: tempfile::TempDir,
    dockerd: Option<Child>,
    containerd: Option<Child>,
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Moves this thread, and what it starts from now on, into a new network with nothing but a loopback.
fn new_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
    assert!(Command::new("busybox").args(["ip", "link", "set", "lo", "up"]).status().unwrap().success());
}

impl Engine {
    /// A running one with live-restore, as `scripts/up` sets up the machine's.
    pub fn start() -> Self {
        Self::start_with("{ \"live-restore\": true, \"userland-proxy\": false }")
    }

    /// One with these settings.
    pub fn start_with(settings: &str) -> Self {
        new_network();
        let dir = tempfile::Builder::new().prefix("flex-engine-").tempdir().unwrap();
        fs::write(dir.path().join("daemon.json"), settings).unwrap();
        fs::write(dir.path().join("containerd.toml"), "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")
            .unwrap();
        let mut engine = Self { dir, dockerd: None, containerd: None };
        engine.start_containerd();
        engine.start_dockerd();
        engine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("docker.sock")
    }

    /// Its settings, and where its process id is.
    pub fn config(&self) -> PathBuf {
        self.path("daemon.json")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.path("docker.pid")
    }

    fn spawn(&self, program: &str, args: &[String]) -> Child {
        let log = File::options().create(true).append(true).open(self.path(&format!("{program}.log"))).unwrap();
        Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    pub fn start_containerd(&mut self) {
        let option = |name: &str, value: &str| [format!("--{name}"), self.path(value).display().to_string()];
        let args = [
            option("config", "containerd.toml"),
            option("root", "containerd"),
            option("state", "run"),
            option("address", "containerd.sock"),
        ];
        self.containerd = Some(self.spawn("containerd", &args.concat()));
    }

    /// Starts dockerd and waits until it answers.
    pub fn start_dockerd(&mut self) {
        let option = |name: &str, value: &str| [format!("--{name}"), self.path(value).display().to_string()];
        let mut args = [
            option("config-file", "daemon.json"),
            option("data-root", "data"),
            option("exec-root", "exec"),
            option("pidfile", "docker.pid"),
            option("containerd", "containerd.sock"),
        ]
        .concat();
        args.extend(["-H".to_owned(), format!("unix://{}", self.socket().display())]);
        self.dockerd = Some(self.spawn("dockerd", &args));
        wait_for("dockerd to answer", Duration::from_secs(60), || {
            if self.dockerd.as_mut().unwrap().try_wait().unwrap().is_some() {
                panic!("dockerd ended: {}", self.log());
            }
            self.docker(&["version"]).status().unwrap().success().then_some(())
        });
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.path("dockerd.log")).unwrap_or_default();
        text.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.socket().display())).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Sends dockerd a signal; one that ends it is waited for.
    pub fn signal_dockerd(&mut self, signal: Signal) {
        let child = self.dockerd.as_mut().unwrap();
        kill(pid_of(child), signal).unwrap();
        if matches!(signal, Signal::SIGKILL | Signal::SIGTERM) {
            child.wait().unwrap();
            self.dockerd = None;
        }
    }

    /// kill -9 of containerd.
    pub fn kill_containerd(&mut self) {
        let mut child = self.containerd.take().unwrap();
        kill_now(pid_of(&child));
        child.wait().unwrap();
    }

    /// Ends everything at once, as a loss of power does, and forgets what a machine's memory holds: processes, mounts,
    /// network, `/run`. Then the thread is in a new network, with nothing started.
    pub fn lose_power(&mut self) {
        let mut victims = self.shims_and_below();
        let children = [self.dockerd.take(), self.containerd.take()];
        victims.extend(children.iter().flatten().map(pid_of));
        // Stopped first: nobody sees another die, and nothing is started in between.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in &victims {
                let _ = kill(*pid, signal);
            }
        }
        for mut child in children.into_iter().flatten() {
            child.wait().unwrap();
        }
        wait_for("everything to be dead", Duration::from_secs(20), || self.shims_and_below().is_empty().then_some(()));
        self.unmount();
        for memory in ["exec", "run", "docker.sock", "docker.pid", "containerd.sock", "containerd.sock.ttrpc"] {
            let path = self.path(memory);
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        new_network();
    }

    /// The shims of this engine's containers and all that descends from them.
    fn shims_and_below(&self) -> HashSet<Pid> {
        let mut below: HashMap<i32, Vec<i32>> = HashMap::new();
        let mut todo = Vec::new();
        let address = self.path("containerd.sock").display().to_string();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            // Processes come and go while this looks.
            let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
            let mut rest = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            let (state, parent) = (rest.next(), rest.next().and_then(|p| p.parse().ok()));
            if state == Some("Z") {
                continue;
            }
            below.entry(parent.unwrap_or(0)).or_default().push(pid);
            let line = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            if line.contains("containerd-shim") && line.contains(&address) {
                todo.push(pid);
            }
        }
        let mut found = HashSet::new();
        while let Some(pid) = todo.pop() {
            if found.insert(Pid::from_raw(pid)) {
                todo.extend(below.remove(&pid).unwrap_or_default());
            }
        }
        found
    }

    fn unmount(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let under = |path: &&str| Path::new(path).starts_with(self.dir.path());
        let mut ours: Vec<&str> = mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(under).collect();
        ours.reverse();
        for mount in ours {
            let _ = Command::new("umount").args(["-l", mount]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- dockerd's log ---\n{}", self.log());
        }
        let children = [self.dockerd.take(), self.containerd.take()];
        for child in children.iter().flatten() {
            let _ = kill(pid_of(child), Signal::SIGKILL);
        }
        for mut child in children.into_iter().flatten() {
            let _ = child.wait();
        }
        for pid in self.shims_and_below() {
            kill_now(pid);
        }
        self.unmount();
    }
}
