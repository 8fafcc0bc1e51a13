//! What a decision sees: desired state, placements, and what is known of reality.

use flex_model::{
    App, AppId, AppRouting, DomainName, Host, HostId, InstanceId, InstanceReport, InstanceState, Memory, Placement,
    PlacementPhase, ProcessScale, ProcessType, Release, ReleaseStatus, Report, Route, RouterStatus, Timestamp,
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
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, PartialEq)]
pub struct ReportView {
    pub report: Arc<Report>,
    /// It was made since this controller started: only such a report is evidence.
    pub counts: bool,
}

/// The planner's patience and taste.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// What of it is no record and no report: it is told to each plan anew.
    pub fn moment(&self) -> Moment {
        Moment { now: self.now, routers: self.routers.clone(), table_without: self.table_without.clone() }
    }
}

/// What is so at the moment of a plan and is not kept.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    pub now: Timestamp,
    pub routers: Vec<RouterStatus>,
    /// For each draining instance the first published routing table that lacks it.
    pub table_without: BTreeMap<InstanceId, u64>,
}

/// What a decision reads of a placement, in little memory: a cluster has a million of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub instance: InstanceId,
    pub host: HostId,
    /// One allocation for all instances of an app's process type.
    pub process: Arc<ProcessType>,
    pub index: u32,
    pub version: u64,
    pub memory: Memory,
    pub cpu_shares: u32,
    pub cpu_millis: Option<u32>,
    pub phase: PlacementPhase,
    pub created_at: Timestamp,
}

impl Placed {
    /// `others` are of the same app.
    pub(crate) fn of(p: &Placement, others: &[Self]) -> Self {
        let same = others.iter().find(|o| *o.process == p.process).map(|o| o.process.clone());
        Self {
            instance: p.instance,
            host: p.host,
            process: same.unwrap_or_else(|| Arc::new(p.process.clone())),
            index: p.index,
            version: p.version,
            memory: p.memory,
            cpu_shares: p.cpu_shares,
            cpu_millis: p.cpu_millis,
            phase: p.phase,
            created_at: p.created_at,
        }
    }

    /// `web.1`.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.process, self.index)
    }
}

/// What is known beside records and placements.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    pub now: Timestamp,
    pub settings: Settings,
    pub reports: &'a BTreeMap<HostId, ReportView>,
}

impl<'a> Known<'a> {
    /// What is known of an instance, where the report counts.
    pub(crate) fn evidence(&self, p: &Placed) -> Option<&'a InstanceReport> {
        let view = self.reports.get(&p.host).filter(|v| v.counts)?;
        view.report.instances.iter().find(|i| i.instance == p.instance)
    }

    /// What was last heard of an instance, from whatever report.
    pub(crate) fn last_heard(&self, p: &Placed) -> Option<&'a InstanceReport> {
        self.reports.get(&p.host)?.report.instances.iter().find(|i| i.instance == p.instance)
    }

    pub(crate) fn is_up(&self, p: &Placed) -> bool {
        self.evidence(p).is_some_and(|r| r.state == InstanceState::Up)
    }

    /// Reported, and reported as not serving.
    pub(crate) fn is_known_bad(&self, p: &Placed) -> bool {
        self.evidence(p).is_some_and(|r| r.state != InstanceState::Up)
    }
}
