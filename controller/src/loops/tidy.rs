//! Removes what nothing desires any more: remains of destroyed apps, old events, old builds' output, unused sources.

use crate::core::{Controller, lock};
use crate::db::{SourceRecord, Tx, keys};
use flex_api::ApiError;
use flex_model::{App, AppId, Build, Release};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(300);
const KEPT_EVENTS: usize = 20_000;
const KEPT_BUILDS: usize = 100;
/// A promised upload that nobody made use of.
const SOURCE_LIFE: Duration = Duration::from_secs(24 * 3600);

impl Controller {
    pub(super) async fn tidy_loop(self, stop: CancellationToken) {
        loop {
            if let Err(e) = self.tidy().await {
                tracing::warn!(error = %e, "tidying up was not possible; it is tried again later");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    pub(crate) async fn tidy(&self) -> Result<(), ApiError> {
        let all = self.db.list::<App>(keys::APPS).await?;
        let apps: BTreeSet<AppId> = all.iter().map(|a| a.value.id).collect();
        let mut gone: BTreeSet<AppId> = BTreeSet::new();
        gone.extend(self.db.list::<Release>(keys::RELEASES).await?.iter().map(|r| r.value.app).filter(|a| !apps.contains(a)));
        gone.extend(self.db.list::<Build>(keys::BUILDS).await?.iter().map(|b| b.value.app).filter(|a| !apps.contains(a)));
        for app in gone {
            self.sweep_app(app).await?;
        }
        let (events, _) = self.deps.store.list(keys::EVENTS).await.map_err(|e| store_error(&e))?;
        let surplus = events.len().saturating_sub(KEPT_EVENTS);
        for chunk in events[..surplus].chunks(50) {
            let tx = chunk.iter().fold(Tx::new(), |tx, e| tx.delete(e.key.to_string()));
            self.db.commit(tx).await.map_err(crate::core_error)?;
        }
        for app in &apps {
            self.tidy_builds(*app).await?;
            self.tidy_runs(*app).await?;
            self.tidy_history(*app).await?;
        }
        self.tidy_sources().await?;
        for app in all {
            self.tidy_images(&app.value).await?;
        }
        Ok(())
    }

    /// Not while the app builds: an image is made before its release is.
    async fn tidy_images(&self, app: &App) -> Result<(), ApiError> {
        self.keep_images(app).await?;
        let gate = lock(&self.build_locks).entry(app.id).or_default().clone();
        let Ok(_turn) = gate.try_lock_owned() else { return Ok(()) };
        let keep = self.images_to_keep(app).await?;
        if keep.is_empty() {
            return Ok(());
        }
        let dropped = self.deps.builders.collect_garbage(app.id, keep).await;
        let dropped = dropped.map_err(|e| ApiError::new(flex_api::ErrorId::Unavailable, e))?;
        if dropped > 0 {
            tracing::info!(app = %app.name, dropped, "removed images that nothing needs any more");
        }
        Ok(())
    }

    /// Copies what only the engine has of an app's images, so that a backup holds it. Pushes go on meanwhile.
    pub(crate) async fn keep_images(&self, app: &App) -> Result<(), ApiError> {
        let wanted = self.images_to_keep(app).await?;
        match self.deps.builders.keep_images(app.id, wanted).await {
            Ok(0) => {}
            Ok(kept) => tracing::info!(app = %app.name, kept, "copied images that only the engine had"),
            Err(e) => tracing::warn!(app = %app.name, error = %e, "an image is in the engine only; it is tried again later"),
        }
        Ok(())
    }

    async fn tidy_builds(&self, app: AppId) -> Result<(), ApiError> {
        let mut builds = self.db.list::<Build>(&keys::builds(app)).await?;
        builds.sort_by_key(|b| std::cmp::Reverse(b.value.created_at));
        for old in builds.iter().skip(KEPT_BUILDS).filter(|b| b.value.status.is_over()) {
            self.db.commit(Tx::new().unchanged(old).delete(old.key.clone())).await.map_err(crate::core_error)?;
            let _ = tokio::fs::remove_file(self.build_log(app, old.value.id)).await;
        }
        Ok(())
    }

    async fn tidy_sources(&self) -> Result<(), ApiError> {
        self.sweep_uploads().await;
        for s in self.db.list::<SourceRecord>("sources/").await? {
            if self.now().since(s.value.created_at) > SOURCE_LIFE {
                self.db.commit(Tx::new().delete(s.key.clone())).await.map_err(crate::core_error)?;
                let _ = tokio::fs::remove_file(self.source_path(s.value.id)).await;
            }
        }
        Ok(())
    }
}

impl Controller {
    /// Removes uploads that broke off, and those whose promise is gone.
    async fn sweep_uploads(&self) {
        let Some(dir) = self.source_path(self.id()).parent().map(std::path::Path::to_owned) else { return };
        let Ok(mut entries) = tokio::fs::read_dir(&dir).await else { return };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let modified = entry.metadata().await.and_then(|m| m.modified());
            // Beyond the life of its promise nobody can make use of it, and no upload takes that long.
            if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > SOURCE_LIFE)) {
                let _ = tokio::fs::remove_file(entry.path()).await;
            }
        }
    }

    /// Removes an upload that was deployed.
    pub(crate) async fn drop_source(&self, id: flex_model::SourceId) {
        if let Err(e) = self.db.commit(Tx::new().delete(keys::source(id))).await {
            tracing::debug!(error = ?e, "an upload stays for a day");
            return;
        }
        let _ = tokio::fs::remove_file(self.source_path(id)).await;
    }
}

fn store_error(e: &flex_store::StoreError) -> ApiError {
    ApiError::new(flex_api::ErrorId::Unavailable, e.to_string())
}
