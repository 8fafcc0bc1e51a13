//! One build with buildpacks, from a spooled source to an image.

use crate::{
    BuildError, BuildInput, BuildOutput, Builder,
    build::{app_json_of, blocking, image_tag, millis, phase, plain_output, procfile_of, unix_now},
    buildpack::Pack,
    container::Prepared,
    oci::{ImageConfig, config_bytes},
    release_yaml::{self, ReleaseInfo},
    sandbox::{self, BUILD_DIR, Facts, Watch, driver_phase},
    slug,
    source::SourceTree,
    stack::StackRecord,
};
use flex_model::{BuildPhase, ImageRef, PhaseTime};
use flex_runtime::{ImageFiles, Sandbox};
use futures_util::{StreamExt, future::BoxFuture};
use tokio::time::Instant;
use tokio_util::io::{StreamReader, SyncIoBridge};

/// What one build works with.
pub(crate) struct Run<'a> {
    pub(crate) builder: &'a Builder,
    pub(crate) input: &'a BuildInput,
    pub(crate) tree: &'a SourceTree,
    /// Every buildpack must accept the source; else the first that does is used.
    pub(crate) listed: bool,
    pub(crate) packs: &'a [Pack],
    pub(crate) started: Instant,
    pub(crate) watch: &'a Watch<'a>,
}

/// What came out of the container.
struct Built {
    output: BuildOutput,
    packed: slug::Packed,
    packing: Instant,
    cache_used: Option<u64>,
}

impl Run<'_> {
    /// Builds.
    pub(crate) async fn go(&self, prepared: Option<BoxFuture<'static, Option<Prepared>>>) -> Result<BuildOutput, BuildError> {
        let (watch, name) = (self.watch, self.input.stack.as_str());
        let stack = StackRecord::load(&self.builder.settings, name).map_err(|e| BuildError::Platform(e.to_string()))?;
        self.announce(&stack).await;
        let fits = |p: &Prepared| p.recipe == stack.recipe && p.app == self.input.app;
        let prepared = match prepared {
            Some(coming) => watch.bound(async { Ok(coming.await) }).await?,
            None => None,
        };
        let container = match prepared.filter(fits) {
            Some(ready) => ready,
            None => watch.bound(self.builder.container(self.input.build, self.input.app, &stack)).await?,
        };
        let sandbox = container.held.sandbox()?;
        let built = match self.in_sandbox(&stack, sandbox.as_ref()).await {
            Ok(built) => built,
            Err(e) => {
                container.held.now().await;
                return Err(e);
            }
        };
        let used = built.cache_used;
        let (output, ()) = tokio::join!(self.finish(&stack, built), self.trim_cache(sandbox.as_ref(), used));
        container.held.later();
        output
    }

    async fn announce(&self, stack: &StackRecord) {
        let watch = self.watch;
        watch.say(format!("-----> Building on the {} stack", stack.name)).await;
        match (self.listed, self.packs) {
            (false, _) => watch.say("-----> Determining which buildpack to use for this app").await,
            (true, [only]) => watch.say(format!("-----> Using buildpack: {}", only.shown)).await,
            (true, several) => {
                watch.say("-----> Using buildpacks:").await;
                for (i, pack) in several.iter().enumerate() {
                    watch.say(format!("       {}. {}", i + 1, pack.shown)).await;
                }
            }
        }
    }

    async fn in_sandbox(&self, stack: &StackRecord, sandbox: &dyn Sandbox) -> Result<Built, BuildError> {
        let (watch, settings) = (self.watch, &self.builder.settings);
        let version = self.input.source_version.as_deref().unwrap_or("");
        let env = sandbox::environment(settings, &stack.name, version, &self.input.build.to_string(), self.tree.epoch);
        let files = sandbox::files(&self.tree.tar, &self.input.config, unix_now()).await?;
        let ready = millis(self.started);
        let facts = watch.drive(sandbox, self.listed, self.packs, env, files).await?;
        let (release, cache_used) = (release_of(&facts)?, facts.cache);
        let packing = Instant::now();
        let packed = watch.bound(self.pack(sandbox)).await?;
        for note in &packed.notes {
            watch.say(note.clone()).await;
        }
        let text = |name: &str| packed.run_files.get(name).map(|b| String::from_utf8_lossy(b).into_owned());
        let declared = procfile_of(text("Procfile").as_deref())?;
        let app_json = app_json_of(text("app.json").as_deref())?;
        watch.say("-----> Discovering process types").await;
        watch.say_process_types(&declared, &release.default_process_types, text("Procfile").is_some()).await;
        if !release.addons.is_empty() {
            let names = release.addons.join(", ");
            watch
                .say(format!(" !     The buildpack asks for the add-ons {names}. Flex has no add-ons yet: nothing was added."))
                .await;
            watch.say(" !     Give the app the config vars that they would set: flex config:set NAME=value").await;
        }
        let mut process_types = release.default_process_types;
        process_types.extend(declared);
        let mut phases: Vec<PhaseTime> = facts.phases.iter().filter_map(|(n, ms)| driver_phase(n, *ms)).collect();
        if let Some(first) = phases.first_mut() {
            first.millis += ready;
        }
        let used = |(i, _): &(usize, String)| self.packs.get(*i).map(|p| p.shown.clone());
        let output = BuildOutput {
            process_types,
            config_vars: release.config_vars.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
            addons: release.addons,
            buildpacks: facts.detected.iter().filter_map(used).collect(),
            buildpack_description: facts.detected.last().map(|(_, name)| name.clone()).filter(|n| !n.is_empty()),
            has_launcher: stack.has_launcher,
            ..plain_output(ImageRef { reference: String::new(), manifest: None }, app_json, phases, "")
        };
        Ok(Built { output, packed, packing, cache_used })
    }

    async fn pack(&self, sandbox: &dyn Sandbox) -> Result<slug::Packed, BuildError> {
        let tar = sandbox.get(BUILD_DIR).await?;
        let reader = StreamReader::new(tar.map(|piece| piece.map_err(std::io::Error::other)));
        let bridge = SyncIoBridge::new(reader);
        let (settings, epoch) = (self.builder.settings.clone(), self.tree.epoch);
        blocking(move || slug::pack(bridge, &settings, epoch)).await
    }

    async fn finish(&self, stack: &StackRecord, built: Built) -> Result<BuildOutput, BuildError> {
        let Built { mut output, packed, packing, .. } = built;
        self.watch.say("-----> Compressing...").await;
        self.watch.say(format!("       Done: {}", people_size(packed.record.size))).await;
        output.size_bytes = packed.record.size;
        output.image =
            self.watch.bound(self.store(stack, packed, output.process_types.get(&flex_model::ProcessType::web()))).await?;
        output.phases.push(phase(BuildPhase::Pack, packing));
        Ok(output)
    }

    /// Puts the image into the app's layout and into the engine.
    async fn store(&self, stack: &StackRecord, packed: slug::Packed, web: Option<&String>) -> Result<ImageRef, BuildError> {
        let (builder, input) = (self.builder, self.input);
        let layout = builder.layout(input.app)?;
        let mut layers = stack.run.layers.clone();
        layers.push(packed.record.clone());
        let config = config_bytes(&image_config(stack, web, self.tree.epoch), &layers);
        let mut files = Vec::new();
        for layer in &stack.run.layers {
            let from = stack.blob(&builder.settings, &layer.digest);
            files.push((layer.diff_id.clone(), layout.link(&layer.digest, &from)?));
        }
        files.push((packed.record.diff_id.clone(), packed.plain.to_path_buf()));
        layout.adopt(&packed.record.digest, packed.blob)?;
        let manifest = layout.add(&input.build.to_string(), &config, &layers)?;
        let image =
            builder.runtime.import(ImageFiles { tag: image_tag(&builder.settings, input), config, layers: files }).await?;
        drop(packed.plain);
        Ok(ImageRef { reference: image.reference, manifest: Some(manifest) })
    }

    /// Empties a cache that has grown beyond its limit, and says so. A cache is worth no failure.
    async fn trim_cache(&self, sandbox: &dyn Sandbox, used: Option<u64>) {
        let limit = self.builder.settings.cache_bytes;
        let used = match used {
            Some(used) => Some(used),
            None => sandbox::cache_bytes(sandbox).await,
        };
        if let Some(used) = used.filter(|used| *used > limit) {
            let (used, limit) = (used >> 20, limit >> 20);
            let line = format!(" !     The build cache has {used} MiB, more than the {limit} MiB allowed: it is emptied");
            self.watch.say(line).await;
            sandbox::empty_cache(sandbox).await;
        }
    }
}

/// The stack's variables, and how an app runs: wherever the image is taken, it serves.
fn image_config(stack: &StackRecord, web: Option<&String>, epoch: u64) -> ImageConfig {
    let shell: &[&str] = if stack.has_launcher { &["/opt/flex/launch"] } else { &["/bin/sh", "-c"] };
    ImageConfig {
        env: crate::stack::variables(&stack.env[0]),
        user: sandbox::user(),
        workdir: "/app".into(),
        labels: [("dev.flex.slug".to_owned(), "1".to_owned())].into(),
        command: web.map(|line| shell.iter().map(|s| (*s).to_owned()).chain([line.clone()]).collect()).unwrap_or_default(),
        created: epoch,
    }
}

fn release_of(facts: &Facts) -> Result<ReleaseInfo, BuildError> {
    let parsed = facts.release.as_deref().map(release_yaml::parse).transpose();
    Ok(parsed.map_err(|e| BuildError::user("release_failed", e.to_string()))?.unwrap_or_default())
}

/// `23.1M`, as Heroku prints slug sizes.
fn people_size(bytes: u64) -> String {
    if bytes < 1_000_000 { format!("{}K", bytes.div_ceil(1000)) } else { format!("{:.1}M", bytes as f64 / 1e6) }
}
