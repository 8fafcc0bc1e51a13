//! Giving space back: caches, an app's images, blobs that no release needs. Everything here may run twice.

use crate::{BuildError, Builder};
use flex_model::AppId;
use std::{collections::BTreeSet, time::Duration};

/// A build links and writes blobs before its release exists: younger ones are left alone.
const GRACE: Duration = Duration::from_secs(3600);

impl Builder {
    /// Empties an app's build cache.
    ///
    /// # Errors
    /// The engine refuses (a build may be using the cache) or does not answer.
    pub async fn purge_cache(&self, app: AppId) -> Result<(), BuildError> {
        Ok(self.runtime.remove_volume(&self.cache_volume(app)).await?)
    }

    /// Removes everything of an app: cache, images in the engine, blobs.
    ///
    /// # Errors
    /// The engine does not answer, or the files cannot be removed; run it again then.
    pub async fn remove_app(&self, app: AppId) -> Result<(), BuildError> {
        self.purge_cache(app).await?;
        let layout = self.layout(app)?;
        for id in layout.image_ids()? {
            self.runtime.remove_image(&id).await?;
        }
        std::fs::remove_dir_all(layout.dir()).map_err(|e| BuildError::platform("removing an app's images", e))
    }

    /// Drops those of the app's images whose manifest is not in `keep` (those of its releases), from blob storage and the
    /// engine. Blobs younger than an hour stay. Returns how many images went.
    ///
    /// # Errors
    /// The files cannot be read or removed. An engine that keeps an image in use is no error.
    pub async fn collect_garbage(&self, app: AppId, keep: &BTreeSet<String>) -> Result<usize, BuildError> {
        self.collect_garbage_after(app, keep, GRACE).await
    }

    pub(crate) async fn collect_garbage_after(
        &self,
        app: AppId,
        keep: &BTreeSet<String>,
        grace: Duration,
    ) -> Result<usize, BuildError> {
        let layout = self.layout(app)?;
        let keep = keep.clone();
        let dropped = crate::build::blocking(move || layout.collect(&keep, grace)).await?;
        for id in &dropped {
            if let Err(e) = self.runtime.remove_image(id).await {
                tracing::info!(image = %id, error = %e, "an image stays in the engine for now");
            }
        }
        Ok(dropped.len())
    }
}
