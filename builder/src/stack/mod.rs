//! Stacks: pairs of images that apps are built and run on, made once on this machine.
//!
//! Invariants: a stack's record is written last and in one step, so a stack is complete or absent; a build image made from
//! packages is the run image plus one layer. Must not: be needed by a running app.

mod base;
mod bootstrap;
mod build;
mod choose;
mod layer;
pub mod lock;
pub mod recipe;
pub mod sources;

use crate::{
    BuildError, BuildSettings,
    oci::{ImageConfig, LayerRecord, config_bytes},
};
pub use build::StackBuilder;
use bytes::Bytes;
pub(crate) use choose::choose;
use flex_model::Timestamp;
use flex_runtime::{ImageFiles, Runtime};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// The package lists beside a stack's record.
const RUN_LIST: &str = "run.packages";
const BUILD_LIST: &str = "build.packages";

/// Why a stack could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The recipe is wrong: the sentence says where.
    #[error("the stack recipe {path}: {problem}")]
    Recipe { path: PathBuf, problem: String },
    /// A tool failed or is missing.
    #[error("making the stack {name}: {problem}")]
    Build { name: String, problem: String },
    /// It was never made here.
    #[error("the stack {0} is not on this machine: make it with `flexd stack build {0}`")]
    Missing(String),
}

/// One image of a stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackImage {
    /// `flex/NAME:run`.
    pub tag: String,
    /// The image's id: the digest of its configuration.
    pub id: String,
    /// From the bottom up.
    pub layers: Vec<LayerRecord>,
    /// Bytes of all layers, uncompressed.
    pub plain_bytes: u64,
}

/// A stack that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackRecord {
    pub name: String,
    /// SHA-256 of everything that went into it.
    pub recipe: String,
    pub built_at: Timestamp,
    pub run: StackImage,
    pub build: StackImage,
    /// Whether the run image has `/opt/flex/launch`.
    pub has_launcher: bool,
    /// Date of everything in it, seconds since 1970.
    pub epoch: u64,
    /// Variables of the base images (run, build), if it is not made from packages.
    #[serde(default)]
    pub env: [Vec<String>; 2],
}

impl StackRecord {
    /// The record of a stack.
    ///
    /// # Errors
    /// It was never made, or its record cannot be read.
    pub fn load(settings: &BuildSettings, name: &str) -> Result<Self, StackError> {
        let path = settings.stacks_dir().join(name).join("stack.json");
        let bytes = std::fs::read(&path).map_err(|_| StackError::Missing(name.to_owned()))?;
        serde_json::from_slice(&bytes).map_err(|e| StackError::Build {
            name: name.to_owned(),
            problem: format!("its record {} cannot be read ({e}): make it again with --force", path.display()),
        })
    }

    /// The very versions of its packages, as its making left them.
    ///
    /// # Errors
    /// It is made over an image, so nobody knows its packages; or its lists cannot be read.
    pub fn lock(&self, settings: &BuildSettings) -> Result<lock::Lock, StackError> {
        let failed = |problem: String| StackError::Build { name: self.name.clone(), problem };
        let dir = settings.stacks_dir().join(&self.name);
        let read = |list: &str| {
            std::fs::read_to_string(dir.join(list)).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => failed("it has no list of packages: it is made over an image".into()),
                _ => failed(format!("reading {list}: {e}")),
            })
        };
        lock::Lock::of_lists(&read(RUN_LIST)?, &read(BUILD_LIST)?).map_err(failed)
    }

    /// Where a layer of it is stored.
    pub(crate) fn blob(&self, settings: &BuildSettings, digest: &str) -> PathBuf {
        stack_blob(settings, &self.name, digest)
    }

    /// What to build on: the build image's id. An engine that lost it (somebody cleaned up) gets it back from the files.
    pub(crate) async fn build_reference(&self, settings: &BuildSettings, runtime: &dyn Runtime) -> Result<String, BuildError> {
        if !runtime.has_image(&self.build.id).await? {
            tracing::warn!(stack = %self.name, "the engine has lost the stack's images: bringing them back, which takes a while");
            self.import(settings, runtime).await?;
        }
        Ok(self.build.id.clone())
    }

    /// Brings both images into the engine; layers that it has are not sent.
    pub(crate) async fn import(&self, settings: &BuildSettings, runtime: &dyn Runtime) -> Result<(), BuildError> {
        for (image, env) in [&self.run, &self.build].into_iter().zip(&self.env) {
            if !runtime.has_image(&image.id).await? || !runtime.has_image(&image.tag).await? {
                let layers = image.layers.iter().map(|l| (l.diff_id.clone(), self.blob(settings, &l.digest))).collect();
                let config = stack_config(&self.name, self.epoch, env, &image.layers);
                runtime.import(ImageFiles { tag: image.tag.clone(), config, layers }).await?;
            }
        }
        Ok(())
    }
}

/// Names of the stacks that are on this machine.
pub(crate) fn names(settings: &BuildSettings) -> Vec<String> {
    let Ok(dir) = std::fs::read_dir(settings.stacks_dir()) else { return Vec::new() };
    let mut names: Vec<String> = dir
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.join("stack.json").is_file())
        .filter_map(|p| Some(p.file_name()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// The layers of all stacks by the digests of their plain tars, and where each is.
pub(crate) fn layers(settings: &BuildSettings) -> BTreeMap<String, (LayerRecord, PathBuf)> {
    let mut found = BTreeMap::new();
    // One that cannot be read has nothing to offer.
    for stack in names(settings).iter().filter_map(|name| StackRecord::load(settings, name).ok()) {
        for layer in stack.run.layers.iter().chain(&stack.build.layers) {
            let path = stack.blob(settings, &layer.digest);
            if path.is_file() {
                found.insert(layer.diff_id.clone(), (layer.clone(), path));
            }
        }
    }
    found
}

fn stack_blob(settings: &BuildSettings, name: &str, digest: &str) -> PathBuf {
    settings.stacks_dir().join(name).join("blobs").join(digest.trim_start_matches("sha256:"))
}

/// The variables of a stack's images: the usual ones, and over them those of a base image.
pub(crate) fn variables(base: &[String]) -> Vec<String> {
    let usual = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"];
    let mut vars: Vec<String> = usual.map(str::to_owned).into();
    for var in base.iter().map(String::as_str).chain(["HOME=/app"]) {
        let key = var.split('=').next();
        vars.retain(|v| v.split('=').next() != key);
        vars.push(var.to_owned());
    }
    vars
}

fn stack_config(name: &str, epoch: u64, env: &[String], layers: &[LayerRecord]) -> Bytes {
    let config = ImageConfig {
        env: variables(env),
        user: crate::sandbox::user(),
        workdir: "/app".into(),
        labels: [("dev.flex.stack".to_owned(), name.to_owned())].into(),
        command: Vec::new(),
        created: epoch,
    };
    config_bytes(&config, layers)
}
