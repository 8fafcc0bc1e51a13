//! Process types beside their number: stopping and starting, sizes, health checks, how far a roll-out is, and why something
//! does not run.

use crate::apps::ScaleChange;
use crate::core::{Actor, Controller, invalid, lock, not_found};
use crate::crypt::Vars;
use crate::db::keys;
use crate::releases::{Beside, Code, Draft, made};
use flex_api::{ApiError, CheckSource, ProcessCheck, ReleaseRef, Rollout, UpdateFormation};
use flex_model::{
    App, AppId, HealthCheck, InstanceId, InstanceState, Memory, Placement, PlacementPhase, ProcessScale, ProcessType, Release,
    ReleaseStatus, Slug,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Heroku's names of sizes: they mean nothing here, and change nothing where the server gives them no meaning.
const HEROKU_SIZES: [&str; 6] = ["eco", "basic", "standard", "performance", "private", "shield"];

/// `web` or `web.1`, as a process type and a number.
fn parts(which: &str) -> Option<(ProcessType, Option<u32>)> {
    let (kind, index) = which.split_once('.').map_or((which, None), |(k, i)| (k, Some(i)));
    let index = match index {
        Some(i) => Some(i.parse::<u32>().ok().filter(|i| *i > 0)?),
        None => None,
    };
    Some((kind.parse().ok()?, index))
}

/// Takes something into what is stopped.
fn stop(app: &mut App, which: &str) {
    app.stopped.retain(|s| !within(s, which));
    app.stopped.insert(which.to_owned());
}

/// Takes something out of what is stopped; what is stopped around it stays so.
fn start(app: &mut App, which: &str) {
    if which.is_empty() {
        app.stopped.clear();
        return;
    }
    if app.stopped.remove("") {
        app.stopped.extend(app.formation.keys().map(ToString::to_string));
    }
    if let Some((kind, _)) = which.split_once('.')
        && app.stopped.remove(kind)
    {
        let count = app.formation.iter().find(|(p, _)| p.as_str() == kind).map_or(0, |(_, s)| s.quantity);
        app.stopped.extend((1..=count).map(|i| format!("{kind}.{i}")));
    }
    app.stopped.retain(|s| !within(s, which));
}

/// Whether `name` is `which` or a part of it.
fn within(name: &str, which: &str) -> bool {
    which.is_empty() || name == which || name.split_once('.').is_some_and(|(kind, _)| kind == which)
}

impl Controller {
    /// Stops or starts one instance, a process type, or (an empty name) all.
    pub async fn set_running(&self, actor: &Actor, id: AppId, which: &str, run: bool) -> Result<(), ApiError> {
        let missing = || not_found(format!("Couldn't find that dyno ({which}). See: flex ps"));
        let all = which.is_empty();
        let parts = if all { None } else { Some(parts(which).ok_or_else(missing)?) };
        let said = if all { "all" } else { which };
        let (kind, verb) = if run { ("ps.start", "Started") } else { ("ps.stop", "Stopped") };
        self.update_app(actor, id, kind, |app| {
            if let Some((process, index)) = &parts {
                let quantity = app.formation.get(process).ok_or_else(missing)?.quantity;
                if index.is_some_and(|i| i > quantity) {
                    return Err(missing());
                }
            }
            let before = app.stopped.clone();
            if run {
                start(app, which);
            } else {
                stop(app, which);
            }
            Ok((app.stopped != before).then(|| format!("{verb} {said}")))
        })
        .await?;
        self.log_api(id, format!("{} {said} by user {}", if run { "Start" } else { "Stop" }, actor.name));
        Ok(())
    }

    /// A change of scale as a client gives it, its size looked up.
    pub fn scale_change(&self, update: &UpdateFormation) -> Result<ScaleChange, ApiError> {
        if update.cpu_shares.is_some_and(|s| !flex_model::app::SHARES.contains(&s)) {
            return Err(invalid("cpu_shares must be between 2 and 262144; 1024 is ordinary."));
        }
        if update.cpu_millis.is_some_and(|m| m != 0 && !(10..=1_024_000).contains(&m)) {
            return Err(invalid("cpu_millis must be between 10 and 1024000, or 0 for no limit."));
        }
        let mut change = ScaleChange {
            process: update.kind.clone(),
            quantity: update.quantity,
            memory: None,
            cpu_shares: None,
            cpu_millis: None,
        };
        if let Some(text) = &update.size {
            self.take_size(text, &mut change)?;
        }
        change.cpu_shares = update.cpu_shares.or(change.cpu_shares);
        change.cpu_millis = update.cpu_millis.or(change.cpu_millis);
        Ok(change)
    }

    /// A scale with another size: a name that this server knows, or an amount of memory.
    pub(crate) fn resized(&self, scale: ProcessScale, text: &str) -> Result<ProcessScale, ApiError> {
        let process = ProcessType::web();
        let mut change = ScaleChange { process, quantity: None, memory: None, cpu_shares: None, cpu_millis: None };
        self.take_size(text, &mut change)?;
        Ok(ProcessScale {
            memory: change.memory.unwrap_or(scale.memory),
            cpu_shares: change.cpu_shares.unwrap_or(scale.cpu_shares),
            cpu_millis: change.cpu_millis.map_or(scale.cpu_millis, |m| Some(m).filter(|m| *m > 0)),
            ..scale
        })
    }

    fn take_size(&self, text: &str, change: &mut ScaleChange) -> Result<(), ApiError> {
        let name = text.to_ascii_lowercase();
        let sizes = &self.deps.settings.sizes;
        if let Some(size) = sizes.get(&name) {
            change.memory = Some(size.memory);
            change.cpu_shares = Some(size.cpu_shares);
            change.cpu_millis = Some(size.cpu_millis.unwrap_or(0));
        } else if name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let family = name.split('-').next().unwrap_or_default();
            if !HEROKU_SIZES.contains(&family) {
                let known = sizes.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "This server names none".to_owned() } else { format!("There are: {known}") };
                return Err(invalid(format!("There is no size {text}. {known}; an amount of memory such as 512M always works.")));
            }
        } else {
            change.memory = Some(text.parse::<Memory>().map_err(invalid)?);
        }
        Ok(())
    }

    /// A size's name, or its memory.
    pub fn size_name(&self, memory: Memory, cpu_shares: u32, cpu_millis: Option<u32>) -> String {
        let sizes = self.deps.settings.sizes.iter();
        let named = sizes
            .filter(|(_, s)| (s.memory, s.cpu_shares, s.cpu_millis) == (memory, cpu_shares, cpu_millis))
            .map(|(name, _)| name.clone())
            .next();
        named.unwrap_or_else(|| memory.to_string())
    }

    /// The health checks of what an app runs or will run.
    pub async fn checks_of(&self, app: &App) -> Result<Vec<ProcessCheck>, ApiError> {
        let release = match app.target.or(app.good) {
            Some(v) => self.db.get::<Release>(&keys::release(app.id, v)).await?.map(|r| r.value),
            None => None,
        };
        let slug = match release.as_ref().and_then(|r| r.slug) {
            Some(id) => self.db.get::<Slug>(&keys::slug(app.id, id)).await?.map(|s| s.value),
            None => None,
        };
        let mut all: BTreeSet<&ProcessType> = app.checks.keys().collect();
        all.extend(release.iter().flat_map(|r| r.processes.keys()));
        let one = |p: &ProcessType| {
            let of_file = slug.as_ref().and_then(|s| s.checks.get(p));
            match (app.checks.get(p), of_file) {
                (Some(check), _) => ProcessCheck::of(p, check, CheckSource::Set),
                (None, Some(check)) => ProcessCheck::of(p, check, CheckSource::AppJson),
                (None, None) => ProcessCheck::of(p, &HealthCheck::default_for(p), CheckSource::Default),
            }
        };
        Ok(all.into_iter().map(one).collect())
    }

    /// Sets (or, with none, removes) the owner's health check of a process type: a release of its own, so that a check
    /// that never passes leaves the earlier one in force.
    pub async fn set_check(
        &self,
        actor: &Actor,
        id: AppId,
        process: &ProcessType,
        check: Option<HealthCheck>,
    ) -> Result<(), ApiError> {
        let known = self.process_types(id).await?;
        if !known.is_empty() && !known.contains(process) {
            let known: Vec<_> = known.iter().map(ToString::to_string).collect();
            return Err(not_found(format!("Couldn't find that process type ({process}). There are: {}", known.join(", "))));
        }
        let verb = if check.is_some() { "Set" } else { "Unset" };
        let draft = |app: &App, before: &Vars| {
            if app.checks.get(process) == check.as_ref() {
                return Ok(None);
            }
            Ok(Some(Draft {
                vars: before.clone(),
                description: format!("{verb} health check of {process}"),
                kind: "checks.update",
                code: Code::Same,
                beside: Beside::Check(process.clone(), check.clone()),
            }))
        };
        self.make_release(actor, id, draft).await.map(drop)
    }

    /// A failed release once more, with the config vars of today.
    pub async fn retry_release(&self, actor: &Actor, id: AppId, of: &Release) -> Result<Arc<Release>, ApiError> {
        crate::owners::refuse_locked(&*self.find_app(&id.to_string()).await?)?;
        if of.status != ReleaseStatus::Failed {
            return Err(invalid(format!("v{0} did not fail. To go back to it: flex rollback v{0}", of.version)));
        }
        if of.image.is_none() {
            return Err(invalid(format!("v{} has no code to release again. Push it: git push flex main", of.version)));
        }
        let description = format!("Retry of v{}: {}", of.version, of.description);
        let draft = |_: &App, before: &Vars| {
            let (vars, description) = (before.clone(), description.clone());
            Ok(Some(Draft { vars, description, kind: "release.retry", code: Code::Of(of), beside: Beside::ReleasePhase }))
        };
        made(self.make_release(actor, id, draft).await?)
    }

    /// What a release does beside being the next one; called within the making of it. `before` is the app as it was.
    pub(crate) async fn beside(
        &self,
        before: &App,
        app: &mut App,
        release: &mut Release,
        base: Option<&Release>,
        what: &Beside,
    ) -> Result<(), ApiError> {
        match what {
            Beside::Nothing => {}
            // One that waits for the next build goes on waiting.
            Beside::EndCanary | Beside::PromoteCanary => app.canary = app.canary.filter(|c| c.version.is_none()),
            Beside::ReleasePhase => {
                release.release_command = base.and_then(|b| b.release_command.clone());
                release.released = release.release_command.is_none();
            }
            Beside::KeepInstances => {
                let Some(base) = base.filter(|b| b.image.is_some()) else { return Ok(()) };
                if before.target != before.good || base.status != ReleaseStatus::Succeeded {
                    return Err(invalid(format!(
                        "v{} is still being rolled out, and its instances will be restarted anyhow. Wait for it, or leave out --no-restart.",
                        base.version
                    )));
                }
                release.keeps_from = Some(base.keeps_from.unwrap_or(base.version));
                release.status = ReleaseStatus::Succeeded;
                app.good = Some(release.version);
            }
            Beside::Check(process, check) => {
                match check {
                    Some(check) => app.checks.insert(process.clone(), check.clone()),
                    None => app.checks.remove(process),
                };
                if let Some(spec) = release.processes.get_mut(process) {
                    let of_file = match release.slug {
                        Some(id) => self.db.get::<Slug>(&keys::slug(app.id, id)).await?,
                        None => None,
                    };
                    let of_file = of_file.and_then(|s| s.value.checks.get(process).cloned());
                    spec.check = check.clone().or(of_file).unwrap_or_else(|| HealthCheck::default_for(process));
                }
            }
        }
        Ok(())
    }

    /// What the release phase of a release printed, and how the release stands.
    pub async fn release_output(&self, release: &Release) -> Result<String, ApiError> {
        let Some(command) = &release.release_command else {
            return Ok(format!("v{} has no release phase.\n", release.version));
        };
        let process = Some(crate::deploy::phase_name(release.version));
        let query = flex_logs::LogQuery { process, ..flex_logs::LogQuery::newest(10_000) };
        let lines = self.deps.logs.query(release.app, query).await;
        let lines = lines.map_err(|e| ApiError::new(flex_api::ErrorId::Unavailable, format!("The log cannot be read: {e}")))?;
        let mut text: String = lines.iter().map(|l| format!("{}\n", l.text)).collect();
        if text.is_empty() {
            text =
                format!("The log has nothing of `{command}`: it has not begun, or its lines are older than the log is kept.\n");
        }
        Ok(text)
    }

    /// Part of the URL of a release phase's output.
    pub fn release_secret(&self, release: &Release) -> String {
        self.crypt.sign(&format!("release-output/{}/{}", release.app, release.id))
    }

    pub fn release_output_url(&self, app: &App, release: &Release) -> String {
        let secret = self.release_secret(release);
        format!("{}/release-output/{}/{}/{secret}", self.deps.settings.api_url, app.id, release.id)
    }

    /// How far what runs is from what should run.
    pub async fn rollout(&self, app: &App) -> Result<Rollout, ApiError> {
        let version = app.target.or(app.good);
        let release = match version {
            Some(v) => self.db.get::<Release>(&keys::release(app.id, v)).await?.map(|r| r.value),
            None => None,
        };
        let placements = self.db.list::<Placement>(keys::PLACEMENTS).await?;
        let active = placements.iter().map(|p| &p.value).filter(|p| p.app == app.id && p.phase == PlacementPhase::Active);
        let reports = lock(&self.reports).clone();
        let table = self.table.borrow().clone();
        let routers_agree = self.routers_have(table.revision);
        let routed: BTreeSet<InstanceId> =
            table.app(app.id).map(|a| a.instances().map(|b| b.instance).collect()).unwrap_or_default();
        let runs = release.as_ref().filter(|r| r.image.is_some());
        let wanted: BTreeSet<(ProcessType, u32)> = runs
            .iter()
            .flat_map(|r| r.processes.keys().filter(|p| !p.is_release_phase()))
            .flat_map(|p| app.wanted(p).into_iter().map(move |i| (p.clone(), i)))
            .collect();
        let (mut ready, mut old, mut problems) = (BTreeSet::new(), 0, Vec::new());
        // A table that routers have yet to take does not make fewer of those ready that were ready before it.
        let mut awaits_routers = false;
        for p in active {
            let key = (p.process.clone(), p.index);
            let fits = app
                .formation
                .get(&p.process)
                .is_some_and(|s| (p.memory, p.cpu_shares, p.cpu_millis) == (s.memory, s.cpu_shares, s.cpu_millis));
            let fresh = app.restart_before(&p.process, p.index).is_none_or(|moment| p.created_at >= moment);
            if !(wanted.contains(&key) && fits && fresh && runs.is_some_and(|r| r.covers(p.version))) {
                old += 1;
                continue;
            }
            let view = reports.get(&p.host).filter(|v| v.counts);
            let Some(r) = view.and_then(|v| v.report.instances.iter().find(|i| i.instance == p.instance)) else { continue };
            let reached = !p.process.is_web() || app.maintenance || routed.contains(&p.instance);
            awaits_routers |= p.process.is_web() && !app.maintenance && !routers_agree;
            match r.state {
                InstanceState::Up if reached => drop(ready.insert(key)),
                InstanceState::Crashed | InstanceState::Down | InstanceState::Unhealthy => {
                    let why = r.message.clone().unwrap_or_else(|| "it gave no reason".into());
                    problems.push(format!("{} {}: {why}", p.name(), format!("{:?}", r.state).to_lowercase()));
                }
                _ => {}
            }
        }
        problems.extend(self.pending_of(app.id).iter().map(|p| format!("{}.{} cannot be placed: {}", p.process, p.index, p.why)));
        let status = release.as_ref().map(|r| match r.status {
            ReleaseStatus::Pending => flex_api::ReleaseStatus::Pending,
            ReleaseStatus::Succeeded => flex_api::ReleaseStatus::Succeeded,
            ReleaseStatus::Failed => flex_api::ReleaseStatus::Failed,
        });
        Ok(Rollout {
            settled: ready.len() == wanted.len()
                && old == 0
                && !awaits_routers
                && status != Some(flex_api::ReleaseStatus::Pending),
            wanted: wanted.len(),
            ready: ready.len(),
            old,
            release: release.map(|r| ReleaseRef { id: r.id, version: r.version }),
            status,
            problems,
        })
    }

    /// Why there is no such instance, where a person might expect it.
    pub(crate) async fn why_not(&self, app: &App, name: &str) -> Result<Vec<String>, ApiError> {
        let Some((process, Some(index))) = parts(name) else { return Ok(Vec::new()) };
        let Some(scale) = app.formation.get(&process) else { return Ok(Vec::new()) };
        let mut lines = Vec::new();
        if index > scale.quantity {
            let now = scale.quantity;
            lines.push(format!("{name} is not wanted: {process} is scaled to {now}. Run it: flex ps:scale {process}={index}"));
        } else if !app.wanted(&process).contains(&index) {
            let what = ["", process.as_str(), name].into_iter().find(|w| app.stopped.contains(*w)).unwrap_or_default();
            lines.push(format!("{name} was stopped. Start it: flex ps:start {what}").trim_end().to_owned());
        } else {
            let release = match app.target.or(app.good) {
                Some(v) => self.db.get::<Release>(&keys::release(app.id, v)).await?.map(|r| r.value),
                None => None,
            };
            lines.push(match release {
                None => format!("{name} has no code to run yet. Deploy first: git push flex main"),
                Some(r) if r.image.is_none() => format!("{name} has no code to run yet. Deploy first: git push flex main"),
                Some(r) if !r.released => {
                    format!("{name} waits for the release phase of v{0}: flex releases:output v{0}", r.version)
                }
                Some(r) if !r.processes.contains_key(&process) => {
                    format!("{name} is not in v{}: its Procfile has no {process}", r.version)
                }
                Some(r) => format!("{name} of v{} is about to be placed", r.version),
            });
        }
        if let Some(last) = self.history_of(app.id).await?.iter().rev().find(|e| e.name == name) {
            lines.push(format!("It last ended at {}: {}", last.ended_at, last.reason));
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_model::{AppId, ProcessScale, Timestamp, UserId, Uuid};

    fn app() -> App {
        let scale = |p: &str, n| (p.parse().unwrap(), ProcessScale::default_for(n));
        App {
            id: AppId(Uuid::nil()),
            name: "demo".parse().unwrap(),
            owner: UserId(Uuid::nil()),
            stack: "flex-1".parse().unwrap(),
            stack_by_hand: false,
            created_at: Timestamp::default(),
            updated_at: Timestamp::default(),
            maintenance: false,
            formation: [scale("web", 3), scale("worker", 1)].into(),
            deploy_branches: Vec::new(),
            buildpacks: Vec::new(),
            checks: std::collections::BTreeMap::new(),
            acm: false,
            canary: None,
            access_lines: None,
            config_rev: 0,
            last_version: 0,
            target: None,
            good: None,
            restarts: std::collections::BTreeMap::new(),
            stopped: BTreeSet::new(),
            locked: None,
            stop_grace_seconds: 30,
            read_only_root: false,
        }
    }

    #[test]
    fn what_is_stopped_is_started_again_piece_by_piece() {
        let mut a = app();
        let runs = |a: &App| (a.wanted(&"web".parse().unwrap()), a.wanted(&"worker".parse().unwrap()).len());
        stop(&mut a, "web.2");
        assert_eq!(runs(&a), ([1, 3].into(), 1));
        stop(&mut a, "web");
        assert_eq!((runs(&a), a.stopped.len()), (([].into(), 1), 1));
        start(&mut a, "web.1");
        assert_eq!(runs(&a), ([1].into(), 1));
        stop(&mut a, "");
        assert_eq!((runs(&a), a.stopped.len()), (([].into(), 0), 1));
        start(&mut a, "web");
        assert_eq!(runs(&a), ([1, 2, 3].into(), 0));
        start(&mut a, "");
        assert_eq!(runs(&a), ([1, 2, 3].into(), 1));
        assert!(parts("web.0").is_none() && parts("web.x").is_none() && parts("../x").is_none());
    }
}
