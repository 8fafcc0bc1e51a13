//! The conversation with the container engine, in a task of its own: an engine that hangs stops nothing else.

use crate::{
    core::Event,
    tail::{Source, Tailer},
};
use flex_runtime::{Desired, LogFile, Observed, ObservedPhase, Runtime, RuntimeError};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// Pause between looks when nothing calls for one: finds what the engine's events failed to tell.
const LOOK: Duration = Duration::from_secs(2);
/// Pause between looks while the engine does not have what it should have.
const LOOK_CLOSER: Duration = Duration::from_millis(500);
/// Least pause between looks: a hundred changes at once need not be looked at one by one.
const SPACING: Duration = Duration::from_millis(10);
/// Pause between two tellings of the same list, against drift.
const RETELL: Duration = Duration::from_secs(10);
/// Pause between tellings while the engine does not have what it should have.
const RETELL_SOON: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The list that the engine should have; none while nothing may be asked of it.
pub type Wanted = Option<Arc<Vec<Desired>>>;

pub struct Engine {
    pub runtime: Arc<dyn Runtime>,
    pub tailer: Tailer,
    pub wanted: watch::Receiver<Wanted>,
    pub events: mpsc::Sender<Event>,
}

impl Engine {
    /// Runs until shut down, and leaves everything running then.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.talk() => {}
        }
    }

    async fn talk(&mut self) {
        let mut changes = self.runtime.changes();
        let (mut told_at, mut failing) = (None::<Instant>, None::<String>);
        let mut told: Wanted = None;
        let mut matches = true;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            // Not what the channel says of it: waiting for a change marks the change as seen.
            let is_new = !same(&told, &wanted);
            let patience = if matches { RETELL } else { RETELL_SOON };
            let due = is_new || failing.is_some() || told_at.is_none_or(|t| t.elapsed() >= patience);
            changes.borrow_and_update();
            let mut result = Ok(());
            if let Some(list) = wanted.as_ref().filter(|_| due) {
                result = self.tell(list).await;
                told_at = Some(Instant::now());
                told = Some(list.clone());
            }
            if result.is_ok() {
                match self.look().await {
                    Ok(observed) => {
                        matches = wanted.as_ref().is_none_or(|list| has_all(list, &observed));
                        if self.events.send(Event::Observed(observed)).await.is_err() {
                            return;
                        }
                    }
                    Err(e) => result = Err(e),
                }
            }
            note(&mut failing, result.err());
            let pause = if failing.is_some() || !matches { LOOK_CLOSER } else { LOOK };
            tokio::time::sleep(SPACING).await;
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                changed = changes.changed() => if changed.is_err() { tokio::time::sleep(pause).await },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn tell(&self, list: &[Desired]) -> Result<(), RuntimeError> {
        in_time(self.runtime.converge(list.to_vec())).await
    }

    /// What the engine has. The last output of what ended is in the log when this returns.
    async fn look(&self) -> Result<Vec<Observed>, RuntimeError> {
        let observed = in_time(self.runtime.observe()).await?;
        let source = |o: &Observed| {
            let ended = matches!(o.phase, ObservedPhase::Exited(_) | ObservedPhase::Failed(_));
            let (instance, attempt, app, name) = (o.instance, o.attempt, o.app, o.name.clone());
            let LogFile { path, form } = o.log_file.clone()?;
            Some(Source { instance, attempt, app, name, path, form, ended })
        };
        // One-off commands that nobody need look at write files as instances do.
        let jobs = in_time(self.runtime.jobs()).await?;
        self.tailer.sources(observed.iter().chain(jobs.iter()).filter_map(source).collect()).await;
        Ok(observed)
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, RuntimeError>>) -> Result<T, RuntimeError> {
    let late = || RuntimeError::Unavailable(format!("no answer within {} s", PATIENCE.as_secs()));
    timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(late()))
}

/// Whether both are the very same list.
fn same(a: &Wanted, b: &Wanted) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// Logs a trouble when it comes, when it changes, and when it is over.
fn note(failing: &mut Option<String>, error: Option<RuntimeError>) {
    let text = error.map(|e| e.to_string());
    if *failing != text {
        match &text {
            Some(text) => tracing::warn!(error = %text, "the engine cannot be brought in line; instances stay as they are"),
            None => tracing::info!("the engine answers again"),
        }
        *failing = text;
    }
}

/// Whether the engine has each wanted incarnation, and nothing else that is not on its way out.
fn has_all(wanted: &[Desired], observed: &[Observed]) -> bool {
    let attempts: BTreeMap<_, _> = wanted.iter().map(|d| (d.instance, d.attempt)).collect();
    let surplus = observed
        .iter()
        .any(|o| o.phase != ObservedPhase::Stopping && attempts.get(&o.instance).is_none_or(|attempt| o.attempt < *attempt));
    let missing = attempts.iter().any(|(id, attempt)| !observed.iter().any(|o| o.instance == *id && o.attempt >= *attempt));
    !surplus && !missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_logs::{LogSettings, LogStore};
    use flex_runtime::FakeRuntime;

    #[tokio::test(start_paused = true)]
    async fn a_new_list_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Arc::new(LogStore::open(dir.path().join("logs"), LogSettings::default()).unwrap());
        let fake = Arc::new(FakeRuntime::new());
        let (wants, wanted) = watch::channel(Wanted::Some(Arc::default()));
        let (events, mut seen) = mpsc::channel(64);
        let engine = Engine { runtime: fake.clone(), tailer: Tailer::start(dir.path(), logs).unwrap(), wanted, events };
        tokio::spawn(engine.run(CancellationToken::new()));
        // It has told the first list, and sleeps by the time that the clock moves.
        seen.recv().await.unwrap();
        tokio::time::sleep(SPACING * 3).await;
        let item = crate::core::tests::item(1);
        let (instance, image) = (item.instance, fake.add_image("sha256:1"));
        // It ends by itself: a process that sleeps would have the only clock left while the tailer's thread works, and time
        // would leap to its end.
        let spec = flex_model::InstanceSpec { image, command: flex_model::Command::Shell("exit 0".into()), ..item.spec };
        let (app, app_name) = (item.app, item.app_name.to_string());
        let desired = Desired { instance, app, app_name, name: item.name, version: 1, attempt: 0, spec };
        let began = Instant::now();
        wants.send_replace(Some(Arc::new(vec![desired])));
        while fake.starts(instance) == 0 {
            seen.recv().await.unwrap();
        }
        assert!(began.elapsed() < LOOK_CLOSER, "told after {:?}", began.elapsed());
    }
}
