//! Stacks over an image that is there already: `skopeo` copies it, one layer adds what apps need (the user, `/app`, the
//! recipe's `rootfs/`, this machine's certificates). Nothing of it is run here, so there are no hooks.

use super::{StackError, bootstrap::certificates_in, build::NewLayer, recipe::RecipeDir};
use crate::{APP_GID, APP_UID, BuildError, BuildSettings, oci::LayerRecord, slug};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::process::Command;

/// Files of the base that the added layer extends.
const EXTENDED: [&str; 3] = ["etc/passwd", "etc/group", "etc/ssl/certs/ca-certificates.crt"];
/// None of them is that large in any image worth building on.
const MAX_EXTENDED: u64 = 4 << 20;

/// A base image with the added layer, from the bottom up, and its variables.
pub(super) struct Base {
    pub(super) layers: Vec<NewLayer>,
    pub(super) env: Vec<String>,
}

/// Copies `image` to `dir` and adds the layer.
pub(super) async fn base(image: &str, recipe: &RecipeDir, dir: &Path, settings: &BuildSettings) -> Result<Base, StackError> {
    let name = recipe.recipe.name.to_string();
    let failed = |problem: String| StackError::Build { name: name.clone(), problem };
    let layout = dir.join("layout");
    let mut target = std::ffi::OsString::from("oci:");
    target.push(&layout);
    target.push(":base");
    let out = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .arg(image)
        .arg(target)
        .stdin(Stdio::null())
        .env("TMPDIR", dir)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| failed(format!("starting skopeo: {e}: install the Debian package skopeo")))?;
    if !out.status.success() {
        return Err(failed(format!("copying {image}: {}", String::from_utf8_lossy(&out.stderr).trim())));
    }
    let (settings, recipe, dir) = (settings.clone(), recipe.clone(), dir.to_owned());
    let work = move || read(&layout, &recipe, &dir, &settings).map_err(|e| e.to_string());
    tokio::task::spawn_blocking(work).await.map_err(|e| failed(e.to_string()))?.map_err(failed)
}

fn read(layout: &Path, recipe: &RecipeDir, dir: &Path, settings: &BuildSettings) -> Result<Base, BuildError> {
    let io = |e: io::Error| BuildError::platform("reading the base image", e);
    let wrong = |what: &str| BuildError::Platform(format!("the base image has no {what}"));
    let blob = |digest: &str| layout.join("blobs").join(digest.replacen(':', "/", 1));
    let json = |path: PathBuf| -> Result<Value, BuildError> {
        let bytes = fs::read(path).map_err(io)?;
        serde_json::from_slice(&bytes).map_err(|e| BuildError::platform("reading the base image", e))
    };
    let index = json(layout.join("index.json"))?;
    let manifest = json(blob(index["manifests"][0]["digest"].as_str().ok_or_else(|| wrong("manifest"))?))?;
    let config = json(blob(manifest["config"]["digest"].as_str().ok_or_else(|| wrong("configuration"))?))?;
    let texts =
        |v: &Value| -> Vec<String> { v.as_array().into_iter().flatten().filter_map(|t| t.as_str().map(str::to_owned)).collect() };
    let diff_ids = texts(&config["rootfs"]["diff_ids"]);
    let descriptors = manifest["layers"].as_array().ok_or_else(|| wrong("layers"))?;
    if diff_ids.len() != descriptors.len() {
        return Err(wrong("diff id for each layer"));
    }
    let mut layers = Vec::new();
    let mut found = BTreeMap::new();
    for (descriptor, diff_id) in descriptors.iter().zip(diff_ids) {
        let digest = descriptor["digest"].as_str().ok_or_else(|| wrong("layer digest"))?.to_owned();
        let path = blob(&digest);
        let media_type = descriptor["mediaType"].as_str().unwrap_or(crate::oci::LAYER_GZIP).to_owned();
        let mut archive = tar::Archive::new(BufReader::new(open(&path, &media_type).map_err(io)?));
        let mut plain_bytes = 0;
        for entry in archive.entries().map_err(io)? {
            let mut entry = entry.map_err(io)?;
            plain_bytes += entry.size();
            let name = entry.path_bytes().into_owned();
            let name = name.strip_prefix(b"./").unwrap_or(&name);
            if let Some(key) = EXTENDED.iter().find(|k| k.as_bytes() == name) {
                let mut text = Vec::new();
                (&mut entry).take(MAX_EXTENDED).read_to_end(&mut text).map_err(io)?;
                found.insert(*key, text);
            }
        }
        let size = fs::metadata(&path).map_err(io)?.len();
        let copy = tempfile::NamedTempFile::new_in(settings.tmp_dir().map_err(io)?).map_err(io)?.into_temp_path();
        fs::copy(&path, &copy).map_err(io)?;
        layers.push(NewLayer { record: LayerRecord { digest, diff_id, size, media_type }, plain: path, plain_bytes, blob: copy });
    }
    let plain = dir.join("added.tar");
    write_added(&plain, recipe, &settings.certificates, &found).map_err(io)?;
    layers.push(slug_layer(settings, plain)?);
    Ok(Base { layers, env: texts(&config["config"]["Env"]) })
}

fn slug_layer(settings: &BuildSettings, plain: PathBuf) -> Result<NewLayer, BuildError> {
    let io = |e: io::Error| BuildError::platform("writing the added layer", e);
    let file = File::open(&plain).map_err(io)?;
    let plain_bytes = file.metadata().map_err(io)?.len();
    let (record, blob) = slug::compress(settings, file)?;
    Ok(NewLayer { record, plain, plain_bytes, blob })
}

fn open(path: &Path, media_type: &str) -> io::Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(128 << 10, File::open(path)?);
    Ok(if media_type.ends_with("gzip") {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else if media_type.ends_with("zstd") {
        Box::new(zstd::Decoder::with_buffer(file)?)
    } else {
        Box::new(file)
    })
}

fn write_added(path: &Path, recipe: &RecipeDir, certificates: &Path, found: &BTreeMap<&str, Vec<u8>>) -> io::Result<()> {
    let epoch = recipe.recipe.source_date_epoch;
    let header = |kind, mode, size: u64, owner: u64| {
        let mut h = tar::Header::new_gnu();
        h.set_entry_type(kind);
        h.set_mode(mode);
        h.set_size(size);
        h.set_uid(owner);
        h.set_gid(owner);
        h.set_mtime(epoch);
        h
    };
    let mut tar = tar::Builder::new(File::create(path)?);
    tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0, APP_UID), "app/", io::empty())?;
    let text = |key: &str| found.get(key).cloned().unwrap_or_default();
    let user = format!("app:x:{APP_UID}:{APP_GID}:app:/app:/bin/bash\n");
    for (key, line) in [("etc/passwd", user), ("etc/group", format!("app:x:{APP_GID}:\n"))] {
        let mut text = text(key);
        // A name that is there already with another number would be a trap: the number decides, so ours goes first.
        if !text.split(|b| *b == b'\n').any(|l| l.starts_with(format!("app:x:{APP_UID}:").as_bytes())) {
            text.splice(0..0, line.into_bytes());
        }
        tar.append_data(&mut header(tar::EntryType::Regular, 0o644, text.len() as u64, 0), key, text.as_slice())?;
    }
    let mut bundle = text(EXTENDED[2]);
    for certificate in certificates_in(certificates) {
        bundle.push(b'\n');
        bundle.extend(fs::read(certificate)?);
    }
    if !bundle.is_empty() {
        tar.append_data(&mut header(tar::EntryType::Regular, 0o644, bundle.len() as u64, 0), EXTENDED[2], bundle.as_slice())?;
    }
    let mut todo: Vec<PathBuf> = recipe.rootfs().into_iter().collect();
    let root = recipe.dir.join("rootfs");
    let mut entries = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path.clone());
            }
            entries.push(path);
        }
    }
    entries.sort();
    for path in entries {
        let name = path.strip_prefix(&root).map_err(io::Error::other)?;
        let meta = fs::symlink_metadata(&path)?;
        let executable = std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o111 != 0;
        if meta.is_symlink() {
            tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0, 0), name, fs::read_link(&path)?)?;
        } else if meta.is_dir() {
            let name = [name.as_os_str().as_bytes(), b"/"].concat();
            let name = std::ffi::OsStr::from_bytes(&name);
            tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0, 0), name, io::empty())?;
        } else {
            let mode = if executable { 0o755 } else { 0o644 };
            tar.append_data(&mut header(tar::EntryType::Regular, mode, meta.len(), 0), name, File::open(&path)?)?;
        }
    }
    tar.into_inner()?;
    Ok(())
}
