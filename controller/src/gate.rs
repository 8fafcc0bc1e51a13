//! What the git receiver asks: who is this, may they, and what becomes of the push.

use crate::core::{Actor, Controller};
use crate::deploy::{DeployEvent, DeployRequest};
use crate::http::access::Role;
use crate::ports::Source;
use crate::pushes::{Moving, Refs};
use flex_model::{App, AppId, AppName, BuildPhase, CommitId, Email, PhaseTime, User, UserId};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Who pushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitCaller {
    pub user: UserId,
    pub email: Email,
}

/// One ref of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitUpdate {
    /// `refs/heads/main`.
    pub name: String,
    /// Zeros: made.
    pub old: String,
    /// Zeros: deleted.
    pub new: String,
}

/// A push whose objects are in quarantine.
pub struct GitPush {
    pub app: AppId,
    pub repository: PathBuf,
    pub quarantine: Option<PathBuf>,
    pub updates: Vec<GitUpdate>,
    pub receive_millis: u64,
    pub refs: Arc<dyn Refs>,
}

impl Controller {
    /// The user with this public key (`type base64`).
    pub async fn caller_by_key(&self, openssh: &str) -> Option<GitCaller> {
        let user: Arc<User> = self.user_by_key(openssh).await.ok().flatten()?;
        Some(GitCaller { user: user.id, email: user.email.clone() })
    }

    /// Whether a user may use an app's repository.
    ///
    /// # Errors
    /// Lines that say what to do.
    pub async fn authorize_git(&self, user: UserId, app: &str) -> Result<(AppId, AppName), Vec<String>> {
        let refuse = || {
            vec![
                format!("There is no app {} that you may use.", app.chars().take(40).collect::<String>()),
                "See yours:      flex apps".to_owned(),
                format!("Or make it:     flex create {}", if app.parse::<AppName>().is_ok() { app } else { "NAME" }),
                "Or ask its owner to add you:  flex access:add YOUR-EMAIL".to_owned(),
            ]
        };
        let broken = |e: flex_api::ApiError| vec![e.message];
        let user = self.user(user).await.map_err(broken)?.ok_or_else(refuse)?;
        let found: Arc<App> = self.find_app(app).await.map_err(|_| refuse())?;
        match self.role_in(&user, &found).await.map_err(broken)? {
            Some(Role::Owner | Role::Admin | Role::Collaborator) => Ok((found.id, found.name.clone())),
            None => Err(refuse()),
        }
    }

    /// A push that moves this ref first has begun to come in. None: it will not be built soon.
    pub async fn receiving(&self, app: AppId, reference: &str) -> Option<Box<dyn Send>> {
        let app = self.find_app(&app.to_string()).await.ok()?;
        let branch = reference.strip_prefix("refs/heads/")?;
        let builds = crate::core::lock(&self.build_locks).get(&app.id).is_some_and(|turn| turn.try_lock().is_err());
        let soon = app.deploy_branches.iter().any(|b| b == branch) && !builds;
        soon.then(|| self.deps.builders.prepare(app.id, app.stack.clone()))
    }

    /// Takes a push. Events end with a verdict.
    pub async fn push(&self, caller: GitCaller, push: GitPush) -> mpsc::Receiver<DeployEvent> {
        let (out, events) = mpsc::channel(64);
        let this = self.clone();
        tokio::spawn(async move {
            let good = this.push_now(caller, push, &out).await;
            let _ = out.send(DeployEvent::Verdict(good)).await;
        });
        events
    }

    async fn push_now(&self, caller: GitCaller, push: GitPush, out: &mpsc::Sender<DeployEvent>) -> bool {
        let GitPush { app, repository, quarantine, updates, receive_millis, refs } = push;
        let say = async |text: String| drop(out.send(DeployEvent::Line(text)).await);
        let Ok(app) = self.find_app(&app.to_string()).await else {
            say(" !     The app was destroyed.".into()).await;
            return false;
        };
        let branch_of = |u: &GitUpdate| {
            u.name.strip_prefix("refs/heads/").filter(|b| app.deploy_branches.iter().any(|d| d == b)).map(str::to_owned)
        };
        let is_deleted = |u: &GitUpdate| u.new.bytes().all(|b| b == b'0');
        let deploying: Vec<(&GitUpdate, String)> = updates.iter().filter_map(|u| Some((u, branch_of(u)?))).collect();
        if let Some((_, branch)) = deploying.iter().find(|(u, _)| is_deleted(u)) {
            say(format!(" !     {branch} is deployed from and cannot be deleted. To remove the app: flex apps:destroy")).await;
            return false;
        }
        if deploying.len() > 1 {
            say(" !     More than one branch that deploys was pushed at once. Push one of them.".into()).await;
            return false;
        }
        for u in updates.iter().filter(|u| branch_of(u).is_none()) {
            let name = u.name.strip_prefix("refs/heads/").or(u.name.strip_prefix("refs/tags/")).unwrap_or(&u.name);
            let what = if is_deleted(u) { "deleted" } else { "stored, not deployed" };
            say(format!("-----> {name}: {what} (these branches deploy: {})", app.deploy_branches.join(", "))).await;
            if let Some(branch) = app.deploy_branches.first().filter(|_| !is_deleted(u) && deploying.is_empty()) {
                say(format!("       To deploy it: git push flex {}", refspec(&u.name, name, branch))).await;
            }
        }
        let Some((update, _)) = deploying.first() else { return true };
        if update.new.parse::<CommitId>().is_err() {
            say(" !     That is no commit.".into()).await;
            return false;
        }
        say("Building source:".into()).await;
        say(String::new()).await;
        let request = DeployRequest {
            app: app.id,
            source: Source::Git { repository, quarantine, commit: update.new.clone() },
            source_version: Some(update.new.clone()),
            phases: vec![PhaseTime { phase: BuildPhase::Receive, millis: receive_millis }],
            moving: Some(Moving { name: update.name.clone(), old: update.old.clone(), new: update.new.clone(), refs }),
        };
        match self.deploy(Actor::user(caller.user, &caller.email).at(Some("ssh".into())), request).await {
            Err(e) => {
                say(format!(" !     {e}")).await;
                false
            }
            Ok((_, mut events)) => {
                let mut good = false;
                while let Some(event) = events.recv().await {
                    match event {
                        DeployEvent::Verdict(v) => good = v,
                        line => drop(out.send(line).await),
                    }
                }
                good
            }
        }
    }
}

/// What to push to have a stored branch or tag deployed.
fn refspec(full: &str, name: &str, branch: &str) -> String {
    if full.starts_with("refs/tags/") {
        // An annotated tag is no commit: this is the one that it is of. What is no name of a ref needs a whole one to go to.
        format!("'{name}^{{}}:refs/heads/{branch}'")
    } else {
        format!("{name}:{branch}")
    }
}
