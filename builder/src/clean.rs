//! Giving space back: caches, an app's images, blobs that no release needs. Everything here may run twice.

use crate::{BuildError, Builder};
use flex_model::AppId;
use flex_runtime::RuntimeError;
use std::{collections::BTreeSet, time::Duration};

/// How long after a build its container may still be there: see `container::LATER`.
const RELEASE: Duration = Duration::from_secs(8);

/// A build links and writes blobs before its release exists: younger ones are left alone.
const GRACE: Duration = Duration::from_secs(3600);

impl Builder {
    /// Empties an app's build cache.
    ///
    /// # Errors
    /// The engine refuses (a build may be using the cache) or does not answer.
    pub async fn purge_cache(&self, app: AppId) -> Result<(), BuildError> {
        let deadline = tokio::time::Instant::now() + RELEASE;
        loop {
            match self.runtime.remove_volume(&self.cache_volume(app)).await {
                // The container of a build that just ended holds it a moment longer.
                Err(RuntimeError::Refused(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                done => return Ok(done?),
            }
        }
    }

    /// Removes everything of an app: cache, images in the engine, blobs.
    ///
    /// # Errors
    /// The engine does not answer, or the files cannot be removed; run it again then.
    pub async fn remove_app(&self, app: AppId) -> Result<(), BuildError> {
        self.purge_cache(app).await?;
        let layout = self.layout(app)?;
        let deadline = tokio::time::Instant::now() + RELEASE;
        for id in layout.image_ids()? {
            loop {
                match self.runtime.remove_image(&id).await {
                    // A step of a build that was cancelled is being removed.
                    Err(RuntimeError::Refused(_)) if tokio::time::Instant::now() < deadline => {
                        tokio::time::sleep(Duration::from_millis(250)).await;
                    }
                    // Another app's image was made from it, and takes it along when it goes.
                    Err(RuntimeError::Refused(why)) => {
                        tracing::info!(image = %id, why, "an image stays in the engine for now");
                        break;
                    }
                    done => break done?,
                }
            }
        }
        std::fs::remove_dir_all(layout.dir()).map_err(|e| BuildError::platform("removing an app's images", e))
    }

    /// Drops those of the app's images that are not in `keep`, from blob storage and the engine. `keep` has the manifests of
    /// the releases' images, and the references of images without one. Blobs younger than an hour stay. Returns how many images went.
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

    /// Removes temporary files that an earlier run of this process left behind. For the start; what is younger than six hours stays.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn sweep(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(self.settings.tmp_dir()?)? {
            let entry = entry?;
            // Another process may be making a stack; nothing takes this long.
            if entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age < Duration::from_secs(6 * 3600)) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}
