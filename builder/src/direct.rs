//! Images that no buildpack makes: those of a Dockerfile, and those that are there already.

use crate::{
    BuildError, BuildInput, BuildOutput, Builder, Limit,
    build::{app_json_of, image_tag, phase, plain_output, procfile_of, unix_now},
    dockerfile,
    sandbox::{self, Watch},
    source::{
        self, Place, SourceTree,
        docker_ignore::{self, DockerIgnore},
    },
};
use flex_model::{BuildPhase, app_json::AppJson};
use flex_runtime::{DockerfileSpec, ImageFacts, RuntimeError};
use std::sync::{Arc, Mutex};
use tokio::{sync::mpsc, time::Instant};

/// Where the image's `web` listens: the port of its EXPOSE, should there be just one.
async fn port_of(facts: &ImageFacts, watch: &Watch<'_>) -> Option<u16> {
    match facts.ports[..] {
        [port] => {
            watch.say(format!("       The image exposes port {port}: web is reached there (PORT={port})")).await;
            Some(port)
        }
        [] => None,
        _ => {
            watch.say("       The image exposes several ports: web is to listen on the one in PORT").await;
            None
        }
    }
}

impl Builder {
    /// An image that the engine has or can pull.
    pub(crate) async fn take_image(&self, reference: &str, watch: &Watch<'_>) -> Result<BuildOutput, BuildError> {
        watch.say(format!("-----> Using the image {reference}")).await;
        let started = Instant::now();
        // An engine that answers this and still cannot pull tells of the registry or the name, not of itself.
        self.runtime.has_image(reference).await?;
        let refused = |e| BuildError::user("no_image", format!("the image {reference} cannot be had: {e}"));
        let image = self.runtime.pull(reference).await.map_err(refused)?;
        let facts = self.runtime.image_facts(&image.reference).await?;
        let mut output = plain_output(image, AppJson::default(), vec![phase(BuildPhase::Pack, started)], "image");
        output.port = port_of(&facts, watch).await;
        Ok(output)
    }

    /// Builds the Dockerfile at the root of the source.
    pub(crate) async fn with_dockerfile(&self, input: &BuildInput, watch: &Watch<'_>) -> Result<BuildOutput, BuildError> {
        watch.say("-----> Building with the Dockerfile").await;
        let started = Instant::now();
        let (wanted, settings) = (input.source.clone(), self.settings.clone());
        let place = Place { prefix: "", now: unix_now() };
        let read = crate::build::blocking(move || source::read(&wanted, &settings, place));
        let tree = watch.bound(read).await?;
        let text = tree.text("Dockerfile")?.unwrap_or_default();
        let outline = dockerfile::outline(text, &self.settings.env).map_err(|e| BuildError::user("dockerfile_refused", e))?;
        for base in &outline.bases {
            watch.bound(self.base_image(base, input, watch)).await?;
        }
        let filtered = self.context(&tree, watch).await?;
        let context = sandbox::file_stream(filtered.as_deref().unwrap_or(&tree.tar)).await?;
        let left = Arc::new(Mutex::new(None));
        let spec = DockerfileSpec {
            tag: image_tag(&self.settings, input),
            dockerfile: "Dockerfile".into(),
            args: self.settings.env.clone(),
            memory: self.settings.memory,
            pids: self.settings.pids,
            cpu_millis: self.settings.cpu_millis,
            disk_bytes: self.settings.disk_bytes,
            left: left.clone(),
        };
        let (lines, mut received) = mpsc::channel::<String>(64);
        let building = async {
            self.runtime.build_dockerfile(spec, context, lines).await.map_err(|e| match e {
                RuntimeError::Unavailable(_) => BuildError::from(e),
                RuntimeError::Exceeded(why) => BuildError::limit(Limit::Disk, why),
                other => BuildError::user("dockerfile_failed", format!("the Dockerfile could not be built: {other}")),
            })
        };
        let relaying = async {
            let mut total = 0u64;
            while let Some(line) = received.recv().await {
                total += line.len() as u64;
                if total > self.settings.output_bytes {
                    return Err(BuildError::limit(Limit::Output, "the build printed too much and was stopped"));
                }
                let cut: String = line.chars().take(self.settings.line_bytes).collect();
                watch.say(format!("       {cut}")).await;
            }
            Ok(())
        };
        let built = watch.bound(async { tokio::try_join!(building, relaying) }).await;
        // No layout knows this image: its name must be remembered to be able to remove it. The layers of a build that
        // failed stay for the next one, and go when the app's old images do.
        let kept = match &built {
            Ok((image, ())) => Some(image.reference.clone()),
            Err(_) => left.lock().ok().and_then(|mut l| l.take()),
        };
        if let Some(reference) = kept {
            self.layout(input.app)?.remember(&reference)?;
        }
        let (image, ()) = built.inspect_err(|_| watch.spend([phase(BuildPhase::Compile, started)]))?;
        let app_json = app_json_of(tree.text("app.json")?)?;
        let mut output = plain_output(image, app_json, vec![phase(BuildPhase::Compile, started)], "Dockerfile");
        let facts = self.runtime.image_facts(&output.image.reference).await?;
        output.port = port_of(&facts, watch).await;
        if tree.text("Procfile")?.is_none() && facts.command.is_empty() {
            let message = "the image says nothing of what to run: give the Dockerfile a CMD, or the app a Procfile";
            return Err(BuildError::user("no_command", message));
        }
        if let Some(text) = tree.text("Procfile")? {
            output.process_types = procfile_of(Some(text))?;
            watch.say("-----> Discovering process types").await;
            watch.say_process_types(&output.process_types, &std::collections::BTreeMap::new(), true).await;
        }
        Ok(output)
    }

    /// Sees to an image that a Dockerfile begins with: it must be there, and not bring along what a Dockerfile may not do.
    async fn base_image(&self, reference: &str, input: &BuildInput, watch: &Watch<'_>) -> Result<(), BuildError> {
        if !self.runtime.has_image(reference).await.unwrap_or(false) {
            watch.say(format!("       Pulling {reference}")).await;
            self.runtime.pull(reference).await.map_err(|e| {
                let stacks = format!("flex/{}:run", input.stack);
                let message = format!("the Dockerfile begins with the image {reference}, which cannot be had: {e} (this server's own image is {stacks})");
                BuildError::user("no_image", message)
            })?;
        }
        let facts = self.runtime.image_facts(reference).await?;
        let refused = |e| BuildError::user("dockerfile_refused", format!("the image {reference} says ONBUILD: {e}"));
        facts.on_build.iter().try_for_each(|i| dockerfile::refuse_fetch(i)).map_err(refused)
    }

    /// The context without what `.dockerignore` names; none where it names nothing.
    async fn context(&self, tree: &SourceTree, watch: &Watch<'_>) -> Result<Option<tempfile::TempPath>, BuildError> {
        let Some(text) = tree.key_files.get(".dockerignore").map(|f| f.contents.clone()) else { return Ok(None) };
        let (tar, tmp) = (tree.tar.to_path_buf(), self.settings.tmp_dir());
        let tmp = tmp.map_err(|e| BuildError::platform("making a temporary file for the context", e))?;
        let (path, left_out) =
            crate::build::blocking(move || docker_ignore::filter(&tar, &DockerIgnore::parse(&text), &tmp)).await?;
        watch.say(format!("       {left_out} files left out (.dockerignore)")).await;
        Ok(Some(path))
    }
}
