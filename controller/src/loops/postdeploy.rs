//! app.json's `postdeploy`: owed by a record from the commit on that made an app's first release the serving one.
//!
//! Invariants: it is started at most once, for what it does (loading first data) may not be done twice; it is never lost
//! without a word. The record says that it was started before it is; one that says so when the server starts was cut off,
//! and its app's log tells how to run it by hand.

use crate::core::Controller;
use crate::db::{PostdeployRecord, Stored, Tx, keys};
use flex_api::ApiError;
use flex_model::{AppId, LogSource, ProcessScale};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const NAME: &str = "postdeploy.1";
/// How often an engine that cannot start it is asked again, and the pause before that.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(3);

type Owed = Stored<Arc<PostdeployRecord>>;

impl Controller {
    pub(super) async fn postdeploy_loop(self, stop: CancellationToken) {
        if let Err(e) = self.tell_of_interrupted().await {
            tracing::warn!(error = %e, "interrupted postdeploy scripts could not be looked for");
        }
        let Ok(mut changes) = self.deps.store.watch(keys::POSTDEPLOYS, 0).await else { return };
        loop {
            let wait = match self.start_owed().await {
                Ok(true) => PAUSE,
                Ok(false) => Duration::from_secs(60),
                Err(e) => {
                    tracing::warn!(error = %e, "a postdeploy script could not be started; it is tried again");
                    PAUSE
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changes.changes.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// At the start: no script of an earlier run of the server runs any more.
    async fn tell_of_interrupted(&self) -> Result<(), ApiError> {
        for owed in self.db.list::<PostdeployRecord>(keys::POSTDEPLOYS).await? {
            if owed.value.started {
                let text = format!(
                    "The server was stopped while this script ran; it is not run again by itself. To run it: flex run {:?}",
                    owed.value.line
                );
                self.log(owed.value.app, LogSource::Flex, NAME, text);
                self.settle(&owed, None).await?;
            }
        }
        Ok(())
    }

    /// Starts what is owed. Says whether something has to be tried again.
    async fn start_owed(&self) -> Result<bool, ApiError> {
        let mut again = false;
        for owed in self.db.list::<PostdeployRecord>(keys::POSTDEPLOYS).await? {
            if !owed.value.started {
                again |= self.start_one(&owed).await?;
            }
        }
        Ok(again)
    }

    async fn start_one(&self, owed: &Owed) -> Result<bool, ApiError> {
        let record = &owed.value;
        let (Ok(app), Ok(release)) =
            (self.find_app(&record.app.to_string()).await, self.find_release(record.app, &record.version.to_string()).await)
        else {
            // Destroyed meanwhile.
            self.settle(owed, None).await?;
            return Ok(false);
        };
        let started = PostdeployRecord { started: true, ..(**record).clone() };
        if !self.settle(owed, Some(&started)).await? {
            // Somebody else was first.
            return Ok(false);
        }
        self.log(app.id, LogSource::Flex, NAME, format!("Starting process with command `{}`", record.line));
        let session = match self.job(&app, &release, record.line.clone(), NAME, ProcessScale::default_for(1)).await {
            Ok(job) => self.deps.runs.run(job).await,
            Err(e) => Err(e.message),
        };
        match session {
            Ok(session) => {
                let (this, app) = (self.clone(), app.id);
                tokio::spawn(async move {
                    // How it ended is in the log.
                    let _ = this.log_session(app, NAME, session).await;
                    this.end_postdeploy(app).await;
                });
                Ok(false)
            }
            Err(e) => {
                let failures = record.failures + 1;
                let last = failures >= TRIES;
                if last || failures == 1 {
                    self.log(app.id, LogSource::Flex, NAME, format!("Error R99 (Platform error) -> {e}"));
                }
                if last {
                    self.log(app.id, LogSource::Flex, NAME, format!("It was not run. To run it: flex run {:?}", record.line));
                    self.end_postdeploy(app.id).await;
                    return Ok(false);
                }
                let later = PostdeployRecord { started: false, failures, ..(**record).clone() };
                self.db.commit(Tx::new().present(&owed.key).put(owed.key.clone(), &later)).await.map_err(crate::core_error)?;
                Ok(true)
            }
        }
    }

    async fn end_postdeploy(&self, app: AppId) {
        if let Err(e) = self.db.commit(Tx::new().delete(keys::postdeploy(app))).await {
            tracing::warn!(%app, error = ?e, "the end of a postdeploy script could not be stored");
        }
    }

    /// Replaces the record, or removes it; false when it is no longer what was read.
    async fn settle(&self, owed: &Owed, now: Option<&PostdeployRecord>) -> Result<bool, ApiError> {
        let tx = Tx::new().unchanged(owed);
        let tx = match now {
            Some(now) => tx.put(owed.key.clone(), now),
            None => tx.delete(owed.key.clone()),
        };
        match self.db.commit(tx).await {
            Ok(_) => Ok(true),
            Err(crate::db::CommitError::Conflict(_)) => Ok(false),
            Err(e) => Err(crate::core_error(e)),
        }
    }
}
