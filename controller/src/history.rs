//! What became of instances: how each start ended, as hosts tell it and with the planner's reason where it was let go of.
//!
//! Hosts tell an end again and again, so that a lost report loses nothing; it is kept once, under a key that it decides.

use crate::core::{Controller, lock};
use crate::db::{Tx, keys};
use flex_api::{ApiError, PastInstance};
use flex_model::{AppId, Ended, InstanceId, Placement, Report, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet, VecDeque};

/// Ends that are kept of one app.
const KEPT: usize = 200;
/// Lines that are kept of each.
const LINES: usize = 10;
/// The longest that a kept line may be, in characters.
const LINE: usize = 500;
/// Instances that are remembered between being let go of and having ended.
const REMEMBERED: usize = 10_000;

/// A kept end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecord {
    pub ended: Ended,
    pub version: Option<u64>,
    pub reason: String,
    pub lines: Vec<String>,
}

/// What is known of instances on their way out.
#[derive(Debug, Default)]
pub struct LetGo {
    why: HashMap<InstanceId, (u64, String)>,
    order: VecDeque<InstanceId>,
    /// Ends that were taken note of.
    noted: HashSet<(InstanceId, u32, Timestamp)>,
}

impl LetGo {
    fn note(&mut self, p: &Placement, reason: &str) {
        let name = format!("{}: ", p.name());
        let reason = reason.strip_prefix(&name).unwrap_or(reason).to_owned();
        // The first reason is the true one: removing follows draining.
        if let std::collections::hash_map::Entry::Vacant(e) = self.why.entry(p.instance) {
            e.insert((p.version, reason));
            self.order.push_back(p.instance);
        }
        if self.order.len() > REMEMBERED
            && let Some(old) = self.order.pop_front()
        {
            self.why.remove(&old);
        }
    }

    /// Whether it is news.
    fn is_new(&mut self, e: &Ended) -> bool {
        // Hosts tell far fewer at once: what is forgotten here finds its record in the store.
        if self.noted.len() > REMEMBERED {
            self.noted.clear();
        }
        self.noted.insert((e.instance, e.attempt, e.at))
    }
}

impl Controller {
    /// The planner lets go of an instance.
    pub(crate) fn note_let_go(&self, p: &Placement, reason: &str) {
        lock(&self.let_go).note(p, reason);
    }

    /// Keeps what a report tells of ends.
    pub(crate) fn note_ends(&self, report: &Report) {
        for e in &report.ended {
            if lock(&self.let_go).is_new(e) {
                let (this, e) = (self.clone(), e.clone());
                tokio::spawn(async move {
                    if let Err(error) = this.record_end(e).await {
                        tracing::warn!(%error, "the end of an instance is missing in the history");
                    }
                });
            }
        }
    }

    async fn record_end(&self, ended: Ended) -> Result<(), ApiError> {
        let known = lock(&self.let_go).why.get(&ended.instance).cloned();
        let version = match &known {
            Some((version, _)) => Some(*version),
            None => self.db.get::<Placement>(&keys::placement(ended.instance)).await?.map(|p| p.value.version),
        };
        let told = || ended.message.clone().or(ended.exit.as_ref().map(|e| format!("exited with status {}", e.status)));
        let reason = match known.filter(|_| ended.stopped) {
            Some((_, reason)) => reason,
            None if ended.stopped => "was stopped".to_owned(),
            None => told().unwrap_or_else(|| "ended".to_owned()),
        };
        let process = format!("{}: ", ended.name);
        let all = self.last_lines(ended.app, &ended.name).await;
        let lines = all.iter().skip(all.len().saturating_sub(LINES));
        let lines = lines.map(|l| l.strip_prefix(&process).unwrap_or(l).chars().take(LINE).collect()).collect();
        let key = keys::ended(&ended);
        let tx = Tx::new().present(&keys::app(ended.app)).absent(&key);
        match self.db.commit(tx.put(key, &EndRecord { ended, version, reason, lines })).await {
            // Told before, or of an app that is gone.
            Ok(_) | Err(crate::db::CommitError::Conflict(_)) => Ok(()),
            Err(crate::db::CommitError::Api(e)) => Err(e),
        }
    }

    /// How instances ended, oldest first.
    pub async fn history_of(&self, app: AppId) -> Result<Vec<PastInstance>, ApiError> {
        let all = self.db.list::<EndRecord>(&keys::history(app)).await?;
        let shown = |r: &EndRecord| PastInstance {
            id: r.ended.instance,
            name: r.ended.name.clone(),
            version: r.version,
            started_at: r.ended.started_at.into(),
            ended_at: r.ended.at.into(),
            exit_status: r.ended.exit.as_ref().map(|e| e.status),
            oom: r.ended.exit.as_ref().is_some_and(|e| e.oom),
            stopped: r.ended.stopped,
            reason: r.reason.clone(),
            lines: r.lines.clone(),
        };
        Ok(all.iter().map(|r| shown(&r.value)).collect())
    }

    /// Removes all but the newest.
    pub(crate) async fn tidy_history(&self, app: AppId) -> Result<(), ApiError> {
        let all = self.db.list::<EndRecord>(&keys::history(app)).await?;
        let surplus = all.len().saturating_sub(KEPT);
        for chunk in all[..surplus].chunks(50) {
            let tx = chunk.iter().fold(Tx::new(), |tx, r| tx.delete(r.key.clone()));
            self.db.commit(tx).await.map_err(crate::core_error)?;
        }
        Ok(())
    }
}
