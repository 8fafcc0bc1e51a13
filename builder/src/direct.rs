//! Images that no buildpack makes: those of a Dockerfile, and those that are there already.

use crate::{
    BuildError, BuildInput, BuildOutput, Builder, Limit,
    build::{app_json_of, image_tag, phase, plain_output, procfile_of, unix_now},
    sandbox::{self, Watch},
    source::{self, Place},
};
use flex_model::{BuildPhase, app_json::AppJson};
use flex_runtime::RuntimeError;
use tokio::{sync::mpsc, time::Instant};

impl Builder {
    /// An image that the engine has or can pull.
    pub(crate) async fn take_image(&self, reference: &str, watch: &Watch<'_>) -> Result<BuildOutput, BuildError> {
        watch.say(format!("-----> Using the image {reference}")).await;
        let started = Instant::now();
        // An engine that answers this and still cannot pull tells of the registry or the name, not of itself.
        self.runtime.has_image(reference).await?;
        let refused = |e| BuildError::user("no_image", format!("the image {reference} cannot be had: {e}"));
        let image = self.runtime.pull(reference).await.map_err(refused)?;
        Ok(plain_output(image, AppJson::default(), vec![phase(BuildPhase::Pack, started)], "image"))
    }

    /// Builds the Dockerfile at the root of the source.
    pub(crate) async fn with_dockerfile(&self, input: &BuildInput, watch: &Watch<'_>) -> Result<BuildOutput, BuildError> {
        watch.say("-----> Building with the Dockerfile").await;
        let started = Instant::now();
        let (wanted, settings) = (input.source.clone(), self.settings.clone());
        let place = Place { prefix: "", now: unix_now() };
        let read = crate::build::blocking(move || source::read(&wanted, &settings, place));
        let tree = watch.bound(read).await?;
        let context = sandbox::file_stream(&tree.tar).await?;
        let tag = image_tag(&self.settings, input);
        let (lines, mut received) = mpsc::channel::<String>(64);
        let building = async {
            self.runtime.build_dockerfile(&tag, "Dockerfile", context, lines).await.map_err(|e| match e {
                RuntimeError::Unavailable(_) => BuildError::from(e),
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
        let (image, ()) = watch.bound(async { tokio::try_join!(building, relaying) }).await?;
        // No layout knows this image: its name must be remembered to be able to remove it.
        self.layout(input.app)?.remember(&image.reference)?;
        let app_json = app_json_of(tree.text("app.json")?)?;
        let mut output = plain_output(image, app_json, vec![phase(BuildPhase::Compile, started)], "Dockerfile");
        if let Some(text) = tree.text("Procfile")? {
            output.process_types = procfile_of(Some(text))?;
            watch.say("-----> Discovering process types").await;
            watch.say_process_types(&output.process_types, &std::collections::BTreeMap::new(), true).await;
        }
        Ok(output)
    }
}
