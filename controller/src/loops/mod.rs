//! The loops. Each takes no input: it is woken, reads everything again, and is safe to run twice.

pub mod plan;
mod postdeploy;
mod publish;
mod tidy;

use crate::core::Controller;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The longest that the plan loop sleeps: what it was not told of, it finds by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

impl Controller {
    /// Runs until told to stop. Stopping stops no app.
    pub async fn run_loops(&self, stop: CancellationToken) {
        let tidy = tokio::spawn(self.clone().tidy_loop(stop.clone()));
        let runs = tokio::spawn(self.clone().runs_loop(stop.clone()));
        let certificates = tokio::spawn(self.clone().certificate_loop(stop.clone()));
        let postdeploys = tokio::spawn(self.clone().postdeploy_loop(stop.clone()));
        let Ok(mut changes) = self.deps.store.watch("", 0).await else { return };
        while !stop.is_cancelled() {
            let begun = std::time::Instant::now();
            let passed = self.pass().await;
            self.pass_counts.0.fetch_add(1, Relaxed);
            self.pass_counts.1.fetch_add(u64::from(passed.is_err()), Relaxed);
            self.pass_counts.2.fetch_add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(0), Relaxed);
            let sleep = match passed {
                Ok(wake) => wake.min(LOOK_AGAIN),
                Err(e) => {
                    tracing::warn!(error = %e, "the plan loop could not read or commit; it tries again");
                    Duration::from_millis(500)
                }
            };
            self.passes.send_modify(|n| *n += 1);
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.wake.notified() => {}
                _ = changes.changes.changed() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
        let _ = tokio::join!(tidy, runs, certificates, postdeploys);
    }
}
