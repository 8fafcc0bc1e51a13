//! A Docker engine with an installation that only one test has, and a small image made without a registry.

use flex_model::ImageRef;
use flex_runtime::{DockerRuntime, DockerSettings, ImageFiles, Runtime};
use sha2::{Digest, Sha256};
use std::{path::Path, sync::Arc};

/// The tools of the image; each is a link to one static busybox.
const TOOLS: &[&str] = &["sh", "sleep", "echo", "dd", "httpd"];

/// The same in every test and every run, so that the engine keeps one.
fn image_files(dir: &Path) -> ImageFiles {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|p| std::fs::read(p).ok());
    let busybox = busybox.expect("these tests need Debian's package busybox-static: apt-get install -y busybox-static");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(busybox.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/busybox", &*busybox).unwrap();
    for tool in TOOLS {
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, format!("bin/{tool}"), "busybox").unwrap();
    }
    let bytes = tar.into_inner().unwrap();
    let path = dir.join("layer.tar");
    std::fs::write(&path, &bytes).unwrap();
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    ImageFiles { tag: "flex-test/agent:base".into(), config: config.to_string().into(), layers: vec![(diff_id, path)] }
}

pub struct Docker {
    pub settings: DockerSettings,
    runtime: Arc<DockerRuntime>,
    pub image: ImageRef,
}

impl Docker {
    async fn new(name: &str) -> Self {
        let settings = DockerSettings::local(format!("test-{name}-{}", std::process::id()));
        let runtime = Arc::new(DockerRuntime::connect(settings.clone()).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let image = runtime.import(image_files(dir.path())).await.expect("importing the test image");
        Self { settings, runtime, image }
    }

    pub fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    /// A new runtime object for the same installation, as after a restart of the process.
    pub fn restart(&mut self) {
        self.runtime = Arc::new(DockerRuntime::connect(self.settings.clone()).unwrap());
    }
}

/// Runs a test body, removes all that its installation made also when it panics, then passes the panic on. The image stays.
pub async fn with_docker(name: &str, body: impl AsyncFnOnce(&mut Docker)) {
    let mut docker = Docker::new(name).await;
    let outcome = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(body(&mut docker))).await;
    docker.runtime.purge().await.expect("cleaning up");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
