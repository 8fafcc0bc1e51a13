//! What a decision sees: desired state, placements, and what is known of reality.

use flex_model::{
    App, AppId, AppRouting, DomainName, Host, HostId, InstanceId, InstanceReport, InstanceState, Placement, ProcessScale,
    ProcessType, Release, ReleaseStatus, Report, Route, RouterStatus, Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything at one moment. Cheap to clone: what is large is shared.
#[derive(Debug, Clone, Default)]
pub struct World {
    pub now: Timestamp,
    pub apps: BTreeMap<AppId, AppView>,
    pub hosts: BTreeMap<HostId, Host>,
    pub placements: BTreeMap<InstanceId, Placement>,
    pub reports: BTreeMap<HostId, ReportView>,
    pub routers: Vec<RouterStatus>,
    /// For each draining instance the first published routing table that lacks it.
    pub table_without: BTreeMap<InstanceId, u64>,
    pub settings: Settings,
}

/// An app with what belongs to it.
#[derive(Debug, Clone)]
pub struct AppView {
    pub app: Arc<App>,
    /// At least the target, the good one, and those that have placements.
    pub releases: BTreeMap<u64, Arc<Release>>,
    /// Every host name, the default one included.
    pub domains: Vec<DomainName>,
    /// Those that somebody made, in the order of their ids.
    pub routes: Vec<Arc<Route>>,
    /// What was set for all of them.
    pub routing: Arc<AppRouting>,
}

/// A host's newest report.
#[derive(Debug, Clone)]
pub struct ReportView {
    pub report: Arc<Report>,
    /// It was made since this controller started: only such a report is evidence.
    pub counts: bool,
}

/// The planner's patience and taste.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The longest that a drained instance may finish its requests.
    pub drain_seconds: u32,
    /// Added to a health check's own patience before a roll-out counts as failed: image transfer, queueing.
    pub rollout_seconds: u32,
    /// How often an instance of a new release may end by itself before the release counts as failed.
    pub start_attempts: u32,
    /// Fill hosts up one after another; otherwise spread the load.
    pub pack: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { drain_seconds: 30, rollout_seconds: 120, start_attempts: 2, pack: false }
    }
}

impl AppView {
    /// The release that should run: the target, unless it failed; then the one that was good.
    pub(crate) fn wanted_release(&self) -> Option<&Arc<Release>> {
        let release = |v: Option<u64>| v.and_then(|v| self.releases.get(&v)).filter(|r| r.status != ReleaseStatus::Failed);
        let target = release(self.app.target);
        match target {
            Some(t) if t.released && t.image.is_some() => Some(t),
            _ => release(self.app.good).filter(|r| r.released && r.image.is_some()),
        }
    }

    /// The canary in force, with its share in percent: a release beside the one that should run, ready to run itself.
    pub fn canary(&self) -> Option<(&Arc<Release>, u32)> {
        let canary = self.app.canary?;
        let version = canary.version?;
        // What should run, or is gone back to, is no canary.
        let other = Some(version) != self.app.target && Some(version) != self.app.good && self.wanted_release().is_some();
        let release = self.releases.get(&version).filter(|_| other)?;
        let fit = release.released && release.image.is_some() && release.status != ReleaseStatus::Failed;
        (fit && release.processes.contains_key(&ProcessType::web())).then_some((release, canary.weight))
    }

    /// Which instances of a release's process type are to run, by number: those that the formation wants; of a canary its
    /// share of `web`, at least one, and nothing else.
    pub(crate) fn indexes(&self, release: &Release, process: &ProcessType) -> BTreeSet<u32> {
        let all = self.app.wanted(process);
        let Some((_, weight)) = self.canary().filter(|(canary, _)| canary.version == release.version) else { return all };
        let part = if process.is_web() { (all.len() * weight.min(100) as usize).div_ceil(100) } else { 0 };
        all.into_iter().take(part).collect()
    }

    /// What of a release should run: its process types of which at least one instance should.
    pub(crate) fn wanted(&self, release: &Release) -> Vec<(ProcessType, ProcessScale)> {
        let scale = |p: &ProcessType| self.app.formation.get(p).copied().filter(|_| !self.indexes(release, p).is_empty());
        release.processes.keys().filter(|p| !p.is_release_phase()).filter_map(|p| Some((p.clone(), scale(p)?))).collect()
    }
}

impl World {
    /// What is known of an instance, where the report counts.
    pub(crate) fn evidence(&self, p: &Placement) -> Option<&InstanceReport> {
        let view = self.reports.get(&p.host).filter(|v| v.counts)?;
        view.report.instances.iter().find(|i| i.instance == p.instance)
    }

    /// What was last heard of an instance, from whatever report.
    pub(crate) fn last_heard(&self, p: &Placement) -> Option<&InstanceReport> {
        self.reports.get(&p.host)?.report.instances.iter().find(|i| i.instance == p.instance)
    }

    pub(crate) fn is_up(&self, p: &Placement) -> bool {
        self.evidence(p).is_some_and(|r| r.state == InstanceState::Up)
    }

    /// Reported, and reported as not serving.
    pub(crate) fn is_known_bad(&self, p: &Placement) -> bool {
        self.evidence(p).is_some_and(|r| r.state != InstanceState::Up)
    }
}
