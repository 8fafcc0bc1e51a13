//! The life of a build container outside the build itself: made ahead of time, and always destroyed.

use crate::{BuildError, Builder, sandbox, stack::StackRecord};
use flex_model::{AppId, BuildId, StackName};
use flex_runtime::Sandbox;
use std::{sync::Arc, time::Duration};

/// A container that waits for its build. Making one takes a few hundred milliseconds, which a push can spend on being
/// received: see [`Builder::prepare`]. Dropping it destroys the container.
pub struct Prepared {
    pub(crate) app: AppId,
    /// The stack's recipe: one that was made anew in between is not used.
    pub(crate) recipe: String,
    pub(crate) held: Held,
}

impl Builder {
    /// Makes the container for a build that is about to come.
    ///
    /// # Errors
    /// The stack is missing or the engine does not answer.
    pub async fn prepare(&self, build: BuildId, app: AppId, stack: &StackName) -> Result<Prepared, BuildError> {
        let stack = StackRecord::load(&self.settings, stack.as_str()).map_err(|e| BuildError::Platform(e.to_string()))?;
        self.container(build, app, &stack).await
    }

    pub(crate) async fn container(&self, build: BuildId, app: AppId, stack: &StackRecord) -> Result<Prepared, BuildError> {
        let image = stack.build_reference(&self.settings, self.runtime.as_ref()).await?;
        let spec = sandbox::spec(&self.settings, self.sandbox_id(build), image, self.cache_volume(app));
        let sandbox = self.runtime.sandbox(spec).await?;
        Ok(Prepared { app, recipe: stack.recipe.clone(), held: Held(Some(Arc::from(sandbox))) })
    }
}

/// How long the container of a successful build is left alone: destroying it costs the engine time that the app's first
/// instance needs just then.
const LATER: Duration = Duration::from_secs(2);

/// A container that is destroyed with its holder, whatever way that goes.
pub(crate) struct Held(Option<Arc<dyn Sandbox>>);

impl Held {
    /// The container.
    pub(crate) fn sandbox(&self) -> Result<Arc<dyn Sandbox>, BuildError> {
        self.0.clone().ok_or_else(|| BuildError::Platform("the build container is gone".into()))
    }
    /// Destroys it and waits for that: whoever tries again after a failure meets no remains.
    pub(crate) async fn now(mut self) {
        if let Some(sandbox) = self.0.take() {
            destroy(sandbox.as_ref()).await;
        }
    }
    /// Destroys it in a while.
    pub(crate) fn later(mut self) {
        self.spawn(LATER);
    }
    fn spawn(&mut self, after: Duration) {
        if let Some(sandbox) = self.0.take()
            && let Ok(handle) = tokio::runtime::Handle::try_current()
        {
            handle.spawn(async move {
                tokio::time::sleep(after).await;
                destroy(sandbox.as_ref()).await;
            });
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.spawn(Duration::ZERO);
    }
}

async fn destroy(sandbox: &dyn Sandbox) {
    if let Err(e) = sandbox.destroy().await {
        tracing::warn!(error = %e, "a build container was not removed now; it is reaped at the next start");
    }
}
