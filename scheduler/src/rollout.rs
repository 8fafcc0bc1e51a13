//! One app's part of the plan: has its release made it, what is missing, what is too much, what may go.

use crate::IdSource;
use crate::hosts::Room;
use crate::plan::{ChangeKind, Pending, Plan};
use crate::view::{AppView, Known, Placed};
use flex_model::{
    InstanceId, InstanceReport, InstanceState, Placement, PlacementPhase, ProcessScale, ProcessType, Release, ReleaseStatus,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) struct AppPlan<'a> {
    pub known: Known<'a>,
    pub view: &'a AppView,
    /// Of this app, on hosts that are there.
    pub placements: Vec<&'a Placed>,
    /// Those of them that are not over: what it would rather not be placed beside.
    pub neighbours: &'a [&'a Placed],
}

impl<'a> AppPlan<'a> {
    pub(crate) fn decide(mut self, room: &mut Room, ids: &mut dyn IdSource, plan: &mut Plan) {
        if let Some(target) = self.pending_target() {
            if let Some((instance, why)) = self.failure(target, room, plan) {
                let kind = ChangeKind::ReleaseFailed { app: self.view.app.id, version: target.version, instance };
                plan.push(kind, why);
                // The failure is committed first; the next plan sees what is wanted then.
                return;
            }
            if self.is_covered(target) {
                let kind = ChangeKind::ReleaseSucceeded { app: self.view.app.id, version: target.version };
                plan.push(kind, format!("v{} is up", target.version));
            }
        }
        if self.judge_canary(room, plan) {
            return;
        }
        // What should run has the first choice of the room.
        let canary = self.split_off_canary();
        self.decide_rest(room, ids, plan);
        if let Some((release, canary)) = canary {
            canary.decide_canary(release, room, ids, plan);
        }
    }

    fn decide_rest(&mut self, room: &mut Room, ids: &mut dyn IdSource, plan: &mut Plan) {
        let wanted = self.view.wanted_release();
        let gone = self.remove_useless(wanted.map(|r| r.version), plan);
        self.placements.retain(|p| !gone.contains(&p.instance));
        let processes: BTreeSet<&ProcessType> = self.placements.iter().map(|p| &*p.process).collect();
        let scales: BTreeMap<ProcessType, ProcessScale> =
            wanted.map(|r| self.view.wanted(r).into_iter().collect()).unwrap_or_default();
        if wanted.is_none() && self.is_in_release_phase() {
            // What serves of an earlier release, though never proved good, is better than nothing.
            return;
        }
        // A process type that only the good release has stays until the new one has proved itself.
        let unproven = wanted.is_some_and(|r| r.status == ReleaseStatus::Pending);
        let good = self.view.app.good.filter(|_| unproven).and_then(|v| self.view.releases.get(&v));
        let of_good: BTreeSet<ProcessType> =
            good.map(|r| self.view.wanted(r).into_iter().map(|(p, _)| p).collect()).unwrap_or_default();
        for process in processes.into_iter().filter(|p| !scales.contains_key(*p) && !of_good.contains(*p)) {
            for p in self.active(process) {
                self.retire(p, "not wanted any more", plan);
            }
        }
        for (process, scale) in &scales {
            if let Some(release) = wanted {
                self.decide_process(release, process, *scale, room, ids, plan);
            }
        }
    }

    /// Whether a canary made it. True: it failed, and that is committed first.
    fn judge_canary(&self, room: &Room, plan: &mut Plan) -> bool {
        let Some((release, _)) = self.view.canary().filter(|(r, _)| r.status == ReleaseStatus::Pending) else { return false };
        let (app, version) = (self.view.app.id, release.version);
        if let Some((instance, why)) = self.failure(release, room, plan) {
            plan.push(ChangeKind::ReleaseFailed { app, version, instance }, why);
            return true;
        }
        if self.is_covered(release) {
            plan.push(ChangeKind::ReleaseSucceeded { app, version }, format!("v{version} is up, as a canary"));
        }
        false
    }

    /// The canary's instances of `web`, which the rest of the plan then does not see.
    fn split_off_canary(&mut self) -> Option<(&'a Release, AppPlan<'a>)> {
        let (release, _) = self.view.canary()?;
        let is_its = |p: &&Placed| p.version == release.version && p.process.is_web();
        let (placements, rest) = std::mem::take(&mut self.placements).into_iter().partition(is_its);
        self.placements = rest;
        Some((release, AppPlan { known: self.known, view: self.view, placements, neighbours: self.neighbours }))
    }

    fn decide_canary(&self, release: &Release, room: &mut Room, ids: &mut dyn IdSource, plan: &mut Plan) {
        let web = ProcessType::web();
        match self.view.wanted(release).into_iter().next() {
            Some((_, scale)) => self.decide_process(release, &web, scale, room, ids, plan),
            None => self.active(&web).for_each(|p| self.retire(p, "web is scaled to 0, or was stopped", plan)),
        }
    }

    fn is_in_release_phase(&self) -> bool {
        let target = self.view.app.target.and_then(|t| self.view.releases.get(&t));
        target.is_some_and(|t| t.status == ReleaseStatus::Pending && !t.released)
    }

    fn pending_target(&self) -> Option<&'a Release> {
        let target = self.view.releases.get(&self.view.app.target?)?;
        (target.status == ReleaseStatus::Pending && target.released).then_some(target)
    }

    fn active(&self, process: &ProcessType) -> impl Iterator<Item = &'a Placed> {
        self.placements.iter().copied().filter(move |p| *p.process == *process && p.phase == PlacementPhase::Active)
    }

    fn of_release(&self, version: u64) -> impl Iterator<Item = &'a Placed> {
        self.placements.iter().copied().filter(move |p| p.version == version && p.phase == PlacementPhase::Active)
    }

    /// Why a release that is being rolled out has no chance any more.
    fn failure(&self, target: &Release, room: &Room, plan: &mut Plan) -> Option<(Option<InstanceId>, String)> {
        for p in self.of_release(target.version) {
            if let Some(r) = self.known.evidence(p)
                && let Some(why) = hopeless(r, self.known.settings.start_attempts)
            {
                return Some((Some(p.instance), format!("{} {why}", p.name())));
            }
        }
        target.image.as_ref()?;
        let check = |p: &ProcessType| self.view.app.checks.get(p).unwrap_or(&target.processes[p].check).start_seconds;
        let patience = self.view.wanted(target).iter().map(|(p, _)| check(p)).max()?;
        let deadline =
            target.updated_at.plus(Duration::from_secs(u64::from(patience) + u64::from(self.known.settings.rollout_seconds)));
        if deadline > self.known.now {
            plan.wake(deadline);
            return None;
        }
        // Hosts that have not spoken since this controller started prove nothing, in either direction.
        let silent = self.of_release(target.version).any(|p| self.known.reports.get(&p.host).is_none_or(|v| !v.counts));
        (!silent && !self.is_covered(target))
            .then(|| (None, self.unplaced(target, room).unwrap_or_else(|| "it was not up in time".to_owned())))
    }

    /// The first instance of a release that has no place, with what the hosts lack.
    fn unplaced(&self, release: &Release, room: &Room) -> Option<String> {
        self.view.wanted(release).into_iter().find_map(|(process, scale)| {
            let placed: BTreeSet<u32> =
                self.of_release(release.version).filter(|p| *p.process == process).map(|p| p.index).collect();
            let index = self.view.indexes(release, &process).into_iter().find(|i| !placed.contains(i))?;
            Some(format!("{process}.{index} could not be placed: {}", room.why_not(scale.memory)?))
        })
    }

    /// Every instance that the formation wants of it is up.
    fn is_covered(&self, release: &Release) -> bool {
        if release.image.is_none() {
            return true;
        }
        self.view.wanted(release).iter().all(|(process, _)| {
            let up = self.of_release(release.version).filter(|p| *p.process == *process && self.known.is_up(p)).count();
            up >= self.view.indexes(release, process).len()
        })
    }

    /// Instances of a release that is neither wanted nor was ever good, and that are reported as not serving, have nothing
    /// to offer.
    fn remove_useless(&self, wanted: Option<u64>, plan: &mut Plan) -> BTreeSet<InstanceId> {
        let mut gone = BTreeSet::new();
        for p in self.placements.iter().filter(|p| Some(p.version) != wanted && Some(p.version) != self.view.app.good) {
            let was_good = self.view.releases.get(&p.version).is_some_and(|r| r.status == ReleaseStatus::Succeeded);
            if p.phase == PlacementPhase::Active && !was_good && self.known.is_known_bad(p) {
                plan.push(ChangeKind::Remove { instance: p.instance }, format!("{}: v{} was given up", p.name(), p.version));
                gone.insert(p.instance);
            }
        }
        gone
    }

    fn decide_process(
        &self,
        release: &Release,
        process: &ProcessType,
        scale: ProcessScale,
        room: &mut Room,
        ids: &mut dyn IdSource,
        plan: &mut Plan,
    ) {
        let wanted = self.view.indexes(release, process);
        let canary = self.view.canary().filter(|(r, _)| r.version == release.version);
        let scaled = match canary {
            Some((r, weight)) => format!("v{} is a canary with {weight} % of the requests", r.version),
            None => format!("{process} is scaled to {}", scale.quantity),
        };
        // Instances may stay through a change of config, but not those of other code that was tried meanwhile.
        let same_code = |p: &Placed| {
            p.version == release.version || self.view.releases.get(&p.version).is_none_or(|r| r.image == release.image)
        };
        let active: Vec<&Placed> = self.active(process).collect();
        let is_current = |p: &Placed| {
            release.covers(p.version)
                && same_code(p)
                && (p.memory, p.cpu_shares, p.cpu_millis) == (scale.memory, scale.cpu_shares, scale.cpu_millis)
                && self.view.app.restart_before(process, p.index).is_none_or(|moment| p.created_at >= moment)
        };
        let (current, old): (Vec<&Placed>, Vec<&Placed>) = active.into_iter().partition(|p| is_current(p));
        let current = self.retire_doubles(current, plan);
        let (surplus, current): (Vec<&Placed>, Vec<&Placed>) = current.into_iter().partition(|p| !wanted.contains(&p.index));
        let running = self.view.app.wanted(process);
        let (stopped, surplus): (Vec<&Placed>, Vec<&Placed>) =
            surplus.into_iter().partition(|p| p.index <= scale.quantity && !running.contains(&p.index));
        for p in stopped {
            self.retire(p, "was stopped", plan);
        }
        self.retire_surplus(&current, surplus, &scaled, plan);
        let have: BTreeSet<u32> = current.iter().map(|p| p.index).collect();
        let missing: Vec<u32> = wanted.iter().copied().filter(|i| !have.contains(i)).collect();
        let (hosts, why) = room.choose(self.neighbours, scale.memory, missing.len());
        let mut indexes = missing.into_iter();
        for host in hosts {
            let Some(index) = indexes.next() else { break };
            let reason = match old.iter().find(|p| p.index == index) {
                Some(p) if p.version != release.version => format!("replaces v{} with v{}", p.version, release.version),
                Some(p) if p.memory != scale.memory => format!("resized from {} to {}", p.memory, scale.memory),
                Some(p) if (p.cpu_shares, p.cpu_millis) != (scale.cpu_shares, scale.cpu_millis) => {
                    "given another share of the CPU".to_owned()
                }
                Some(_) => "restarted".to_owned(),
                None => scaled.clone(),
            };
            let placement = Placement {
                instance: ids.instance(),
                app: self.view.app.id,
                process: process.clone(),
                index,
                release: release.id,
                version: release.version,
                host,
                memory: scale.memory,
                cpu_shares: scale.cpu_shares,
                cpu_millis: scale.cpu_millis,
                phase: PlacementPhase::Active,
                created_at: self.known.now,
                reason: reason.clone(),
            };
            let line = format!("{}: {reason}", placement.name());
            plan.push(ChangeKind::Place(placement), line);
        }
        let short_of_room = why.is_some();
        if let Some(why) = why {
            plan.pending.extend(indexes.map(|index| Pending {
                app: self.view.app.id,
                process: process.clone(),
                index,
                why: why.clone(),
            }));
        }
        self.retire_covered(&current, old, wanted.len(), release.version, short_of_room, plan);
    }

    /// Two controllers that planned at the same moment may have placed the same instance twice: the better one stays.
    fn retire_doubles(&self, mut current: Vec<&'a Placed>, plan: &mut Plan) -> Vec<&'a Placed> {
        current.sort_by_key(|p| (p.index, !self.known.is_up(p), self.known.is_known_bad(p), p.created_at, p.instance));
        let mut kept: Vec<&Placed> = Vec::with_capacity(current.len());
        for p in current {
            if kept.last().is_some_and(|k| k.index == p.index) {
                self.retire(p, "was placed twice", plan);
            } else {
                kept.push(p);
            }
        }
        kept
    }

    /// Lets go of what is beyond the wanted number, except for one that may serve while none of the others is known to.
    fn retire_surplus(&self, kept: &[&Placed], surplus: Vec<&'a Placed>, why: &str, plan: &mut Plan) {
        let covered = surplus.iter().any(|p| !p.process.is_web()) || kept.iter().any(|p| self.known.is_up(p));
        let may_serve = |p: &&&Placed| !self.known.is_known_bad(p);
        let best = surplus.iter().filter(may_serve).min_by_key(|p| (!self.known.is_up(p), p.index)).map(|p| p.instance);
        let spared = best.filter(|_| !covered);
        for p in surplus.into_iter().filter(|p| Some(p.instance) != spared) {
            self.retire(p, why, plan);
        }
    }

    /// Lets go of as many old instances as new ones cover: those known to be bad first, then those whose index is covered.
    /// One that nothing is known of goes when the new ones alone are as many as are wanted.
    fn retire_covered(
        &self,
        current: &[&Placed],
        mut old: Vec<&Placed>,
        wanted: usize,
        version: u64,
        short_of_room: bool,
        plan: &mut Plan,
    ) {
        let up: BTreeSet<u32> = current.iter().filter(|p| self.known.is_up(p)).map(|p| p.index).collect();
        old.sort_by_key(|p| (!up.contains(&p.index), std::cmp::Reverse(p.index), p.instance));
        let serving_old = old.iter().filter(|p| self.known.is_up(p)).count();
        let mut may_go = (up.len() + serving_old).saturating_sub(wanted);
        let all_up = up.len() >= wanted;
        for p in old {
            let goes = if self.known.is_known_bad(p) {
                // It serves nobody: nothing is lost, unless nothing else serves and it may come back. Where it takes the
                // room that its replacement needs, it goes in any case.
                !up.is_empty() || !self.is_hopeful(p) || short_of_room
            } else if self.known.is_up(p) {
                let goes = may_go > 0;
                may_go = may_go.saturating_sub(1);
                goes
            } else {
                all_up
            };
            if goes {
                self.retire(p, &format!("replaced by v{version}"), plan);
            }
        }
    }

    /// A bad instance that served before may do so again.
    fn is_hopeful(&self, p: &Placed) -> bool {
        self.known.evidence(p).is_some_and(|r| r.was_up && r.state != InstanceState::Down)
    }

    /// Drains what may have requests; removes what cannot.
    fn retire(&self, p: &Placed, why: &str, plan: &mut Plan) {
        let line = format!("{}: {why}", p.name());
        // Silence is not evidence: what was last heard of as serving may have requests still.
        let host_spoke = self.known.reports.get(&p.host).is_some_and(|v| v.counts);
        let heard = self.known.last_heard(p);
        let may_serve = p.process.is_web() && heard.map_or(!host_spoke, |r| r.address.is_some());
        if may_serve && !self.known.is_known_bad(p) {
            let deadline = self.known.now.plus(Duration::from_secs(u64::from(self.known.settings.drain_seconds)));
            plan.wake(deadline);
            plan.push(ChangeKind::Drain { instance: p.instance, deadline }, line);
        } else {
            plan.push(ChangeKind::Remove { instance: p.instance }, line);
        }
    }
}

fn hopeless(r: &InstanceReport, attempts: u32) -> Option<String> {
    let told = |r: &InstanceReport| r.message.clone().or(r.exit.as_ref().map(exit_text));
    match r.state {
        InstanceState::Crashed if !r.was_up && r.restarts + 1 >= attempts => {
            Some(told(r).map_or_else(|| "crashed".to_owned(), |t| format!("crashed: {t}")))
        }
        InstanceState::Down => Some(format!("cannot start: {}", told(r).unwrap_or_else(|| "its host gave no reason".into()))),
        _ => None,
    }
}

fn exit_text(e: &flex_model::ExitInfo) -> String {
    if e.oom { "it ran out of memory".to_owned() } else { format!("exited with status {}", e.status) }
}
