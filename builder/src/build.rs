//! One build from source to image, step by step. A step that fails ends it, and nothing of it is left but the cache.

use crate::{
    BuildError, BuildSettings, Source,
    buildpack::{self, Plan},
    oci::{ImageConfig, Layout, config_bytes},
    release_yaml::{self, ReleaseInfo},
    sandbox::{self, BUILD_DIR, BuildEnv, Facts, Watch},
    slug,
    source::{self, SourceTree},
    stack::StackRecord,
};
use flex_model::{
    AppId, AppName, BuildId, BuildPhase, BuildpackRef, CommitId, ConfigKey, ImageRef, PhaseTime, ProcessType, Secret, Slug,
    SlugId, StackName, Timestamp,
    app_json::{self, AppJson},
    procfile,
};
use flex_runtime::{ImageFiles, Runtime, Sandbox};
use futures_util::StreamExt;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{
    io::{StreamReader, SyncIoBridge},
    sync::CancellationToken,
};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildInput {
    pub build: BuildId,
    pub app: AppId,
    pub app_name: AppName,
    pub stack: StackName,
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
            buildpack_description: self.buildpack_description.clone(),
            has_launcher: self.has_launcher,
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

    /// Builds. Lines for people go to `log` as they come (without line ends); a closed `log` stops nothing. Ends soon
    /// after `cancel`.
    ///
    /// # Errors
    /// See [`BuildError`]; the container is gone then, the cache stays.
    pub async fn build(
        &self,
        input: BuildInput,
        log: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<BuildOutput, BuildError> {
        let deadline = Instant::now() + self.settings.timeout;
        let watch = Watch { settings: &self.settings, log: &log, cancel: &cancel, deadline };
        if let Source::Image(reference) = &input.source {
            return watch.bound(self.take_image(reference, &watch)).await;
        }
        let started = Instant::now();
        let tree = Arc::new(watch.bound(self.read_source(&input.source)).await?);
        for note in &tree.notes {
            watch.say(note.clone()).await;
        }
        let app_json = app_json_of(tree.text("app.json")?)?;
        // A Procfile that is wrong now will be wrong after the build: say so before anyone waits for it.
        procfile_of(tree.text("Procfile")?)?;
        let builtins = self.builtins()?;
        let url = input.config.iter().find(|(k, _)| k.as_str() == "BUILDPACK_URL").map(|(_, v)| v.expose().to_owned());
        let plan = buildpack::resolve(&input.buildpacks, url.as_deref(), &tree, &app_json, &builtins)?;
        let mut output = match plan {
            Plan::Dockerfile => self.with_dockerfile(&input, &tree, app_json, &watch).await?,
            Plan::Listed(packs) => self.with_buildpacks(&input, &tree, true, packs, started, &watch).await?,
            Plan::Detect(packs) => match self.with_buildpacks(&input, &tree, false, packs, started, &watch).await {
                Err(BuildError::User { code: "no_buildpack", .. }) => return Err(buildpack::nothing_detected(&builtins, &tree)),
                other => other?,
            },
        };
        if let Source::Commit { commit, .. } = &input.source {
            output.commit = Some(commit.clone());
        }
        Ok(output)
    }

    async fn read_source(&self, source: &Source) -> Result<SourceTree, BuildError> {
        let (source, settings, now) = (source.clone(), self.settings.clone(), unix_now());
        blocking(move || source::read(&source, &settings, now)).await
    }

    /// Names of the built-in buildpacks in their order of detection.
    fn builtins(&self) -> Result<Vec<String>, BuildError> {
        let path = self.settings.buildpacks_dir.join("order");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(BuildError::platform(&format!("reading {}", path.display()), e)),
        };
        Ok(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect())
    }

    async fn take_image(&self, reference: &str, watch: &Watch<'_>) -> Result<BuildOutput, BuildError> {
        watch.say(format!("-----> Using the image {reference}")).await;
        let started = Instant::now();
        // An engine that answers this and still cannot pull tells of the registry or the name, not of itself.
        self.runtime.has_image(reference).await?;
        let refused = |e| BuildError::user("no_image", format!("the image {reference} cannot be had: {e}"));
        let image = self.runtime.pull(reference).await.map_err(refused)?;
        Ok(plain_output(image, AppJson::default(), vec![phase(BuildPhase::Pack, started)], "image"))
    }

    async fn with_dockerfile(
        &self,
        input: &BuildInput,
        tree: &SourceTree,
        app_json: AppJson,
        watch: &Watch<'_>,
    ) -> Result<BuildOutput, BuildError> {
        watch.say("-----> Building with the Dockerfile").await;
        let started = Instant::now();
        let (lines, mut received) = mpsc::channel::<String>(64);
        let context = sandbox::file_stream(&tree.tar).await?;
        let tag = image_tag(input);
        let building = self.runtime.build_dockerfile(&tag, "Dockerfile", context, lines);
        let relaying = async {
            let mut total = 0u64;
            while let Some(line) = received.recv().await {
                total += line.len() as u64;
                if total > self.settings.output_bytes {
                    return Err(BuildError::limit(crate::Limit::Output, "the build printed too much and was stopped"));
                }
                watch.say(format!("       {line}")).await;
            }
            Ok(())
        };
        let work = async {
            let built = async {
                building.await.map_err(|e| match e {
                    flex_runtime::RuntimeError::Unavailable(_) => BuildError::from(e),
                    other => BuildError::user("dockerfile_failed", format!("the Dockerfile could not be built: {other}")),
                })
            };
            let (image, ()) = tokio::try_join!(built, relaying)?;
            Ok(image)
        };
        let image = watch.bound(work).await?;
        let mut output = plain_output(image, app_json, vec![phase(BuildPhase::Compile, started)], "Dockerfile");
        output.process_types = procfile_of(tree.text("Procfile")?)?;
        self.say_process_types(&output.process_types, &BTreeMap::new(), tree.text("Procfile")?.is_some(), watch).await;
        Ok(output)
    }

    async fn with_buildpacks(
        &self,
        input: &BuildInput,
        tree: &SourceTree,
        listed: bool,
        packs: Vec<buildpack::Pack>,
        started: Instant,
        watch: &Watch<'_>,
    ) -> Result<BuildOutput, BuildError> {
        let stack = StackRecord::load(&self.settings, input.stack.as_str()).map_err(|e| BuildError::Platform(e.to_string()))?;
        watch.say(format!("-----> Building on the {} stack", stack.name)).await;
        match (listed, packs.as_slice()) {
            (false, _) => watch.say("-----> Determining which buildpack to use for this app").await,
            (true, [only]) => watch.say(format!("-----> Using buildpack: {}", only.shown)).await,
            (true, several) => {
                watch.say("-----> Using buildpacks:").await;
                for (i, pack) in several.iter().enumerate() {
                    watch.say(format!("       {}. {}", i + 1, pack.shown)).await;
                }
            }
        }
        let version = input.source_version.as_deref().unwrap_or("");
        let env = BuildEnv { stack: &stack.name, source_version: version, epoch: tree.epoch };
        let spec = sandbox::spec(
            &self.settings,
            self.sandbox_id(input.build),
            stack.build_reference(self.runtime.as_ref()).await?,
            self.cache_volume(input.app),
            &env,
        );
        let sandbox: Arc<dyn Sandbox> = Arc::from(watch.bound(async { Ok(self.runtime.sandbox(spec).await?) }).await?);
        let guard = Destroy(Some(sandbox.clone()));
        let built = self.in_sandbox(input, tree, listed, &packs, started, sandbox.as_ref(), watch).await;
        // The container goes while the image is stored: when this returns, neither it nor its hold on the cache is left.
        let (outcome, ()) = tokio::join!(
            async {
                let (output, packed, packing) = built?;
                self.finish(input, &stack, output, packed, tree.epoch, packing, watch).await
            },
            guard.now()
        );
        outcome
    }

    #[expect(clippy::too_many_arguments, reason = "the pieces of one build, each made by its own step")]
    async fn finish(
        &self,
        input: &BuildInput,
        stack: &StackRecord,
        mut output: BuildOutput,
        packed: slug::Packed,
        epoch: u64,
        packing: Instant,
        watch: &Watch<'_>,
    ) -> Result<BuildOutput, BuildError> {
        watch.say("-----> Compressing...").await;
        watch.say(format!("       Done: {}", people_size(packed.record.size))).await;
        output.size_bytes = packed.record.size;
        output.has_launcher = stack.has_launcher;
        output.image = watch.bound(self.store(input, stack, packed, epoch)).await?;
        output.phases.push(phase(BuildPhase::Pack, packing));
        Ok(output)
    }

    #[expect(clippy::too_many_arguments, reason = "the pieces of one build, each made by its own step")]
    async fn in_sandbox(
        &self,
        input: &BuildInput,
        tree: &SourceTree,
        listed: bool,
        packs: &[buildpack::Pack],
        started: Instant,
        sandbox: &dyn Sandbox,
        watch: &Watch<'_>,
    ) -> Result<(BuildOutput, slug::Packed, Instant), BuildError> {
        watch.bound(sandbox::fill(sandbox, &tree.tar, &input.config, unix_now())).await?;
        let filled = millis(started);
        let facts = watch.drive(sandbox, listed, packs).await?;
        let release = release_of(&facts)?;
        let packing = Instant::now();
        let packed = watch.bound(self.pack(sandbox, tree.epoch)).await?;
        for note in &packed.notes {
            watch.say(note.clone()).await;
        }
        let text = |name: &str| packed.run_files.get(name).map(|b| String::from_utf8_lossy(b).into_owned());
        let declared = procfile_of(text("Procfile").as_deref())?;
        let app_json = app_json_of(text("app.json").as_deref())?;
        watch.say("-----> Discovering process types").await;
        self.say_process_types(&declared, &release.default_process_types, text("Procfile").is_some(), watch).await;
        let mut process_types = release.default_process_types;
        process_types.extend(declared);
        let mut phases: Vec<PhaseTime> = facts.phases.iter().filter_map(|(n, ms)| driver_phase(n, *ms)).collect();
        if let Some(first) = phases.first_mut() {
            first.millis += filled;
        }
        let used = |(i, _): &(usize, String)| packs.get(*i).map(|p| p.shown.clone());
        let output = BuildOutput {
            process_types,
            config_vars: release.config_vars.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
            addons: release.addons,
            buildpacks: facts.detected.iter().filter_map(used).collect(),
            buildpack_description: facts.detected.last().map(|(_, name)| name.clone()).filter(|n| !n.is_empty()),
            ..plain_output(ImageRef { reference: String::new(), manifest: None }, app_json, phases, "")
        };
        Ok((output, packed, packing))
    }

    async fn pack(&self, sandbox: &dyn Sandbox, epoch: u64) -> Result<slug::Packed, BuildError> {
        let tar = sandbox.get(BUILD_DIR).await?;
        let reader = StreamReader::new(tar.map(|piece| piece.map_err(std::io::Error::other)));
        let bridge = SyncIoBridge::new(reader);
        let settings = self.settings.clone();
        blocking(move || slug::pack(bridge, &settings, epoch)).await
    }

    async fn store(
        &self,
        input: &BuildInput,
        stack: &StackRecord,
        packed: slug::Packed,
        epoch: u64,
    ) -> Result<ImageRef, BuildError> {
        let layout = self.layout(input.app)?;
        let mut layers = stack.run.layers.clone();
        layers.push(packed.record.clone());
        let config = config_bytes(&image_config(epoch), &layers);
        let mut files = Vec::new();
        for layer in &stack.run.layers {
            let from = stack.blob(&self.settings, &layer.digest);
            files.push((layer.diff_id.clone(), layout.link(&layer.digest, &from)?));
        }
        files.push((packed.record.diff_id.clone(), packed.plain.to_path_buf()));
        layout.adopt(&packed.record.digest, packed.blob)?;
        let manifest = layout.add(&input.build.to_string(), &config, &layers)?;
        let image = self.runtime.import(ImageFiles { tag: image_tag(input), config, layers: files }).await?;
        drop(packed.plain);
        Ok(ImageRef { reference: image.reference, manifest: Some(manifest) })
    }

    async fn say_process_types(
        &self,
        declared: &BTreeMap<ProcessType, String>,
        defaults: &BTreeMap<ProcessType, String>,
        has_procfile: bool,
        watch: &Watch<'_>,
    ) {
        let names = |types: Vec<&str>| if types.is_empty() { "(none)".to_owned() } else { types.join(", ") };
        if has_procfile || defaults.is_empty() {
            let declared = names(declared.keys().map(ProcessType::as_str).collect());
            watch.say(format!("       Procfile declares types -> {declared}")).await;
        }
        let rest: Vec<&str> = defaults.keys().filter(|k| !declared.contains_key(*k)).map(ProcessType::as_str).collect();
        if !rest.is_empty() {
            watch.say(format!("       Default types for buildpack -> {}", names(rest))).await;
        }
    }
}

/// Removes a build's container when the build ends, also when its future is dropped.
struct Destroy(Option<Arc<dyn Sandbox>>);

impl Destroy {
    async fn now(mut self) {
        if let Some(sandbox) = self.0.take() {
            destroy(sandbox.as_ref()).await;
        }
    }
}

impl Drop for Destroy {
    fn drop(&mut self) {
        if let Some(sandbox) = self.0.take()
            && let Ok(handle) = tokio::runtime::Handle::try_current()
        {
            handle.spawn(async move { destroy(sandbox.as_ref()).await });
        }
    }
}

async fn destroy(sandbox: &dyn Sandbox) {
    if let Err(e) = sandbox.destroy().await {
        tracing::warn!(error = %e, "a build container was not removed now; it is reaped at the next start");
    }
}

fn image_config(epoch: u64) -> ImageConfig {
    let env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/app", "LANG=C.UTF-8"];
    ImageConfig {
        env: env.map(str::to_owned).into(),
        user: sandbox::user(),
        workdir: "/app".into(),
        labels: [("dev.flex.slug".to_owned(), "1".to_owned())].into(),
        created: epoch,
    }
}

fn plain_output(image: ImageRef, app_json: AppJson, phases: Vec<PhaseTime>, description: &str) -> BuildOutput {
    BuildOutput {
        image,
        size_bytes: 0,
        process_types: BTreeMap::new(),
        config_vars: BTreeMap::new(),
        addons: Vec::new(),
        app_json,
        buildpacks: Vec::new(),
        buildpack_description: Some(description.to_owned()),
        has_launcher: false,
        phases,
        commit: None,
    }
}

/// The name that people see in the engine. Stack images are `flex/…`, so an app may have a stack's name.
fn image_tag(input: &BuildInput) -> String {
    format!("flex-app/{}:{}", input.app_name, input.build)
}

fn release_of(facts: &Facts) -> Result<ReleaseInfo, BuildError> {
    let parsed = facts.release.as_deref().map(release_yaml::parse).transpose();
    Ok(parsed.map_err(|e| BuildError::user("release_failed", e.to_string()))?.unwrap_or_default())
}

fn procfile_of(text: Option<&str>) -> Result<BTreeMap<ProcessType, String>, BuildError> {
    procfile::parse(text.unwrap_or("")).map_err(|e| BuildError::user("procfile", e.to_string()))
}

fn app_json_of(text: Option<&str>) -> Result<AppJson, BuildError> {
    text.map_or_else(|| Ok(AppJson::default()), app_json::parse).map_err(|e| BuildError::user("app_json", e.to_string()))
}

fn driver_phase(name: &str, millis: u64) -> Option<PhaseTime> {
    let phase = match name {
        "fetch_cache" => BuildPhase::FetchCache,
        "detect" => BuildPhase::Detect,
        "compile" => BuildPhase::Compile,
        _ => return None,
    };
    Some(PhaseTime { phase, millis })
}

fn phase(phase: BuildPhase, started: Instant) -> PhaseTime {
    PhaseTime { phase, millis: millis(started) }
}

fn millis(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// `23.1M`, as Heroku prints slug sizes.
fn people_size(bytes: u64) -> String {
    if bytes < 1_000_000 { format!("{}K", bytes.div_ceil(1000)) } else { format!("{:.1}M", bytes as f64 / 1e6) }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| BuildError::platform("running a step of the build", e))?
}
