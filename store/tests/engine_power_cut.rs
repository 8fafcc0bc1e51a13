//! Power cuts: the store lies on a file system in a file; the writer is frozen, the file is copied (it holds just what was
//! really synced), and the copy is mounted and opened. Needs root and loop devices, as the engine's tests do.

mod common;

use common::{Writer, verify, writer};
use flex_store::Engine;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[test]
fn child() {
    writer();
}

fn run(program: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) {
    let out = Command::new(program).args(args.iter().map(|a| a.as_ref())).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A mounted image file; unmounted when it goes.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        run("mount", &[&"-o", &"loop", &image, &at]);
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // sled's own threads may hold its file for a moment after the last handle is gone.
        for _ in 0..100 {
            if Command::new("umount").arg(&self.0).status().is_ok_and(|s| s.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Body of the control's writer: the same commits, in sled as it comes. It says that a commit is done when sled's own
/// `flush` has returned, which is what the store does but for its sync of the log.
fn bare_writer() {
    let Ok(dir) = std::env::var(common::DIR) else { return };
    let db = sled::Config::new().path(bare(Path::new(&dir))).flush_every_ms(None).mode(sled::Mode::LowSpace).open().unwrap();
    let mut out = std::io::stdout().lock();
    for n in 1_u64.. {
        let text = n.to_string();
        let mut batch = sled::Batch::default();
        batch.insert("n", text.as_bytes());
        batch.insert(format!("k/{}", n % 50).as_bytes(), format!("{text:width$}", width = (n % 700) as usize).as_bytes());
        db.apply_batch(batch).unwrap();
        db.flush().unwrap();
        writeln!(out, "acknowledged {n}").unwrap();
        out.flush().unwrap();
    }
}

fn bare(dir: &Path) -> PathBuf {
    dir.join("bare")
}

/// What the bare writer's newest commit is on a disk; none: it cannot be opened, or has nothing.
fn bare_count(dir: &Path) -> Option<u64> {
    // A log that a cut has torn may be more than sled can bear.
    let read = || -> Option<u64> {
        let db = sled::Config::new().path(bare(dir)).flush_every_ms(None).mode(sled::Mode::LowSpace).open().ok()?;
        std::str::from_utf8(&db.get("n").ok()??).ok()?.parse().ok()
    };
    std::panic::catch_unwind(read).ok().flatten()
}

#[test]
fn bare_child() {
    bare_writer();
}

/// The control: a power cut loses commits of sled as it comes, so that the cuts below show what the store's own sync is for,
/// and that this way of cutting would notice if it were missing.
#[test]
fn without_the_stores_sync_commits_are_lost() {
    let mut lost = 0;
    cut("bare_child", Engine::Sled, 50, |dir, acknowledged| {
        lost += u32::from(bare_count(dir).is_none_or(|n| n < acknowledged));
        lost < 3
    });
    assert!(lost > 0, "not one of 50 cuts lost a commit that was not synced: what do the other tests show?");
}

fn cuts(engine: Engine, cuts: u64) {
    cut("child", engine, cuts, |dir, acknowledged| {
        verify(dir, engine, acknowledged);
        true
    });
}

/// Cuts the power of a writer again and again, until `look` has seen enough of what is on the disk then.
fn cut(child: &str, engine: Engine, cuts: u64, mut look: impl FnMut(&Path, u64) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let (image, copy) = (dir.path().join("disk"), dir.path().join("copy"));
    std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
    run("mkfs.ext4", &[&"-q", &"-F", &image]);
    let disk = Mounted::new(&image, dir.path().join("mnt"));
    let mut writer = Writer::start(child, &disk.0, engine);
    let pid = Pid::from_raw(i32::try_from(writer.child.id()).unwrap());
    for cut in 0..cuts {
        writer.wait_beyond(writer.acknowledged() + 20);
        std::thread::sleep(Duration::from_micros(cut * 137 % 3000));
        kill(pid, Signal::SIGSTOP).unwrap();
        let acknowledged = writer.acknowledged();
        run("cp", &[&"--sparse=always", &image, &copy]);
        kill(pid, Signal::SIGCONT).unwrap();
        let after = Mounted::new(&copy, dir.path().join("after"));
        if !look(&after.0, acknowledged) {
            break;
        }
    }
    writer.kill();
}

#[test]
fn sled_survives_power_cuts() {
    cuts(Engine::Sled, 50);
}

#[test]
fn redb_survives_power_cuts() {
    cuts(Engine::Redb, 50);
}

/// The disk fills up: commits fail with the reason, nothing acknowledged is lost, and after making room the same process
/// goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_survived() {
    use flex_store::{StateStore, StoreError, Write, open};
    for engine in Engine::ALL {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("small");
        std::fs::create_dir_all(&at).unwrap();
        run("mount", &[&"-t", &"tmpfs", &"-o", &"size=40m", &"tmpfs", &at]);
        let disk = Mounted(at);
        let store = open(&disk.0, engine).unwrap();
        let ballast = disk.0.join("ballast");
        // New keys all the time, so that neither engine can go on in room that it already has.
        let mut kept = std::collections::BTreeMap::new();
        let mut commit = async |i: u64| {
            let byte = (i % 251) as u8;
            let result = store.commit(vec![], vec![Write::Put(format!("k/{i}"), vec![byte; 90 << 10])]).await;
            if result.is_ok() {
                kept.insert(format!("k/{i}"), byte);
            }
            result
        };
        for i in 0..60 {
            commit(i).await.unwrap();
        }
        // Whatever room is left goes to the ballast.
        let mut file = std::fs::File::create(&ballast).unwrap();
        while std::io::Write::write(&mut file, &[1; 64 << 10]).is_ok() {}
        let mut refused = 0;
        for i in 60..200 {
            if let Err(e) = commit(i).await {
                assert!(matches!(e, StoreError::Unavailable(_)), "{}: {e}", engine.name());
                refused += 1;
            }
            if refused == 5 {
                break;
            }
        }
        assert!(refused == 5, "{}: the disk did not fill", engine.name());
        drop(file);
        std::fs::remove_file(&ballast).unwrap();
        commit(1000).await.unwrap_or_else(|e| panic!("{} did not recover: {e}", engine.name()));
        drop(store);
        // sled's files for large pages are never synced: none may exist, however large the values are.
        let blobs = Engine::Sled.dir(&disk.0).join("blobs");
        assert!(std::fs::read_dir(blobs).map_or(true, |mut b| b.next().is_none()), "sled wrote blobs");
        let store = open(&disk.0, engine).unwrap();
        let have = store.list("k/").await.unwrap().0.into_iter().map(|e| (e.key.to_string(), e.value[0])).collect();
        assert_eq!(kept, have, "{}", engine.name());
    }
}
