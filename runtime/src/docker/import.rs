//! Bringing an image in from files, by an archive as `docker load` reads it, made while it is sent.
//!
//! The classic engine looks a layer up by its chain id before it reads the layer's file, so files of layers that it has
//! are left out of the archive. Which it has is remembered from earlier imports and guessed at first (all but the top
//! one: apps differ from their stack in that one layer); a wrong guess is refused by the engine, and everything is sent.
//! So an engine that always wants all files (the containerd image store) is served too.
//!
//! Invariant: no layer is ever held in memory.

use super::{
    Inner,
    engine::{Engine, QUICK},
};
use crate::{ImageFiles, RuntimeError};
use bollard::query_parameters::{ImportImageOptionsBuilder, TagImageOptionsBuilder};
use bytes::{Bytes, BytesMut};
use flex_model::ImageRef;
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};
use tokio::sync::mpsc;

const DOING: &str = "importing an image";
/// Piece size of the archive, and how many may wait for the engine.
const PIECE: usize = 256 * 1024;
const PIECES: usize = 8;

impl Inner {
    pub(super) async fn import(&self, image: ImageFiles) -> Result<ImageRef, RuntimeError> {
        let id = format!("sha256:{}", hex::encode(Sha256::digest(&image.config)));
        check(&image)?;
        let done = |reference: String| Ok(ImageRef { reference, manifest: None });
        match self.tag(&id, &image.tag).await {
            Ok(()) => {
                self.remember(&image);
                return done(id);
            }
            Err(RuntimeError::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
        let chains = chains(&image);
        let known = {
            let state = self.state();
            chains.iter().rposition(|c| state.chains.contains(c)).map_or(0, |at| at + 1)
        };
        let guess = known.max(image.layers.len().saturating_sub(1));
        // From how many layers the engine has at most to none.
        let mut skips = vec![guess, known, 0];
        skips.dedup();
        let mut outcome = Ok(());
        for skip in skips {
            outcome = self.load(&id, &image, skip).await;
            match &outcome {
                Err(RuntimeError::Refused(why)) if skip > 0 => {
                    tracing::debug!(skip, why, "the engine lacks a layer that it was thought to have");
                    self.state().chains.clear();
                }
                _ => break,
            }
        }
        outcome?;
        self.remember(&image);
        if self.image_id(&id).await?.is_some() {
            return done(id);
        }
        // An engine that names images by their manifest: the same content under another id.
        let tag = &image.tag;
        let loaded = self.engine.call(DOING, QUICK, async |d| d.inspect_image(tag).await).await?;
        let layers = loaded.root_fs.and_then(|r| r.layers).unwrap_or_default();
        let same = layers.iter().eq(image.layers.iter().map(|(diff, _)| diff));
        match loaded.id.filter(|_| same) {
            Some(other) => done(other),
            None => Err(RuntimeError::Refused(format!("{DOING}: the engine took {tag}, but made something else of it"))),
        }
    }

    fn remember(&self, image: &ImageFiles) {
        self.state().chains.extend(chains(image));
    }

    async fn tag(&self, id: &str, tag: &str) -> Result<(), RuntimeError> {
        let (name, tag) = tag.rsplit_once(':').unwrap_or((tag, "latest"));
        let options = TagImageOptionsBuilder::default().repo(name).tag(tag).build();
        self.engine.call("naming an image", QUICK, async |d| d.tag_image(id, Some(options)).await).await
    }

    /// Sends the archive without the first `skip` layers' files.
    async fn load(&self, id: &str, image: &ImageFiles, skip: usize) -> Result<(), RuntimeError> {
        let (send, receive) = mpsc::channel::<io::Result<Bytes>>(PIECES);
        let (id, image) = (id.to_owned(), image.clone());
        let writer = tokio::task::spawn_blocking(move || {
            let mut out = Pieces { buffer: BytesMut::new(), send };
            if let Err(e) = write_archive(&id, &image, skip, &mut out).and_then(|()| out.flush_all()) {
                // Breaks the request off, so that the engine does not take half an archive for a whole one.
                let _ = out.send.blocking_send(Err(io::Error::new(e.kind(), e.to_string())));
                return Err(e);
            }
            Ok(())
        });
        let body = stream::unfold(receive, async |mut r| r.recv().await.map(|item| (item, r)));
        let docker = self.engine.docker()?.clone();
        let options = ImportImageOptionsBuilder::default().quiet(true).build();
        let mut answer = docker.import_image(options, bollard::body_try_stream(body), None).boxed();
        let mut outcome = Ok(());
        loop {
            match Engine::next(DOING, &mut answer).await {
                Ok(Some(line)) => {
                    if let Some(error) = line.error_detail {
                        outcome = Err(RuntimeError::Refused(format!("{DOING}: {}", error.message.unwrap_or_default())));
                        break;
                    }
                }
                Ok(None) => break,
                Err(e) => {
                    outcome = Err(e);
                    break;
                }
            }
        }
        drop(answer);
        match writer.await {
            Ok(Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => Err(RuntimeError::Refused(format!("{DOING}: {e}"))),
            _ => outcome,
        }
    }
}

/// The files must be what the configuration speaks of, or the engine would refuse with less clear words.
fn check(image: &ImageFiles) -> Result<(), RuntimeError> {
    let refuse = |why: String| Err(RuntimeError::Refused(format!("{DOING}: {why}")));
    let config: serde_json::Value = match serde_json::from_slice(&image.config) {
        Ok(config) => config,
        Err(e) => return refuse(format!("its configuration is not JSON: {e}")),
    };
    let ids = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
    if !ids.iter().map(|v| v.as_str()).eq(image.layers.iter().map(|(diff, _)| Some(diff.as_str()))) {
        return refuse("its layers are not those that its configuration names".into());
    }
    match image.layers.iter().find(|(diff, _)| diff.strip_prefix("sha256:").and_then(|h| hex::decode(h).ok()).is_none()) {
        Some((diff, _)) => refuse(format!("layer {diff:?} is not named by a sha256 digest")),
        None => Ok(()),
    }
}

/// The chain id of each layer upon those below it (OCI image specification, "Layer ChainID").
fn chains(image: &ImageFiles) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(image.layers.len());
    for (diff, _) in &image.layers {
        let chain = match chains.last() {
            None => diff.clone(),
            Some(below) => format!("sha256:{}", hex::encode(Sha256::digest(format!("{below} {diff}")))),
        };
        chains.push(chain);
    }
    chains
}

/// `manifest.json`, the configuration, and the files of all layers after the first `skip`.
fn write_archive(id: &str, image: &ImageFiles, skip: usize, out: &mut impl io::Write) -> io::Result<()> {
    let hex = id.trim_start_matches("sha256:");
    let name = |diff: &str| format!("{}/layer.tar", diff.trim_start_matches("sha256:"));
    let manifest = serde_json::json!([{
        "Config": format!("{hex}.json"),
        "RepoTags": [image.tag],
        "Layers": image.layers.iter().map(|(diff, _)| name(diff)).collect::<Vec<_>>(),
    }]);
    let mut archive = tar::Builder::new(out);
    let mut add = |name: &str, size: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content)
    };
    let manifest = manifest.to_string();
    add(&format!("{hex}.json"), image.config.len() as u64, &mut &image.config[..])?;
    let mut sent = std::collections::HashSet::new();
    for (diff, path) in image.layers.iter().skip(skip) {
        // The same layer twice is one file, as the engine writes it itself.
        if sent.insert(diff) {
            let (size, mut content) = open(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
            add(&name(diff), size, &mut content)?;
        }
    }
    add("manifest.json", manifest.len() as u64, &mut manifest.as_bytes())?;
    archive.finish()
}

/// A layer's file as the engine takes it: plain and gzip as they are, zstd taken apart, which old engines do not read.
fn open(path: &PathBuf) -> io::Result<(u64, Box<dyn Read>)> {
    let mut file = std::fs::File::open(path)?;
    let mut magic = [0u8; 4];
    let n = file.read(&mut magic)?;
    if n == 4 && magic == [0x28, 0xb5, 0x2f, 0xfd] {
        // An archive entry's size comes before its content, so it is counted first; this is fast.
        let size = io::copy(&mut unzstd(path)?, &mut io::sink())?;
        return Ok((size, Box::new(unzstd(path)?)));
    }
    io::Seek::rewind(&mut file)?;
    Ok((file.metadata()?.len(), Box::new(file)))
}

fn unzstd(path: &Path) -> io::Result<impl Read + use<>> {
    zstd::Decoder::new(std::fs::File::open(path)?)
}

/// Gathers writes into pieces for the request's body.
struct Pieces {
    buffer: BytesMut,
    send: mpsc::Sender<io::Result<Bytes>>,
}

impl Pieces {
    fn flush_all(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.send.blocking_send(Ok(piece)).map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the engine broke off"))
    }
}

impl io::Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE {
            self.flush_all()?;
        }
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, layers: &[&[u8]]) -> ImageFiles {
        let layers: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(i, content)| {
                let path = dir.join(i.to_string());
                std::fs::write(&path, content).unwrap();
                (format!("sha256:{}", hex::encode(Sha256::digest(content))), path)
            })
            .collect();
        let diffs: Vec<_> = layers.iter().map(|l| l.0.clone()).collect();
        let config = serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": diffs } }).to_string();
        ImageFiles { tag: "t:1".into(), config: config.into(), layers }
    }

    fn names(archive: &[u8]) -> Vec<(String, u64)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap();
        entries.map(|e| e.unwrap()).map(|e| (e.path().unwrap().display().to_string(), e.size())).collect()
    }

    #[test]
    fn the_archive_leaves_out_what_the_engine_has() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path(), &[b"base", b"middle", b"top"]);
        for (skip, expected) in [(0, 5), (1, 4), (2, 3), (3, 2)] {
            let mut out = Vec::new();
            write_archive("sha256:aa", &image, skip, &mut out).unwrap();
            assert_eq!(names(&out).len(), expected, "skip {skip}");
            assert!(names(&out).iter().any(|(n, _)| n == "manifest.json"));
        }
    }

    #[test]
    fn zstd_layers_arrive_plain() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("z");
        std::fs::write(&path, zstd::encode_all(&[7u8; 100_000][..], 1).unwrap()).unwrap();
        let (size, mut content) = open(&path).unwrap();
        let mut back = Vec::new();
        content.read_to_end(&mut back).unwrap();
        assert_eq!((size, back), (100_000, vec![7u8; 100_000]));
    }

    #[test]
    fn a_configuration_of_other_layers_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut image = image(dir.path(), &[b"base", b"top"]);
        assert!(check(&image).is_ok());
        image.layers.pop();
        assert!(matches!(check(&image), Err(RuntimeError::Refused(_))));
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path(), &[b"a", b"b"]);
        let (a, b) = (&image.layers[0].0, &image.layers[1].0);
        let second = format!("sha256:{}", hex::encode(Sha256::digest(format!("{a} {b}"))));
        assert_eq!(chains(&image), vec![a.clone(), second]);
    }
}
