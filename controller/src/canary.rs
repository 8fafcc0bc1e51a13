//! Canaries: a release that gets a share of the requests beside the one that runs, until it is promoted or given up.

use crate::core::{Actor, Controller, invalid, not_found};
use crate::crypt::Vars;
use crate::db::{Stored, Tx, keys};
use crate::releases::{Beside, Code, Draft, made};
use flex_api::{ApiError, ErrorId};
use flex_model::{App, AppId, Canary, Release, ReleaseStatus};
use std::sync::Arc;

impl Controller {
    /// Gives a release (none: the next one that a build makes) a share of the requests, in percent; or another share.
    pub async fn set_canary(
        &self,
        actor: &Actor,
        id: AppId,
        release: Option<&Release>,
        weight: u32,
    ) -> Result<Arc<App>, ApiError> {
        if !(1..=99).contains(&weight) {
            return Err(invalid(format!("A canary's weight is a share in percent, 1 to 99, not {weight}.")));
        }
        if let Some(r) = release {
            self.may_be_canary(r).await?;
        }
        let version = release.map(|r| r.version);
        let changed = self
            .db
            .retry(|| async {
                let stored = self.read_app(&id.to_string()).await?;
                let app = &stored.value;
                crate::owners::refuse_locked(app)?;
                if app.good.is_none() {
                    return Err(invalid("Nothing serves yet that a canary could stand beside. Deploy first: git push flex main"));
                }
                if version.is_some() && (version == app.target || version == app.good) {
                    return Err(invalid("That release is what runs already: a canary is another one beside it."));
                }
                let same = app.canary.filter(|c| c.version == version);
                let canary = Canary { version, weight, built: same.is_some_and(|c| c.built) };
                if app.canary == Some(canary) {
                    return Ok((Tx::new(), app.clone()));
                }
                let mut tx = Tx::new().unchanged(&stored);
                if same.is_none() {
                    tx = self.give_up_canary(tx, app, "another canary took its place").await?;
                }
                let now = App { canary: Some(canary), updated_at: self.now(), ..(**app).clone() };
                let what = version.map_or_else(|| "The next build".to_owned(), |v| format!("v{v}"));
                let event = self.event(actor, Some(id), "canary.update", format!("{what} gets {weight} % of the requests"));
                let tx = tx.put(stored.key.clone(), &now).put(keys::event(&event), &event);
                Ok((tx, Arc::new(now)))
            })
            .await?;
        let what = release.map_or_else(|| "the next build".to_owned(), |r| format!("v{}", r.version));
        self.log_api(id, format!("Canary of {what} with {weight}% by user {}", actor.name));
        self.nudge();
        Ok(changed)
    }

    async fn may_be_canary(&self, r: &Release) -> Result<(), ApiError> {
        let v = r.version;
        if r.status == ReleaseStatus::Failed {
            return Err(invalid(format!("v{v} failed: it cannot serve.")));
        }
        if r.image.is_none() || !r.processes.keys().any(flex_model::ProcessType::is_web) {
            return Err(invalid(format!("v{v} has no process type web, so there is nothing to send requests to.")));
        }
        if !self.rollback_targets(r.app).await?.contains(&v) {
            return Err(invalid(format!("The image of v{v} is not kept any more. Push its commit again instead.")));
        }
        Ok(())
    }

    /// In the commit that ends a canary: a release that had not been up yet, or that was never more than a canary, counts as
    /// failed, so that nobody goes back to it unasked.
    pub(crate) async fn give_up_canary(&self, tx: Tx, app: &App, why: &str) -> Result<Tx, ApiError> {
        let Some((version, built)) = app.canary.and_then(|c| Some((c.version?, c.built))) else { return Ok(tx) };
        let Some(release) = self.db.get::<Release>(&keys::release(app.id, version)).await? else { return Ok(tx) };
        let failure = match release.value.status {
            ReleaseStatus::Pending => format!("{why} before it was up"),
            ReleaseStatus::Succeeded if built => format!("{why}: it was a canary, and not promoted"),
            _ => return Ok(tx),
        };
        let (status, failure) = (ReleaseStatus::Failed, Some(failure));
        let ended = Release { status, failure, updated_at: self.now(), ..(*release.value).clone() };
        Ok(tx.unchanged(&release).put(release.key.clone(), &ended))
    }

    /// Ends a canary: all requests go to what runs.
    pub async fn abort_canary(&self, actor: &Actor, id: AppId) -> Result<Arc<App>, ApiError> {
        let app = self
            .db
            .retry(|| async {
                let stored = self.read_app(&id.to_string()).await?;
                let canary = stored.value.canary.ok_or_else(none)?;
                let now = App { canary: None, updated_at: self.now(), ..(*stored.value).clone() };
                let what = canary.version.map_or_else(|| "of the next build".to_owned(), |v| format!("v{v}"));
                let event = self.event(actor, Some(id), "canary.abort", format!("Ended the canary {what}"));
                let tx = Tx::new().unchanged(&stored).put(stored.key.clone(), &now).put(keys::event(&event), &event);
                let tx = self.give_up_canary(tx, &stored.value, "it was ended").await?;
                Ok((tx, Arc::new(now)))
            })
            .await?;
        self.log_api(id, format!("Canary ended by user {}", actor.name));
        self.nudge();
        Ok(app)
    }

    /// Makes the canary what should run. It is rolled out as a new release is: what runs goes on until it is covered, and
    /// stays if it is not. The newest release is taken as it is; of an older one the code becomes a new release, with the
    /// config vars of today, since those may have changed while it was tried.
    pub async fn promote_canary(&self, actor: &Actor, id: AppId) -> Result<Arc<Release>, ApiError> {
        let app = self.find_app(&id.to_string()).await?;
        crate::owners::refuse_locked(&app)?;
        let canary = self.may_be_promoted(&app).await?;
        let release = if canary.version == app.last_version {
            self.promote_newest(actor, id, canary.version).await?
        } else {
            let description = format!("Promote canary v{}", canary.version);
            let draft = |now: &App, before: &Vars| {
                if now.canary.and_then(|c| c.version) != Some(canary.version) {
                    return Err(changed());
                }
                let (vars, description, code) = (before.clone(), description.clone(), Code::Of(&canary));
                Ok(Some(Draft { vars, description, kind: "canary.promote", code, beside: Beside::PromoteCanary }))
            };
            made(self.make_release(actor, id, draft).await?)?
        };
        self.log_api(id, format!("Canary v{} promoted by user {}", canary.version, actor.name));
        self.nudge();
        Ok(release)
    }

    /// The canary's release, if it can take over.
    async fn may_be_promoted(&self, app: &App) -> Result<Arc<Release>, ApiError> {
        let conflict = |text: String| Err(ApiError::new(ErrorId::Conflict, text));
        let canary = app.canary.ok_or_else(none)?;
        let Some(version) = canary.version else {
            return conflict(
                "The canary waits for the next build: there is nothing to promote yet. Push: git push flex main".into(),
            );
        };
        let release = self.find_release(app.id, &version.to_string()).await?;
        if release.status != ReleaseStatus::Succeeded {
            return conflict(format!("v{version} has not been up yet. Wait until it serves: flex canary"));
        }
        if let Some(target) = app.target.filter(|t| Some(*t) != app.good)
            && self.find_release(app.id, &target.to_string()).await?.status == ReleaseStatus::Pending
        {
            return conflict(format!("v{target} is being rolled out. Promote v{version} when that is over. See: flex releases"));
        }
        Ok(release)
    }

    async fn promote_newest(&self, actor: &Actor, id: AppId, version: u64) -> Result<Arc<Release>, ApiError> {
        self.db
            .retry(|| async {
                let stored = self.read_app(&id.to_string()).await?;
                let app = &stored.value;
                if app.last_version != version || app.canary.and_then(|c| c.version) != Some(version) {
                    return Err(changed());
                }
                let key = keys::release(id, version);
                let canary: Stored<Arc<Release>> =
                    self.db.get(&key).await?.ok_or_else(|| not_found("Couldn't find that release."))?;
                let pending = Release { status: ReleaseStatus::Pending, updated_at: self.now(), ..(*canary.value).clone() };
                let now = App { canary: None, target: Some(version), updated_at: self.now(), ..(**app).clone() };
                let event = self.event(actor, Some(id), "canary.promote", format!("v{version} takes all requests"));
                let tx = Tx::new()
                    .unchanged(&stored)
                    .unchanged(&canary)
                    .put(stored.key.clone(), &now)
                    .put(key, &pending)
                    .put(keys::event(&event), &event);
                Ok((tx, Arc::new(pending)))
            })
            .await
    }

    /// A canary's release was seen serving its part.
    pub(crate) fn canary_is_up(&self, app: &Stored<Arc<App>>, release: &Stored<Arc<Release>>) -> Tx {
        let now = Release { status: ReleaseStatus::Succeeded, updated_at: self.now(), ..(*release.value).clone() };
        let text = format!("v{} is serving as a canary", now.version);
        let event = self.event(&Actor::platform(), Some(now.app), "release.succeeded", text);
        Tx::new().unchanged(app).unchanged(release).put(release.key.clone(), &now).put(keys::event(&event), &event)
    }
}

fn none() -> ApiError {
    not_found("There is no canary. Begin one: flex canary:start --weight 10")
}

fn changed() -> ApiError {
    ApiError::new(ErrorId::Conflict, "The canary was changed at the same moment. Look at it, and try again: flex canary")
}
