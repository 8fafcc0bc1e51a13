//! Pushes of one branch, one after another: where the branch stands and what serves stay the same commit.
//!
//! Git moves a ref only from where the push found it, and looks last, when everything is built and released. So a push
//! looks before git does: at its turn to build it waits for those before it, and is refused, with nothing built, if the ref
//! has moved. A push whose release does not come up is not waited for long; the release of the one that takes its place is
//! made only by a commit that ends the other, so that of two pushes from one place at most one succeeds.
//!
//! All of it is in memory: what a server that died was doing moves no ref any more.

use crate::core::{Actor, Controller, lock};
use crate::db::{Stored, Tx, keys};
use crate::deploy::Output;
use async_trait::async_trait;
use flex_api::{ApiError, ErrorId};
use flex_model::app_json::AppJson;
use flex_model::{App, AppId, Build, BuildId, Release, ReleaseStatus, Slug};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between looks at a push that is about to move the ref: git takes no longer.
const ABOUT_TO_END: Duration = Duration::from_millis(100);

/// The refs of a repository while a push to it goes on, as whoever receives it sees them.
#[async_trait]
pub trait Refs: Send + Sync + 'static {
    /// The object id that a ref has; none: there is no such ref.
    ///
    /// # Errors
    /// Words for the pusher.
    async fn current(&self, name: &str) -> Result<Option<String>, String>;
    /// Returns when the pusher has gone away; never, if they stay.
    async fn left(&self);
    /// Returns when git has ended: its refs have moved, or will not move any more.
    async fn over(&self);
}

/// The ref of a push that deploys.
#[derive(Clone)]
pub struct Moving {
    /// `refs/heads/main`.
    pub name: String,
    /// Where the push found it; zeros: it was not there.
    pub old: String,
    pub new: String,
    pub refs: Arc<dyn Refs>,
}

impl std::fmt::Debug for Moving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}..{}", self.name, self.old, self.new)
    }
}

impl Moving {
    fn branch(&self) -> &str {
        self.name.strip_prefix("refs/heads/").unwrap_or(&self.name)
    }

    /// Whether the ref is where the push found it; else what the pusher is to do.
    async fn stands(&self) -> Result<(), String> {
        let now = self.refs.current(&self.name).await?;
        outdated(self.branch(), &self.old, &self.new, now.as_deref()).map_or(Ok(()), |r| Err(r.to_string()))
    }
}

/// A refusal, in words for the pusher.
struct Refusal {
    /// Its stable name, at the end of the first line.
    code: &'static str,
    first: String,
    rest: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]\n{}", self.first, self.code, self.rest)
    }
}

/// Why a push may not go on whose ref is at `now`, if so.
fn outdated(branch: &str, old: &str, new: &str, now: Option<&str>) -> Option<Refusal> {
    let was_there = old.bytes().any(|b| b != b'0');
    let (first, rest) = match now {
        None if !was_there => return None,
        Some(now) if now == old => return None,
        Some(now) if now == new => (
            format!("another push has deployed this very commit to {branch} meanwhile"),
            "There is nothing left to do. To see it: flex releases".to_owned(),
        ),
        now => {
            let to = now.map_or_else(|| "is gone".to_owned(), |id| format!("is at {} now", id.get(..8).unwrap_or(id)));
            let rest = format!(
                "Another push was first. Get its commits, put yours on top of them, and push again:\n  \
                 git pull --rebase flex {branch}\n\
                 A push that is meant to overwrite them (--force) only has to be made again."
            );
            (format!("{branch} has moved since this push began: it {to}"), rest)
        }
    };
    Some(Refusal { code: "branch_moved", first, rest })
}

/// One push, from its turn to build until git has ended.
pub struct Place {
    build: BuildId,
    /// Of the ref.
    name: String,
    /// Of its release, once there is one.
    version: OnceLock<u64>,
    left: CancellationToken,
    /// The ref has moved, or this push will not move it any more.
    over: CancellationToken,
}

/// The pushes of each app, in the order of their turns.
pub type Places = std::collections::HashMap<AppId, Vec<Arc<Place>>>;

/// A push at its turn, and those before it.
pub(crate) struct InTurn {
    moving: Moving,
    place: Arc<Place>,
    earlier: Vec<Arc<Place>>,
}

impl InTurn {
    /// It was refused: git moves nothing.
    pub fn refused(&self) {
        self.place.over.cancel();
    }

    fn under_way(&self) -> impl Iterator<Item = &Arc<Place>> {
        self.earlier.iter().filter(|p| !p.over.is_cancelled())
    }

    /// The releases of those before it that may still move its ref.
    fn before(&self) -> Vec<u64> {
        self.under_way().filter(|p| p.name == self.moving.name).filter_map(|p| p.version.get().copied()).collect()
    }
}

impl Controller {
    /// Takes its place behind the app's pushes that are under way.
    pub(crate) fn in_turn(&self, app: AppId, build: BuildId, moving: Moving) -> InTurn {
        let (left, over) = (CancellationToken::new(), CancellationToken::new());
        let place = Arc::new(Place { build, name: moving.name.clone(), version: OnceLock::new(), left, over });
        let earlier = {
            let mut places = lock(&self.places);
            let line = places.entry(app).or_default();
            let earlier = line.clone();
            line.push(place.clone());
            earlier
        };
        let (this, mine, refs) = (self.clone(), place.clone(), moving.refs.clone());
        tokio::spawn(async move {
            let watch_the_pusher = async {
                refs.left().await;
                mine.left.cancel();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = refs.over() => {}
                () = mine.over.cancelled() => {}
                () = watch_the_pusher => {}
            }
            mine.over.cancel();
            let mut places = lock(&this.places);
            if let Some(line) = places.get_mut(&app) {
                line.retain(|p| p.build != mine.build);
                if line.is_empty() {
                    places.remove(&app);
                }
            }
        });
        InTurn { moving, place, earlier }
    }

    /// Before anything is built: waits for the pushes before this one, and looks where the ref is then. One that nobody
    /// waits for any more, or that takes long to be up, is not waited for.
    pub(crate) async fn wait_in_turn(
        &self,
        push: &InTurn,
        output: &mut Output,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        if push.under_way().next().is_some() {
            output.line("-----> Another push is not over yet; this one waits for it").await;
        }
        let enough = Instant::now() + self.deps.settings.overtake_after;
        for place in &push.earlier {
            tokio::select! {
                biased;
                () = place.over.cancelled() => {}
                () = cancel.cancelled() => return Err("Build cancelled".into()),
                () = place.left.cancelled() => {}
                () = tokio::time::sleep_until(enough) => {}
            }
        }
        push.moving.stands().await?;
        if push.under_way().next().is_some() {
            output.line("-----> Its release is not up; this push takes its place when it is built").await;
        }
        Ok(())
    }

    /// A build's success: its release, made when no push before it can move the ref any more. `None`: no push made it.
    pub(crate) async fn release_in_turn(
        &self,
        actor: &Actor,
        (build, slug, app_json): (&Build, &Slug, &AppJson),
        push: Option<&InTurn>,
        output: &mut Output,
        cancel: &CancellationToken,
    ) -> Result<Arc<Release>, String> {
        let Some(push) = push else {
            return self.release_build(actor, build, slug, app_json, &[]).await.map_err(|e| e.message);
        };
        let mut said = false;
        loop {
            // In this order: one that is over by then has moved the ref before it is looked at.
            let before = push.before();
            push.moving.stands().await?;
            match self.release_build(actor, build, slug, app_json, &before).await {
                Ok(release) => {
                    let _ = push.place.version.set(release.version);
                    return Ok(release);
                }
                Err(e) if e.id == ErrorId::Conflict && !before.is_empty() => {
                    if !std::mem::replace(&mut said, true) {
                        output.line("-----> The push before this one is up after all; this one waits for its end").await;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(ABOUT_TO_END) => {}
                        () = cancel.cancelled() => return Err("Build cancelled".into()),
                    }
                }
                Err(e) => return Err(e.message),
            }
        }
    }

    /// Holds the commit of a release to this: pushes with these releases have failed, or fail by it.
    pub(crate) async fn end_earlier(&self, mut tx: Tx, app: &App, as_canary: bool, before: &[u64]) -> Result<Tx, ApiError> {
        let replaced = if as_canary { app.canary.and_then(|c| c.version) } else { app.target };
        for version in before {
            let Some(stored) = self.heir(app.id, *version).await? else { continue };
            match stored.value.status {
                ReleaseStatus::Failed => {}
                ReleaseStatus::Pending if replaced == Some(stored.value.version) => tx = tx.unchanged(&stored),
                _ => return Err(ApiError::new(ErrorId::Conflict, format!("v{version} is not over yet."))),
            }
        }
        Ok(tx)
    }

    /// The release that stands for this one: itself, or where others took its place with the same code (a change of config
    /// vars does), the last of those.
    pub(crate) async fn heir(&self, app: AppId, version: u64) -> Result<Option<Stored<Arc<Release>>>, ApiError> {
        let mut found = self.db.get::<Release>(&keys::release(app, version)).await?;
        while let Some(release) = &found
            && let (Some(by), Some(slug)) = (release.value.superseded_by, release.value.slug)
            && let Some(next) = self.db.get::<Release>(&keys::release(app, by)).await?
            && next.value.slug == Some(slug)
        {
            found = Some(next);
        }
        Ok(found)
    }

    /// The release that a deploy waits for: its own, or the one that took over its code.
    pub(crate) async fn release_for(&self, release: &Release) -> Result<Arc<Release>, ApiError> {
        let found = self.heir(release.app, release.version).await?;
        found.map(|r| r.value).ok_or_else(|| crate::core::not_found("The app was destroyed."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ref_that_moved_is_told_with_what_to_do() {
        let (zeros, a, b, c) = ("0".repeat(40), "a".repeat(40), "b".repeat(40), "c".repeat(40));
        let said = |old: &str, now: Option<&str>| outdated("main", old, &b, now).map(|r| r.to_string());
        assert_eq!((said(&zeros, None), said(&a, Some(&a))), (None, None));
        for (old, now) in [(&zeros, Some(c.as_str())), (&a, Some(c.as_str())), (&a, None)] {
            let said = said(old, now).unwrap();
            assert!(said.contains("main has moved") && said.contains("git pull --rebase flex main"), "{said}");
            assert!(said.lines().next().unwrap().ends_with(" [branch_moved]"), "{said}");
        }
        assert!(said(&a, Some(&c)).unwrap().contains("at cccccccc now"));
        assert!(said(&a, Some(&b)).unwrap().contains("nothing left to do"));
    }
}
