//! The git receiver: SSH in, stock `git` for the packs, one verdict per push from the gate.
//!
//! Beside git, a client may ask for what [`session`] knows (`run`, `exec`, `attach`, `logs`, `ps`), which the gate does.
//!
//! Must not: decide who may do what (the gate does), run any program but `git` with an argument vector made here, or
//! start a shell.
//!
//! A push, walked: [`server`] accepts and keeps the door, [`ssh`] asks the gate whose key it is, [`exec`] reads the command,
//! [`git`] starts `git receive-pack`, [`relay`] moves the bytes; git puts the objects in quarantine and runs the
//! pre-receive [`hook`], which asks [`verdicts`] in the daemon, which asks the gate and carries its lines and its verdict
//! back the same way.

mod exec;
mod git;
mod hook;
mod host_key;
mod limits;
mod relay;
mod repository;
mod server;
mod session;
mod ssh;
mod text;
mod verdicts;
mod words;

pub use git::GitLimits;
pub use hook::run_hook;
pub use host_key::HostKeyError;
pub use limits::ConnectionLimits;
pub use repository::{RepositoryError, init_repository, ref_at};
pub use server::{BindError, GitServer, GitSettings};
pub use session::{Live, LiveInput, LiveOutput, Terminal, Wanted};

use async_trait::async_trait;
use flex_model::{AppId, AppName, Email, UserId};
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Who signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub user: UserId,
    pub email: Email,
}

/// What a caller wants with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Fetch,
    Push,
}

/// A refusal in words that tell the user what to do; shown as ` !     …` lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub lines: Vec<String>,
}

/// One ref of a push, validated: `refs/heads/main`, old and new object ids (40 or 64 hex digits, zeros for none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefUpdate {
    pub name: String,
    pub old: String,
    pub new: String,
}

/// A push whose objects are in quarantine, waiting for a verdict.
#[derive(Debug, Clone)]
pub struct Push {
    pub caller: Caller,
    pub app: AppId,
    pub app_name: AppName,
    pub repository: PathBuf,
    /// Object directory with the new objects; to be added as an alternate to read them.
    pub quarantine: Option<PathBuf>,
    pub updates: Vec<RefUpdate>,
    /// `git push -o key=value`.
    pub options: Vec<String>,
    /// From the first byte of the command to the hook: the `receive` phase.
    pub receive_millis: u64,
    /// Cancelled when the pusher has gone away. The push goes on.
    pub left: CancellationToken,
    /// Cancelled when git has ended: the refs have moved by then, or never will.
    pub over: CancellationToken,
}

/// What the gate says while a push waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushEvent {
    /// A line for the pusher's terminal, without `remote: ` and line end.
    Line(String),
    /// The end: whether git may move the refs.
    Verdict(bool),
}

/// What the receiver asks of the control plane.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Whose key is this? `openssh` is `ssh-ed25519 AAAA…` without comment.
    async fn authenticate(&self, openssh: &str) -> Option<Caller>;
    /// May the caller do this to that app? The app must exist.
    async fn authorize(&self, caller: &Caller, app: &str, access: Access) -> Result<(AppId, AppName), Refusal>;
    /// Where the app's bare repository is (made if it is not there yet).
    async fn repository(&self, app: AppId) -> Result<PathBuf, Refusal>;
    /// The branches of an app that deploy. `HEAD` of its repository is the first one that exists, so that clones get it.
    async fn branches(&self, app: AppId) -> Vec<String>;
    /// A push begins to be received, and the first ref that it moves is this one: time to make ready what it will need.
    /// What comes back is dropped when the push is over, whatever became of it.
    async fn receiving(&self, app: AppId, reference: &str) -> Option<Box<dyn Send>> {
        let _ = (app, reference);
        None
    }
    /// Begins what a command asks of an app, if the caller may.
    async fn session(&self, caller: &Caller, app: &str, wanted: Wanted, terminal: Option<Terminal>) -> Result<Live, Refusal> {
        let _ = (caller, wanted, terminal);
        Err(Refusal { lines: vec![format!("Nothing can be run in {app} over SSH here.")] })
    }
    /// Takes a push. Events end with one [`PushEvent::Verdict`]; a channel closed before that is a refusal. The push goes
    /// on when the receiver drops the channel (the pusher's connection was lost).
    async fn push(&self, push: Push) -> mpsc::Receiver<PushEvent>;
}
