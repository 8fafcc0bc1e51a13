//! Containers of images that the engine has lost: somebody cleaned up, or the machine is a new one and the state came from a
//! backup. Only a container that cannot be made asks, so that nothing is looked up on the usual way.
//!
//! Must not: bring an image for anyone else than an app's own container; say that it is there when its content differs.

use super::Inner;
use crate::RuntimeError;
use bollard::models::ContainerCreateBody;
use flex_model::{AppId, ImageRef};

impl Inner {
    /// [`Inner::create`], and once more after its image was brought where the engine says that it has none.
    pub(super) async fn create_of(
        &self,
        name: &str,
        body: ContainerCreateBody,
        app: AppId,
        app_name: &str,
        image: &ImageRef,
    ) -> Result<Option<String>, RuntimeError> {
        match self.create(name, body.clone()).await {
            Err(RuntimeError::NotFound(why)) if names_an_image(&why) => {
                let reference = self.bring(app, app_name, image, why).await?;
                self.create(name, ContainerCreateBody { image: Some(reference), ..body }).await
            }
            done => done,
        }
    }

    /// One at a time: the others of an app find what the first one brought.
    async fn bring(&self, app: AppId, app_name: &str, image: &ImageRef, why: String) -> Result<String, RuntimeError> {
        let _turn = self.bringing.lock().await;
        if self.has_image(&image.reference).await? {
            return Ok(image.reference.clone());
        }
        // Content-addressed in a registry, so what comes is what it was.
        if image.reference.contains('@') {
            return Ok(self.pull(&image.reference).await?.reference);
        }
        let files = match &self.settings.images {
            Some(source) => source.files(app, app_name, image).await?,
            None => None,
        };
        let Some(files) = files else {
            return Err(RuntimeError::NotFound(format!("{why}; nor is it among what is kept of the app: deploy the app again")));
        };
        tracing::warn!(app = app_name, image = %image.reference, "the engine has lost an app's image: bringing it back");
        Ok(self.import(files).await?.reference)
    }
}

/// The engine's words: `No such image: sha256:…`; networks and containers that are missing have their own.
fn names_an_image(why: &str) -> bool {
    why.to_ascii_lowercase().contains("no such image")
}
