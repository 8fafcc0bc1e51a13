//! Images come in by the shortest way, in every form that layers have, and are what they say.

use super::{Docker, file, image_files, with_docker};
use flex_model::Memory;
use flex_runtime::{DockerfileSpec, ImageFiles, Runtime, RuntimeError, contract::World};
use futures_util::{StreamExt, stream};
use std::{collections::BTreeMap, io::Write, path::Path, sync::Arc};

async fn remove(docker: &Docker, files: &ImageFiles) {
    docker.docker().remove_image(&files.tag).await.unwrap();
}

fn unique(name: &str) -> String {
    format!("flextest/runtime-{name}:{}", std::process::id())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_that_the_engine_has_are_not_read() {
    with_docker("layers", async |docker| {
        let dir = tempfile::tempdir().unwrap();
        let mut files = image_files(dir.path(), &unique("skip"), "not read");
        // The test image brought this layer in; its file is not needed.
        files.layers[0].1 = "/nonexistent".into();
        let image = docker.docker().import(files.clone()).await.unwrap();
        assert!(docker.docker().has_image(&image.reference).await.unwrap());
        assert!(docker.docker().has_image(&files.tag).await.unwrap());
        assert_eq!(docker.docker().import(files.clone()).await.unwrap(), image, "again is the same");
        remove(docker, &files).await;
        assert!(!docker.docker().has_image(&image.reference).await.unwrap());
        remove(docker, &files).await;
    })
    .await;
}

/// An image whose base layer no engine has.
fn fresh(dir: &Path, name: &str) -> ImageFiles {
    let mut files = image_files(dir, &unique(name), name);
    let base = super::layer(dir, "fresh.tar", |tar| {
        file(tar, "bin/busybox", 0o755, &std::fs::read(super::busybox()).unwrap());
        file(tar, "nonce", 0o644, format!("{name} {} {:?}", std::process::id(), std::time::SystemTime::now()).as_bytes());
    });
    let mut config: serde_json::Value = serde_json::from_slice(&files.config).unwrap();
    config["rootfs"]["diff_ids"][0] = base.0.clone().into();
    files.config = config.to_string().into();
    files.layers[0] = base;
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_that_it_lacks_are_sent_in_every_form() {
    with_docker("forms", async |docker| {
        for form in ["plain", "gzip", "zstd"] {
            let dir = tempfile::tempdir().unwrap();
            let mut files = fresh(dir.path(), form);
            for (_, path) in &mut files.layers {
                let bytes = std::fs::read(&path).unwrap();
                let packed = match form {
                    "gzip" => {
                        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                        gz.write_all(&bytes).unwrap();
                        gz.finish().unwrap()
                    }
                    "zstd" => zstd::encode_all(&bytes[..], 1).unwrap(),
                    _ => bytes,
                };
                std::fs::write(&path, packed).unwrap();
            }
            let image = docker.docker().import(files.clone()).await.unwrap_or_else(|e| panic!("{form}: {e}"));
            assert!(docker.docker().has_image(&image.reference).await.unwrap(), "{form}");
            remove(docker, &files).await;
            // Forgotten by the engine, though not by us: sent anew.
            assert_eq!(docker.docker().import(files.clone()).await.unwrap(), image, "{form}");
            remove(docker, &files).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_as_it_says_is_refused() {
    with_docker("wrong", async |docker| {
        let dir = tempfile::tempdir().unwrap();
        let files = fresh(dir.path(), "wrong");
        let mut swapped = files.clone();
        swapped.layers[1].1 = files.layers[0].1.clone();
        assert!(matches!(docker.docker().import(swapped).await, Err(RuntimeError::Refused(_))), "another file than named");
        let mut gone = files.clone();
        gone.layers[1].1 = dir.path().join("gone");
        let error = docker.docker().import(gone).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Refused(why) if why.contains("gone")), "{error}");
        assert!(!docker.docker().has_image(&files.tag).await.unwrap());
        let error = docker.docker().pull("127.0.0.1:9/none:1").await.unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
        let image = docker.docker().pull(&docker.tag).await.unwrap();
        assert_eq!(image.reference, docker.image().reference, "what is there is not pulled");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dockerfiles_build_and_say_why_not() {
    with_docker("dockerfile", async |docker| {
        let base = docker.tag.clone();
        let context = |dockerfile: &str| {
            let dockerfile = format!("FROM {base}\n{dockerfile}");
            let mut tar = tar::Builder::new(Vec::new());
            file(&mut tar, "Dockerfile", 0o644, dockerfile.as_bytes());
            stream::iter([Ok(bytes::Bytes::from(tar.into_inner().unwrap()))]).boxed()
        };
        let spec = |tag: &str| DockerfileSpec {
            tag: tag.into(),
            dockerfile: "Dockerfile".into(),
            args: BTreeMap::from([("MIRROR".to_owned(), "http://mirror".to_owned())]),
            memory: Memory::from_mib(256),
            pids: 60,
            cpu_millis: Some(1500),
            disk_bytes: 32 << 20,
            left: Arc::default(),
        };
        let tag = unique("built");
        let (log, mut lines) = tokio::sync::mpsc::channel(1000);
        let good = context("RUN echo building && echo x > /made\nCMD [\"/bin/sleep\",\"9\"]\n");
        let image = docker.docker().build_dockerfile(spec(&tag), good, log).await.unwrap();
        let mut all = Vec::new();
        while let Some(line) = lines.recv().await {
            all.push(line);
        }
        assert!(all.iter().any(|l| l == "building"), "{all:?}");
        assert!(image.reference.starts_with("sha256:") && docker.docker().has_image(&tag).await.unwrap());
        docker.docker().remove_image(&image.reference).await.unwrap();
        assert!(!docker.docker().has_image(&tag).await.unwrap());
        let (log, mut lines) = tokio::sync::mpsc::channel(1000);
        tokio::spawn(async move { while lines.recv().await.is_some() {} });
        let bad = context("RUN echo the last words; exit 3\n");
        let error = docker.docker().build_dockerfile(spec(&tag), bad, log).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Refused(why) if why.contains("returned a non-zero code: 3") && why.contains("last words")), "{error}");
        // What it writes is limited, in one step and in several; so is how many processes a step has.
        let fork = "RUN sleep 1; i=0; while [ $i -lt 100 ]; do sleep 9 & i=$((i+1)); done\n";
        let fill = "RUN dd if=/dev/zero of=/big bs=1M count=48 && sleep 20\n";
        let twice = "RUN dd if=/dev/zero of=/a bs=1M count=20\nRUN dd if=/dev/zero of=/b bs=1M count=20\nRUN sleep 20\n";
        for (text, says) in [(fork, "fork"), (fill, "32 MiB"), (twice, "32 MiB")] {
            let (log, mut lines) = tokio::sync::mpsc::channel::<String>(1000);
            let all = tokio::spawn(async move {
                let mut all = String::new();
                while let Some(line) = lines.recv().await {
                    all.push_str(&line);
                }
                all
            });
            let failed = docker.docker().build_dockerfile(spec(&tag), context(text), log).await;
            let said = format!("{} {failed:?}", all.await.unwrap());
            assert!(failed.is_err() && said.contains(says), "{text}: {said}");
        }
        // What an engine that was killed leaves behind is swept, and nothing else is.
        let network = format!("flex-{}-build", docker.settings.cluster);
        let left = format!("{network}-left");
        let run = std::process::Command::new("docker").args(["run", "-d", "--name", &left, "--network", &network, &base, "sleep", "99"]).status();
        assert!(run.unwrap().success());
        let held = docker.docker().sandbox(super::hardening::sandbox_spec(docker, "held")).await.unwrap();
        docker.docker().reap(&[]).await.unwrap();
        let there = std::process::Command::new("docker").args(["inspect", &left]).output().unwrap();
        assert!(!there.status.success(), "it is gone");
        held.exec(super::hardening::shell("true")).await.expect("the sandbox is there");
        held.destroy().await.unwrap();
        // A client that goes takes its build with it.
        let (log, mut lines) = tokio::sync::mpsc::channel(1);
        let slow = context("RUN echo begun; sleep 1000\n");
        let runtime = docker.docker();
        let build = tokio::spawn(async move { runtime.build_dockerfile(spec("flex-test/never:1"), slow, log).await });
        while lines.recv().await.is_some_and(|l| l != "begun") {}
        drop(lines);
        assert!(build.await.unwrap().is_err());
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        let steps = || std::process::Command::new("docker").args(["ps", "-q", "--filter", &format!("network={network}")]).output().unwrap();
        while !steps().stdout.is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "its container runs on");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}
