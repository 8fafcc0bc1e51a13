//! The engine's event stream: makes changes known early. Nothing relies on it alone, since events can be lost.

use super::{
    Inner,
    engine::refine,
    labels::{self, Kind},
};
use crate::RuntimeError;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use std::{sync::Arc, time::Duration};

/// How often it looks without being woken: events can be lost, and a step that failed may work by now.
const DRIFT: Duration = Duration::from_secs(10);
/// Pauses between attempts to reach an engine that is away.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Follows the events for ever, over engine restarts. After each (re)connection it sets to work again what the engine's
/// absence left undone.
pub(super) async fn watch(inner: Arc<Inner>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = match inner.engine.api().await {
            Ok(_) => {
                pause = FIRST_PAUSE;
                follow(&inner).await
            }
            Err(e) => e,
        };
        tracing::debug!(error = %ended, "the engine's event stream ended");
        inner.wake();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn follow(inner: &Arc<Inner>) -> RuntimeError {
    const DOING: &str = "following its events";
    let mut filter = labels::filter(&inner.names.cluster, Kind::Instance);
    filter.insert("type".into(), vec!["container".into()]);
    // Not the execs: health checks run as such.
    let events = ["create", "start", "die", "oom", "destroy", "kill", "stop", "pause", "unpause"];
    filter.insert("event".into(), events.map(str::to_owned).to_vec());
    let docker = match inner.engine.docker() {
        Ok(docker) => docker,
        Err(e) => return e,
    };
    let mut stream = std::pin::pin!(docker.events(Some(EventsOptionsBuilder::default().filters(&filter).build())));
    if let Err(e) = inner.reconcile().await {
        return e;
    }
    // An engine that starts writes the packet filter anew.
    inner.guard_wake.notify_one();
    if let Err(e) = inner.sweep_steps().await {
        return e;
    }
    if let Err(e) = inner.remove_what_stayed().await {
        return e;
    }
    inner.wake();
    let mut drift = tokio::time::interval_at(tokio::time::Instant::now() + DRIFT, DRIFT);
    drift.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            _ = drift.tick() => match inner.reconcile().await {
                Ok(()) => continue,
                Err(e) => return e,
            },
        };
        match event {
            Some(Ok(event)) => {
                if let Some(id) = event.actor.and_then(|a| a.id) {
                    inner.state().details.remove(&id);
                }
                inner.wake();
            }
            Some(Err(e)) => return refine(DOING, &e),
            None => return RuntimeError::Unavailable(format!("{DOING}: the engine closed the stream")),
        }
    }
}
