//! The apps' images outside the engine: what it gets back when it has lost one, and how those come there that no buildpack
//! made (a Dockerfile's, a local one that was deployed by name).
//!
//! Invariants: an image that is kept has the configuration that its id is the digest of; nothing is kept that the engine
//! gave only in part. Keeping may run at any time and twice, also while the app builds.

use crate::{
    BuildError, BuildSettings, Builder,
    build::blocking,
    oci::{LayerRecord, Layout, diff_ids, engine_name},
    slug, stack,
};
use async_trait::async_trait;
use flex_model::{AppId, ImageRef};
use flex_runtime::{ImageFiles, ImageSource, RuntimeError};
use futures_util::StreamExt;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};
use tokio::io::AsyncWriteExt;

/// The largest of an archive's descriptions that is read whole.
const DESCRIPTION: u64 = 4 << 20;

/// The apps' layouts as the engine's source of images.
#[derive(Debug, Clone)]
pub struct KeptImages(Arc<BuildSettings>);

impl KeptImages {
    /// Those of an installation.
    pub fn new(settings: BuildSettings) -> Self {
        Self(Arc::new(settings))
    }
}

#[async_trait]
impl ImageSource for KeptImages {
    async fn files(&self, app: AppId, app_name: &str, image: &ImageRef) -> Result<Option<ImageFiles>, RuntimeError> {
        let dir = self.0.images_dir().join(app.to_string());
        let (tag, image) = (format!("{}/{app_name}", self.0.image_namespace), image.clone());
        let read = move || {
            // Asking makes no folder.
            if !dir.is_dir() {
                return Ok(None);
            }
            Layout::open(dir)?.files(&image, &tag)
        };
        blocking(read).await.map_err(|e| RuntimeError::Unavailable(e.to_string()))
    }
}

impl Builder {
    /// Keeps what the engine alone has of an app's images: those of `wanted` (references) that its layout lacks. Gives how
    /// many came to it.
    ///
    /// # Errors
    /// The engine does not answer, or the disk is full; run it again then.
    pub async fn keep_images(&self, app: AppId, wanted: &BTreeSet<String>) -> Result<usize, BuildError> {
        let layout = self.layout(app)?;
        let (known, mut kept) = (layout.names()?, 0);
        // One of a registry's can be had there again.
        for id in wanted.iter().filter(|r| r.starts_with("sha256:") && !known.contains(*r)) {
            if !self.runtime.has_image(id).await? {
                continue;
            }
            let tmp = self.settings.tmp_dir().map_err(|e| BuildError::platform("making a temporary file", e))?;
            let archive = self.exported(id, &tmp).await?;
            let (settings, layout, id) = (self.settings.clone(), layout.clone(), id.clone());
            blocking(move || keep(&archive, &id, &layout, &settings)).await?;
            kept += 1;
        }
        Ok(kept)
    }

    async fn exported(&self, id: &str, tmp: &Path) -> Result<tempfile::TempPath, BuildError> {
        let writing = |e: io::Error| BuildError::platform("keeping an image of the engine's", e);
        let path = tempfile::NamedTempFile::new_in(tmp).map_err(writing)?.into_temp_path();
        let mut file = tokio::fs::File::create(&path).await.map_err(writing)?;
        let mut pieces = self.runtime.export(id).await?;
        while let Some(piece) = pieces.next().await {
            file.write_all(&piece?).await.map_err(writing)?;
        }
        file.flush().await.map_err(writing)?;
        Ok(path)
    }
}

/// An entry of an archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    layers: Vec<String>,
}

/// Takes an archive of `docker save` into the layout.
fn keep(archive: &Path, id: &str, layout: &Layout, settings: &BuildSettings) -> Result<(), BuildError> {
    let failed = |e: io::Error| BuildError::platform(&format!("keeping image {id}"), e);
    let mut file = File::open(archive).map_err(failed)?;
    let files = contents(&mut file).map_err(failed)?;
    let mut text = |name: &str| -> io::Result<Vec<u8>> {
        let (at, size) = *files.get(name).ok_or_else(|| io::Error::other(format!("the engine's archive has no {name}")))?;
        if size > DESCRIPTION {
            return Err(io::Error::other(format!("{name} is too large")));
        }
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        (&mut file).take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let entries: Vec<Entry> = serde_json::from_slice(&text("manifest.json").map_err(failed)?)
        .map_err(|e| BuildError::platform("reading an image's archive", e))?;
    let [entry] = &entries[..] else { return Err(failed(io::Error::other("the archive does not hold just this image"))) };
    let config = text(&entry.config).map_err(failed)?;
    let diffs = diff_ids(&config).filter(|d| d.len() == entry.layers.len());
    let diffs = diffs.ok_or_else(|| failed(io::Error::other("its configuration does not fit its layers")))?;
    let mut known = layout.layers()?;
    let stacks = stack::layers(settings);
    let mut layers = Vec::new();
    for (diff, name) in diffs.iter().zip(&entry.layers) {
        let record = match (known.get(diff), stacks.get(diff)) {
            (Some(record), _) => record.clone(),
            // Where Dockerfiles begin that have no registry.
            (None, Some((record, path))) => {
                layout.link(&record.digest, path)?;
                record.clone()
            }
            (None, None) => {
                let place = files.get(name.as_str()).copied();
                let place = place.ok_or_else(|| failed(io::Error::other(format!("the archive has no {name}"))))?;
                store_layer(&mut file, place, diff, layout, settings)?
            }
        };
        known.insert(diff.clone(), record.clone());
        layers.push(record);
    }
    layout.add(&engine_name(id), &config, &layers).map(|_| ())
}

/// Where the content of each file of an archive is, and how long.
fn contents(file: &mut File) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let mut found = BTreeMap::new();
    let mut links = Vec::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        match entry.header().entry_type() {
            tar::EntryType::Regular => {
                found.insert(name, (entry.raw_file_position(), entry.size()));
            }
            // The same layer a second time is a link to the first: `../ID/layer.tar`.
            tar::EntryType::Symlink | tar::EntryType::Link => {
                if let Some(to) = entry.link_name()? {
                    links.push((name, to.to_string_lossy().trim_start_matches("../").to_owned()));
                }
            }
            _ => {}
        }
    }
    for (name, to) in links {
        if let Some(place) = found.get(&to).copied() {
            found.insert(name, place);
        }
    }
    Ok(found)
}

/// Compresses a layer into the layout, and checks that it is the one that the configuration speaks of.
fn store_layer(
    file: &mut File,
    (at, size): (u64, u64),
    diff: &str,
    layout: &Layout,
    settings: &BuildSettings,
) -> Result<LayerRecord, BuildError> {
    let reading = |e: io::Error| BuildError::platform("reading an image's archive", e);
    file.seek(SeekFrom::Start(at)).map_err(reading)?;
    let (record, blob) = slug::compress_from(settings, plain_reader(file.take(size)).map_err(reading)?)?;
    if record.diff_id != diff {
        return Err(BuildError::Platform(format!("layer {diff} came from the engine as {}", record.diff_id)));
    }
    layout.adopt(&record.digest, blob)?;
    Ok(record)
}

/// Engines write layers plain; the containerd image store writes them as they were pulled.
fn plain_reader<'a>(content: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut content = io::BufReader::new(content);
    let head = io::BufRead::fill_buf(&mut content)?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(content)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::new(content)?),
        _ => Box::new(content),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::digest_of;

    /// An archive as `docker save` writes it, with this content in its layers; the last one comes twice.
    fn archive(dir: &Path, layers: &[&[u8]]) -> (std::path::PathBuf, Vec<u8>) {
        let diffs: Vec<_> = layers.iter().chain(layers.last()).map(|l| digest_of(l)).collect();
        let config = serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": diffs } }).to_string().into_bytes();
        let path = dir.join("saved.tar");
        let mut out = tar::Builder::new(File::create(&path).unwrap());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            out.append_data(&mut header, name, content).unwrap();
        };
        let mut names = Vec::new();
        for (n, content) in layers.iter().enumerate() {
            names.push(format!("layer{n}/layer.tar"));
            add(&names[n], content);
        }
        add("config.json", &config);
        names.push("again/layer.tar".to_owned());
        let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": null, "Layers": names }]);
        add("manifest.json", manifest.to_string().as_bytes());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        out.append_link(&mut header, "again/layer.tar", format!("../layer{}/layer.tar", layers.len() - 1)).unwrap();
        out.finish().unwrap();
        (path, config)
    }

    #[test]
    fn what_the_engine_saved_is_kept_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let settings = BuildSettings::new(dir.path().join("data"), dir.path());
        let layout = Layout::open(dir.path().join("data/images/app")).unwrap();
        let (saved, config) = archive(dir.path(), &[b"base", &[7; 300_000]]);
        let id = digest_of(&config);
        let image = ImageRef { reference: id.clone(), manifest: None };
        assert!(layout.files(&image, "ns/app").unwrap().is_none());
        for _ in 0..2 {
            keep(&saved, &id, &layout, &settings).unwrap();
        }
        let files = layout.files(&image, "ns/app").unwrap().unwrap();
        assert_eq!((files.config.as_ref(), files.layers.len()), (&config[..], 3));
        assert_eq!(files.tag, format!("ns/app:{}", engine_name(&id)));
        let mut plain = Vec::new();
        plain_reader(File::open(&files.layers[1].1).unwrap()).unwrap().read_to_end(&mut plain).unwrap();
        assert_eq!(plain, vec![7; 300_000]);
        assert!(layout.names().unwrap().contains(&id));
        // It goes when nothing wants it any more, and not before.
        assert!(layout.collect(&[id.clone()].into(), std::time::Duration::ZERO).unwrap().is_empty());
        assert!(layout.files(&image, "ns/app").unwrap().is_some());
        assert_eq!(layout.collect(&BTreeSet::new(), std::time::Duration::ZERO).unwrap(), [id]);
        assert!(layout.files(&image, "ns/app").unwrap().is_none());
    }

    #[test]
    fn an_archive_that_is_not_what_it_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let settings = BuildSettings::new(dir.path().join("data"), dir.path());
        let layout = Layout::open(dir.path().join("data/images/app")).unwrap();
        let (saved, config) = archive(dir.path(), &[b"base"]);
        let mut bytes = std::fs::read(&saved).unwrap();
        let at = bytes.windows(4).position(|w| w == b"base").unwrap();
        bytes[at] = b'B';
        std::fs::write(&saved, &bytes).unwrap();
        let e = keep(&saved, &digest_of(&config), &layout, &settings).unwrap_err();
        assert!(e.to_string().contains("came from the engine as"), "{e}");
        std::fs::write(&saved, &bytes[..512]).unwrap();
        assert!(keep(&saved, "sha256:00", &layout, &settings).is_err());
        assert!(layout.names().unwrap().is_empty());
    }
}
