//! What goes wrong, and what users do meanwhile.

use super::{MAX_WEB, Outcome, Sim, ensure};
use crate::fleet::Kind;
use crate::records::{new_release, worker};
use flex_model::{
    AppId, Canary, Host, HostId, HostState, Memory, PlacementPhase, ProcessScale, ProcessType, Release, ReleaseStatus,
};
use flex_scheduler::{ChangeKind, Cluster, World};
use std::sync::Arc;

impl Sim {
    pub(super) fn trouble(&mut self) -> Outcome {
        let apps: Vec<AppId> = self.world.apps.keys().copied().collect();
        let hosts: Vec<HostId> = self.world.hosts.keys().copied().collect();
        let app = apps[usize::try_from(self.rng.below(apps.len() as u64)).unwrap_or(0)];
        let host = hosts[usize::try_from(self.rng.below(hosts.len() as u64)).unwrap_or(0)];
        match self.rng.below(23) {
            0..=5 => self.deploy(app, false),
            20 => self.deploy(app, true),
            21 => self.change_app(app, |a| a.canary = None),
            22 => self.promote(app),
            6..=8 => {
                let process = if self.rng.percent(70) { ProcessType::web() } else { worker() };
                let scale = ProcessScale::default_for(u32::try_from(self.rng.below(MAX_WEB + 1)).unwrap_or(1));
                self.change_app(app, |a| {
                    a.formation.insert(process, scale);
                });
            }
            9 | 10 => {
                let key = ["", "web", "web.1"][usize::try_from(self.rng.below(3)).unwrap_or(0)];
                let now = self.world.now;
                self.change_app(app, |a| {
                    a.restarts.insert(key.to_owned(), now);
                });
            }
            11 => {
                let memory = Memory::from_mib(256 << self.rng.below(2));
                self.change_app(app, |a| a.formation.values_mut().for_each(|s| s.memory = memory));
            }
            12 => self.set_host(host, |h| h.state = if h.state == HostState::Ready { HostState::Cordoned } else { h.state }),
            13 => self.lose(host),
            14 | 15 => self.give_back(host),
            16 | 17 => {
                let pause = 1 + i64::try_from(self.rng.below(40)).unwrap_or(0);
                self.agents.entry(host).or_default().silent_until = self.now + pause;
            }
            _ => return self.restart_controller(),
        }
        Ok(())
    }

    fn set_host(&mut self, host: HostId, change: impl FnOnce(&mut Host)) {
        if let Some(h) = self.world.hosts.get_mut(&host) {
            change(h);
        }
    }

    /// The machine goes off; sometimes someone declares it dead, unless it is the last that takes anything.
    fn lose(&mut self, host: HostId) {
        let agent = self.agents.entry(host).or_default();
        agent.off = true;
        agent.reboot();
        let others = self.world.hosts.values().filter(|h| h.id != host && h.state == HostState::Ready).count();
        if others > 0 && self.rng.percent(60) {
            self.set_host(host, |h| h.state = HostState::Dead);
        }
    }

    fn give_back(&mut self, host: HostId) {
        self.agents.entry(host).or_default().off = false;
        self.set_host(host, |h| h.state = HostState::Ready);
    }

    /// A controller that has just started sees old reports only: it must let go of nothing that it would have kept.
    fn restart_controller(&mut self) -> Outcome {
        for _ in 0..12 {
            self.refresh();
            let next = self.next_plan()?;
            self.apply(&next);
        }
        (self.cluster, self.told) = (Cluster::default(), World::default());
        self.epoch += 1;
        for view in self.world.reports.values_mut() {
            view.counts = false;
        }
        self.refresh();
        let next = self.next_plan()?;
        let rash = next.changes.iter().find(|c| match c.kind {
            ChangeKind::Remove { instance } | ChangeKind::Drain { instance, .. } => {
                self.world.placements[&instance].phase == PlacementPhase::Active
            }
            ChangeKind::ReleaseFailed { .. } | ChangeKind::ReleaseSucceeded { .. } => true,
            ChangeKind::Place(_) => false,
        });
        ensure(rash.is_none(), || format!("second {}: acts on silence: {:?}", self.now, rash.map(|c| &c.reason)))
    }

    /// What the controller does: the canary becomes what should run, and has to prove itself at full size.
    fn promote(&mut self, app: AppId) {
        let now = self.world.now;
        let Some(view) = self.world.apps.get_mut(&app) else { return };
        let rolling = view.app.target.is_some_and(|t| view.releases[&t].status == ReleaseStatus::Pending);
        let Some(version) = view.canary().map(|(r, _)| r.version).filter(|_| !rolling) else { return };
        if let Some(r) = view.releases.get_mut(&version) {
            *r = Arc::new(Release { status: ReleaseStatus::Pending, updated_at: now, ..(**r).clone() });
        }
        self.change_app(app, |a| (a.target, a.canary) = (Some(version), None));
    }

    fn deploy(&mut self, app: AppId, as_canary: bool) {
        let kind = match self.rng.below(10) {
            0..=4 => Kind::Good,
            5 | 6 => Kind::Slow(5 + i64::try_from(self.rng.below(20)).unwrap_or(0)),
            7 | 8 => Kind::Crashes,
            _ => Kind::Impossible,
        };
        let (released, now) = (self.rng.percent(70), self.world.now);
        let with_worker = self.rng.percent(70);
        let Some(view) = self.world.apps.get_mut(&app) else { return };
        let version = view.app.last_version + 1;
        self.kinds.insert((app, version), kind);
        let release = new_release(app, version, released, with_worker, now);
        view.releases.insert(version, Arc::new(release));
        let weight = 1 + u32::try_from(self.rng.below(99)).unwrap_or(0);
        self.change_app(app, |a| {
            a.last_version = version;
            if as_canary && a.good.is_some() {
                a.canary = Some(Canary { version: Some(version), weight, built: true });
            } else {
                a.target = Some(version);
            }
        });
    }

    pub(super) fn calm(&mut self) {
        self.noisy = false;
        let hosts: Vec<HostId> = self.world.hosts.keys().copied().collect();
        for host in hosts {
            self.give_back(host);
        }
        for agent in self.agents.values_mut() {
            agent.silent_until = 0;
        }
    }
}
