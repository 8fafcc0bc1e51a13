//! From a source to a served release: one build at a time per app, its output live and kept, its end one commit.
//!
//! A deploy goes on when whoever asked for it goes away. After a crash of the server its build counts as interrupted: the
//! pusher's connection is gone, nothing was committed, and the same push works again.

mod output;
mod seen;

pub(crate) use output::Output;

use crate::core::{Actor, Controller, lock};
use crate::db::{Tx, keys};
use crate::ports::{BuildJob, BuildProduct, Source};
use crate::pushes::{InTurn, Moving};
use flex_api::{ApiError, ErrorId};
use flex_model::build::BuildSource;
use flex_model::{
    App, AppId, Build, BuildId, BuildPhase, BuildStatus, CommitId, Event, LogSource, PhaseTime, Release, ReleaseStatus, Slug,
};
use output::lower_first;
use seen::{Seen, phase};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long a push waits for its release: longer than the longest grace for a start (an hour) and a roll-out together, so that
/// the planner has decided by then. A safety net, not a limit that users meet.
const SERVING_PATIENCE: Duration = Duration::from_secs(2 * 3600);
/// Bytes of a release phase's output that a push carries and a build keeps; the app's log has all of it.
const PHASE_OUTPUT: usize = 10 << 20;
/// Lines of an instance's output that a failed release shows.
const LAST_LINES: usize = 20;
/// Output on its way to a client that reads slowly.
const BUFFERED_LINES: usize = 1024;

/// What a deploy says while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeployEvent {
    /// A line of output.
    Line(String),
    /// The end: whether it succeeded.
    Verdict(bool),
}

/// What is to be deployed.
#[derive(Debug, Clone)]
pub struct DeployRequest {
    pub app: AppId,
    pub source: Source,
    pub source_version: Option<String>,
    /// What was spent before: receiving.
    pub phases: Vec<PhaseTime>,
    /// The branch that moves with it.
    pub moving: Option<Moving>,
}

impl Controller {
    pub fn build_dir(&self, app: AppId) -> PathBuf {
        self.deps.data_dir.join("builds").join(app.to_string())
    }

    pub fn build_log(&self, app: AppId, build: BuildId) -> PathBuf {
        self.build_dir(app).join(format!("{build}.log"))
    }

    /// An app's bare repository.
    pub fn repository_path(&self, app: AppId) -> PathBuf {
        self.deps.data_dir.join("repositories").join(format!("{app}.git"))
    }

    /// Queues a build and starts on it. The events end with a verdict; dropping them changes nothing.
    pub async fn deploy(&self, actor: Actor, request: DeployRequest) -> Result<(Build, mpsc::Receiver<DeployEvent>), ApiError> {
        let app = self.find_app(&request.app.to_string()).await?;
        crate::owners::refuse_locked(&app)?;
        let source = match &request.source {
            Source::Git { commit, .. } => BuildSource::Push(commit.parse::<CommitId>().map_err(crate::core::invalid)?),
            Source::Tar(path) => {
                let id = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
                BuildSource::Archive(id.unwrap_or_else(|| self.id()))
            }
            Source::Image(image) => BuildSource::Image(image.clone()),
        };
        let build = Build {
            id: self.id(),
            app: app.id,
            status: BuildStatus::Queued,
            source,
            source_version: request.source_version.clone(),
            stack: app.stack.clone(),
            user: actor.id(),
            created_at: self.now(),
            updated_at: self.now(),
            phases: request.phases.clone(),
            buildpacks: Vec::new(),
            slug: None,
            release: None,
            error: None,
            cancel: false,
        };
        let dir = self.build_dir(app.id);
        let unwritable =
            |e: std::io::Error| ApiError::new(ErrorId::Unavailable, format!("The build's output cannot be kept: {e}"));
        tokio::fs::create_dir_all(&dir).await.map_err(unwritable)?;
        let file = tokio::fs::File::create(self.build_log(app.id, build.id)).await.map_err(unwritable)?;
        let event = self.event(&actor, Some(app.id), "build.create", "Build started");
        let tx = Tx::new().present(&keys::app(app.id)).put(keys::build(app.id, build.id), &build);
        self.db.commit(tx.put(keys::event(&event), &event)).await.map_err(|e| match e {
            crate::db::CommitError::Conflict(_) => crate::core::app_not_found(),
            e => crate::core_error(e),
        })?;
        let (client, events) = mpsc::channel(BUFFERED_LINES);
        let cancel = CancellationToken::new();
        lock(&self.running_builds).insert(build.id, cancel.clone());
        let (this, queued) = (self.clone(), build.clone());
        tokio::spawn(async move {
            let mut output = Output::new(file, client.clone());
            let (id, app, source) = (queued.id, queued.app, queued.source.clone());
            let good = this.run_deploy(&actor, queued, request, &mut output, cancel).await;
            lock(&this.running_builds).remove(&id);
            let _ = client.send(DeployEvent::Verdict(good)).await;
            // Nobody waits for what follows.
            drop((output, client));
            if let (true, BuildSource::Archive(source)) = (good, source) {
                this.drop_source(source).await;
            }
            if let (true, Ok(app)) = (good, this.find_app(&app.to_string()).await)
                && let Err(e) = this.keep_images(&app).await
            {
                tracing::warn!(app = %app.name, error = %e, "whether its images are kept is not known");
            }
        });
        Ok((build, events))
    }

    async fn run_deploy(
        &self,
        actor: &Actor,
        mut build: Build,
        mut request: DeployRequest,
        output: &mut Output,
        cancel: CancellationToken,
    ) -> bool {
        let gate = lock(&self.build_locks).entry(build.app).or_default().clone();
        let turn = match gate.clone().try_lock_owned() {
            Ok(turn) => turn,
            Err(_) => {
                output.line("-----> Another build of this app is running; this one waits for it").await;
                tokio::select! {
                    turn = gate.lock_owned() => turn,
                    () = cancel.cancelled() => {
                        self.end_failed(actor, &mut build, "Build cancelled", output).await;
                        return false;
                    }
                }
            }
        };
        let push = request.moving.take().map(|m| self.in_turn(build.app, build.id, m));
        let result = self.build_and_release(actor, &mut build, request, push.as_ref(), output, &cancel).await;
        // A push that mends what never gets healthy must not wait for it.
        drop(turn);
        let good = match result {
            Ok(release) => self.wait_serving(&build, release, output, &cancel).await,
            Err(message) => {
                self.end_failed(actor, &mut build, &message, output).await;
                false
            }
        };
        if let Some(push) = push.filter(|_| !good) {
            push.refused();
        }
        good
    }

    /// Builds, and commits the release. The error is what the pusher reads.
    async fn build_and_release(
        &self,
        actor: &Actor,
        build: &mut Build,
        request: DeployRequest,
        push: Option<&InTurn>,
        output: &mut Output,
        cancel: &CancellationToken,
    ) -> Result<Arc<Release>, String> {
        if let Some(push) = push {
            self.wait_in_turn(push, output, cancel).await?;
        }
        let app = self.find_app(&build.app.to_string()).await.map_err(|e| e.message)?;
        build.status = BuildStatus::Running;
        self.save_build(build).await.map_err(|e| e.message)?;
        self.log_api(app.id, format!("Build started by user {}", actor.name));
        let product = self.run_build(&app, build, request, output, cancel).await?;
        let slug = self.slug_of(build, product.clone());
        let released = Instant::now();
        let made = (&*build, &slug, &product.app_json);
        let release = self.release_in_turn(actor, made, push, output, cancel).await?;
        build.slug = Some(slug.id);
        build.release = Some(release.version);
        build.status = BuildStatus::Succeeded;
        self.log_api(app.id, "Build succeeded");
        output.line("-----> Launching...").await;
        if let Some(command) = &release.release_command {
            output.line(format!("-----> Release phase: {command}")).await;
            let waited = self.wait_released(&release, output, cancel).await;
            build.phases.push(phase(BuildPhase::Release, released.elapsed()));
            waited?;
        } else {
            build.phases.push(phase(BuildPhase::Release, released.elapsed()));
        }
        Ok(release)
    }

    async fn run_build(
        &self,
        app: &App,
        build: &mut Build,
        request: DeployRequest,
        output: &mut Output,
        cancel: &CancellationToken,
    ) -> Result<BuildProduct, String> {
        let config = self.vars(app.id, app.config_rev).await.map_err(|e| e.message)?;
        let job = BuildJob {
            build: build.id,
            app: app.id,
            app_name: app.name.to_string(),
            stack: app.stack.clone(),
            stack_by_hand: app.stack_by_hand,
            source: request.source,
            buildpacks: app.buildpacks.clone(),
            config: (*config).clone(),
            source_version: request.source_version,
        };
        let (log, mut lines) = mpsc::channel::<String>(256);
        let work = self.deps.builders.build(job, log, cancel.clone());
        tokio::pin!(work);
        let result = loop {
            tokio::select! {
                biased;
                Some(line) = lines.recv() => output.line(line).await,
                result = &mut work => break result,
            }
        };
        while let Ok(line) = lines.try_recv() {
            output.line(line).await;
        }
        match result {
            Ok(product) => {
                build.phases.extend(product.phases.iter().copied());
                build.buildpacks.clone_from(&product.buildpacks);
                if let Some(stack) = &product.stack {
                    build.stack.clone_from(stack);
                }
                Ok(product)
            }
            Err(failure) => {
                build.phases.extend(failure.phases);
                Err(failure.message)
            }
        }
    }

    fn slug_of(&self, build: &Build, p: BuildProduct) -> Slug {
        Slug {
            id: self.id(),
            app: build.app,
            image: p.image,
            size_bytes: p.size_bytes,
            stack: build.stack.clone(),
            commit: match &build.source {
                BuildSource::Push(commit) => Some(commit.to_string()),
                _ => build.source_version.clone(),
            },
            process_types: p.process_types,
            config_vars: p.config_vars,
            addons: p.addons,
            checks: p.app_json.checks,
            formation: p.app_json.formation,
            postdeploy: p.app_json.postdeploy,
            routes: p.app_json.routes,
            read_only_root: p.app_json.read_only_root,
            buildpack_description: (!p.buildpacks.is_empty()).then(|| p.buildpacks.join(", ")),
            has_launcher: p.has_launcher,
            port: p.port,
            created_at: self.now(),
        }
    }

    async fn end_failed(&self, actor: &Actor, build: &mut Build, message: &str, output: &mut Output) {
        output.line("").await;
        output.phases(&build.phases).await;
        for (i, line) in message.lines().enumerate() {
            let what = if i == 0 { format!(" !     Push rejected, {}", lower_first(line)) } else { format!(" !     {line}") };
            output.line(what).await;
        }
        // A release that was made already says for itself how it ended.
        if build.release.is_none() {
            build.status = BuildStatus::Failed;
            self.log_api(build.app, format!("Build failed -- {message} (by user {})", actor.name));
        }
        build.error = Some(message.to_owned());
        let failed = build.release.is_none().then(|| {
            let why = format!("Build failed: {}", message.lines().next().unwrap_or_default());
            self.event_ended(actor, Some(build.app), "build.failed", why, false)
        });
        if let Err(e) = self.save_build_with(build, failed.as_ref()).await {
            tracing::error!(build = %build.id, error = %e, "the end of a build could not be stored; it counts as interrupted at the next start");
        }
    }

    async fn save_build(&self, build: &mut Build) -> Result<(), ApiError> {
        self.save_build_with(build, None).await
    }

    async fn save_build_with(&self, build: &mut Build, event: Option<&Event>) -> Result<(), ApiError> {
        build.updated_at = self.now();
        let key = keys::build(build.app, build.id);
        let built = &*build;
        self.db
            .retry(|| async {
                let stored =
                    self.db.get::<Build>(&key).await?.ok_or_else(|| crate::core::not_found("The build is gone with its app."))?;
                let tx = Tx::new().unchanged(&stored).put(key.clone(), built);
                Ok((event.into_iter().fold(tx, |tx, e| tx.put(keys::event(e), e)), ()))
            })
            .await
    }

    /// Waits for the release phase, whose runner is the plan loop.
    async fn wait_released(&self, release: &Release, output: &mut Output, cancel: &CancellationToken) -> Result<(), String> {
        let mut cancelled = false;
        let mut passes = self.passes.subscribe();
        let query = flex_logs::LogQuery { process: Some(phase_name(release.version)), ..flex_logs::LogQuery::newest(0) };
        let mut lines = self.deps.logs.follow(release.app, query);
        let mut room = PHASE_OUTPUT;
        loop {
            let now = self.release_for(release).await.map_err(|e| e.message)?;
            if now.released || now.status == ReleaseStatus::Failed {
                // What it printed last may still be on its way.
                while let Ok(Some(line)) =
                    tokio::time::timeout(Duration::from_millis(100), futures_util::StreamExt::next(&mut lines)).await
                {
                    output.line_within(&mut room, &line.text.to_string(), &phase_name(release.version)).await;
                }
                if now.released {
                    return Ok(());
                }
                return Err(now.failure.clone().unwrap_or_else(|| "the release phase failed".into()));
            }
            tokio::select! {
                line = futures_util::StreamExt::next(&mut lines) => if let Some(line) = line {
                    output.line_within(&mut room, &line.text.to_string(), &phase_name(release.version)).await;
                },
                _ = passes.changed() => {}
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    self.cancel_release(&now).await.map_err(|e| e.message)?;
                }
            }
        }
    }

    /// Ends a release that is not up yet.
    async fn cancel_release(&self, release: &Release) -> Result<(), ApiError> {
        self.fail_release(release.app, release.version, "it was cancelled", &[]).await
    }

    /// Waits until routers send requests to the release, or it failed; says which.
    async fn wait_serving(
        &self,
        build: &Build,
        mut release: Arc<Release>,
        output: &mut Output,
        cancel: &CancellationToken,
    ) -> bool {
        let started = Instant::now();
        let mut cancelled = false;
        let mut phases = build.phases.clone();
        let mut passes = self.passes.subscribe();
        let mut seen = Seen::default();
        let mut said = None;
        output.line(format!("       Released v{}{}", release.version, self.as_canary(&release).await)).await;
        loop {
            let Ok(now) = self.release_for(&release).await else {
                output.line(" !     The app was destroyed.").await;
                return false;
            };
            if now.version != release.version {
                output.line(format!("       v{} takes its place, with the same code", now.version)).await;
                release = now.clone();
            }
            seen.look(self, &release, &now, started).await;
            let unplaced = self.pending_of(release.app).into_iter().next();
            if let Some(p) = unplaced.filter(|p| now.status == ReleaseStatus::Pending && said.as_ref() != Some(p)) {
                output.line(format!("       Waiting: {}.{} cannot be placed: {}", p.process, p.index, p.why)).await;
                said = Some(p);
            }
            match now.status {
                ReleaseStatus::Failed => {
                    let mut failed = build.clone();
                    failed.phases.extend(seen.so_far(started.elapsed()));
                    output.line("").await;
                    output.phases(&failed.phases).await;
                    self.say_failed(&now, output).await;
                    failed.error = now.failure.as_deref().and_then(|f| f.lines().next()).map(str::to_owned);
                    let _ = self.save_build(&mut failed).await;
                    return false;
                }
                ReleaseStatus::Succeeded if seen.routed.is_some() => break,
                // One that was up for a moment only may never have been seen in the routing table.
                ReleaseStatus::Succeeded if self.is_superseded(&release).await => {
                    output.line("       A newer release took over.").await;
                    return true;
                }
                _ => {}
            }
            if started.elapsed() > SERVING_PATIENCE && !cancelled {
                // What serves later than the push is refused would not be what the branch says.
                cancelled = true;
                let why = "it is still not up after two hours: see flex ps and flex logs";
                if let Err(e) = self.fail_release(release.app, release.version, why, &[]).await {
                    output.line(format!(" !     The release is still not up, and could not be ended: {}", e.message)).await;
                    return false;
                }
            }
            tokio::select! {
                _ = tokio::time::timeout(Duration::from_secs(1), passes.changed()) => {}
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    if let Err(e) = self.cancel_release(&release).await {
                        output.line(format!(" !     The release could not be cancelled: {}", e.message)).await;
                    }
                }
            }
        }
        phases.extend(seen.phases());
        let mut done = build.clone();
        done.phases = phases;
        let _ = self.save_build(&mut done).await;
        if let Ok(app) = self.find_app(&release.app.to_string()).await {
            output.line(format!("       {} deployed to Flex", self.web_url(&app))).await;
        }
        output.line("").await;
        output.phases(&done.phases).await;
        output.line("Verifying deploy... done.").await;
        true
    }

    async fn say_failed(&self, release: &Release, output: &mut Output) {
        if let Some(by) = release.superseded_by {
            output.line(format!(" !     A newer release, v{by}, took over before this one was up.")).await;
            return;
        }
        let failure = release.failure.clone().unwrap_or_else(|| "it never became healthy".into());
        let mut lines = failure.lines();
        output.line(format!(" !     Release v{} failed: {}", release.version, lines.next().unwrap_or_default())).await;
        for line in lines {
            output.line(format!(" !       {line}")).await;
        }
        let good = self.find_app(&release.app.to_string()).await.ok().and_then(|a| a.good);
        output
            .line(match good {
                Some(v) => format!(" !     v{v} keeps serving. Fix it, commit and push again."),
                None => " !     Nothing is serving yet. Fix it, commit and push again.".to_owned(),
            })
            .await;
    }

    async fn as_canary(&self, release: &Release) -> String {
        let app = self.find_app(&release.app.to_string()).await.ok();
        let canary = app.and_then(|a| a.canary).filter(|c| c.version == Some(release.version));
        canary.map_or_else(String::new, |c| {
            format!(" as a canary: {} % of the requests. Then: flex canary:promote, or flex canary:abort", c.weight)
        })
    }

    async fn is_superseded(&self, release: &Release) -> bool {
        self.find_app(&release.app.to_string()).await.is_ok_and(|a| supersedes(&a, release.version))
    }

    /// The app's URL.
    pub fn web_url(&self, app: &App) -> String {
        let port = match self.deps.settings.http_port {
            80 => String::new(),
            p => format!(":{p}"),
        };
        format!("http://{}{port}/", self.default_domain(&app.name))
    }

    /// Asks a build to stop, or its release, if that is not up yet. `false`: it was over already.
    pub async fn cancel_build(&self, build: &Build) -> Result<bool, ApiError> {
        let running = lock(&self.running_builds).get(&build.id).cloned();
        let pending = match build.release {
            Some(version) => self.heir(build.app, version).await?.filter(|r| r.value.status == ReleaseStatus::Pending),
            None => None,
        };
        // After a restart of the server nobody waits for a release that is still under way.
        if let Some(release) = &pending {
            self.cancel_release(&release.value).await?;
        }
        match running.filter(|_| pending.is_some() || !build.status.is_over()) {
            Some(running) => running.cancel(),
            None => return Ok(pending.is_some()),
        }
        Ok(true)
    }

    pub async fn cancel_builds_of(&self, app: AppId) {
        for build in self.db.list::<Build>(&keys::builds(app)).await.unwrap_or_default() {
            if !build.value.status.is_over() {
                let _ = self.cancel_build(&build.value).await;
            }
        }
        lock(&self.phases_running).iter().filter(|((of, _), _)| *of == app).for_each(|(_, stop)| stop.cancel());
    }

    /// Builds that a crash ended: their pusher is gone and nothing came of them.
    pub(crate) async fn interrupt_old_builds(&self) -> Result<(), ApiError> {
        for stored in self.db.list::<Build>(keys::BUILDS).await? {
            if stored.value.status.is_over() {
                continue;
            }
            let ended = Build {
                status: BuildStatus::Failed,
                error: Some("The server was stopped during the build. Push again.".into()),
                updated_at: self.now(),
                ..(*stored.value).clone()
            };
            let why = "Build failed: the server was stopped during it";
            let event = self.event_ended(&Actor::platform(), Some(ended.app), "build.failed", why, false);
            let tx = Tx::new().unchanged(&stored).put(stored.key.clone(), &ended);
            self.db.commit(tx.put(keys::event(&event), &event)).await.map_err(crate::core_error)?;
            self.log(ended.app, LogSource::App, "api", "Build failed -- the server was stopped during the build");
        }
        Ok(())
    }

    /// The last lines that an instance wrote.
    pub async fn last_lines(&self, app: AppId, process: &str) -> Vec<String> {
        let query = flex_logs::LogQuery {
            process: Some(process.to_owned()),
            source: Some(LogSource::App),
            ..flex_logs::LogQuery::newest(LAST_LINES)
        };
        let lines = self.deps.logs.query(app, query).await.unwrap_or_default();
        lines.into_iter().map(|l| format!("{process}: {}", l.text)).collect()
    }
}

/// Whether something newer than a release that was new takes its place.
fn supersedes(app: &App, version: u64) -> bool {
    let canary = app.canary.and_then(|c| c.version);
    canary != Some(version) && app.target.max(canary).is_some_and(|newest| newest > version)
}

/// The name of a release phase's process: `release.5`.
pub fn phase_name(version: u64) -> String {
    format!("release.{version}")
}
