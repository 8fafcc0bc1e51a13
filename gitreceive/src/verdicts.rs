//! The daemon's end of the hook: a unix socket where hooks show their secret and wait for the gate's verdict.
//!
//! Invariants: a secret is good for one question; what reaches the gate is validated (ids are hex, refs are branches or
//! tags with legal names, the quarantine lies in the repository); every way out but the gate's yes is a no.

use crate::{
    Caller, Gate, Push, PushEvent, RefUpdate,
    hook::{Answer, MAX_QUESTION, Question},
};
use flex_model::{AppId, AppName, CommitId, Secret, names::check_branch};
use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

/// A hook has its question ready when it connects.
const QUESTION_TIME: Duration = Duration::from_secs(10);

/// What the daemon knows of a push before its hook asks.
#[derive(Debug, Clone)]
pub struct Expected {
    pub caller: Caller,
    pub app: AppId,
    pub app_name: AppName,
    pub repository: PathBuf,
    pub started: Instant,
    pub left: CancellationToken,
    pub over: CancellationToken,
}

/// The pushes whose hooks have not asked yet, by secret.
#[derive(Debug)]
pub struct Verdicts {
    expected: Mutex<HashMap<String, Expected>>,
    max_refs: usize,
    closed: CancellationToken,
}

/// Withdraws the secret when the push is over, asked or not.
#[derive(Debug)]
pub struct Registration {
    verdicts: Arc<Verdicts>,
    secret: Secret,
}

impl Registration {
    pub fn secret(&self) -> &Secret {
        &self.secret
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.verdicts.take(self.secret.expose());
    }
}

impl Verdicts {
    pub fn new(max_refs: usize) -> Self {
        Self { expected: Mutex::default(), max_refs, closed: CancellationToken::new() }
    }

    /// Refuses every push that waits and every one to come.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Expects a hook; `random` becomes its secret.
    pub fn expect(self: &Arc<Self>, push: Expected, random: u128) -> Registration {
        let secret = Secret::new(format!("{random:032x}"));
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.expose().to_owned(), push);
        Registration { verdicts: self.clone(), secret }
    }

    fn take(&self, secret: &str) -> Option<Expected> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).remove(secret)
    }

    /// Answers hooks until cancelled by being dropped.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, gate: Arc<dyn Gate>) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (this, gate) = (self.clone(), gate.clone());
                    tokio::spawn(async move {
                        if let Err(error) = this.answer(stream, gate).await {
                            tracing::warn!(%error, "a push's hook went away before its verdict");
                        }
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept a hook's connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn answer(&self, mut stream: UnixStream, gate: Arc<dyn Gate>) -> io::Result<()> {
        let question = tokio::time::timeout(QUESTION_TIME, read_question(&mut stream)).await??;
        let now = Instant::now();
        let Some(expected) = self.take(&question.secret) else {
            return refuse(&mut stream, &["This push is not known to Flex. Push again.".into()]).await;
        };
        let push = match check(question, expected, self.max_refs, now) {
            Ok(push) => push,
            Err(lines) => return refuse(&mut stream, &lines).await,
        };
        let mut events = gate.push(push).await;
        let mut end = [0; 1];
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = self.closed.cancelled() => {
                    return refuse(&mut stream, &without_verdict("Flex is being restarted")).await;
                }
                // The hook says nothing more: reading tells when it has gone, and with it the wish to hear more.
                _ = stream.read(&mut end) => return Err(io::ErrorKind::ConnectionAborted.into()),
            };
            match event {
                Some(PushEvent::Line(line)) => send(&mut stream, &Answer::Line(line)).await?,
                Some(PushEvent::Verdict(verdict)) => return send(&mut stream, &Answer::Verdict(verdict)).await,
                None => return refuse(&mut stream, &without_verdict("Flex stopped working on this push")).await,
            }
        }
    }
}

async fn read_question(stream: &mut UnixStream) -> io::Result<Question> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_QUESTION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a hook's question is too long"));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    serde_json::from_slice(&frame).map_err(io::Error::other)
}

async fn send(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// A push whose end nobody knows: its release may have been made, and serve.
fn without_verdict(why: &str) -> [String; 2] {
    let [whether, again] = crate::hook::WHETHER;
    [format!("{why}. {whether}"), again.into()]
}

async fn refuse(stream: &mut UnixStream, lines: &[String]) -> io::Result<()> {
    for line in lines {
        send(stream, &Answer::Line(format!(" !     {line}"))).await?;
    }
    send(stream, &Answer::Verdict(false)).await
}

/// Turns a question into a push, or says why it is none.
fn check(question: Question, expected: Expected, max_refs: usize, now: Instant) -> Result<Push, Vec<String>> {
    if question.updates.len() > max_refs {
        return Err(vec![
            format!("This push moves {} branches and tags; {max_refs} at a time are possible.", question.updates.len()),
            "Push the branch that is to be deployed: git push flex main".into(),
        ]);
    }
    let updates = question.updates.into_iter().map(update).collect::<Result<Vec<_>, _>>()?;
    let quarantine = question.quarantine.map(PathBuf::from);
    if let Some(path) = &quarantine {
        let inside = path.canonicalize().ok().zip(expected.repository.join("objects").canonicalize().ok());
        if !inside.is_some_and(|(path, objects)| path.starts_with(objects)) {
            return Err(vec!["The objects of this push are not where they should be. Push again.".into()]);
        }
    }
    let Expected { caller, app, app_name, repository, started, left, over } = expected;
    let receive_millis = u64::try_from(now.saturating_duration_since(started).as_millis()).unwrap_or(u64::MAX);
    let options = question.options;
    Ok(Push { caller, app, app_name, repository, quarantine, updates, options, receive_millis, left, over })
}

fn update((old, new, name): (String, String, String)) -> Result<RefUpdate, Vec<String>> {
    if old.parse::<CommitId>().is_err() || new.parse::<CommitId>().is_err() {
        return Err(vec!["An object id of this push is not one.".into()]);
    }
    let short = name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/"));
    match short {
        Some(short) if check_branch(short).is_ok() => Ok(RefUpdate { name, old, new }),
        _ => Err(vec![
            format!("Flex stores branches and tags only, and not under this name: {}", name.escape_debug()),
            "Push a branch: git push flex main".into(),
        ]),
    }
}

/// The listening socket at `path`: its folder for the daemon's user alone, a socket left by an earlier run replaced.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(c: char) -> String {
        c.to_string().repeat(40)
    }

    #[test]
    fn only_branches_and_tags_with_legal_names() {
        for ok in ["refs/heads/main", "refs/heads/feature/x", "refs/tags/v1.0"] {
            assert_eq!(update((id('0'), id('a'), ok.into())).unwrap().name, ok);
        }
        for bad in [
            "main",
            "HEAD",
            "refs/heads/",
            "refs/heads/--upload-pack=id",
            "refs/heads/a\nb",
            "refs/heads/a b",
            "refs/heads/../../x",
            "refs/flex/builds/1",
            "refs/notes/commits",
            "refs/heads/x.lock",
            "refs/stash",
        ] {
            assert!(update((id('0'), id('a'), bad.into())).is_err(), "{bad}");
        }
        assert!(update((id('0'), "$(id)".into(), "refs/heads/main".into())).is_err());
        assert!(update((id('0'), id('A'), "refs/heads/main".into())).is_err());
    }
}
