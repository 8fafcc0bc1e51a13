//! What a build takes and gives, and which way it goes: buildpacks, a Dockerfile, or an image that is there already. A
//! build that fails leaves nothing but the cache.

use crate::{
    BuildError, BuildSettings, Source,
    buildpack::{self, Plan},
    container::Prepared,
    oci::Layout,
    run::Run,
    sandbox::Watch,
    source::{self, Place, SourceTree},
    stack,
};
use flex_model::{
    AppId, AppName, BuildId, BuildPhase, BuildpackRef, CommitId, ConfigKey, ImageRef, PhaseTime, ProcessType, Secret, Slug,
    SlugId, StackName, Timestamp,
    app_json::{self, AppJson},
    procfile,
};
use flex_runtime::Runtime;
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildInput {
    pub build: BuildId,
    pub app: AppId,
    pub app_name: AppName,
    pub stack: StackName,
    /// Someone chose that stack: app.json's has no say.
    pub stack_by_hand: bool,
    pub source: Source,
    /// `SOURCE_VERSION` of the build: the commit, or what the user calls an archive.
    pub source_version: Option<String>,
    /// The app's own buildpacks, in order; empty: find out.
    pub buildpacks: Vec<BuildpackRef>,
    /// The app's config vars; buildpacks see them as files.
    pub config: BTreeMap<ConfigKey, Secret>,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOutput {
    /// The stack, where app.json chose another than the one given.
    pub stack: Option<StackName>,
    pub image: ImageRef,
    /// Compressed bytes of the app's own layer; 0 for an image that was not made from a slug.
    pub size_bytes: u64,
    /// The Procfile over the defaults of `bin/release`. Empty for an image that says itself what it runs: then `web` is
    /// the image's own command.
    pub process_types: BTreeMap<ProcessType, String>,
    /// Of `bin/release`.
    pub config_vars: BTreeMap<String, String>,
    /// Of `bin/release`.
    pub addons: Vec<String>,
    /// Of the built tree (its `env` is for the first deploy).
    pub app_json: AppJson,
    /// The buildpacks that ran, as shown to users.
    pub buildpacks: Vec<String>,
    /// The name that the last of them printed: `Python`.
    pub buildpack_description: Option<String>,
    pub has_launcher: bool,
    /// The TCP port that an image says it listens on, if it is one that no buildpack made and it says exactly one.
    pub port: Option<u16>,
    pub phases: Vec<PhaseTime>,
    pub commit: Option<CommitId>,
}

impl BuildOutput {
    /// The slug to store.
    pub fn slug(&self, id: SlugId, app: AppId, stack: StackName, created_at: Timestamp) -> Slug {
        Slug {
            id,
            app,
            image: self.image.clone(),
            size_bytes: self.size_bytes,
            stack,
            commit: self.commit.as_ref().map(ToString::to_string),
            process_types: self.process_types.clone(),
            config_vars: self.config_vars.clone(),
            addons: self.addons.clone(),
            checks: self.app_json.checks.clone(),
            formation: self.app_json.formation.clone(),
            postdeploy: self.app_json.postdeploy.clone(),
            routes: self.app_json.routes.clone(),
            read_only_root: self.app_json.read_only_root,
            buildpack_description: self.buildpack_description.clone(),
            has_launcher: self.has_launcher,
            port: self.port,
            created_at,
        }
    }
}

/// Builds sources on this machine. Cheap to clone; builds of different apps may run side by side, those of one app must
/// be run one after another.
#[derive(Clone)]
pub struct Builder {
    pub(crate) settings: Arc<BuildSettings>,
    pub(crate) runtime: Arc<dyn Runtime>,
}

impl Builder {
    /// A builder over an engine.
    pub fn new(settings: BuildSettings, runtime: Arc<dyn Runtime>) -> Self {
        Self { settings: Arc::new(settings), runtime }
    }

    /// The settings that it was made with.
    pub fn settings(&self) -> &BuildSettings {
        &self.settings
    }

    /// The id of a build's container: what to keep when reaping.
    pub fn sandbox_id(&self, build: BuildId) -> String {
        build.to_string()
    }

    /// The app's cache volume.
    pub(crate) fn cache_volume(&self, app: AppId) -> String {
        app.to_string()
    }

    /// The app's images.
    ///
    /// # Errors
    /// The data directory cannot be written.
    pub fn layout(&self, app: AppId) -> Result<Layout, BuildError> {
        Layout::open(self.settings.images_dir().join(app.to_string()))
    }

    /// [`Builder::build_in`] with a container made when it is needed.
    ///
    /// # Errors
    /// As there.
    pub async fn build(
        &self,
        input: BuildInput,
        log: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<BuildOutput, BuildError> {
        self.build_in(None, input, log, cancel).await
    }

    /// Builds. Lines for people go to `log` as they come (without line ends); a closed `log` stops nothing. Ends soon
    /// after `cancel`. `prepared` is a container made ahead of time, or still being made; one that does not fit is not used.
    ///
    /// # Errors
    /// See [`BuildError`]; the container is gone then, the cache stays.
    pub async fn build_in(
        &self,
        prepared: Option<BoxFuture<'static, Option<Prepared>>>,
        input: BuildInput,
        log: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<BuildOutput, BuildError> {
        self.build_timed(prepared, input, log, cancel).await.0
    }

    /// [`Builder::build_in`], and what the phases took of a build that failed: those of one that succeeded are in its output.
    pub async fn build_timed(
        &self,
        prepared: Option<BoxFuture<'static, Option<Prepared>>>,
        input: BuildInput,
        log: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> (Result<BuildOutput, BuildError>, Vec<PhaseTime>) {
        let deadline = Instant::now() + self.settings.timeout;
        let spent = Mutex::new(Vec::new());
        let watch = Watch { settings: &self.settings, log: &log, cancel: &cancel, deadline, spent: &spent };
        let result = self.build_watched(prepared, input, &watch).await;
        (result, spent.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn build_watched(
        &self,
        prepared: Option<BoxFuture<'static, Option<Prepared>>>,
        mut input: BuildInput,
        watch: &Watch<'_>,
    ) -> Result<BuildOutput, BuildError> {
        if let Source::Image(reference) = &input.source {
            return watch.bound(self.take_image(reference, watch)).await;
        }
        let started = Instant::now();
        let tree = watch.bound(self.read_source(&input.source)).await?;
        for note in &tree.notes {
            watch.say(note.clone()).await;
        }
        let app_json = app_json_of(tree.text("app.json")?)?;
        // Buildpacks know one way of being told. What was set on the app counts before what the repository says.
        if app_json.strict_versions
            && !input.config.contains_key(STRICT_VERSIONS)
            && let Ok(name) = STRICT_VERSIONS.parse()
        {
            input.config.insert(name, Secret::new("1"));
        }
        let asked = input.stack.clone();
        let choice = stack::choose(&asked, input.stack_by_hand, app_json.stack.as_deref(), &self.stacks())?;
        if let Some(note) = choice.note {
            watch.say(note).await;
        }
        input.stack = choice.stack;
        // A Procfile that is wrong now will be wrong after the build: say so before anyone waits for it.
        procfile_of(tree.text("Procfile")?)?;
        let builtins = self.builtins()?;
        let url = input.config.iter().find(|(k, _)| k.as_str() == "BUILDPACK_URL").map(|(_, v)| v.expose().to_owned());
        let plan = buildpack::resolve(&input.buildpacks, url.as_deref(), &tree, &app_json, &builtins)?;
        let (listed, packs) = match plan {
            Plan::Dockerfile => return Ok(with_commit(self.with_dockerfile(&input, watch).await?, &input)),
            Plan::Listed(packs) => (true, packs),
            Plan::Detect(packs) => (false, packs),
        };
        let run = Run { builder: self, input: &input, tree: &tree, listed, packs: &packs, started, watch };
        match run.go(prepared).await {
            Err(BuildError::User { code: "no_buildpack", .. }) => Err(buildpack::nothing_detected(&builtins, &tree)),
            other => {
                let output = with_commit(other?, &input);
                Ok(BuildOutput { stack: (input.stack != asked).then_some(input.stack), ..output })
            }
        }
    }

    /// The stacks of this machine, by name.
    pub fn stacks(&self) -> Vec<StackName> {
        stack::names(&self.settings).iter().filter_map(|n| n.parse().ok()).collect()
    }

    async fn read_source(&self, source: &Source) -> Result<SourceTree, BuildError> {
        let (source, settings, now) = (source.clone(), self.settings.clone(), unix_now());
        blocking(move || source::read(&source, &settings, Place { prefix: "build/", now })).await
    }

    /// Names of the built-in buildpacks in their order of detection.
    fn builtins(&self) -> Result<Vec<String>, BuildError> {
        let path = self.settings.builtin_dir().join("order");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(BuildError::platform(&format!("reading {}", path.display()), e)),
        };
        Ok(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect())
    }
}

/// The config var by which buildpacks learn that no other version of a language than the one asked for will do.
const STRICT_VERSIONS: &str = "FLEX_STRICT_VERSIONS";

fn with_commit(mut output: BuildOutput, input: &BuildInput) -> BuildOutput {
    if let Source::Commit { commit, .. } = &input.source {
        output.commit = Some(commit.clone());
    }
    output
}

pub(crate) fn plain_output(image: ImageRef, app_json: AppJson, phases: Vec<PhaseTime>, description: &str) -> BuildOutput {
    BuildOutput {
        stack: None,
        image,
        size_bytes: 0,
        process_types: BTreeMap::new(),
        config_vars: BTreeMap::new(),
        addons: Vec::new(),
        app_json,
        buildpacks: Vec::new(),
        buildpack_description: Some(description.to_owned()),
        has_launcher: false,
        port: None,
        phases,
        commit: None,
    }
}

/// The name that people see in the engine. Stack images are `flex/…`, so an app may have a stack's name.
pub(crate) fn image_tag(settings: &BuildSettings, input: &BuildInput) -> String {
    format!("{}/{}:{}", settings.image_namespace, input.app_name, input.build)
}

pub(crate) fn procfile_of(text: Option<&str>) -> Result<BTreeMap<ProcessType, String>, BuildError> {
    procfile::parse(text.unwrap_or("")).map_err(|e| BuildError::user("procfile", e.to_string()))
}

pub(crate) fn app_json_of(text: Option<&str>) -> Result<AppJson, BuildError> {
    text.map_or_else(|| Ok(AppJson::default()), app_json::parse).map_err(|e| BuildError::user("app_json", e.to_string()))
}

pub(crate) fn phase(phase: BuildPhase, started: Instant) -> PhaseTime {
    PhaseTime { phase, millis: millis(started) }
}

pub(crate) fn millis(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| BuildError::platform("running a step of the build", e))?
}
