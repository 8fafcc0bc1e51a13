//! What hosts and routers are told, from what was read.

use super::plan::Read;
use crate::core::{Controller, lock};
use crate::runs::Routed;
use flex_model::{Assignment, HostId, Placement, RouteTable, WorkItem};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a controller that has just started waits for its hosts before it publishes routes without them: until then
/// routers go on with the table that they have.
const FIRST_REPORTS: Duration = Duration::from_secs(15);

impl Controller {
    pub(super) async fn publish(&self, read: &Read) {
        self.publish_assignments(read).await;
        self.publish_routes(read);
        let hosts = read.world.apps.iter().map(|(id, view)| (*id, view.domains.as_slice())).collect();
        if let Err(e) = self.publish_certificates(&hosts).await {
            tracing::error!(error = %e, "the certificates cannot be told to the routers; they go on with those they have");
        }
    }

    async fn publish_assignments(&self, read: &Read) {
        let mut by_host: BTreeMap<HostId, Vec<&Placement>> = read.world.hosts.keys().map(|h| (*h, Vec::new())).collect();
        for p in read.world.placements.values() {
            by_host.entry(p.host).or_default().push(p);
        }
        for (host, placements) in by_host {
            let before = lock(&self.assignments).get(&host).and_then(|s| s.borrow().clone());
            let mut items = Vec::with_capacity(placements.len());
            for p in placements {
                match self.work_item(read, p).await {
                    Ok(item) => items.push(item),
                    Err(e) => {
                        tracing::error!(instance = %p.instance, error = %e, "an instance's orders cannot be made; it goes on as it is");
                        let known = |a: &Arc<Assignment>| a.items.iter().find(|i| i.instance == p.instance).cloned();
                        match before.as_ref().map(known) {
                            Some(Some(item)) => items.push(item),
                            // It never had any.
                            Some(None) => {}
                            // It may run since an earlier controller: an assignment without it would stop it.
                            None => {
                                items.clear();
                                break;
                            }
                        }
                    }
                }
            }
            if items.is_empty() && before.is_none() && read.world.placements.values().any(|p| p.host == host) {
                continue;
            }
            let mut senders = lock(&self.assignments);
            let sender = senders.entry(host).or_insert_with(|| tokio::sync::watch::channel(None).0);
            if sender.borrow().as_ref().is_none_or(|a| a.items != items) {
                let assignment = Assignment { host, revision: read.revision(), epoch: self.epoch, items };
                sender.send_replace(Some(Arc::new(assignment)));
            }
        }
    }

    async fn work_item(&self, read: &Read, p: &Placement) -> Result<WorkItem, flex_api::ApiError> {
        let missing = || crate::core::not_found(format!("{} v{} of {} is not known", p.name(), p.version, p.app));
        let view = read.world.apps.get(&p.app).ok_or_else(missing)?;
        let release = view.releases.get(&p.version).ok_or_else(missing)?;
        let routes = view.routes.iter().filter(|r| r.targets.iter().any(|t| t.process == p.process));
        let mut spec = self.instance_spec(&view.app, release, &p.process, &p.name(), Routed::by(routes)).await?;
        // A running instance keeps the size it was placed with; another size is another placement.
        spec.memory = p.memory;
        Ok(WorkItem {
            instance: p.instance,
            app: p.app,
            app_name: view.app.name.clone(),
            name: p.name(),
            version: p.version,
            spec,
        })
    }

    fn publish_routes(&self, read: &Read) {
        let hosts: BTreeSet<HostId> = read.world.placements.values().map(|p| p.host).collect();
        let heard = hosts.iter().all(|h| read.world.reports.get(h).is_some_and(|r| r.counts));
        if !heard && self.started.elapsed() < FIRST_REPORTS {
            return;
        }
        let apps = flex_scheduler::routes(&read.world);
        self.table.send_if_modified(|table| {
            // Grows over restarts too: routers keep the newest table on disk.
            let now = u64::try_from(read.world.now.micros()).unwrap_or(0);
            let revision = now.max(table.revision + 1);
            let next = table.followed_by(revision, apps);
            // The first table is one even without an app.
            let Some(mut next) = next.or_else(|| (table.revision == 0).then(|| RouteTable::new(revision, []))) else {
                return false;
            };
            next.cookie_key = Some(flex_model::Secret::new(self.crypt.sign("router-cookies")));
            *table = Arc::new(next);
            self.keep_table(table);
            lock(&self.signals).published(table.revision, std::time::Instant::now());
            true
        });
    }
}
