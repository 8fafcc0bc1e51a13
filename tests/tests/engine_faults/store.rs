//! A damaged store: `flexd` starts with all that it acknowledged or not at all, and what it says then is what recovers.

use crate::world::{files, is_sound, push_page, world};
use flex_tests::{Repo, Server, Setup, binary, wait_for};
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What is done to the files below `state/`.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// The log is cut to this many thousandths of its length.
    Truncated(u64),
    /// 64 bytes at this many thousandths of the log's length are other ones.
    Flipped(u64),
    /// As from a bad sector: a page of zeros.
    Zeroed(u64),
    LogDeleted,
    StoreDeleted,
    StateDeleted,
    /// With the note of what was acknowledged.
    AllDeleted,
}

fn inflict(damage: Damage, data: &Path) {
    let log = data.join("state/sled/db");
    let patch = |at: u64, bytes: &[u8]| {
        let file = File::options().write(true).open(&log).unwrap();
        let length = file.metadata().unwrap().len();
        file.write_all_at(bytes, length * at / 1000).unwrap();
    };
    match damage {
        Damage::Truncated(part) => {
            let file = File::options().write(true).open(&log).unwrap();
            file.set_len(file.metadata().unwrap().len() * part / 1000).unwrap();
        }
        Damage::Flipped(at) => patch(at, &[0xa5; 64]),
        Damage::Zeroed(at) => patch(at, &[0; 4096]),
        Damage::LogDeleted => fs::remove_file(&log).unwrap(),
        Damage::StoreDeleted => fs::remove_dir_all(data.join("state/sled")).unwrap(),
        Damage::StateDeleted => fs::remove_dir_all(data.join("state")).unwrap(),
        Damage::AllDeleted => {
            fs::remove_dir_all(data.join("state/sled")).unwrap();
            fs::remove_file(data.join("state.head")).unwrap();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Has a shell run the command that flexd printed, letter for letter and with no setting beside it.
fn obey(said: &str) -> String {
    let start = said.find("flexd restore ").or_else(|| said.find("flexd store convert "));
    let line = said[start.unwrap_or_else(|| panic!("no command to recover with: {said}"))..].lines().next().unwrap();
    assert!(!line.ends_with(" FILE"), "the command names no file: {line}");
    let path = format!("{}:/usr/bin:/bin", binary("flexd").parent().unwrap().display());
    let out = Command::new("sh").args(["-c", line]).env_clear().env("PATH", path).stdin(Stdio::null()).output().unwrap();
    let printed = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{line}: {printed}");
    printed
}

#[test]
fn a_damaged_store_is_refused_and_restored() {
    let (mut server, user) = world(Setup::default());
    let app = user.repo("store", &files("one"));
    app.push().ok();
    is_sound(&server, &app, &["one"]);
    user.flex(&["create", "older"]).ok();
    // The end of a process writes a snapshot; what comes after it is in the store alone.
    server.end(Signal::SIGTERM);
    server.up();
    user.flex(&["create", "newer"]).ok();
    let before = server.containers();
    server.end(Signal::SIGKILL);
    let (data, aside) = (server.data_dir().to_owned(), tempfile::tempdir().unwrap());
    let parts: Vec<PathBuf> = ["state", "state.head", "agent", "router"].iter().map(|p| data.join(p)).collect();
    for part in &parts {
        copy(part, &aside.path().join(part.file_name().unwrap()));
    }

    let damages = [
        Damage::Truncated(500),
        Damage::Truncated(0),
        Damage::Truncated(40),
        Damage::Flipped(2),
        Damage::Flipped(10),
        Damage::Flipped(25),
        Damage::Zeroed(0),
        Damage::Zeroed(15),
        Damage::LogDeleted,
        Damage::StoreDeleted,
        Damage::StateDeleted,
        Damage::AllDeleted,
    ];
    let mut refused = 0;
    for damage in damages {
        for part in &parts {
            copy(&aside.path().join(part.file_name().unwrap()), part);
        }
        inflict(damage, &data);
        match server.try_up() {
            // It hit nothing that is in use: then nothing may be missing.
            Ok(()) => has_apps(&app, &["newer", "older", "store"]),
            Err(said) => {
                refused += 1;
                assert!(said.contains("unning apps are not touched"), "{damage:?}: {said}");
                assert_eq!(server.containers(), before, "{damage:?}");
                let printed = obey(&said);
                println!("{damage:?}: {}{printed}", said.lines().last().unwrap_or_default());
                server.up();
                has_apps(&app, &["older", "store"]);
            }
        }
        is_sound(&server, &app, &["one"]);
        assert_eq!(server.containers(), before, "{damage:?}: the app was not adopted");
        server.end(Signal::SIGKILL);
    }
    assert!(refused >= 6, "only {refused} damages were noticed");
    server.up();
    push_page(&server, &app, "two");
    is_sound(&server, &app, &["two"]);
}

#[test]
fn the_printed_command_recovers_with_nothing_else_said() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("it's a directory");
    fs::create_dir(&data).unwrap();
    let env = vec![("FLEXD_STORE", "redb".to_owned())];
    let mut server = Server::prepare(Setup { data: Some(data.clone()), env, ..Setup::default() });
    server.up();
    server.token("operator@example.com", true);
    for damage in ["cut off", "gone"] {
        server.end(Signal::SIGTERM);
        if damage == "gone" {
            fs::remove_dir_all(data.join("state")).unwrap();
        } else {
            let file = File::options().write(true).open(data.join("state/redb/state.redb")).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }
        let said = server.try_up().expect_err(damage);
        obey(&said);
        server.up();
        assert!(data.join("state/redb").exists() && !data.join("state/sled").exists(), "{damage}");
    }
    // Without the setting, what is printed makes it unnecessary.
    server.end(Signal::SIGTERM);
    let any = ["--api", "127.0.0.1:0", "--http", "127.0.0.1:0", "--https", "off", "--ssh", "127.0.0.1:0"];
    let out = flex_tests::flexd(&data).args(any).output().unwrap();
    obey(&String::from_utf8_lossy(&out.stderr));
    assert!(data.join("state/sled").exists() && !data.join("state/redb").exists());
}

/// These apps are there, and no others.
#[track_caller]
fn has_apps(app: &Repo<'_>, names: &[&str]) {
    wait_for(&format!("the apps {names:?}"), Duration::from_secs(5), || {
        let mut found: Vec<String> =
            crate::world::list(app, &["apps"]).iter().map(|a| a["name"].as_str().unwrap().to_owned()).collect();
        found.sort();
        (found == names).then_some(())
    });
}
