//! `flexd stack build` and `list`: from a recipe to two images in the engine and a record beside their layers.

use super::{StackError, StackImage, StackRecord, bootstrap, layer, recipe::RecipeDir, stack_blob, stack_config};
use crate::{
    BuildSettings,
    oci::{LayerRecord, digest_of, write_whole},
    slug,
};
use flex_model::Timestamp;
use flex_runtime::{ImageFiles, Runtime};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;

/// Raised when this code makes another image from the same recipe.
const FORMAT: &str = "1";

/// Makes stacks on this machine.
#[derive(Clone)]
pub struct StackBuilder {
    settings: Arc<BuildSettings>,
    runtime: Arc<dyn Runtime>,
}

/// A layer on its way: its record, the plain tar for the engine, the compressed file for storage.
struct NewLayer {
    record: LayerRecord,
    plain: PathBuf,
    plain_bytes: u64,
    blob: tempfile::TempPath,
}

impl StackBuilder {
    /// Over an engine; `settings` say where stacks are kept.
    pub fn new(settings: BuildSettings, runtime: Arc<dyn Runtime>) -> Self {
        Self { settings: Arc::new(settings), runtime }
    }

    /// The stacks of this machine, by name.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn list(&self) -> Result<Vec<StackRecord>, StackError> {
        let Ok(dir) = fs::read_dir(self.settings.stacks_dir()) else { return Ok(Vec::new()) };
        let mut names: Vec<String> = dir
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.join("stack.json").is_file())
            .filter_map(|p| Some(p.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names.iter().map(|n| StackRecord::load(&self.settings, n)).collect()
    }

    /// Makes the stack of a recipe directory, or only brings it into the engine when nothing of the recipe changed since
    /// (unless `force`). Lines for people go to `log`. Returns the record, and whether it was made anew.
    ///
    /// # Errors
    /// See [`StackError`]; the stack that was there before stays.
    pub async fn build(&self, dir: &Path, force: bool, log: mpsc::Sender<String>) -> Result<(StackRecord, bool), StackError> {
        let salt = format!("{FORMAT} {:?}", self.settings.compression);
        let recipe = RecipeDir::load(dir, &bootstrap::local_certificates(), &salt)?;
        let name = recipe.recipe.name.as_str();
        let failed =
            |doing: &str, e: &dyn std::fmt::Display| StackError::Build { name: name.into(), problem: format!("{doing}: {e}") };
        if !force
            && let Ok(record) = StackRecord::load(&self.settings, name)
            && record.recipe == recipe.hash
        {
            record.import(&self.settings, self.runtime.as_ref()).await.map_err(|e| failed("bringing it into the engine", &e))?;
            return Ok((record, false));
        }
        let _ = log.send(format!("-----> Making the stack {name}")).await;
        let tmp = self.settings.tmp_dir().map_err(|e| failed("making a directory", &e))?;
        if recipe.recipe.base_image.is_some() {
            let record = self.over_base(&recipe, &tmp, &log).await?;
            return Ok((record, true));
        }
        let trees = bootstrap::trees(&recipe, &tmp, &log).await?;
        let _ = log.send("       packing the images".to_owned()).await;
        let epoch = recipe.recipe.source_date_epoch;
        let (settings, run_tar, build_tar) = (self.settings.clone(), trees.tar("run"), trees.tar("build"));
        let extra_tar = trees.dir.path().join("extra.tar");
        let (run, extra, has_launcher) = tokio::task::spawn_blocking(move || -> Result<_, crate::BuildError> {
            let io = |e: std::io::Error| crate::BuildError::platform("comparing the trees", e);
            layer::difference(&run_tar, &build_tar, File::create(&extra_tar).map_err(io)?, epoch).map_err(io)?;
            let has_launcher = has_file(&run_tar, b"opt/flex/launch").map_err(io)?;
            Ok((new_layer(&settings, run_tar)?, new_layer(&settings, extra_tar)?, has_launcher))
        })
        .await
        .map_err(|e| failed("packing", &e))?
        .map_err(|e| failed("packing", &e))?;
        let lists = [("run.packages", trees.packages("run")), ("build.packages", trees.packages("build"))];
        let record = self.finish(&recipe, vec![run], vec![extra], has_launcher, Vec::new(), &lists).await?;
        Ok((record, true))
    }

    /// Stores the layers, imports both images, writes the record last.
    async fn finish(
        &self,
        recipe: &RecipeDir,
        run: Vec<NewLayer>,
        extra: Vec<NewLayer>,
        has_launcher: bool,
        env: Vec<String>,
        lists: &[(&str, PathBuf)],
    ) -> Result<StackRecord, StackError> {
        let name = recipe.recipe.name.as_str();
        let epoch = recipe.recipe.source_date_epoch;
        let failed =
            |doing: &str, e: &dyn std::fmt::Display| StackError::Build { name: name.into(), problem: format!("{doing}: {e}") };
        let dir = self.settings.stacks_dir().join(name);
        fs::create_dir_all(dir.join("blobs")).map_err(|e| failed("making its directory", &e))?;
        let count = run.len();
        let (mut records, mut files, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for new in run.into_iter().chain(extra) {
            let blob = stack_blob(&self.settings, name, &new.record.digest);
            new.blob.persist(&blob).map_err(|e| failed("storing a layer", &e))?;
            let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            fs::set_permissions(&blob, readable).map_err(|e| failed("storing a layer", &e))?;
            files.push((new.record.diff_id.clone(), new.plain));
            records.push(new.record);
            sizes.push(new.plain_bytes);
        }
        let mut images = Vec::new();
        for (role, layers) in [("run", count), ("build", records.len())] {
            let config = stack_config(name, epoch, &env, &records[..layers]);
            let tag = format!("flex/{name}:{role}");
            let image = StackImage {
                tag: tag.clone(),
                id: digest_of(&config),
                layers: records[..layers].to_vec(),
                plain_bytes: sizes[..layers].iter().sum(),
            };
            let import = ImageFiles { tag, config, layers: files[..layers].to_vec() };
            self.runtime.import(import).await.map_err(|e| failed("bringing it into the engine", &e))?;
            images.push(image);
        }
        let (Some(build), Some(run)) = (images.pop(), images.pop()) else {
            return Err(failed("bringing it into the engine", &"no images"));
        };
        for (file, from) in lists {
            let text = fs::read(from).map_err(|e| failed("reading the package list", &e))?;
            write_whole(&dir.join(file), &text).map_err(|e| failed("writing the package list", &e))?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
        let record = StackRecord {
            name: name.into(),
            recipe: recipe.hash.clone(),
            built_at: Timestamp::from_micros(i64::try_from(now).unwrap_or(0)),
            run,
            build,
            has_launcher,
            epoch,
            env,
        };
        let json = serde_json::to_vec_pretty(&record).map_err(|e| failed("writing its record", &e))?;
        write_whole(&dir.join("stack.json"), &json).map_err(|e| failed("writing its record", &e))?;
        self.drop_old_blobs(&record);
        Ok(record)
    }

    /// Layers of an earlier make: apps that use them have links of their own.
    fn drop_old_blobs(&self, record: &StackRecord) {
        let Ok(dir) = fs::read_dir(self.settings.stacks_dir().join(&record.name).join("blobs")) else { return };
        for entry in dir.flatten() {
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            if !record.build.layers.iter().any(|l| l.digest == digest) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    async fn over_base(&self, recipe: &RecipeDir, _tmp: &Path, _log: &mpsc::Sender<String>) -> Result<StackRecord, StackError> {
        let name = recipe.recipe.name.to_string();
        Err(StackError::Build { name, problem: "base_image".into() })
    }
}

fn new_layer(settings: &BuildSettings, plain: PathBuf) -> Result<NewLayer, crate::BuildError> {
    let io = |e: std::io::Error| crate::BuildError::platform("reading a layer", e);
    let file = File::open(&plain).map_err(io)?;
    let plain_bytes = file.metadata().map_err(io)?.len();
    let (record, blob) = slug::compress(settings, file)?;
    Ok(NewLayer { record, plain, plain_bytes, blob })
}

fn has_file(tar: &Path, name: &[u8]) -> std::io::Result<bool> {
    let mut archive = tar::Archive::new(std::io::BufReader::new(File::open(tar)?));
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = entry.path_bytes();
        if path.strip_prefix(b"./").unwrap_or(&path) == name {
            return Ok(true);
        }
    }
    Ok(false)
}
