//! The planner's resident state: what is desired, where everything is placed and what hosts report, kept from plan to plan
//! and fed with what changed, so that a plan looks at what changed alone.
//!
//! Invariants: it is a copy and never the truth: who keeps it builds it anew after any doubt, and gets the same plans. It
//! plans what it would plan if it looked at everything: an app is looked at again when its record, one of its placements,
//! what is reported of one of its instances or the life of a host under one of them has changed, when its time has come,
//! after a plan that had changes for it (they may never have been committed), and, where it is short of room, each time.
//! Telling it twice is telling it once; the order of what is told does not matter.
//!
//! Must not: take part of a plan for committed before it is told so.

use crate::hosts::Room;
use crate::routes::{RouteChanges, of_app};
use crate::view::{AppView, Known, Placed, ReportView, Settings, World};
use flex_model::{AppId, Host, HostId, HostState, InstanceId, InstanceReport, Placement, PlacementPhase, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// See the module's page.
#[derive(Debug, Default)]
pub struct Cluster {
    pub(crate) settings: Settings,
    /// Those that there are, and those that are gone and still have placements.
    pub(crate) apps: BTreeMap<AppId, Entry>,
    pub(crate) room: Room,
    /// By instance; hosts without any are left out, hosts that nobody knows are not.
    pub(crate) on_host: BTreeMap<HostId, Vec<(InstanceId, AppId)>>,
    pub(crate) reports: BTreeMap<HostId, ReportView>,
    pub(crate) draining: BTreeSet<(AppId, InstanceId)>,
    /// Have placements and are gone.
    pub(crate) orphaned: BTreeSet<AppId>,
    /// Have placements and are dead or unknown.
    pub(crate) lost: BTreeSet<HostId>,
    /// When apps are to be looked at again though nothing happened.
    pub(crate) due: BTreeSet<(Timestamp, AppId)>,
    /// To be looked at.
    pub(crate) dirty: BTreeSet<AppId>,
    /// Have instances that found no room.
    pub(crate) short: BTreeSet<AppId>,
    pub(crate) planned_at: Timestamp,
    unrouted: BTreeSet<AppId>,
    routed_once: bool,
    unassigned: BTreeSet<HostId>,
}

/// An app and its placements.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub view: Option<AppView>,
    /// By instance.
    pub placements: Vec<Placed>,
    pub wake: Option<Timestamp>,
}

impl Entry {
    pub(crate) fn placed(&self, instance: InstanceId) -> Option<&Placed> {
        self.placements.binary_search_by_key(&instance, |p| p.instance).ok().map(|at| &self.placements[at])
    }
}

impl Cluster {
    pub fn new(settings: Settings) -> Self {
        let mut new = Self { settings, ..Self::default() };
        new.room.pack = settings.pack;
        new
    }

    /// The state that knows this world and has planned nothing.
    pub fn of(world: &World) -> Self {
        let mut new = Self::new(world.settings);
        world.apps.values().for_each(|view| new.set_app(view.clone()));
        world.hosts.values().for_each(|host| new.set_host(host));
        world.placements.values().for_each(|p| new.set_placement(p));
        world.reports.iter().for_each(|(host, view)| new.set_report(*host, view.clone()));
        new
    }

    pub(crate) fn known(&self, now: Timestamp) -> Known<'_> {
        Known { now, settings: self.settings, reports: &self.reports }
    }

    fn touch(&mut self, app: AppId) {
        self.dirty.insert(app);
        self.unrouted.insert(app);
    }

    /// An app came, or changed.
    pub fn set_app(&mut self, view: AppView) {
        let id = view.app.id;
        let entry = self.apps.entry(id).or_default();
        entry.view = Some(view);
        // Their orders say what the app says.
        self.unassigned.extend(entry.placements.iter().map(|p| p.host));
        self.orphaned.remove(&id);
        self.touch(id);
    }

    /// An app is gone; its placements are not, until that is told.
    pub fn remove_app(&mut self, id: AppId) {
        let Some(entry) = self.apps.get_mut(&id) else { return };
        entry.view = None;
        if let Some(wake) = entry.wake.take() {
            self.due.remove(&(wake, id));
        }
        self.review_app(id);
        self.touch(id);
    }

    fn review_app(&mut self, id: AppId) {
        let Some(entry) = self.apps.get(&id).filter(|e| e.view.is_none()) else { return };
        if entry.placements.is_empty() {
            self.apps.remove(&id);
            self.orphaned.remove(&id);
        } else {
            self.orphaned.insert(id);
        }
    }

    /// A host came, or changed.
    pub fn set_host(&mut self, host: &Host) {
        let before = self.room.state(host.id);
        let used = self.placed_on(host.id).map(|p| p.memory.bytes()).sum();
        self.room.set(host, used);
        self.review_host(host.id, before);
        self.unassigned.insert(host.id);
    }

    /// A host is not known any more.
    pub fn remove_host(&mut self, host: HostId) {
        let before = self.room.state(host);
        self.room.remove(host);
        self.review_host(host, before);
    }

    fn review_host(&mut self, host: HostId, before: Option<HostState>) {
        let is_gone = |state: Option<HostState>| state.is_none_or(|s| s == HostState::Dead);
        let gone = is_gone(self.room.state(host));
        let Some(placed) = self.on_host.get(&host) else {
            self.lost.remove(&host);
            return;
        };
        if is_gone(before) != gone {
            let apps: Vec<AppId> = placed.iter().map(|(_, app)| *app).collect();
            apps.into_iter().for_each(|app| self.touch(app));
        }
        if gone {
            self.lost.insert(host)
        } else {
            self.lost.remove(&host)
        };
    }

    fn placed_on(&self, host: HostId) -> impl Iterator<Item = &Placed> {
        let here = self.on_host.get(&host).into_iter().flatten();
        here.filter_map(|(instance, app)| self.apps.get(app)?.placed(*instance))
    }

    /// A placement came, or changed.
    pub fn set_placement(&mut self, p: &Placement) {
        let entry = self.apps.entry(p.app).or_default();
        let placed = Placed::of(p, &entry.placements);
        let at = entry.placements.binary_search_by_key(&p.instance, |x| x.instance);
        if at.is_ok_and(|at| entry.placements[at] == placed) {
            return;
        }
        if at.is_ok() {
            self.remove_placement(p.app, p.instance);
        }
        let list = &mut self.apps.entry(p.app).or_default().placements;
        make_room(list);
        list.insert(at.unwrap_or_else(|at| at), placed);
        let here = self.on_host.entry(p.host).or_default();
        if let Err(at) = here.binary_search(&(p.instance, p.app)) {
            make_room(here);
            here.insert(at, (p.instance, p.app));
        }
        self.room.take(p.host, p.memory);
        if p.phase != PlacementPhase::Active {
            self.draining.insert((p.app, p.instance));
        }
        self.review_app(p.app);
        self.review_host(p.host, self.room.state(p.host));
        self.unassigned.insert(p.host);
        self.touch(p.app);
    }

    /// A placement is over.
    pub fn remove_placement(&mut self, app: AppId, instance: InstanceId) {
        let Some(entry) = self.apps.get_mut(&app) else { return };
        let Ok(at) = entry.placements.binary_search_by_key(&instance, |p| p.instance) else { return };
        let gone = entry.placements.remove(at);
        if let Some(here) = self.on_host.get_mut(&gone.host) {
            here.retain(|(i, _)| *i != instance);
            if here.is_empty() {
                self.on_host.remove(&gone.host);
            }
        }
        self.room.give(gone.host, gone.memory);
        self.draining.remove(&(app, instance));
        self.touch(app);
        self.review_app(app);
        self.review_host(gone.host, self.room.state(gone.host));
        self.unassigned.insert(gone.host);
    }

    /// A host's newest report.
    pub fn set_report(&mut self, host: HostId, view: ReportView) {
        let before = self.reports.get(&host).filter(|b| b.counts == view.counts);
        let placed = self.on_host.get(&host).map_or(&[][..], Vec::as_slice);
        let changed: Vec<AppId> = match before {
            Some(before) if before.report.instances == view.report.instances => Vec::new(),
            Some(before) => {
                let (old, new) = (by_instance(&before.report.instances), by_instance(&view.report.instances));
                placed.iter().filter(|(i, _)| old.get(i) != new.get(i)).map(|(_, app)| *app).collect()
            }
            None => placed.iter().map(|(_, app)| *app).collect(),
        };
        self.reports.insert(host, view);
        changed.into_iter().for_each(|app| self.touch(app));
    }

    /// Nothing is known any more of what a host reported.
    pub fn remove_report(&mut self, host: HostId) {
        if self.reports.remove(&host).is_some() {
            let apps: Vec<AppId> = self.on_host.get(&host).into_iter().flatten().map(|(_, app)| *app).collect();
            apps.into_iter().for_each(|app| self.touch(app));
        }
    }

    /// The routes that may have changed since they were taken last.
    pub fn take_routes(&mut self) -> RouteChanges {
        let unrouted = std::mem::take(&mut self.unrouted);
        let known = self.known(self.planned_at);
        let one = |e: &Entry| e.view.as_ref().map(|view| of_app(known, view, &e.placements));
        if !self.routed_once {
            let all = self.apps.values().filter_map(one).collect();
            self.routed_once = true;
            return RouteChanges::All(all);
        }
        let (mut changed, mut gone) = (Vec::new(), BTreeSet::new());
        for id in unrouted {
            match self.apps.get(&id).and_then(one) {
                Some(route) => changed.push(route),
                None => {
                    gone.insert(id);
                }
            }
        }
        RouteChanges::Some { changed, gone }
    }

    /// The hosts whose assignment may have changed since they were taken last.
    pub fn take_hosts(&mut self) -> BTreeSet<HostId> {
        std::mem::take(&mut self.unassigned)
    }

    /// A host's assignment could not be made: it is among those that are taken next.
    pub fn put_back(&mut self, host: HostId) {
        self.unassigned.insert(host);
    }

    /// What is placed on a host, in the order of ids.
    pub fn instances_on(&self, host: HostId) -> impl Iterator<Item = InstanceId> {
        self.on_host.get(&host).into_iter().flatten().map(|(instance, _)| *instance)
    }

    /// Hosts that have placements.
    pub fn hosts_in_use(&self) -> impl Iterator<Item = HostId> {
        self.on_host.keys().copied()
    }

    /// What drains, with its app.
    pub fn draining(&self) -> impl Iterator<Item = (AppId, InstanceId)> {
        self.draining.iter().copied()
    }

    /// Every app that there is.
    pub fn views(&self) -> impl Iterator<Item = &AppView> {
        self.apps.values().filter_map(|e| e.view.as_ref())
    }

    /// An app.
    pub fn view(&self, app: AppId) -> Option<&AppView> {
        self.apps.get(&app)?.view.as_ref()
    }

    /// Releases that an app's placements are of.
    pub fn versions_of(&self, app: AppId) -> BTreeSet<u64> {
        self.apps.get(&app).into_iter().flat_map(|e| &e.placements).map(|p| p.version).collect()
    }
}

/// Of a million placements, as many again would be too many to spare.
fn make_room<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 8 + 4);
    }
}

fn by_instance(reports: &[InstanceReport]) -> BTreeMap<InstanceId, &InstanceReport> {
    // Of two the first counts, as it does for who looks for one.
    reports.iter().rev().map(|r| (r.instance, r)).collect()
}
