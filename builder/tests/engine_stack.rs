//! Stacks on a real engine: made once, then only looked up; from packages and over an image.

#[allow(dead_code, reason = "each test file uses a part of it")]
mod engine_support;

use engine_support::{World, world};
use flex_builder::{BuildSettings, StackBuilder, StackError};
use flex_model::Command;
use flex_runtime::Runtime;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::sync::mpsc;

fn recipe(dir: &Path, text: &str) -> std::path::PathBuf {
    let dir = dir.join("recipe");
    fs::create_dir_all(dir.join("rootfs/opt/flex")).unwrap();
    fs::write(dir.join("stack.toml"), text).unwrap();
    engine_support::script(&dir.join("rootfs/opt/flex/launch"), "exec bash -c \"$1\"");
    dir
}

/// A folder with an authority of the company's own, a level down; and its certificate.
fn authority(dir: &Path) -> (PathBuf, String) {
    let made = rcgen::generate_simple_self_signed(vec!["company.example".into()]).unwrap().cert.pem();
    let folder = dir.join("certificates");
    fs::create_dir_all(folder.join("company")).unwrap();
    fs::write(folder.join("company/root.crt"), &made).unwrap();
    (folder, made)
}

/// What programs in an image trust.
async fn bundle(w: &World, image: &str) -> String {
    let image = flex_model::ImageRef { reference: image.into(), manifest: None };
    w.run(&image, Command::Exec(vec!["/bin/cat".into(), "/etc/ssl/certs/ca-certificates.crt".into()])).await.0
}

#[tokio::test]
async fn a_stack_of_packages_is_complete_and_made_once() {
    // Every world makes the small stack, or finds it made.
    let w = world(|_| {}).await;
    let builder = StackBuilder::new(w.builder.settings().clone(), w.runtime.clone());
    let (log, _lines) = mpsc::channel(64);
    let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mini");
    let (record, made) = builder.build(&mini, false, log).await.unwrap();
    assert!(!made, "nothing changed, so nothing is made");
    assert_eq!(builder.list().unwrap().iter().find(|s| s.name == "flex-mini"), Some(&record));
    assert_eq!((record.run.layers.len(), record.build.layers.len()), (1, 2));
    assert_eq!(record.run.layers, record.build.layers[..1]);
    assert!(record.has_launcher && record.build.plain_bytes > record.run.plain_bytes);
    for tag in ["flex/flex-mini:run", "flex/flex-mini:build", &record.run.id, &record.build.id] {
        assert!(w.runtime.has_image(tag).await.unwrap(), "{tag}");
    }
    let dir = w.builder.settings().data_dir.join("stacks/flex-mini");
    let packages = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    assert!(packages("run.packages").lines().any(|l| l.starts_with("bash ")));
    assert!(!packages("run.packages").contains("\ngit ") && packages("build.packages").contains("\ngit "));

    let image = flex_model::ImageRef { reference: record.run.id.clone(), manifest: None };
    let look = "id -u; id -un; pwd; ls /usr/share/man /usr/share/locale 2>/dev/null | grep -v locale.alias | grep -c .; \
                stat -c '%U %a' /app /opt/flex/launch; ls /usr/share/doc/bash; find / -xdev -newermt @1754697601 -type f 2>/dev/null | \
                grep -v -E '^/(.dockerenv|proc|sys|dev|etc/(hosts|hostname|resolv.conf))' | head -3";
    let (said, _) = w.run(&image, Command::Exec(vec!["/bin/bash".into(), "-c".into(), look.into()])).await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["10001", "app", "/app"], "{said}");
    assert!(lines[3].parse::<u32>().unwrap() < 20, "documentation is left out: {said}");
    assert_eq!(lines[4..], ["app 755", "root 755", "copyright"], "{said}");
}

#[tokio::test]
async fn a_stack_over_an_image_builds_and_runs() {
    let w = world(|_| {}).await;
    let (certificates, trusted) = authority(w.dir.path());
    let own = BuildSettings { data_dir: w.dir.path().join("own"), certificates, ..w.builder.settings().clone() };
    let builder = StackBuilder::new(own.clone(), w.runtime.clone());
    let name = format!("over-{:x}", std::process::id());
    let text = format!("name = \"{name}\"\nbase_image = \"docker-daemon:flex/flex-mini:build\"\n");
    let (log, _lines) = mpsc::channel(64);
    let dir = recipe(w.dir.path(), &text);
    let (record, made) = builder.build(&dir, false, log.clone()).await.unwrap();
    assert!(made && record.has_launcher);
    assert_eq!(record.run.layers.len(), 3);
    let image = flex_model::ImageRef { reference: record.run.id.clone(), manifest: None };
    assert_eq!(w.run(&image, Command::Launch("id -un; pwd".into())).await, ("app\n/app\n".into(), 0));
    let all = bundle(&w, &record.run.id).await;
    assert!(all.contains(trusted.trim()) && all.matches("BEGIN CERTIFICATE").count() > 10, "{all}");
    assert!(!builder.build(&dir, false, log.clone()).await.unwrap().1);
    // An engine that somebody cleaned up has the images again for the next build. The command's container is removed
    // behind its exit status.
    w.soon("the image is in no use", async || w.runtime.remove_image(&record.build.id).await.is_ok()).await;
    assert!(!w.runtime.has_image(&record.build.id).await.unwrap());
    let apps = flex_builder::Builder::new(own, w.runtime.clone());
    let prepared = apps.prepare(w.next_build(), w.app, &name.parse().unwrap()).await.unwrap();
    assert!(w.runtime.has_image(&record.build.id).await.unwrap());
    drop(prepared);
    w.no_sandbox_left().await;
    // Another file of the recipe, another stack.
    fs::write(dir.join("rootfs/note"), "x").unwrap();
    let (again, made) = builder.build(&dir, false, log.clone()).await.unwrap();
    assert!(made && again.run.id != record.run.id && again.run.layers[..2] == record.run.layers[..2]);
    let wrong = recipe(w.dir.path(), "name = \"over\"\nbase_image = \"docker-daemon:flex/absent:1\"\n");
    let e = builder.build(&wrong, false, log).await.unwrap_err();
    assert!(matches!(e, StackError::Build { .. }) && e.to_string().contains("flex/absent"), "{e}");
    for id in [&record.run.id, &again.run.id, &record.build.id, &again.build.id] {
        w.runtime.remove_image(id).await.unwrap();
    }
}

/// The same packages give the same images, on another day and in another place, and a lock holds them to it. What the
/// machine trusts, they trust.
#[tokio::test]
async fn the_same_packages_make_the_same_stack() {
    let w = world(|_| {}).await;
    let name = format!("twice-{:x}", std::process::id());
    let text = format!("name = \"{name}\"\n[run]\npackages = [\"bash\", \"ca-certificates\"]\n[build]\npackages = [\"make\"]\n");
    let dir = recipe(w.dir.path(), &text);
    let (log, mut lines) = mpsc::channel(64);
    let below = format!(" {}/", w.dir.path().display());
    let looking = tokio::spawn(async move {
        let mut looks = 0;
        while lines.recv().await.is_some() {
            // What is mounted for it is mounted nowhere else, so that a making that is killed leaves nothing behind.
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(&below), "{mounts}");
            looks += 1;
        }
        looks
    });
    let (certificates, trusted) = authority(w.dir.path());
    let make_in = |folder: &str| {
        let (data_dir, certificates) = (w.dir.path().join(folder), certificates.clone());
        let own = BuildSettings { data_dir, certificates, ..w.builder.settings().clone() };
        StackBuilder::new(own, w.runtime.clone())
    };
    let first = make_in("first");
    let e = first.build_locked(&dir, false, log.clone()).await.unwrap_err();
    assert!(e.to_string().contains("stack.lock") && e.to_string().contains("flexd stack lock"), "{e}");
    let (one, made) = first.build(&dir, false, log.clone()).await.unwrap();
    let lock = first.lock_of(&one).unwrap();
    assert!(made && lock.run.contains_key("bash") && lock.build.contains_key("make") && !lock.run.contains_key("make"));
    for image in [&one.run.id, &one.build.id] {
        let all = bundle(&w, image).await;
        assert!(all.contains(trusted.trim()) && all.matches("BEGIN CERTIFICATE").count() > 10, "{all}");
    }
    fs::write(dir.join("stack.lock"), lock.text().unwrap()).unwrap();
    assert!(!first.build_locked(&dir, false, log.clone()).await.unwrap().1, "it has the versions of the lock");

    let (two, made) = make_in("second").build_locked(&dir, false, log).await.unwrap();
    assert!(made && looking.await.unwrap() > 10);
    assert_eq!((&one.run, &one.build), (&two.run, &two.build));
    assert_eq!(first.list().unwrap(), std::slice::from_ref(&one));
    for id in [&one.build.id, &one.run.id] {
        w.runtime.remove_image(id).await.unwrap();
    }
}
