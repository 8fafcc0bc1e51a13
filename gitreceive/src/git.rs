//! The `git` child processes: how they are started and nothing about who asked. Shared by every transport.
//!
//! Invariants: `git` gets an argument vector made here, an environment made here and a HOME of its own; settings come
//! from `-c`, which wins over the repository's `config`; hooks come from one directory outside every repository. A child is
//! never killed because its client went away: a push in its build goes on, one that is still receiving ends by itself when
//! its input does, and in both cases git cleans up its own quarantine.

use crate::exec::Service;
use flex_model::Secret;
use std::{
    ffi::OsString,
    fs, io,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// Where the hook finds the daemon.
pub const ENV_SOCKET: &str = "FLEX_HOOK_SOCKET";
/// What the hook shows it: good for one push.
pub const ENV_SECRET: &str = "FLEX_HOOK_SECRET";

/// Pipes as large as an unprivileged process may have them: a quarter of the system calls of the default 64 KiB.
const PIPE_BYTES: i32 = 1 << 20;

/// How much one repository command may take.
#[derive(Debug, Clone)]
pub struct GitLimits {
    /// The largest pack that a push may send, in bytes.
    pub max_pack_bytes: u64,
    /// The largest single object (a file, unpacked) that a push may send, in bytes. Bounds what a small pack can inflate to.
    pub max_object_bytes: u64,
    /// How many refs one push may move.
    pub max_refs: usize,
    /// Git commands at a time, pushes that wait for their build included.
    pub max_commands: usize,
    /// Pushes of one user at a time, those that wait for their build included.
    pub max_pushes_per_user: usize,
}

impl Default for GitLimits {
    fn default() -> Self {
        Self { max_pack_bytes: 2 << 30, max_object_bytes: 200 << 20, max_refs: 1000, max_commands: 256, max_pushes_per_user: 20 }
    }
}

/// The protocol version that a client asked for with `GIT_PROTOCOL`. Nothing else of a client's environment is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    V1,
    V2,
}

impl Protocol {
    /// Reads `version=1` or `version=2`; extensions after a colon are not known and refused.
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "version=1" => Some(Self::V1),
            "version=2" => Some(Self::V2),
            _ => None,
        }
    }
    fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "version=1",
            Self::V2 => "version=2",
        }
    }
}

/// The secret that lets the hook of one push speak for it, and the socket where it does.
#[derive(Debug)]
pub struct HookPass<'a> {
    pub socket: &'a Path,
    pub secret: &'a Secret,
}

/// Starts `git`.
#[derive(Debug)]
pub struct Git {
    hooks: PathBuf,
    home: PathBuf,
    path: OsString,
    limits: GitLimits,
}

/// A running `git` with its three pipes.
#[derive(Debug)]
pub struct Running {
    pub child: Child,
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    pub stderr: ChildStderr,
}

impl Git {
    /// Lays out `<state>/hooks` with the one hook and an empty `<state>/home`. Safe to repeat.
    pub fn new(state: &Path, hook_program: &Path, limits: GitLimits) -> io::Result<Self> {
        let git = Self {
            hooks: state.join("hooks"),
            home: state.join("home"),
            path: std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
            limits,
        };
        for directory in [state, &git.hooks, &git.home] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let hook_program = hook_program.canonicalize()?;
        let (hook, draft) = (git.hooks.join("pre-receive"), git.hooks.join(".pre-receive.new"));
        if fs::read_link(&hook).ok().as_ref() != Some(&hook_program) {
            let _ = fs::remove_file(&draft);
            std::os::unix::fs::symlink(&hook_program, &draft)?;
            fs::rename(&draft, &hook)?;
        }
        Ok(git)
    }

    /// Starts one half of the transport on a bare repository. `pass` is needed by pushes: without it the hook refuses.
    pub fn spawn(
        &self,
        service: Service,
        repository: &Path,
        protocol: Option<Protocol>,
        pass: Option<HookPass<'_>>,
    ) -> io::Result<Running> {
        if !repository.is_absolute() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a repository's path must be absolute"));
        }
        let mut command = Command::new("git");
        command.env_clear().env("PATH", &self.path).env("HOME", &self.home).env("LC_ALL", "C.UTF-8");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
        if let Some(protocol) = protocol {
            command.env("GIT_PROTOCOL", protocol.as_str());
        }
        for setting in self.settings(service) {
            command.arg("-c").arg(setting);
        }
        match service {
            Service::ReceivePack => {
                // git gives up when one allocation is larger: index-pack allocates every object whole.
                command.env("GIT_ALLOC_LIMIT", self.limits.max_object_bytes.to_string());
                if let Some(pass) = pass {
                    command.env(ENV_SOCKET, pass.socket).env(ENV_SECRET, pass.secret.expose());
                }
                command.arg("receive-pack");
            }
            Service::UploadPack => {
                command.args(["upload-pack", "--strict"]);
            }
        }
        command.arg("--").arg(repository).current_dir("/");
        // A group of its own: a Ctrl-C meant for the daemon must not end pushes that it still drains.
        command.process_group(0).kill_on_drop(false);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let missing = || io::Error::other("a pipe to git is missing");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        // Only speed depends on it, and a user's pipe quota may be used up.
        let _ = nix::fcntl::fcntl(stdin.as_fd(), nix::fcntl::F_SETPIPE_SZ(PIPE_BYTES));
        let _ = nix::fcntl::fcntl(stdout.as_fd(), nix::fcntl::F_SETPIPE_SZ(PIPE_BYTES));
        Ok(Running { child, stdin, stdout, stderr })
    }

    fn settings(&self, service: Service) -> Vec<OsString> {
        let mut hooks = OsString::from("core.hooksPath=");
        hooks.push(&self.hooks);
        let mut out = vec![hooks, "transfer.hideRefs=refs/flex".into(), "core.sharedRepository=0600".into()];
        let fixed: &[&str] = match service {
            Service::ReceivePack => &[
                // Broken and hostile objects (`.git` in trees, submodule URLs that are options, …) stop here …
                "receive.fsckObjects=true",
                // … except three old habits of old tools that many honest histories have and nothing trips over.
                "receive.fsck.badTimezone=ignore",
                "receive.fsck.missingSpaceBeforeDate=ignore",
                "receive.fsck.zeroPaddedFilemode=ignore",
                "receive.advertisePushOptions=true",
                // Which refs may move is the gate's decision, as on Heroku: forced, deleted, whatever.
                "receive.denyDeletes=false",
                "receive.denyDeleteCurrent=ignore",
                "receive.denyNonFastForwards=false",
                "receive.denyCurrentBranch=ignore",
                // Most CI systems check out one commit and push that.
                "receive.shallowUpdate=true",
                // Packs stay packs. Unpacking a push of few objects would compress every one of them anew, which takes
                // several times as long as the sending; git's own maintenance joins the packs when they are many.
                "receive.unpackLimit=1",
                // What a push was told to be stored is on the disk.
                "core.fsync=committed",
                "core.fsyncMethod=batch",
                // Above this size git streams objects past GIT_ALLOC_LIMIT: no pack can hold one that large.
                "core.bigFileThreshold=1024g",
            ],
            Service::UploadPack => &["uploadpack.allowFilter=true", "pack.windowMemory=128m", "pack.threads=2"],
        };
        out.extend(fixed.iter().map(OsString::from));
        if service == Service::ReceivePack {
            out.push(format!("receive.maxInputSize={}", self.limits.max_pack_bytes).into());
        }
        out
    }
}

/// Why git refused a push by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Complaint {
    LargeFile,
    LargePush,
    DiskFull,
}

/// What git's own words about sizes mean, if `output` has them.
pub fn complaint(output: &[u8]) -> Option<Complaint> {
    let has = |needle: &[u8]| output.windows(needle.len()).any(|w| w == needle);
    if has(b"No space left on device") {
        Some(Complaint::DiskFull)
    } else if has(b"over limit") {
        Some(Complaint::LargeFile)
    } else if has(b"exceeds maximum allowed size") {
        Some(Complaint::LargePush)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_protocols() {
        assert_eq!(Protocol::parse("version=2"), Some(Protocol::V2));
        for bad in ["", "version=3", "version=2:x", "version=2\n", "version=1;id", "$(id)"] {
            assert_eq!(Protocol::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_hook_follows_the_program() {
        let dir = tempfile::tempdir().unwrap();
        for program in ["one", "two"] {
            let program = dir.path().join(program);
            fs::write(&program, "").unwrap();
            Git::new(&dir.path().join("state"), &program, GitLimits::default()).unwrap();
            assert_eq!(fs::read_link(dir.path().join("state/hooks/pre-receive")).unwrap(), program.canonicalize().unwrap());
        }
        assert!(Git::new(&dir.path().join("state"), &dir.path().join("none"), GitLimits::default()).is_err());
    }
}
