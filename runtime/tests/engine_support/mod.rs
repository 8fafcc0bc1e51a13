//! A small image without a registry, and a Docker engine with an installation of its own that cleans up behind itself.

mod faults;
mod hardening;
mod images;
pub mod measure;
mod network;
mod probes;

use async_trait::async_trait;
use flex_model::ImageRef;
use flex_runtime::{DockerRuntime, DockerSettings, ImageFiles, Runtime, contract::World};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The tools of the image; each is a link to one static busybox.
const TOOLS: &[&str] = &[
    "sh", "sleep", "cat", "echo", "stty", "env", "true", "mkdir", "id", "dd", "yes", "head", "wc", "touch", "ls", "wget", "nc",
    "mount", "ps", "kill", "tail", "httpd", "seq", "pwd", "printf", "chown", "ping", "rm",
];

/// Debian's static busybox.
pub fn busybox() -> PathBuf {
    let found = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|p| p.exists());
    found.expect("these tests need Debian's package busybox-static: apt-get install -y busybox-static")
}

fn layer(dir: &Path, name: &str, fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (String, PathBuf) {
    let mut tar = tar::Builder::new(Vec::new());
    fill(&mut tar);
    let bytes = tar.into_inner().unwrap();
    let path = dir.join(name);
    std::fs::write(&path, &bytes).unwrap();
    (format!("sha256:{}", hex::encode(Sha256::digest(&bytes))), path)
}

/// Appends a file with fixed metadata.
pub fn file(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, content).unwrap();
}

/// An image of two layers: the tools, and a file with the given text. Equal calls give equal images.
pub fn image_files(dir: &Path, tag: &str, text: &str) -> ImageFiles {
    let base = layer(dir, "base.tar", |tar| {
        file(tar, "bin/busybox", 0o755, &std::fs::read(busybox()).unwrap());
        for tool in TOOLS {
            let mut link = tar::Header::new_gnu();
            link.set_entry_type(tar::EntryType::Symlink);
            link.set_size(0);
            tar.append_link(&mut link, format!("bin/{tool}"), "busybox").unwrap();
        }
        file(tar, "etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/tmp:/bin/sh\n");
        let mut dir = tar::Header::new_gnu();
        dir.set_entry_type(tar::EntryType::Directory);
        dir.set_size(0);
        dir.set_mode(0o1777);
        tar.append_data(&mut dir, "tmp/", std::io::empty()).unwrap();
    });
    let top = layer(dir, &format!("top-{}.tar", tag.replace([':', '/'], "_")), |tar| file(tar, "text", 0o644, text.as_bytes()));
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [base.0, top.0] },
        "history": [ { "created_by": "base" }, { "created_by": "top" } ],
    });
    ImageFiles { tag: tag.into(), config: config.to_string().into(), layers: vec![base, top] }
}

/// A Docker engine with an installation that only this test has.
pub struct Docker {
    pub settings: DockerSettings,
    pub runtime: Option<Arc<DockerRuntime>>,
    pub image: ImageRef,
    /// The image's name, which only this test has; its content is the same for all.
    pub tag: String,
}

impl Docker {
    pub async fn new(name: &str) -> Self {
        let settings = DockerSettings::local(format!("test-{name}-{}", std::process::id()));
        let runtime = Arc::new(DockerRuntime::connect(settings.clone()).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let tag = format!("flex-test/{name}:{}", std::process::id());
        let image = runtime.import(image_files(dir.path(), &tag, "base")).await.expect("importing the test image");
        Self { settings, runtime: Some(runtime), image, tag }
    }

    pub fn docker(&self) -> Arc<DockerRuntime> {
        self.runtime.clone().unwrap()
    }

    /// Removes all that the installation made, and this test's name of the image.
    pub async fn clean_up(self) {
        self.docker().purge().await.expect("cleaning up");
        self.docker().remove_image(&self.tag).await.expect("removing the test image");
    }
}

#[async_trait]
impl World for Docker {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.docker()
    }
    fn image(&self) -> ImageRef {
        self.image.clone()
    }
    async fn restart(&mut self) {
        self.runtime = None;
        self.runtime = Some(Arc::new(DockerRuntime::connect(self.settings.clone()).unwrap()));
    }
}

/// Runs a test body, cleans up also when it panics, then passes the panic on.
pub async fn with_docker(name: &str, body: impl AsyncFnOnce(&mut Docker)) {
    let mut docker = Docker::new(name).await;
    let outcome = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(body(&mut docker))).await;
    docker.clean_up().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
