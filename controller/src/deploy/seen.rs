//! When a release passed its milestones.

use crate::core::Controller;
use flex_model::{BuildPhase, PhaseTime, Release, ReleaseStatus};
use std::time::{Duration, Instant};

/// When a release passed its milestones, since it was launched.
#[derive(Default)]
pub(super) struct Seen {
    started: Option<Duration>,
    healthy: Option<Duration>,
    pub(super) routed: Option<Duration>,
}

impl Seen {
    pub(super) async fn look(&mut self, controller: &Controller, release: &Release, now: &Release, since: Instant) {
        let elapsed = since.elapsed();
        let routes_expected = controller.expects_routes(release).await;
        let (exists, routed) = controller.progress_of(release).await;
        if exists && self.started.is_none() {
            self.started = Some(elapsed);
        }
        if now.status == ReleaseStatus::Succeeded && self.healthy.is_none() {
            self.healthy = Some(elapsed);
        }
        if now.status == ReleaseStatus::Succeeded && self.routed.is_none() && (routed || !routes_expected) {
            self.routed = Some(elapsed);
        }
    }

    /// Of a release that is up.
    pub(super) fn phases(&self) -> Vec<PhaseTime> {
        let (healthy, routed) = (self.healthy.unwrap_or_default(), self.routed.unwrap_or_default());
        let started = self.started.unwrap_or_default().min(healthy);
        vec![
            phase(BuildPhase::Start, started),
            phase(BuildPhase::Healthy, healthy.saturating_sub(started)),
            phase(BuildPhase::Routed, routed.saturating_sub(healthy)),
        ]
    }

    /// Of one that ended before it was up, `elapsed` after its launch: what it was at by then counts as well.
    pub(super) fn so_far(&self, elapsed: Duration) -> Vec<PhaseTime> {
        let started = self.started.unwrap_or(elapsed);
        let mut phases = vec![phase(BuildPhase::Start, started)];
        if self.started.is_some() {
            phases.push(phase(BuildPhase::Healthy, self.healthy.unwrap_or(elapsed).saturating_sub(started)));
        }
        phases
    }
}

pub(super) fn phase(phase: BuildPhase, took: Duration) -> PhaseTime {
    PhaseTime { phase, millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) }
}
