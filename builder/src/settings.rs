//! All settings of the builder in one place, each with its default and the reason for the number.

use flex_model::Memory;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// How layers are compressed in blob storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Every engine reads it (Docker before 23.0 cannot pull zstd layers): the default.
    Gzip,
    /// Several times faster and smaller; for installations whose engines all read it.
    Zstd,
}

/// What the builder may use and where it keeps things.
#[derive(Debug, Clone)]
pub struct BuildSettings {
    /// The builder's own directory: `stacks/`, `images/` (an OCI layout per app) and `build-tmp/` live in it. One file system,
    /// because stack layers are hard-linked into the apps' layouts.
    pub data_dir: PathBuf,
    /// The project's `buildpacks/`: `builtin/` has a directory for each built-in buildpack and `order` (their names, one a
    /// line, in the order of detection).
    pub buildpacks_dir: PathBuf,
    /// What the names of the apps' images in the engine begin with: an installation's own, so that it can find and remove
    /// them without touching another's. Default `flex-app`.
    pub image_namespace: String,
    /// `[build.env]`: set in every build (proxies, mirrors such as `PIP_INDEX_URL`). Default: none.
    pub env: BTreeMap<String, String>,
    /// The machine's CA bundle, mounted into builds at `/etc/ssl/certs/ca-certificates.crt`. Default: that same path if
    /// the machine has it.
    pub ca_bundle: Option<PathBuf>,
    /// Certificates (`*.crt`, in folders too) that stacks are made to trust: a proxy's, a company's own authority. Default
    /// `/usr/local/share/ca-certificates`, where the machine keeps its own.
    pub certificates: PathBuf,
    /// The longest build. Default 15 minutes, as Heroku.
    pub timeout: Duration,
    /// Memory of a build. Default 2 GiB: a linker or a bundler of JavaScript needs more than an instance.
    pub memory: Memory,
    /// Most processes and threads at once. Default 2048: a parallel make, not a fork bomb.
    pub pids: u32,
    /// Hard CPU limit in thousandths of a core. Default: none.
    pub cpu_millis: Option<u32>,
    /// Most bytes that a build may write outside its cache. Default 8 GiB.
    pub disk_bytes: u64,
    /// Most bytes kept in an app's cache between builds; a larger cache is emptied. Default 4 GiB.
    pub cache_bytes: u64,
    /// Most bytes of output. Default 10 MiB: nobody reads more, and the push carries it.
    pub output_bytes: u64,
    /// Longest line of output; the rest of a longer one is dropped. Default 10 KiB.
    pub line_bytes: usize,
    /// Most files, links and directories of a source. Default 100,000.
    pub source_entries: u64,
    /// Most bytes of a source, unpacked. Default 1 GiB.
    pub source_bytes: u64,
    /// Largest compressed slug. Default 500 MB, as Heroku.
    pub slug_bytes: u64,
    /// Largest slug before compression. Default 4 GiB: what bounds the packing itself.
    pub slug_unpacked_bytes: u64,
    /// How slugs and stacks are compressed. Default gzip.
    pub compression: Compression,
}

/// Where the bundle is in a build, whatever its place on the machine.
pub(crate) const CA_BUNDLE_INSIDE: &str = "/etc/ssl/certs/ca-certificates.crt";

impl BuildSettings {
    /// The defaults, over the two directories that have none.
    pub fn new(data_dir: impl Into<PathBuf>, buildpacks_dir: impl Into<PathBuf>) -> Self {
        let bundle = PathBuf::from(CA_BUNDLE_INSIDE);
        Self {
            data_dir: data_dir.into(),
            buildpacks_dir: buildpacks_dir.into(),
            image_namespace: "flex-app".to_owned(),
            env: BTreeMap::new(),
            ca_bundle: bundle.is_file().then_some(bundle),
            certificates: "/usr/local/share/ca-certificates".into(),
            timeout: Duration::from_secs(15 * 60),
            memory: Memory::from_mib(2048),
            pids: 2048,
            cpu_millis: None,
            disk_bytes: 8 << 30,
            cache_bytes: 4 << 30,
            output_bytes: 10 << 20,
            line_bytes: 10 << 10,
            source_entries: 100_000,
            source_bytes: 1 << 30,
            slug_bytes: 500_000_000,
            slug_unpacked_bytes: 4 << 30,
            compression: Compression::Gzip,
        }
    }

    pub(crate) fn stacks_dir(&self) -> PathBuf {
        self.data_dir.join("stacks")
    }
    pub(crate) fn builtin_dir(&self) -> PathBuf {
        self.buildpacks_dir.join("builtin")
    }
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.data_dir.join("images")
    }
    /// Scratch space on the same file system as the blobs, so that finished files are moved, not copied.
    pub(crate) fn tmp_dir(&self) -> std::io::Result<PathBuf> {
        let dir = self.data_dir.join("build-tmp");
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}
