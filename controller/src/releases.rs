//! Releases: how one comes to be (deploy, config, rollback), and what becomes of it.

use crate::core::{Actor, Controller, invalid, not_found};
use crate::crypt::Vars;
use crate::db::{PostdeployRecord, Stored, Tx, keys};
use flex_api::{ApiError, ErrorId};
use flex_model::{
    App, AppId, Build, BuildStatus, Canary, ConfigKey, HealthCheck, LogSource, Placement, ProcessScale, ProcessSpec, ProcessType,
    Release, ReleaseStatus, Secret, Slug,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The largest sum of an app's config vars, in bytes: Heroku's limit, and what fits a record after encryption.
const MAX_CONFIG_BYTES: usize = 32 << 10;

/// How many different images can be gone back to.
const KEPT_IMAGES: usize = 20;
/// Kept beyond them: what may be gone back to at the moment of looking is still there a moment later.
const SPARE_IMAGES: usize = 5;

/// What a new release is to be.
pub(crate) struct Draft<'a> {
    /// All config vars from now on.
    pub vars: Vars,
    pub description: String,
    /// Of its event.
    pub kind: &'static str,
    pub code: Code<'a>,
    pub beside: Beside,
}

/// What else a release does.
#[derive(Clone, Default)]
pub(crate) enum Beside {
    #[default]
    Nothing,
    /// Instances that run stay as they are.
    KeepInstances,
    /// The owner's health check of a process type is this from now on; none: app.json's, or the default.
    Check(ProcessType, Option<HealthCheck>),
    /// The release phase runs again.
    ReleasePhase,
    /// A canary that stands beside what runs is given up.
    EndCanary,
    /// It is the canary's code, for all requests.
    PromoteCanary,
}

/// Where a release's code comes from.
pub(crate) enum Code<'a> {
    /// What should run now.
    Same,
    /// An earlier release's.
    Of(&'a Release),
    /// A build that succeeded with it, after pushes with these releases, which must be over.
    Built(&'a Build, &'a Slug, &'a [u64]),
}

impl Controller {
    pub async fn releases_of(&self, app: AppId) -> Result<Vec<Arc<Release>>, ApiError> {
        Ok(self.db.list::<Release>(&keys::releases(app)).await?.into_iter().map(|s| s.value).collect())
    }

    /// By number (`3`, `v3`) or id.
    pub async fn find_release(&self, app: AppId, which: &str) -> Result<Arc<Release>, ApiError> {
        let missing = || not_found("Couldn't find that release.");
        if let Ok(version) = which.strip_prefix('v').unwrap_or(which).parse::<u64>() {
            return Ok(self.db.get::<Release>(&keys::release(app, version)).await?.ok_or_else(missing)?.value);
        }
        self.releases_of(app).await?.into_iter().find(|r| r.id.to_string() == which).ok_or_else(missing)
    }

    /// The config vars of a revision.
    pub async fn vars(&self, app: AppId, rev: u64) -> Result<Arc<Vars>, ApiError> {
        if let Some(vars) = crate::core::lock(&self.vars).get(&(app, rev)) {
            return Ok(vars.clone());
        }
        let key = keys::config(app, rev);
        let vars = match self.db.get(&key).await? {
            Some(sealed) => self.crypt.unseal(&key, &sealed.value)?,
            None => Vars::new(),
        };
        let vars = Arc::new(vars);
        let mut cache = crate::core::lock(&self.vars);
        // Old revisions are asked for seldom: start over rather than keep every secret in memory for ever.
        if cache.len() > 2000 {
            cache.clear();
        }
        cache.insert((app, rev), vars.clone());
        Ok(vars)
    }

    /// Sets (or, with none, removes) config vars: one new revision, and a release of it.
    pub async fn set_config(
        &self,
        actor: &Actor,
        id: AppId,
        changes: &BTreeMap<ConfigKey, Option<Secret>>,
        restart: bool,
    ) -> Result<Arc<Vars>, ApiError> {
        let draft = |_: &App, before: &Vars| {
            let vars = changed(before, changes)?;
            let description = describe_changes(changes);
            Ok((vars != *before).then_some(Draft {
                vars,
                description,
                kind: "config.update",
                code: Code::Same,
                beside: if restart { Beside::Nothing } else { Beside::KeepInstances },
            }))
        };
        Ok(self.make_release(actor, id, draft).await?.0)
    }

    /// Makes the app's next release: with its config vars, its event and the end of the release that it takes the place
    /// of, in one commit. `draft` says what it is to be, from the app and its config vars as they are at the moment; it may be
    /// asked again. Without a draft nothing changes. Gives back the newest config vars as well.
    pub(crate) async fn make_release<'a>(
        &self,
        actor: &Actor,
        id: AppId,
        draft: impl Fn(&App, &Vars) -> Result<Option<Draft<'a>>, ApiError> + Sync,
    ) -> Result<(Arc<Vars>, Option<Arc<Release>>), ApiError> {
        let (vars, release) = self
            .db
            .retry(|| async {
                let stored = self.read_app(&id.to_string()).await?;
                let before = self.vars(id, stored.value.config_rev).await?;
                let Some(Draft { vars, description, kind, code, beside }) = draft(&stored.value, &before)? else {
                    return Ok((Tx::new(), (before, None)));
                };
                let mut app = (*stored.value).clone();
                // While there is a canary, new code gets its share of the requests and takes its place; what runs goes on.
                let as_canary = app.canary.is_some() && app.good.is_some() && matches!(code, Code::Built(..));
                let mut tx = Tx::new().unchanged(&stored);
                if !as_canary {
                    tx = self.supersede(tx, &stored.value).await?;
                }
                if as_canary || matches!(beside, Beside::EndCanary) {
                    tx = self.give_up_canary(tx, &stored.value, &format!("v{} took its place", app.last_version + 1)).await?;
                }
                if vars != *before {
                    app.config_rev += 1;
                    let key = keys::config(id, app.config_rev);
                    let sealed = self.crypt.seal(&key, &vars)?;
                    tx = tx.put(key, &sealed);
                }
                let base = match &code {
                    Code::Same => self.base_release(&stored.value).await?,
                    Code::Of(release) => Some(Arc::new((*release).clone())),
                    Code::Built(..) => None,
                };
                let mut release = self.next_release(actor, &mut app, &description, base.as_deref());
                self.beside(&stored.value, &mut app, &mut release, base.as_deref(), &beside).await?;
                if as_canary {
                    app.target = stored.value.target;
                    app.canary = app.canary.map(|c| Canary { version: Some(release.version), built: true, ..c });
                }
                if let Code::Built(build, slug, earlier) = code {
                    tx = self.end_earlier(tx, &stored.value, as_canary, earlier).await?;
                    take_code(&mut app, &mut release, build, slug);
                    let done = Build {
                        status: BuildStatus::Succeeded,
                        slug: Some(slug.id),
                        release: Some(release.version),
                        updated_at: self.now(),
                        ..build.clone()
                    };
                    tx = tx.put(keys::slug(id, slug.id), slug).put(keys::build(id, build.id), &done);
                }
                let event = self.event(actor, Some(id), kind, format!("v{}: {description}", release.version));
                tx = tx
                    .put(stored.key.clone(), &app)
                    .put(keys::release(id, release.version), &release)
                    .put(keys::event(&event), &event);
                Ok((tx, (Arc::new(vars), Some(Arc::new(release)))))
            })
            .await?;
        if let Some(release) = &release {
            self.announce(release, actor);
        }
        Ok((vars, release))
    }

    /// What a release that brings no new code takes its code from.
    async fn base_release(&self, app: &App) -> Result<Option<Arc<Release>>, ApiError> {
        for version in [app.target, app.good].into_iter().flatten() {
            if let Some(r) = self.db.get::<Release>(&keys::release(app.id, version)).await?
                && r.value.status != ReleaseStatus::Failed
            {
                return Ok(Some(r.value));
            }
        }
        Ok(None)
    }

    /// The next release, with another one's code, or with none. Numbers it and makes it the app's target.
    fn next_release(&self, actor: &Actor, app: &mut App, description: &str, base: Option<&Release>) -> Release {
        app.last_version += 1;
        app.target = Some(app.last_version);
        app.updated_at = self.now();
        Release {
            id: self.id(),
            app: app.id,
            version: app.last_version,
            status: ReleaseStatus::Pending,
            description: description.to_owned(),
            build: None,
            slug: base.and_then(|b| b.slug),
            image: base.and_then(|b| b.image.clone()),
            has_launcher: base.is_some_and(|b| b.has_launcher),
            port: base.and_then(|b| b.port),
            commit: base.and_then(|b| b.commit.clone()),
            config_rev: app.config_rev,
            processes: base.map(|b| b.processes.clone()).unwrap_or_default(),
            routes: base.map(|b| b.routes.clone()).unwrap_or_default(),
            read_only_root: base.is_some_and(|b| b.read_only_root),
            release_command: None,
            keeps_from: None,
            released: true,
            user: actor.id(),
            created_at: self.now(),
            updated_at: self.now(),
            failure: None,
            superseded_by: None,
        }
    }

    /// Ends the release that is still being rolled out when another one takes its place.
    async fn supersede(&self, tx: Tx, app: &App) -> Result<Tx, ApiError> {
        let Some(version) = app.target else { return Ok(tx) };
        let key = keys::release(app.id, version);
        let Some(old) = self.db.get::<Release>(&key).await? else { return Ok(tx) };
        if old.value.status != ReleaseStatus::Pending {
            return Ok(tx);
        }
        let by = app.last_version + 1;
        let ended = Release {
            status: ReleaseStatus::Failed,
            failure: Some(format!("v{by} took its place before it was up")),
            superseded_by: Some(by),
            updated_at: self.now(),
            ..(*old.value).clone()
        };
        Ok(tx.unchanged(&old).put(key, &ended))
    }

    /// The versions that can be gone back to.
    pub async fn rollback_targets(&self, app: AppId) -> Result<BTreeSet<u64>, ApiError> {
        Ok(with_newest_images(&self.releases_of(app).await?, KEPT_IMAGES))
    }

    /// The images of an app that must stay: of what runs, should run, or can be gone back to.
    pub async fn images_to_keep(&self, app: &App) -> Result<BTreeSet<String>, ApiError> {
        let releases = self.releases_of(app.id).await?;
        let mut versions = with_newest_images(&releases, KEPT_IMAGES + SPARE_IMAGES);
        versions.extend([app.target, app.good, app.canary.and_then(|c| c.version)].into_iter().flatten());
        let placements = self.db.list::<Placement>(keys::PLACEMENTS).await?;
        versions.extend(placements.iter().filter(|p| p.value.app == app.id).map(|p| p.value.version));
        let images = releases.iter().filter(|r| versions.contains(&r.version)).filter_map(|r| r.image.clone());
        Ok(images.map(|i| i.manifest.unwrap_or(i.reference)).collect())
    }

    /// Goes back to an earlier release: its code and its config, as a new release.
    pub async fn rollback(&self, actor: &Actor, id: AppId, to: &Release) -> Result<Arc<Release>, ApiError> {
        crate::owners::refuse_locked(&*self.find_app(&id.to_string()).await?)?;
        if let Some(by) = to.superseded_by {
            return Err(invalid(format!(
                "v{0} was never up, v{by} took its place: whether it is good is not known. To try it: flex releases:retry v{0}",
                to.version
            )));
        }
        if to.status == ReleaseStatus::Failed {
            return Err(invalid(format!("v{} failed: there is nothing good in it to go back to.", to.version)));
        }
        if to.image.is_none() {
            return Err(invalid(format!("v{} has no code to go back to.", to.version)));
        }
        if !with_newest_images(&self.releases_of(id).await?, KEPT_IMAGES).contains(&to.version) {
            return Err(invalid(format!(
                "The image of v{} is not kept any more, only the newest {KEPT_IMAGES} are. Push its commit again instead.",
                to.version
            )));
        }
        // The config of that release becomes the newest revision, so that the next change starts from it.
        let vars = self.vars(id, to.config_rev).await?;
        let description = format!("Rollback to v{}", to.version);
        let draft = |_: &App, _: &Vars| {
            let (vars, description) = ((*vars).clone(), description.clone());
            Ok(Some(Draft { vars, description, kind: "release.rollback", code: Code::Of(to), beside: Beside::EndCanary }))
        };
        made(self.make_release(actor, id, draft).await?)
    }

    /// A build's success: build, slug, release and target in one commit. `earlier`: the releases of pushes of the same branch
    /// that must have failed by then, or fail by it; else it is a conflict.
    pub async fn release_build(
        &self,
        actor: &Actor,
        build: &Build,
        slug: &Slug,
        app_json: &flex_model::app_json::AppJson,
        earlier: &[u64],
    ) -> Result<Arc<Release>, ApiError> {
        let draft = |app: &App, before: &Vars| {
            let vars = if app.good.is_none() { first_vars(before, slug, app_json)? } else { before.clone() };
            Ok(Some(Draft {
                vars,
                description: describe(build),
                kind: "release.create",
                code: Code::Built(build, slug, earlier),
                beside: Beside::Nothing,
            }))
        };
        made(self.make_release(actor, build.app, draft).await?)
    }

    fn announce(&self, release: &Release, actor: &Actor) {
        self.log_api(release.app, format!("{} by user {}", release.description, actor.name));
        self.log_api(release.app, format!("Release v{} created by user {}", release.version, actor.name));
        self.nudge();
    }

    /// Ends a pending release as failed; what was good before is what should run.
    pub async fn fail_release(&self, app: AppId, version: u64, why: &str, last_lines: &[String]) -> Result<(), ApiError> {
        let failed = self
            .db
            .retry(|| async {
                let stored = self.read_app(&app.to_string()).await?;
                let key = keys::release(app, version);
                let release: Stored<Arc<Release>> =
                    self.db.get(&key).await?.ok_or_else(|| not_found("Couldn't find that release."))?;
                if release.value.status != ReleaseStatus::Pending {
                    return Ok((Tx::new(), false));
                }
                let mut failure = why.to_owned();
                if !last_lines.is_empty() {
                    failure = format!("{failure}\n{}", last_lines.join("\n"));
                }
                let failure: String = failure.chars().take(8000).collect();
                let release_now = Release {
                    status: ReleaseStatus::Failed,
                    failure: Some(failure),
                    updated_at: self.now(),
                    ..(*release.value).clone()
                };
                let event =
                    self.event_ended(&Actor::platform(), Some(app), "release.failed", format!("v{version}: {why}"), false);
                let mut tx = Tx::new().unchanged(&release).put(key, &release_now).put(keys::event(&event), &event);
                let was_canary = stored.value.canary.is_some_and(|c| c.version == Some(version));
                if stored.value.target == Some(version) || was_canary {
                    let mut app_now = App { updated_at: self.now(), ..(*stored.value).clone() };
                    if was_canary {
                        app_now.canary = None;
                    }
                    if stored.value.target == Some(version) {
                        app_now.target = stored.value.good;
                    }
                    tx = tx.unchanged(&stored).put(stored.key.clone(), &app_now);
                }
                Ok((tx, true))
            })
            .await?;
        if failed {
            if let Some(stop) = crate::core::lock(&self.phases_running).get(&(app, version)) {
                stop.cancel();
            }
            self.log(app, LogSource::Flex, "release", format!("Release v{version} failed: {why}"));
            self.nudge();
        }
        Ok(())
    }

    /// A pending release was seen serving. The app's first one owes it its `postdeploy`.
    pub async fn succeed_release(&self, app: AppId, version: u64) -> Result<(), ApiError> {
        self.db
            .retry(|| async {
                let stored = self.read_app(&app.to_string()).await?;
                let key = keys::release(app, version);
                let release: Stored<Arc<Release>> =
                    self.db.get(&key).await?.ok_or_else(|| not_found("Couldn't find that release."))?;
                let as_canary = stored.value.canary.is_some_and(|c| c.version == Some(version));
                if release.value.status == ReleaseStatus::Pending && as_canary && stored.value.target != Some(version) {
                    return Ok((self.canary_is_up(&stored, &release), ()));
                }
                if release.value.status != ReleaseStatus::Pending || stored.value.target != Some(version) {
                    return Ok((Tx::new(), ()));
                }
                let first = stored.value.good.is_none() && release.value.image.is_some();
                let release_now =
                    Release { status: ReleaseStatus::Succeeded, updated_at: self.now(), ..(*release.value).clone() };
                let good = if release.value.image.is_some() { Some(version) } else { stored.value.good };
                let app_now = App { good, updated_at: self.now(), ..(*stored.value).clone() };
                let event = self.event(&Actor::platform(), Some(app), "release.succeeded", format!("v{version} is serving"));
                let mut tx = Tx::new()
                    .unchanged(&stored)
                    .unchanged(&release)
                    .put(stored.key.clone(), &app_now)
                    .put(key, &release_now)
                    .put(keys::event(&event), &event);
                if let (true, Some(slug)) = (first, release.value.slug)
                    && let Some(slug) = self.db.get::<Slug>(&keys::slug(app, slug)).await?
                    && let Some(line) = slug.value.postdeploy.clone()
                {
                    let owed = PostdeployRecord { app, version, line, started: false, failures: 0 };
                    tx = tx.put(keys::postdeploy(app), &owed);
                }
                Ok((tx, ()))
            })
            .await
    }
}

/// Of releases in ascending order the versions whose image is among the newest different ones that did not fail.
fn with_newest_images(releases: &[Arc<Release>], count: usize) -> BTreeSet<u64> {
    let mut images = Vec::new();
    let mut versions = BTreeSet::new();
    for r in releases.iter().rev().filter(|r| r.status != ReleaseStatus::Failed) {
        let Some(image) = &r.image else { continue };
        if !images.contains(&image) {
            if images.len() == count {
                continue;
            }
            images.push(image);
        }
        versions.insert(r.version);
    }
    versions
}

/// The release of a draft that there always is.
pub(crate) fn made((_, release): (Arc<Vars>, Option<Arc<Release>>)) -> Result<Arc<Release>, ApiError> {
    release.ok_or_else(|| ApiError::new(ErrorId::Internal, "No release was made."))
}

/// Config vars after a change.
fn changed(before: &Vars, changes: &BTreeMap<ConfigKey, Option<Secret>>) -> Result<Vars, ApiError> {
    let mut vars = before.clone();
    for (key, value) in changes {
        match value {
            Some(v) => vars.insert(key.to_string(), v.clone()),
            None => vars.remove(key.as_str()),
        };
    }
    let size: usize = vars.iter().map(|(k, v)| k.len() + v.expose().len()).sum();
    if size > MAX_CONFIG_BYTES {
        return Err(invalid(format!("The config vars would be {size} bytes in all; at most {MAX_CONFIG_BYTES} are allowed.")));
    }
    Ok(vars)
}

/// `Set A, B config vars, Unset C config vars`.
fn describe_changes(changes: &BTreeMap<ConfigKey, Option<Secret>>) -> String {
    let names = |set: bool| changes.iter().filter(|(_, v)| v.is_some() == set).map(|(k, _)| k.as_str()).collect::<Vec<_>>();
    let said = [("Set", names(true)), ("Unset", names(false))];
    let said = said.iter().filter(|(_, n)| !n.is_empty()).map(|(verb, n)| format!("{verb} {} config vars", n.join(", ")));
    said.collect::<Vec<_>>().join(", ")
}

/// Makes a release one of a build's product.
fn take_code(app: &mut App, release: &mut Release, build: &Build, slug: &Slug) {
    release.build = Some(build.id);
    release.slug = Some(slug.id);
    release.image = Some(slug.image.clone());
    release.has_launcher = slug.has_launcher;
    release.port = slug.port;
    release.commit.clone_from(&slug.commit);
    release.routes.clone_from(&slug.routes);
    release.read_only_root = slug.read_only_root;
    release.release_command = slug.process_types.iter().find(|(p, _)| p.is_release_phase()).map(|(_, c)| c.clone());
    release.released = release.release_command.is_none();
    release.processes = processes(app, slug);
    first_formation(app, release, slug);
}

fn describe(build: &Build) -> String {
    match (&build.source, &build.source_version) {
        (flex_model::build::BuildSource::Push(commit), _) => format!("Deploy {}", &commit.as_str()[..8]),
        (flex_model::build::BuildSource::Image(image), _) => format!("Deploy image {image}"),
        (_, Some(version)) => format!("Deploy {}", version.chars().take(8).collect::<String>()),
        _ => "Deploy archive".into(),
    }
}

/// The process types of a slug, each with its check: the owner's, else app.json's, else the default.
fn processes(app: &App, slug: &Slug) -> BTreeMap<ProcessType, ProcessSpec> {
    let spec = |p: &ProcessType, command: Option<String>| {
        let check = app.checks.get(p).or(slug.checks.get(p)).cloned();
        ProcessSpec { command, check: check.unwrap_or_else(|| HealthCheck::default_for(p)) }
    };
    let mut out: BTreeMap<_, _> = slug
        .process_types
        .iter()
        .filter(|(p, _)| !p.is_release_phase())
        .map(|(p, c)| (p.clone(), spec(p, Some(c.clone()))))
        .collect();
    // An image without a Procfile runs what it says itself.
    if out.is_empty() {
        out.insert(ProcessType::web(), spec(&ProcessType::web(), None));
    }
    out
}

/// The formation of new process types: what app.json says at the first deploy, else one web and none of the others.
fn first_formation(app: &mut App, release: &Release, slug: &Slug) {
    let first = app.good.is_none();
    for p in release.processes.keys().filter(|p| !app.formation.contains_key(*p)).cloned().collect::<Vec<_>>() {
        let (quantity, memory) = slug.formation.get(&p).copied().filter(|_| first).unwrap_or((u32::from(p.is_web()), None));
        let mut scale = ProcessScale::default_for(quantity);
        if let Some(m) = memory {
            scale.memory = m;
        }
        app.formation.insert(p, scale);
    }
}

/// Config vars at the first deploy: what is set wins over app.json, which wins over the buildpack's defaults.
fn first_vars(before: &Vars, slug: &Slug, app_json: &flex_model::app_json::AppJson) -> Result<Vars, ApiError> {
    use flex_model::app_json::EnvValue;
    let mut vars: Vars = slug.config_vars.iter().map(|(k, v)| (k.clone(), Secret::new(v))).collect();
    let mut missing = Vec::new();
    for (key, value) in &app_json.env {
        let value = match value {
            EnvValue::Value(v) => v.clone(),
            EnvValue::Generated => hex::encode(crate::crypt::random::<32>()),
            EnvValue::Optional => continue,
            EnvValue::Required => {
                if !before.contains_key(key.as_str()) {
                    missing.push(key.as_str());
                }
                continue;
            }
        };
        vars.insert(key.to_string(), Secret::new(value));
    }
    if !missing.is_empty() {
        return Err(invalid(format!(
            "app.json requires config vars that are not set: {}. Set them: flex config:set {}=…",
            missing.join(", "),
            missing[0]
        )));
    }
    vars.extend(before.iter().map(|(k, v)| (k.clone(), v.clone())));
    Ok(vars)
}
