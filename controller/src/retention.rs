//! How much of each app's log is kept. The record is here; the log store is told at the start and after each change.

use crate::core::{Actor, Controller, invalid};
use crate::db::{LogRetentionRecord, Tx, keys};
use flex_api::{ApiError, ErrorId, LogRetention, SetLogRetention};
use flex_logs::Retention;
use flex_model::{App, AppId};
use std::time::Duration;

/// Less is no log: one write-ahead file and its block.
const MIN_BYTES: u64 = 1 << 20;
const MIN_AGE: Duration = Duration::from_secs(3600);

impl Controller {
    fn retention_of(&self, record: &LogRetentionRecord) -> Retention {
        let default = self.deps.logs.default_retention();
        Retention {
            max_bytes: record.max_bytes.unwrap_or(default.max_bytes),
            max_age: record.max_age_seconds.map_or(default.max_age, Duration::from_secs),
        }
    }

    /// Tells the log store what every app keeps.
    pub async fn apply_log_retentions(&self) -> Result<(), ApiError> {
        for stored in self.db.list::<LogRetentionRecord>(keys::LOG_RETENTIONS).await? {
            let record = &stored.value;
            let set = self.deps.logs.set_retention(record.app, Some(self.retention_of(record))).await;
            set.map_err(|e| ApiError::new(ErrorId::Unavailable, e.to_string()))?;
        }
        Ok(())
    }

    /// What an app keeps, and has.
    pub fn show_retention(&self, app: AppId) -> Result<LogRetention, ApiError> {
        let (now, default) = (self.deps.logs.retention(app), self.deps.logs.default_retention());
        Ok(LogRetention {
            max_bytes: now.max_bytes,
            max_age_seconds: now.max_age.as_secs(),
            default_max_bytes: default.max_bytes,
            default_max_age_seconds: default.max_age.as_secs(),
            used_bytes: self.deps.logs.bytes(app).map_err(|e| ApiError::new(ErrorId::Unavailable, e.to_string()))?,
        })
    }

    /// Sets what an app keeps.
    pub async fn set_log_retention(&self, actor: &Actor, app: &App, set: &SetLogRetention) -> Result<(), ApiError> {
        let most = self.deps.settings.max_log_retention;
        if let Some(bytes) = set.max_bytes.filter(|b| *b != 0 && !(MIN_BYTES..=most.max_bytes).contains(b)) {
            let most = most.max_bytes >> 20;
            return Err(invalid(format!(
                "A log of {bytes} bytes cannot be kept: between 1 MiB and {most} MiB are possible here."
            )));
        }
        let age = set.max_age_seconds.map(Duration::from_secs).filter(|a| !a.is_zero());
        if let Some(age) = age.filter(|a| !(MIN_AGE..=most.max_age).contains(a)) {
            let (age, most) = (age.as_secs(), most.max_age.as_secs() / 86_400);
            return Err(invalid(format!("Lines cannot be kept for {age} s: between 1 hour and {most} days are possible here.")));
        }
        let key = keys::log_retention(app.id);
        let record = self
            .db
            .retry(|| async {
                let old = self.db.get::<LogRetentionRecord>(&key).await?;
                let mut record = old.as_ref().map_or_else(
                    || LogRetentionRecord { app: app.id, max_bytes: None, max_age_seconds: None },
                    |old| (*old.value).clone(),
                );
                if let Some(bytes) = set.max_bytes {
                    record.max_bytes = Some(bytes).filter(|b| *b != 0);
                }
                if let Some(age) = set.max_age_seconds {
                    record.max_age_seconds = Some(age).filter(|a| *a != 0);
                }
                let kept = self.retention_of(&record);
                let text = format!("Keep {} MiB of log for {} hours", kept.max_bytes >> 20, kept.max_age.as_secs() / 3600);
                let event = self.event(actor, Some(app.id), "log-retention.update", text);
                let tx = Tx::new().present(&keys::app(app.id)).put(key.clone(), &record).put(keys::event(&event), &event);
                let tx = match &old {
                    Some(old) => tx.unchanged(old),
                    None => tx.absent(&key),
                };
                Ok((tx, record))
            })
            .await?;
        let set = self.deps.logs.set_retention(app.id, Some(self.retention_of(&record))).await;
        set.map_err(|e| ApiError::new(ErrorId::Unavailable, e.to_string()))
    }
}
