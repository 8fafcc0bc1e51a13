//! Deploying without git: a directory, a tar archive, or an image.

use crate::args::Deploy;
use crate::context::{Context, typed};
use crate::error::{CliError, Result, while_doing};
use crate::output::{self, Progress};
use flate2::Compression;
use flate2::write::GzEncoder;
use flex_api::{Build, BuildStatus, CreateBuild, NewSource, Source};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What is never part of a source.
const LEFT_OUT: &[&str] = &[".git"];

pub async fn run(cx: &Context, args: Deploy) -> Result<()> {
    let app = cx.app()?;
    let version = args.version_name.clone();
    let source_blob = match &args.image {
        Some(image) => NewSource { image: Some(image.clone()), version, url: None },
        None => {
            let source = args.source.unwrap_or_else(|| PathBuf::from("."));
            let url = upload(cx, &source).await?;
            NewSource { url: Some(url), version: version.or_else(|| commit_of(&source)), image: None }
        }
    };
    let made: Value = cx.client.post(&format!("/apps/{app}/builds"), &CreateBuild { source_blob }).await?;
    let build: Build = typed(made.clone())?;
    if cx.common.json {
        return output::json(&made);
    }
    super::builds::follow(cx, &build).await?;
    let end: Build = cx.client.get(&format!("/apps/{app}/builds/{}", build.id)).await?;
    if end.status == BuildStatus::Succeeded && end.error.is_none() {
        return Ok(());
    }
    Err(CliError::failed(end.error.unwrap_or_else(|| format!("The build ended as {}.", end.status.name()))))
}

fn commit_of(dir: &Path) -> Option<String> {
    let out = std::process::Command::new("git").arg("-C").arg(dir).args(["rev-parse", "HEAD"]).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Uploads the source and returns the URL that a build reads it from.
async fn upload(cx: &Context, source: &Path) -> Result<String> {
    let meta = std::fs::metadata(source).map_err(while_doing(format!("read {}", source.display())))?;
    let packing = meta.is_dir();
    let file = if packing {
        let progress = Progress::start(if source == Path::new(".") {
            "Packing this directory".to_owned()
        } else {
            format!("Packing {}", source.display())
        });
        let dir = source.to_owned();
        let file = tokio::task::spawn_blocking(move || pack(&dir)).await.map_err(|e| CliError::failed(e.to_string()))??;
        progress.done();
        file
    } else {
        std::fs::File::open(source).map_err(while_doing(format!("read {}", source.display())))?
    };
    let size = file.metadata().map_err(while_doing("read the archive"))?.len();
    let urls = cx.client.post::<Source>("/sources", &flex_api::Nothing {}).await?.source_blob;
    let progress = Progress::start(format!("Uploading {}", output::size(size)));
    let body = reqwest::Body::wrap_stream(chunks(file));
    cx.client.upload(&urls.put_url, body).await?;
    progress.done();
    Ok(urls.get_url)
}

fn chunks(file: std::fs::File) -> impl futures_util::Stream<Item = std::io::Result<Vec<u8>>> {
    use std::io::Read;
    futures_util::stream::unfold(file, |mut file| async move {
        let mut buffer = vec![0; 256 << 10];
        match file.read(&mut buffer) {
            Ok(0) => None,
            Ok(n) => {
                buffer.truncate(n);
                Some((Ok(buffer), file))
            }
            Err(e) => Some((Err(e), file)),
        }
    })
}

/// A directory as a .tar.gz in an unnamed temporary file. In a git work tree, what git ignores is left out.
fn pack(dir: &Path) -> Result<std::fs::File> {
    let out = tempfile::tempfile().map_err(while_doing("make a temporary file"))?;
    let mut tar = tar::Builder::new(GzEncoder::new(out, Compression::fast()));
    tar.follow_symlinks(false);
    let doing = || while_doing(format!("pack {}", dir.display()));
    for path in files(dir)? {
        tar.append_path_with_name(dir.join(&path), &path).map_err(doing())?;
    }
    let mut file = tar.into_inner().and_then(GzEncoder::finish).map_err(doing())?;
    std::io::Seek::rewind(&mut file).map_err(doing())?;
    Ok(file)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let listed = std::process::Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .stderr(std::process::Stdio::null())
        .output();
    if let Ok(out) = listed
        && out.status.success()
    {
        let names = out.stdout.split(|b| *b == 0).filter(|n| !n.is_empty());
        let paths = names.map(|n| PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(n)));
        // Listed by the index but deleted in the work tree: not part of what is there now.
        return Ok(paths.filter(|p| dir.join(p).symlink_metadata().is_ok_and(|m| !m.is_dir())).collect());
    }
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        let at = dir.join(&folder);
        for item in std::fs::read_dir(&at).map_err(while_doing(format!("read {}", at.display())))? {
            let item = item.map_err(while_doing(format!("read {}", at.display())))?;
            let path = folder.join(item.file_name());
            if LEFT_OUT.iter().any(|l| item.file_name() == *l) {
                continue;
            }
            let kind = item.file_type().map_err(while_doing(format!("read {}", path.display())))?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() || kind.is_symlink() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_packed_without_its_history() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/.git")).unwrap();
        std::fs::write(dir.path().join("a/.git/config"), "x").unwrap();
        std::fs::write(dir.path().join("a/b"), "b").unwrap();
        std::os::unix::fs::symlink("a/b", dir.path().join("link")).unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(pack(dir.path()).unwrap()));
        let names: Vec<_> = tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["a/b", "link"]);
    }
}
