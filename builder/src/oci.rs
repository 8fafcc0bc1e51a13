//! Images as OCI image layouts on disk: one directory per app, with the stack's layers linked into it, that the control
//! plane's registry serves and `skopeo` copies.
//!
//! Invariants: a blob's file name is its SHA-256 and a blob is complete when it has its name; `index.json` is replaced in
//! one step and names only manifests whose blobs are there. One process writes.

use crate::BuildError;
use bytes::Bytes;
use flex_model::ImageRef;
use flex_runtime::ImageFiles;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

pub(crate) const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Beside the layout's own files: images built from Dockerfiles, which have no blobs here.
const ENGINE_ONLY: &str = "engine-only.json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// How the names begin of images that the engine made.
const FROM_ENGINE: &str = "engine-";

/// One layer as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// `sha256:…` of the stored (compressed) bytes.
    pub digest: String,
    /// `sha256:…` of the plain tar.
    pub diff_id: String,
    /// Stored bytes.
    pub size: u64,
    pub media_type: String,
}

/// How an image is to be run.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageConfig {
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) workdir: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// What runs where nothing else is said. Empty: nothing.
    pub(crate) command: Vec<String>,
    /// Seconds since 1970.
    pub(crate) created: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The engine's id of an image that the engine made.
    fn engine_id(&self) -> Option<String> {
        Some(format!("sha256:{}", self.annotations.get(REF_NAME)?.strip_prefix(FROM_ENGINE)?))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    manifests: Vec<Descriptor>,
}

/// The digest of some bytes, as images write it.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    digest_text(Sha256::new_with_prefix(bytes))
}

/// A finished hash, as images write it.
pub(crate) fn digest_text(hash: Sha256) -> String {
    format!("sha256:{}", hex::encode(hash.finalize()))
}

/// The name in a layout of an image that the engine made, by its id there.
pub(crate) fn engine_name(id: &str) -> String {
    format!("{FROM_ENGINE}{}", id.trim_start_matches("sha256:"))
}

/// The digests of an image's plain layers, from the bottom up, as its configuration has them.
pub(crate) fn diff_ids(config: &[u8]) -> Option<Vec<String>> {
    let config: serde_json::Value = serde_json::from_slice(config).ok()?;
    config["rootfs"]["diff_ids"].as_array()?.iter().map(|d| d.as_str().map(str::to_owned)).collect()
}

/// The exact bytes of an image configuration over these layers.
pub(crate) fn config_bytes(config: &ImageConfig, layers: &[LayerRecord]) -> Bytes {
    let created = flex_model::Timestamp::from_micros(i64::try_from(config.created).unwrap_or(0).saturating_mul(1_000_000));
    let created = created.rfc3339_seconds();
    let history: Vec<_> = layers.iter().map(|_| serde_json::json!({"created": created, "created_by": "flex"})).collect();
    let mut value = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": created,
        "config": {"Env": config.env, "User": config.user, "WorkingDir": config.workdir, "Labels": config.labels},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>()},
        "history": history,
    });
    if !config.command.is_empty() {
        value["config"]["Cmd"] = config.command.clone().into();
    }
    Bytes::from(value.to_string())
}

/// Held while a layout's lists are read, changed and written: a build and the keeping of an image may do it at once. One for all:
/// it takes milliseconds.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An OCI image layout.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Opens the layout at `dir`, making it if it is not there.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(crate) fn open(dir: impl Into<PathBuf>) -> Result<Self, BuildError> {
        let this = Self { dir: dir.into() };
        let make = || -> io::Result<()> {
            fs::create_dir_all(this.blobs())?;
            if !this.dir.join("oci-layout").exists() {
                write_whole(&this.dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            }
            Ok(())
        };
        make().map_err(storing)?;
        Ok(this)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }
    /// Where a blob is, if its digest is well formed.
    pub fn blob(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.strip_prefix("sha256:")?;
        let ok = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        ok.then(|| self.blobs().join(hex))
    }

    /// Shares a blob of another place on the same file system (copies it where links are not possible).
    pub(crate) fn link(&self, digest: &str, from: &Path) -> Result<PathBuf, BuildError> {
        let to = self.blob(digest).ok_or_else(|| BuildError::Platform(format!("{digest:?} is no digest")))?;
        if to.exists() {
            return Ok(to);
        }
        match fs::hard_link(from, &to) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => {
                let part = to.with_extension("part");
                fs::copy(from, &part).and_then(|_| fs::rename(&part, &to)).map_err(storing)?;
            }
        }
        Ok(to)
    }

    /// Moves a finished temporary file in under its digest.
    pub(crate) fn adopt(&self, digest: &str, file: tempfile::TempPath) -> Result<PathBuf, BuildError> {
        let to = self.blob(digest).ok_or_else(|| BuildError::Platform(format!("{digest:?} is no digest")))?;
        file.persist(&to).map_err(|e| storing(e.error))?;
        // Temporary files are private; what is served may be read.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&to, readable).map_err(storing)?;
        Ok(to)
    }

    /// Writes config and manifest of an image whose layers are there, and names it `tag`. Returns the manifest's digest.
    pub(crate) fn add(&self, tag: &str, config: &[u8], layers: &[LayerRecord]) -> Result<String, BuildError> {
        let descriptor = |media_type: &str, digest: String, size: u64| Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            annotations: BTreeMap::new(),
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST.into(),
            config: descriptor(CONFIG, digest_of(config), config.len() as u64),
            layers: layers.iter().map(|l| descriptor(&l.media_type, l.digest.clone(), l.size)).collect(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|e| BuildError::platform("writing an image manifest", e))?;
        let _turn = turn();
        // A layer that was here before may have been collected meanwhile.
        if let Some(lost) = layers.iter().find(|l| self.blob(&l.digest).is_none_or(|p| !p.is_file())) {
            return Err(BuildError::Platform(format!("storing an image: layer {} is not there any more", lost.digest)));
        }
        self.small_blob(config)?;
        let digest = self.small_blob(&bytes)?;
        let mut index = self.index()?;
        index.manifests.retain(|m| m.annotations.get(REF_NAME).is_none_or(|name| name != tag));
        let mut entry = descriptor(MANIFEST, digest.clone(), bytes.len() as u64);
        entry.annotations.insert(REF_NAME.into(), tag.into());
        index.manifests.push(entry);
        self.write_index(&index)?;
        Ok(digest)
    }

    /// Drops every image whose manifest (or reference, if the engine made it) is not in `keep`, and every blob that no image
    /// is left to need and that is older than `grace` (a build may be about to use a young one). Returns the config digests of what was dropped.
    pub(crate) fn collect(&self, keep: &BTreeSet<String>, grace: std::time::Duration) -> Result<Vec<String>, BuildError> {
        let _turn = turn();
        let mut index = self.index()?;
        let mut dropped = Vec::new();
        let mut needed = BTreeSet::new();
        let mut kept_configs = BTreeSet::new();
        index.manifests.retain(|entry| {
            let manifest = self.manifest(&entry.digest);
            let stays = keep.contains(&entry.digest) || entry.engine_id().is_some_and(|id| keep.contains(&id));
            match (stays, manifest) {
                (true, Some(m)) => {
                    needed.insert(entry.digest.clone());
                    kept_configs.insert(m.config.digest.clone());
                    needed.insert(m.config.digest);
                    needed.extend(m.layers.into_iter().map(|l| l.digest));
                }
                (false, Some(m)) => dropped.push(m.config.digest),
                (_, None) => {}
            }
            stays
        });
        dropped.retain(|d| !kept_configs.contains(d));
        self.write_index(&index)?;
        let (kept, gone) = self.engine_only()?.into_iter().partition::<BTreeSet<_>, _>(|r| keep.contains(r));
        if !gone.is_empty() {
            self.write_engine_only(&kept)?;
            dropped.extend(gone);
        }
        for entry in fs::read_dir(self.blobs()).map_err(storing)? {
            let entry = entry.map_err(storing)?;
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            let meta = entry.metadata().map_err(storing)?;
            // Linking and renaming touch the inode's change time, not the modification time.
            let changed = std::time::UNIX_EPOCH
                + std::time::Duration::from_secs(u64::try_from(std::os::unix::fs::MetadataExt::ctime(&meta)).unwrap_or(0));
            let old = changed.elapsed().is_ok_and(|age| age >= grace);
            if old && !needed.contains(&digest) {
                fs::remove_file(entry.path()).map_err(storing)?;
            }
        }
        Ok(dropped)
    }

    /// Ids in the engine (digests of the configurations) of all its images.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn image_ids(&self) -> Result<Vec<String>, BuildError> {
        let mut out: Vec<String> =
            self.index()?.manifests.iter().filter_map(|m| Some(self.manifest(&m.digest)?.config.digest)).collect();
        out.extend(self.engine_only()?);
        Ok(out)
    }

    /// By what its images are known: manifests, configurations, the engine's ids.
    pub(crate) fn names(&self) -> Result<BTreeSet<String>, BuildError> {
        let mut out = BTreeSet::new();
        for entry in self.index()?.manifests {
            out.extend(entry.engine_id());
            out.extend(self.manifest(&entry.digest).map(|m| m.config.digest));
            out.insert(entry.digest);
        }
        Ok(out)
    }

    /// The layers that are here, by the digests of their plain tars.
    pub(crate) fn layers(&self) -> Result<BTreeMap<String, LayerRecord>, BuildError> {
        let mut out = BTreeMap::new();
        for entry in self.index()?.manifests {
            let Some(manifest) = self.manifest(&entry.digest) else { continue };
            let config = self.blob(&manifest.config.digest).and_then(|p| fs::read(p).ok());
            let diffs = config.as_deref().and_then(diff_ids).unwrap_or_default();
            for (layer, diff_id) in manifest.layers.into_iter().zip(diffs) {
                if self.blob(&layer.digest).is_some_and(|p| p.is_file()) {
                    let (digest, size, media_type) = (layer.digest, layer.size, layer.media_type);
                    out.insert(diff_id.clone(), LayerRecord { digest, diff_id, size, media_type });
                }
            }
        }
        Ok(out)
    }

    /// An image as files; none: it, or a part of it, is not here. `name` is what to call it, its tag left out.
    pub(crate) fn files(&self, image: &ImageRef, name: &str) -> Result<Option<ImageFiles>, BuildError> {
        for entry in self.index()?.manifests {
            let Some(manifest) = self.manifest(&entry.digest) else { continue };
            let engine = entry.engine_id();
            let wanted = match &image.manifest {
                Some(digest) => *digest == entry.digest,
                None => engine.as_ref() == Some(&image.reference) || manifest.config.digest == image.reference,
            };
            let Some(config) = self.blob(&manifest.config.digest).filter(|_| wanted).and_then(|p| fs::read(p).ok()) else {
                continue;
            };
            let diffs = diff_ids(&config).unwrap_or_default();
            let paths: Vec<_> = manifest.layers.iter().filter_map(|l| self.blob(&l.digest).filter(|p| p.is_file())).collect();
            if diffs.len() != manifest.layers.len() || paths.len() != diffs.len() {
                return Ok(None);
            }
            let tag = entry.annotations.get(REF_NAME).map_or("latest", String::as_str);
            let layers = diffs.into_iter().zip(paths).collect();
            return Ok(Some(ImageFiles { tag: format!("{name}:{tag}"), config: config.into(), layers }));
        }
        Ok(None)
    }

    /// Notes an image of the app that the engine alone has.
    pub(crate) fn remember(&self, reference: &str) -> Result<(), BuildError> {
        let _turn = turn();
        let mut all = self.engine_only()?;
        all.insert(reference.to_owned());
        self.write_engine_only(&all)
    }

    /// Images of the app that the engine alone has.
    pub(crate) fn engine_only(&self) -> Result<BTreeSet<String>, BuildError> {
        match fs::read(self.dir.join(ENGINE_ONLY)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| BuildError::platform("reading the list of images", e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(e) => Err(storing(e)),
        }
    }

    fn write_engine_only(&self, all: &BTreeSet<String>) -> Result<(), BuildError> {
        let bytes = serde_json::to_vec(all).map_err(|e| BuildError::platform("writing the list of images", e))?;
        write_whole(&self.dir.join(ENGINE_ONLY), &bytes).map_err(storing)
    }

    fn manifest(&self, digest: &str) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(self.blob(digest)?).ok()?).ok()
    }

    fn small_blob(&self, bytes: &[u8]) -> Result<String, BuildError> {
        let digest = digest_of(bytes);
        let path = self.blob(&digest).ok_or_else(|| BuildError::Platform("no digest".into()))?;
        if !path.exists() {
            write_whole(&path, bytes).map_err(storing)?;
        }
        Ok(digest)
    }

    fn index(&self) -> Result<Index, BuildError> {
        let path = self.dir.join("index.json");
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|e| BuildError::platform(&format!("reading {}", path.display()), e))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Index { schema_version: 2, manifests: Vec::new() }),
            Err(e) => Err(storing(e)),
        }
    }

    fn write_index(&self, index: &Index) -> Result<(), BuildError> {
        let bytes = serde_json::to_vec(index).map_err(|e| BuildError::platform("writing an image index", e))?;
        write_whole(&self.dir.join("index.json"), &bytes).map_err(storing)
    }
}

/// Writes a small file in one step: complete and on disk, or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".part").tempfile_in(dir)?;
    io::Write::write_all(&mut file, bytes)?;
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    fs::File::open(dir)?.sync_all()
}

fn storing(e: io::Error) -> BuildError {
    BuildError::platform("storing an image", e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn layer(layout: &Layout, text: &str) -> LayerRecord {
        let file = tempfile::NamedTempFile::new_in(layout.dir()).unwrap();
        fs::write(&file, text).unwrap();
        let digest = digest_of(text.as_bytes());
        layout.adopt(&digest, file.into_temp_path()).unwrap();
        LayerRecord { diff_id: digest.clone(), digest, size: text.len() as u64, media_type: LAYER_GZIP.into() }
    }

    fn blobs(layout: &Layout) -> BTreeSet<String> {
        fs::read_dir(layout.blobs()).unwrap().map(|e| format!("sha256:{}", e.unwrap().file_name().to_string_lossy())).collect()
    }

    #[test]
    fn only_what_nothing_needs_is_collected() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path().join("app")).unwrap();
        let (shared, one, two) = (layer(&layout, "shared"), layer(&layout, "one"), layer(&layout, "two"));
        let first = layout.add("b1", b"config 1", &[shared.clone(), one.clone()]).unwrap();
        let second = layout.add("b2", b"config 2", &[shared.clone(), two.clone()]).unwrap();
        layout.remember("sha256:engine").unwrap();
        assert_eq!(layout.image_ids().unwrap(), [digest_of(b"config 1"), digest_of(b"config 2"), "sha256:engine".into()]);
        let keep: BTreeSet<String> = [second.clone()].into();
        // Young blobs stay even when nothing names them any more.
        let dropped = layout.collect(&keep, Duration::from_secs(3600)).unwrap();
        assert_eq!(dropped, [digest_of(b"config 1"), "sha256:engine".into()]);
        assert!(blobs(&layout).contains(&one.digest));
        assert_eq!(layout.collect(&keep, Duration::ZERO).unwrap(), Vec::<String>::new());
        assert_eq!(blobs(&layout), [second, digest_of(b"config 2"), shared.digest, two.digest].into());
        assert!(!blobs(&layout).contains(&first));
    }

    #[test]
    fn a_tag_moves_and_a_shared_configuration_is_not_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let one = layer(&layout, "one");
        let first = layout.add("b", b"config", std::slice::from_ref(&one)).unwrap();
        let second = layout.add("b", b"config", &[one.clone(), one]).unwrap();
        assert_ne!(first, second);
        assert_eq!(layout.image_ids().unwrap().len(), 1);
        layout.add("c", b"config", &[]).unwrap();
        assert_eq!(layout.collect(&[second].into(), Duration::ZERO).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn digests_name_no_other_files() {
        let layout = Layout { dir: "/x".into() };
        for bad in ["sha256:../../etc/passwd", "sha256:", "md5:00", "", &format!("sha256:{}", "A".repeat(64))] {
            assert_eq!(layout.blob(bad), None, "{bad}");
        }
        assert!(layout.blob(&digest_of(b"")).is_some());
    }
}
