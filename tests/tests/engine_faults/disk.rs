//! A full disk under the data directory.

use crate::tiny;
use crate::world::{Steady, files, is_sound, push_page};
use flex_tests::{Server, Setup};
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
    fn fill(&self) -> PathBuf {
        let path = self.dir.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [1 << 20, 4 << 10, 1] {
            let piece = vec![b'x'; size];
            while file.write_all(&piece).is_ok() {}
        }
        path
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_and_recovers_without_a_restart() {
    let small = Small::mount(96);
    let setup =
        Setup { data: Some(small.path().to_owned()), stack: Some((tiny::stacks(None), tiny::NAME.into())), ..Setup::default() };
    let server = Server::start_with(setup);
    let user = server.admin();
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

        std::fs::remove_file(filler).unwrap();
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
