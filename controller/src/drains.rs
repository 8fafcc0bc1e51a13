//! Drains of apps: kept with their URLs encrypted, and handed to what sends the lines (`flex_logs::drain`).
//!
//! Must not: show a URL with what may be a credential in it, in an answer, an event or a log.

use crate::core::{Actor, Controller, invalid, not_found};
use crate::crypt::Vars;
use crate::db::{DrainRecord, Tx, keys};
use flex_api::{ApiError, ErrorId};
use flex_logs::drain::{DrainSpec, DrainUrl};
use flex_model::{App, AppId, Secret};
use std::sync::Arc;

/// The name under which the URL is sealed.
const URL: &str = "url";
/// Drains of one app.
const MOST: usize = 20;

impl Controller {
    /// A drain's URL.
    pub fn drain_url(&self, record: &DrainRecord) -> Result<DrainUrl, ApiError> {
        let mut vars = self.crypt.unseal(&keys::drain(record.app, record.id), &record.url)?;
        let url = vars.remove(URL).unwrap_or_else(|| Secret::new(""));
        DrainUrl::parse(&url).map_err(|e| ApiError::new(ErrorId::Internal, format!("Drain {} cannot be read: {e}", record.token)))
    }

    pub async fn drains_of(&self, app: AppId) -> Result<Vec<Arc<DrainRecord>>, ApiError> {
        let all = self.db.list::<DrainRecord>(&keys::drains(app)).await?;
        Ok(all.into_iter().map(|s| s.value).collect())
    }

    /// A drain by id, token or URL (as it was given, or as it is shown).
    pub async fn drain(&self, app: AppId, which: &str) -> Result<Arc<DrainRecord>, ApiError> {
        for record in self.drains_of(app).await? {
            if record.id.to_string() == which || record.token == which {
                return Ok(record);
            }
            let url = self.drain_url(&record)?;
            if url.full().expose() == which || url.masked() == which {
                return Ok(record);
            }
        }
        Err(not_found("Couldn't find that drain."))
    }

    pub async fn add_drain(&self, actor: &Actor, app: &App, url: &Secret) -> Result<Arc<DrainRecord>, ApiError> {
        let url = DrainUrl::parse(url).map_err(invalid)?;
        self.deps.drains.check(&url).await.map_err(|e| invalid(format!("{e}.")))?;
        let all = self.drains_of(app.id).await?;
        if all.len() >= MOST {
            return Err(invalid(format!("An app may have {MOST} drains. Remove one first: flex drains:remove")));
        }
        for record in &all {
            if self.drain_url(record)?.full() == url.full() {
                return Err(invalid("The app has that drain already."));
            }
        }
        let id = self.id();
        let key = keys::drain(app.id, id);
        let sealed = self.crypt.seal(&key, &Vars::from([(URL.to_owned(), url.full().clone())]))?;
        let token = format!("d.{}", self.id::<flex_model::EventId>());
        let record = DrainRecord { id, app: app.id, token, url: sealed, created_at: self.now() };
        let event = self.event(actor, Some(app.id), "log-drain.create", format!("Added drain {}", url.masked()));
        let tx = Tx::new().present(&keys::app(app.id)).put(key, &record).put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        self.apply_drains().await?;
        Ok(Arc::new(record))
    }

    pub async fn remove_drain(&self, actor: &Actor, record: &DrainRecord) -> Result<(), ApiError> {
        let url = self.drain_url(record)?;
        let event = self.event(actor, Some(record.app), "log-drain.delete", format!("Removed drain {}", url.masked()));
        let tx = Tx::new().delete(keys::drain(record.app, record.id)).put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        self.apply_drains().await
    }

    /// Lets those drains run that are there, and no others.
    pub async fn apply_drains(&self) -> Result<(), ApiError> {
        // An older list must not come after a newer one.
        let _turn = self.drain_turn.lock().await;
        let mut specs = Vec::new();
        for stored in self.db.list::<DrainRecord>(keys::DRAINS).await? {
            let record = &stored.value;
            match self.drain_url(record) {
                Ok(url) => specs.push(DrainSpec { id: record.id, app: record.app, token: record.token.clone(), url }),
                Err(e) => tracing::error!(drain = %record.id, app = %record.app, error = %e, "a drain cannot run"),
            }
        }
        let set = self.deps.drains.set(specs);
        set.map_err(|e| ApiError::new(ErrorId::Unavailable, format!("The drains' places cannot be kept: {e}")))
    }
}
