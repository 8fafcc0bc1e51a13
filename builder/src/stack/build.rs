//! `flexd stack build` and `list`: from a recipe to two images in the engine and a record beside their layers.

use super::{
    BUILD_LIST, RUN_LIST, StackError, StackImage, StackRecord, base, bootstrap, layer,
    lock::{self, Lock},
    recipe::RecipeDir,
    stack_blob, stack_config,
};
use crate::{
    BuildSettings,
    oci::{LayerRecord, digest_of, write_whole},
    slug,
};
use flex_model::Timestamp;
use flex_runtime::{ImageFiles, Runtime};
use std::{
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;

/// Raised when this code makes another image from the same recipe.
const FORMAT: &str = "1";

/// Where a stack keeps what starts its apps' processes, below the root.
const LAUNCHER: &str = "opt/flex/launch";

/// Makes stacks on this machine.
#[derive(Clone)]
pub struct StackBuilder {
    settings: Arc<BuildSettings>,
    runtime: Arc<dyn Runtime>,
}

/// A layer on its way: its record, a file of it for the engine, and the compressed file for storage.
pub(super) struct NewLayer {
    pub(super) record: LayerRecord,
    pub(super) plain: PathBuf,
    pub(super) plain_bytes: u64,
    pub(super) blob: tempfile::TempPath,
}

/// All layers of a stack, and which of them make its images.
struct Made {
    layers: Vec<NewLayer>,
    run: Range<usize>,
    build: Range<usize>,
    has_launcher: bool,
    env: [Vec<String>; 2],
    /// Package lists: the name beside the record, and the file.
    lists: Vec<(&'static str, PathBuf)>,
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
        super::names(&self.settings).iter().map(|n| StackRecord::load(&self.settings, n)).collect()
    }

    /// The versions of a stack's packages.
    ///
    /// # Errors
    /// See [`StackRecord::lock`].
    pub fn lock_of(&self, record: &StackRecord) -> Result<Lock, StackError> {
        record.lock(&self.settings)
    }

    /// Makes the stack of a recipe directory, or only brings it into the engine when nothing of the recipe changed since
    /// (unless `force`). Lines for people go to `log`. Returns the record, and whether it was made anew.
    ///
    /// # Errors
    /// See [`StackError`]; the stack that was there before stays.
    pub async fn build(&self, dir: &Path, force: bool, log: mpsc::Sender<String>) -> Result<(StackRecord, bool), StackError> {
        self.make(dir, force, None, log).await
    }

    /// As [`StackBuilder::build`], with the versions that `stack.lock` of the recipe names and no others.
    ///
    /// # Errors
    /// As there; there is no lock; or some of its versions cannot be had, each of which is named.
    pub async fn build_locked(
        &self,
        dir: &Path,
        force: bool,
        log: mpsc::Sender<String>,
    ) -> Result<(StackRecord, bool), StackError> {
        let path = dir.join(lock::FILE);
        let wrong = |problem: String| StackError::Recipe { path: path.clone(), problem };
        let text = fs::read_to_string(&path).map_err(|e| wrong(format!("{e} (flexd stack lock writes it)")))?;
        let lock = Lock::parse(&text).map_err(wrong)?;
        self.make(dir, force, Some(lock), log).await
    }

    async fn make(
        &self,
        dir: &Path,
        force: bool,
        lock: Option<Lock>,
        log: mpsc::Sender<String>,
    ) -> Result<(StackRecord, bool), StackError> {
        let salt = format!("{FORMAT} {:?} {}", self.settings.compression, bootstrap::CUSTOMIZE);
        let recipe = RecipeDir::load(dir, &bootstrap::certificates_in(&self.settings.certificates), &salt)?;
        let name = recipe.recipe.name.as_str();
        let failed =
            |doing: &str, e: &dyn std::fmt::Display| StackError::Build { name: name.into(), problem: format!("{doing}: {e}") };
        // Two at once would make the same thing twice and mix their files.
        let _lock = self.lock(name).await.map_err(|e| failed("waiting for another build of it", &e))?;
        if !force
            && let Ok(record) = StackRecord::load(&self.settings, name)
            && record.recipe == recipe.hash
            && lock.as_ref().is_none_or(|lock| record.lock(&self.settings).is_ok_and(|has| has == *lock))
        {
            record.import(&self.settings, self.runtime.as_ref()).await.map_err(|e| failed("bringing it into the engine", &e))?;
            return Ok((record, false));
        }
        let _ = log.send(format!("-----> Making the stack {name}")).await;
        let tmp = self.settings.tmp_dir().map_err(|e| failed("making a directory", &e))?;
        // Held until the end: the layers' files are in it.
        let dir = tempfile::Builder::new().prefix("stack-").tempdir_in(&tmp).map_err(|e| failed("making a directory", &e))?;
        let made = match &recipe.recipe.base_image {
            Some(_) if lock.is_some() => {
                let problem = "a stack over an image has no packages to lock: name the image by its digest";
                return Err(StackError::Build { name: name.into(), problem: problem.into() });
            }
            Some(image) => self.over_base(&recipe, image, dir.path()).await?,
            None => self.with_packages(&recipe, lock.as_ref(), dir.path(), &log).await?,
        };
        let before = StackRecord::load(&self.settings, name).ok();
        let record = self.finish(&recipe, made).await?;
        self.drop_old_images(before, &record).await;
        Ok((record, true))
    }

    async fn lock(&self, name: &str) -> std::io::Result<File> {
        let dir = self.settings.stacks_dir();
        let path = dir.join(format!(".{name}.lock"));
        let work = move || {
            fs::create_dir_all(dir)?;
            let file = File::options().create(true).append(true).open(path)?;
            file.lock()?;
            Ok(file)
        };
        tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
    }

    async fn with_packages(
        &self,
        recipe: &RecipeDir,
        lock: Option<&Lock>,
        dir: &Path,
        log: &mpsc::Sender<String>,
    ) -> Result<Made, StackError> {
        let failed =
            |e: &dyn std::fmt::Display| StackError::Build { name: recipe.recipe.name.to_string(), problem: e.to_string() };
        let trees = bootstrap::trees(recipe, lock, &self.settings, dir, log).await?;
        if let Some(lock) = lock {
            let read = |image: &str| fs::read_to_string(trees.packages(image)).map_err(|e| failed(&e));
            lock.held(&read("run")?, &read("build")?).map_err(|e| failed(&e))?;
        }
        let _ = log.send("       packing the images".to_owned()).await;
        let epoch = recipe.recipe.source_date_epoch;
        let (settings, run_tar, build_tar) = (self.settings.clone(), trees.tar("run"), trees.tar("build"));
        let extra_tar = dir.join("extra.tar");
        let work = move || -> Result<_, crate::BuildError> {
            let io = |e: std::io::Error| crate::BuildError::platform("comparing the trees", e);
            layer::difference(&run_tar, &build_tar, File::create(&extra_tar).map_err(io)?, epoch).map_err(io)?;
            let has_launcher = has_file(&run_tar, LAUNCHER.as_bytes()).map_err(io)?;
            Ok((vec![new_layer(&settings, run_tar)?, new_layer(&settings, extra_tar)?], has_launcher))
        };
        let (layers, has_launcher) = tokio::task::spawn_blocking(work).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        let lists = vec![(RUN_LIST, trees.packages("run")), (BUILD_LIST, trees.packages("build"))];
        Ok(Made { layers, run: 0..1, build: 0..2, has_launcher, env: [Vec::new(), Vec::new()], lists })
    }

    async fn over_base(&self, recipe: &RecipeDir, image: &str, dir: &Path) -> Result<Made, StackError> {
        let has_launcher = recipe.rootfs().is_some_and(|r| r.join(LAUNCHER).is_file());
        let place = |name: &str| {
            let dir = dir.join(name);
            fs::create_dir(&dir).map(|()| dir).map_err(|e| StackError::Build { name: name.into(), problem: e.to_string() })
        };
        let run = base::base(image, recipe, &place("run")?, &self.settings).await?;
        let count = run.layers.len();
        let Some(image) = &recipe.recipe.build_image else {
            let env = [run.env.clone(), run.env];
            return Ok(Made { layers: run.layers, run: 0..count, build: 0..count, has_launcher, env, lists: Vec::new() });
        };
        let build = base::base(image, recipe, &place("build")?, &self.settings).await?;
        let layers: Vec<NewLayer> = run.layers.into_iter().chain(build.layers).collect();
        let all = layers.len();
        Ok(Made { layers, run: 0..count, build: count..all, has_launcher, env: [run.env, build.env], lists: Vec::new() })
    }

    /// Stores the layers, imports both images, writes the record last.
    async fn finish(&self, recipe: &RecipeDir, made: Made) -> Result<StackRecord, StackError> {
        let name = recipe.recipe.name.as_str();
        let epoch = recipe.recipe.source_date_epoch;
        let failed =
            |doing: &str, e: &dyn std::fmt::Display| StackError::Build { name: name.into(), problem: format!("{doing}: {e}") };
        let dir = self.settings.stacks_dir().join(name);
        fs::create_dir_all(dir.join("blobs")).map_err(|e| failed("making its directory", &e))?;
        let Made { layers, run, build, has_launcher, env, lists } = made;
        let (mut records, mut files, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for new in layers {
            let blob = stack_blob(&self.settings, name, &new.record.digest);
            new.blob.persist(&blob).map_err(|e| failed("storing a layer", &e))?;
            let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            fs::set_permissions(&blob, readable).map_err(|e| failed("storing a layer", &e))?;
            files.push((new.record.diff_id.clone(), new.plain));
            records.push(new.record);
            sizes.push(new.plain_bytes);
        }
        let mut images = Vec::new();
        for ((role, layers), env) in [("run", run), ("build", build)].into_iter().zip(&env) {
            let config = stack_config(name, epoch, env, &records[layers.clone()]);
            let tag = format!("flex/{name}:{role}");
            let image = StackImage {
                tag: tag.clone(),
                id: digest_of(&config),
                layers: records[layers.clone()].to_vec(),
                plain_bytes: sizes[layers.clone()].iter().sum(),
            };
            let import = ImageFiles { tag, config, layers: files[layers].to_vec() };
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

    /// Images of an earlier make. The engine keeps what something still runs on, and the layers that apps share.
    async fn drop_old_images(&self, before: Option<StackRecord>, now: &StackRecord) {
        for id in before.into_iter().flat_map(|b| [b.build.id, b.run.id]).filter(|id| *id != now.run.id && *id != now.build.id) {
            if let Err(e) = self.runtime.remove_image(&id).await {
                tracing::info!(image = %id, error = %e, "an image of the stack's earlier make stays in the engine");
            }
        }
    }

    /// Layers of an earlier make: apps that use them have links of their own.
    fn drop_old_blobs(&self, record: &StackRecord) {
        let Ok(dir) = fs::read_dir(self.settings.stacks_dir().join(&record.name).join("blobs")) else { return };
        for entry in dir.flatten() {
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            if !record.run.layers.iter().chain(&record.build.layers).any(|l| l.digest == digest) {
                let _ = fs::remove_file(entry.path());
            }
        }
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
