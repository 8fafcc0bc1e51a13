//! A full disk under the data directory.

use crate::tiny;
use crate::world::{Steady, files, is_sound, list, noise, push_page};
use flex_tests::{Ran, Repo, Server, Setup, User};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of a fixed size in memory.
struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    fn mount(mib: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("flex-small-").tempdir().unwrap();
        let options = format!("size={mib}m,mode=700");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).status().unwrap();
        assert!(done.success(), "mounting needs root");
        Self { dir }
    }

    /// Writes until nothing more fits.
    fn fill(&self) -> Filler {
        let filler = Filler(self.dir.path().join("filler"));
        let mut file = std::fs::File::create(&filler.0).unwrap();
        for size in [1 << 20, 4 << 10, 1] {
            let piece = vec![b'x'; size];
            while file.write_all(&piece).is_ok() {}
        }
        filler
    }

    /// Writes until no more than this is left.
    fn leave(&self, mib: u64) -> Filler {
        let filler = Filler(self.dir.path().join("filler"));
        let mut file = std::fs::File::create(&filler.0).unwrap();
        let piece = vec![b'x'; 64 << 10];
        while self.free() > mib << 20 {
            file.write_all(&piece).unwrap();
        }
        filler
    }

    /// Bytes.
    fn free(&self) -> u64 {
        let fs = nix::sys::statvfs::statvfs(self.path()).unwrap();
        fs.blocks_available() * fs.fragment_size()
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// What takes the room; it gives it back when it goes.
struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

/// A server whose data directory lies there.
fn on(small: &Small) -> (Server, User) {
    let stack = Some((tiny::stacks(None), tiny::NAME.into()));
    let server = Server::start_with(Setup { data: Some(small.path().to_owned()), stack, ..Setup::default() });
    let user = server.admin();
    (server, user)
}

#[test]
fn a_full_disk_refuses_and_recovers_without_a_restart() {
    let small = Small::mount(96);
    let (server, user) = on(&small);
    let app = user.repo("full", &files("one"));
    app.push().ok();

    let client = Steady::on(server.http, "full", &["one", "two", "three"]);
    for (round, page) in [("one", "two"), ("two", "three")] {
        let filler = small.fill();
        app.commit(&files(page));
        let refused = app.push().fails_with("rejected");
        assert!(refused.err.contains("disk_full") && refused.err.contains("disk is full"), "{}", refused.err);
        // The store may have room of its own left. What it refuses it says, and what it takes it keeps.
        let set = app.flex(&["config:set", &format!("A={page}")]);
        assert!(set.status == 0 || set.err.contains("disk is full"), "{set:?}");
        assert_eq!(server.page("full", "/").body.trim(), round);
        app.flex(&["ps"]).ok();

        drop(filler);
        let kept = app.flex(&["config:get", "A"]).out.trim() == page;
        assert_eq!(kept, set.status == 0, "{set:?}");
        app.push().ok();
        assert_eq!(is_sound(&server, &app, &[page]), page);
        app.flex(&["config:set", &format!("B={page}")]).ok();
        is_sound(&server, &app, &[page]);
    }
    client.none_failed();
    push_page(&server, &app, "four");
    is_sound(&server, &app, &["four"]);
}

/// Enough for a push to be let in, and less than it needs.
const LEFT: u64 = 40;

/// The disk fills up while a pack is received, and while a slug is written: each is refused by that name, nothing of it
/// stays, and what was served is served on. With room again the same pushes go through.
#[test]
fn a_disk_that_fills_up_on_the_way() {
    let small = Small::mount(224);
    let (server, user) = on(&small);
    let app = user.repo("fills", &files("one"));
    app.push().ok();
    is_sound(&server, &app, &["one"]);
    let client = Steady::on(server.http, "fills", &["one", "two", "three"]);

    // Sixty megabytes of noise cannot be received …
    let large = app.dir.join("large");
    std::fs::create_dir(&large).unwrap();
    for n in 0..6 {
        std::fs::write(large.join(n.to_string()), noise(10 << 20)).unwrap();
    }
    app.commit(&files("two"));
    refused_midway(&small, &server, &app, "one", |_| true);
    // … and would not be kept: what was refused leaves with the next commit, and the history with it.
    app.git(&["reset", "-q", "--hard", "HEAD~1"]).ok();

    // A small push whose build makes as much: received, compiled, and then not to be stored.
    let compile = format!("{}head -c 60000000 /dev/urandom >\"$1/large\"\n", crate::world::COMPILE);
    let mut all = files("two").to_vec();
    all[1].1 = &compile;
    app.commit(&all);
    let compiles = |ran: &Ran| ran.err.contains("-----> Compiling");
    refused_midway(&small, &server, &app, "one", compiles);
    assert_eq!(list(&app, &["builds"]).iter().filter(|b| b["status"] == "failed").count(), 1);

    app.push().ok();
    assert_eq!(is_sound(&server, &app, &["two"]), "two");
    push_page(&server, &app, "three");
    is_sound(&server, &app, &["three"]);
    client.none_failed();
}

/// Pushes with little room; what was served is served on.
#[track_caller]
fn refused_midway(small: &Small, server: &Server, app: &Repo<'_>, page: &str, is_midway: impl Fn(&Ran) -> bool) {
    let before = small.free();
    let releases = list(app, &["releases"]).len();
    let filler = small.leave(LEFT);
    let ran = app.push().fails_with("rejected");
    // Not at the door, which says how much is left.
    assert!(ran.err.contains("disk is full") && ran.err.contains("[disk_full]") && !ran.err.contains("MiB left"), "{}", ran.err);
    assert!(is_midway(&ran), "{}", ran.err);
    assert_eq!(list(app, &["releases"]).len(), releases);
    is_sound(server, app, &[page]);
    drop(filler);
    let lost = before.saturating_sub(small.free());
    assert!(lost < 8 << 20, "what was refused has left {} KiB", lost >> 10);
}

/// Changes of config on a disk without a byte left, until the store has used up the room that it had: each is refused with
/// the reason and changes nothing, or done and kept.
#[test]
fn a_change_on_a_full_disk_is_refused_or_kept() {
    let small = Small::mount(96);
    let (server, user) = on(&small);
    let app = user.repo("config", &files("one"));
    app.push().ok();
    let value = |n: u32| format!("{n}-{}", noise(10 << 10).iter().map(|b| format!("{b:02x}")).collect::<String>());
    let mut kept = value(0);
    app.flex(&["config:set", "--no-restart", &format!("A={kept}")]).ok();
    let releases = || list(&app, &["releases", "-n", "1000"]).len();
    let mut count = releases();
    let filler = small.fill();
    let mut refused = 0;
    for n in 1..200 {
        let next = value(n);
        let ran = app.flex(&["config:set", "--no-restart", &format!("A={next}")]);
        if ran.status == 0 {
            (kept, count) = (next, count + 1);
            continue;
        }
        assert!(ran.err.contains("disk is full") && ran.err.contains("Nothing was changed"), "{}", ran.err);
        assert_eq!(app.flex(&["config:get", "A"]).ok().out.trim(), kept, "after {n} changes");
        assert_eq!(releases(), count, "after {n} changes");
        refused += 1;
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3, "the store always found room");
    assert_eq!(server.page("config", "/").body.trim(), "one");
    drop(filler);
    assert_eq!(app.flex(&["config:get", "A"]).ok().out.trim(), kept);
    app.flex(&["config:set", "A=short"]).ok();
    assert_eq!(app.flex(&["run", "echo $A"]).ok().out.trim(), "short");
    is_sound(&server, &app, &["one"]);
    push_page(&server, &app, "two");
    is_sound(&server, &app, &["two"]);
}
