//! Sources of every kind, and those that a hostile pusher or uploader would send.

use super::*;
use crate::Limit;
use std::io::{Cursor, Read, Write};
use tar::EntryType;

fn settings(dir: &std::path::Path) -> BuildSettings {
    BuildSettings { source_entries: 50, source_bytes: 64 << 20, ..BuildSettings::new(dir, dir) }
}

fn at(now: u64) -> Place {
    Place { prefix: "", now }
}

/// A tar whose paths are written as given, however wrong they are.
fn tar_of(entries: &[(&str, EntryType, u32, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, kind, mode, text) in entries {
        tar.append(&header(path, *kind, *mode, text), if is_link(*kind) { &b""[..] } else { text.as_bytes() }).unwrap();
    }
    tar.into_inner().unwrap()
}

fn is_link(kind: EntryType) -> bool {
    matches!(kind, EntryType::Symlink | EntryType::Link)
}

fn header(path: &str, kind: EntryType, mode: u32, text: &str) -> tar::Header {
    let mut h = tar::Header::new_gnu();
    h.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    h.set_entry_type(kind);
    h.set_mode(mode);
    h.set_mtime(1_700_000_000);
    if is_link(kind) {
        h.set_link_name_literal(text).unwrap();
        h.set_size(0);
    } else {
        h.set_size(text.len() as u64);
    }
    h.set_cksum();
    h
}

/// A tree with the directory that its temporary files are in.
struct Held(SourceTree, #[expect(dead_code, reason = "removed when dropped")] tempfile::TempDir);

impl std::ops::Deref for Held {
    type Target = SourceTree;
    fn deref(&self) -> &SourceTree {
        &self.0
    }
}

fn read_bytes(bytes: &[u8]) -> Result<Held, BuildError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("upload");
    std::fs::write(&path, bytes).unwrap();
    let tree = read(&Source::Archive(path), &settings(dir.path()), at(1_800_000_000))?;
    Ok(Held(tree, dir))
}

/// Path, type, mode and text of every entry.
fn listing(tree: &SourceTree) -> Vec<(String, char, u32, String)> {
    let mut archive = tar::Archive::new(std::fs::File::open(&tree.tar).unwrap());
    let mut out = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let h = entry.header().clone();
        assert_eq!((h.uid().unwrap(), h.gid().unwrap(), h.mtime().unwrap()), (10001, 10001, 1_800_000_000));
        let mut text = entry.link_name_bytes().map(|l| String::from_utf8_lossy(&l).into_owned()).unwrap_or_default();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        text.push_str(&String::from_utf8_lossy(&contents));
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        out.push((path, h.entry_type().as_byte() as char, h.mode().unwrap(), text));
    }
    out
}

fn names(tree: &SourceTree) -> Vec<String> {
    listing(tree).into_iter().map(|e| e.0).collect()
}

const F: EntryType = EntryType::Regular;
const D: EntryType = EntryType::Directory;

#[test]
fn an_ordinary_archive_becomes_a_tree() {
    let tar = tar_of(&[
        ("app-1/", D, 0o700, ""),
        ("app-1/Procfile", F, 0o600, "web: x\n"),
        ("app-1/bin/run", F, 0o4755, "#!/bin/sh\n"),
        ("app-1/link", EntryType::Symlink, 0o777, "/usr/bin/env"),
        ("app-1/same", EntryType::Link, 0o755, "app-1/bin/run"),
        ("app-1/.git/config", F, 0o644, "x"),
        ("app-1/.slugignore", F, 0o644, "*.psd\n"),
        ("app-1/a.psd", F, 0o644, "big"),
    ]);
    let tree = read_bytes(&tar).unwrap();
    assert_eq!(
        listing(&tree),
        [
            ("Procfile".into(), '0', 0o644, "web: x\n".into()),
            ("bin/".into(), '5', 0o755, String::new()),
            ("bin/run".into(), '0', 0o755, "#!/bin/sh\n".into()),
            ("link".into(), '2', 0o777, "/usr/bin/env".into()),
            ("same".into(), '1', 0o644, "bin/run".into()),
            (".slugignore".into(), '0', 0o644, "*.psd\n".into()),
        ]
    );
    assert_eq!(tree.epoch, 1_700_000_000);
    assert_eq!(tree.text("Procfile").unwrap(), Some("web: x\n"));
    assert!(tree.notes[0].contains("1 files left out"), "{:?}", tree.notes);
}

#[test]
fn one_top_directory_is_stripped_and_two_are_not() {
    assert_eq!(names(&read_bytes(&tar_of(&[("a/b/x", F, 0o644, "")])).unwrap()), ["b/", "b/x"]);
    assert_eq!(names(&read_bytes(&tar_of(&[("a/x", F, 0o644, ""), ("b", F, 0o644, "")])).unwrap()), ["a/", "a/x", "b"]);
    assert_eq!(names(&read_bytes(&tar_of(&[("./", D, 0o755, ""), ("./bin/x", F, 0o644, "")])).unwrap()), ["bin/", "bin/x"]);
}

#[test]
fn hostile_archives_are_refused_with_the_reason() {
    let s = EntryType::Symlink;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (tar_of(&[("../x", F, 0o644, "")]), "leaves the source"),
        (tar_of(&[("a/../../x", F, 0o644, "")]), "leaves the source"),
        (tar_of(&[("/etc/passwd", F, 0o644, "")]), "absolute"),
        (tar_of(&[("a", s, 0o777, "/etc"), ("a/passwd", F, 0o644, "x"), ("b", F, 0o644, "")]), "not a directory"),
        (tar_of(&[("a", s, 0o777, ".."), ("a/", D, 0o755, ""), ("b", F, 0o644, "")]), "twice"),
        (tar_of(&[("x", F, 0o644, ""), ("h", EntryType::Link, 0o644, "../../etc/shadow")]), "hard link"),
        (tar_of(&[("x", F, 0o644, ""), ("h", EntryType::Link, 0o644, "/etc/shadow")]), "hard link"),
        (tar_of(&[("x", s, 0o777, "/etc/shadow"), ("h", EntryType::Link, 0o644, "x")]), "hard link"),
        (tar_of(&[("dev", EntryType::Block, 0o666, "")]), "device"),
        (tar_of(&[("tty", EntryType::Char, 0o666, "")]), "device"),
        (tar_of(&[("p", EntryType::Fifo, 0o666, "")]), "named pipe"),
        (tar_of(&[("s", EntryType::GNUSparse, 0o666, "")]), "sparse"),
        (tar_of(&[("x", F, 0o644, "1"), ("x", F, 0o644, "2")]), "twice"),
        (tar_of(&[("d/", D, 0o755, "text"), ("e", F, 0o644, "")]), "not a file"),
        (b"PK\x03\x04 this is a zip".to_vec(), "not a tar"),
        (Vec::new(), "not a tar"),
        (vec![0; 1024], "empty"),
    ];
    for (bytes, says) in cases {
        let e = read_bytes(&bytes).err().unwrap();
        assert!(matches!(e, BuildError::User { .. }) && e.to_string().contains(says), "{says}: {e}");
    }
}

#[test]
fn a_size_stated_twice_differently_is_refused() {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("size", &b"0"[..])]).unwrap();
    tar.append(&header("x", F, 0o644, "hidden"), &b"hidden"[..]).unwrap();
    assert!(read_bytes(&tar.into_inner().unwrap()).err().unwrap().to_string().contains("two different sizes"));
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("path", &b"../../x"[..])]).unwrap();
    tar.append(&header("x", F, 0o644, ""), &b""[..]).unwrap();
    assert!(read_bytes(&tar.into_inner().unwrap()).err().unwrap().to_string().contains("leaves the source"));
}

#[test]
fn extended_headers_hide_nothing() {
    // What stands before an entry, and the entry itself.
    let pax = |records: &[(&str, &[u8])], path: &str, kind: EntryType, text: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append(&header("x", F, 0o644, ""), &b""[..]).unwrap();
        tar.append_pax_extensions(records.iter().copied()).unwrap();
        tar.append(&header(path, kind, 0o644, text), if is_link(kind) { &b""[..] } else { text.as_bytes() }).unwrap();
        tar.into_inner().unwrap()
    };
    let long = |kind: EntryType, name: &str, entry: tar::Header| {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append(&header("x", F, 0o644, ""), &b""[..]).unwrap();
        tar.append(&header("././@LongLink", kind, 0o644, name), name.as_bytes()).unwrap();
        tar.append(&entry, &b""[..]).unwrap();
        tar.into_inner().unwrap()
    };
    let global = |records: &[u8]| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut h = header("g", EntryType::XGlobalHeader, 0o644, "");
        h.set_size(records.len() as u64);
        h.set_cksum();
        tar.append(&h, records).unwrap();
        tar.append(&header("x", F, 0o644, ""), &b""[..]).unwrap();
        tar.into_inner().unwrap()
    };
    let huge = {
        let mut h = header("x", F, 0o644, "");
        h.set_size(1 << 62);
        h.set_cksum();
        [h.as_bytes().as_slice(), &[0; 1024]].concat()
    };
    let link = EntryType::Link;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (pax(&[("linkpath", b"/etc/shadow")], "h", link, "x"), "hard link"),
        (pax(&[("linkpath", b"../../etc/shadow")], "h", link, "x"), "hard link"),
        (pax(&[("path", b"/etc/cron.d/x")], "y", F, "z"), "absolute"),
        (pax(&[("path", b"a\0b")], "y", F, "z"), "NUL"),
        (pax(&[("path", b"x/y")], "y", F, "z"), "not a directory"),
        (pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], "y", F, "z"), "sparse"),
        (pax(&[("size", b"18446744073709551616")], "y", F, "z"), "no number"),
        (pax(&[("size", b"9000000000")], "y", F, "z"), "two different sizes"),
        (long(EntryType::GNULongName, "../../x", header("y", F, 0o644, "")), "leaves the source"),
        (long(EntryType::GNULongLink, "/etc/shadow", header("h", link, 0o644, "x")), "hard link"),
        (global(b"11 path=../x\n"), ""),
        (global(b"14 path=../xy\n"), "every entry"),
        (huge, ""),
    ];
    for (bytes, says) in cases {
        let e = read_bytes(&bytes).err().unwrap_or_else(|| panic!("taken, though it {says}"));
        assert!(!matches!(e, BuildError::Platform(_)) && e.to_string().contains(says), "{says}: {e}");
    }
    // A directory that is a link, by way of another link.
    let s = EntryType::Symlink;
    let through = tar_of(&[("d", s, 0o777, "/"), ("a", s, 0o777, "d"), ("a/etc/x", F, 0o644, "x"), ("y", F, 0o644, "")]);
    assert!(read_bytes(&through).err().unwrap().to_string().contains("not a directory"));
}

#[test]
fn bombs_meet_limits() {
    let gz = |write: &dyn Fn(&mut dyn Write)| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        write(&mut out);
        out.finish().unwrap()
    };
    // 48 MiB of zeros: within the size limit, far beyond the ratio.
    let bomb = gz(&|out| {
        let mut tar = tar::Builder::new(out);
        let mut h = header("zeros", F, 0o644, "");
        h.set_size(48 << 20);
        h.set_cksum();
        tar.append(&h, std::io::repeat(0).take(48 << 20)).unwrap();
    });
    assert!(bomb.len() < 100 << 10);
    assert!(read_bytes(&bomb).err().unwrap().to_string().contains("200 times"));
    let many: Vec<String> = (0..60).map(|i| format!("f{i}")).collect();
    let entries: Vec<_> = many.iter().map(|n| (n.as_str(), F, 0o644, "")).collect();
    assert!(matches!(read_bytes(&tar_of(&entries)).err().unwrap(), BuildError::Limit { limit: Limit::Source, .. }));
    // A million repeated directories are no files, but they are entries.
    let dirs: Vec<_> = (0..300).map(|_| ("d/", D, 0o755, "")).collect();
    assert!(matches!(read_bytes(&tar_of(&dirs)).err().unwrap(), BuildError::Limit { limit: Limit::Source, .. }));
    // A long name of 1 GiB that is never there: refused before it is read.
    let mut h = header("././@LongLink", EntryType::GNULongName, 0o644, "");
    h.set_size(1 << 30);
    h.set_cksum();
    assert!(read_bytes(h.as_bytes()).err().unwrap().to_string().contains("64 KiB"));
    // A truncated archive.
    let whole = tar_of(&[("x", F, 0o644, "0123456789")]);
    assert!(matches!(read_bytes(&whole[..515]).err().unwrap(), BuildError::User { .. }));
}

#[test]
fn names_are_bytes() {
    let mut h = header("x", F, 0o644, "");
    h.as_old_mut().name[..3].copy_from_slice(b"a\xff\x01");
    h.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&h, &b""[..]).unwrap();
    let tree = read_bytes(&tar.into_inner().unwrap()).unwrap();
    let mut archive = tar::Archive::new(std::fs::File::open(&tree.tar).unwrap());
    assert_eq!(*archive.entries().unwrap().next().unwrap().unwrap().path_bytes(), *b"a\xff\x01");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]
    #[test]
    fn no_bytes_crash_the_reader(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0usize..2048) {
        let mut tar = tar_of(&[("a", F, 0o644, "hello"), ("b/c", F, 0o755, "x")]);
        let end = (at + noise.len()).min(tar.len());
        let at = at.min(end);
        tar[at..end].copy_from_slice(&noise[..end - at]);
        if let Ok(tree) = read_bytes(&tar) {
            for (path, kind, ..) in listing(&tree) {
                proptest::prop_assert!(!path.starts_with('/') && !path.split('/').any(|p| p == ".."), "{}", path);
                proptest::prop_assert!(matches!(kind, '0' | '1' | '2' | '5'));
            }
        }
    }
}

/// A bare repository with one commit of this tree.
fn repository(dir: &std::path::Path, files: &[(&str, i32, &str)]) -> (PathBuf, CommitId) {
    let path = dir.join("repo.git");
    let repo = git2::Repository::init_bare(&path).unwrap();
    let mut index = repo.index().unwrap();
    for (name, mode, text) in files {
        let id = if *mode == 0o160_000 {
            git2::Oid::from_str("00112233445566778899aabbccddeeff00112233").unwrap()
        } else {
            repo.blob(text.as_bytes()).unwrap()
        };
        let time = git2::IndexTime::new(0, 0);
        let entry = git2::IndexEntry {
            ctime: time,
            mtime: time,
            dev: 0,
            ino: 0,
            mode: u32::try_from(*mode).unwrap(),
            uid: 0,
            gid: 0,
            file_size: 0,
            id,
            flags: 0,
            flags_extended: 0,
            path: name.as_bytes().to_vec(),
        };
        index.add(&entry).unwrap();
    }
    let tree = repo.find_tree(index.write_tree().unwrap()).unwrap();
    let who = git2::Signature::new("t", "t@example.com", &git2::Time::new(1_750_000_000, 0)).unwrap();
    let id = repo.commit(Some("refs/heads/main"), &who, &who, "x", &tree, &[]).unwrap();
    (path, id.to_string().parse().unwrap())
}

#[test]
fn a_commit_becomes_a_tree() {
    let dir = tempfile::tempdir().unwrap();
    let (repository, commit) = repository(
        dir.path(),
        &[
            ("bin/compile", 0o100_755, "#!/bin/sh\n"),
            ("bin/detect", 0o100_755, "x"),
            ("link", 0o120_000, "bin/compile"),
            ("lib", 0o160_000, ""),
            (".slugignore", 0o100_644, "/docs\n"),
            ("docs/a", 0o100_644, "a"),
        ],
    );
    let source = Source::Commit { repository, quarantine: None, commit };
    let tree = read(&source, &settings(dir.path()), at(1_800_000_000)).unwrap();
    assert_eq!(names(&tree), [".slugignore", "bin/", "bin/compile", "bin/detect", "link"]);
    assert_eq!(tree.epoch, 1_750_000_000);
    assert!(tree.executable("bin/detect") && tree.executable("bin/compile"));
    assert!(tree.notes.iter().any(|n| n.contains("Submodule lib (0011223) is not fetched")), "{:?}", tree.notes);
}

#[test]
fn a_commit_in_quarantine_is_found_there_only() {
    let dir = tempfile::tempdir().unwrap();
    let (pushed, commit) = repository(dir.path(), &[("x", 0o100_644, "x")]);
    let empty = dir.path().join("empty.git");
    git2::Repository::init_bare(&empty).unwrap();
    let source = |quarantine| Source::Commit { repository: empty.clone(), quarantine, commit: commit.clone() };
    assert!(read(&source(None), &settings(dir.path()), at(0)).is_err());
    read(&source(Some(pushed.join("objects"))), &settings(dir.path()), at(0)).unwrap();
}

#[test]
fn trees_that_git_would_not_make_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = repository(dir.path(), &[("x", 0o100_644, "x")]);
    let repo = git2::Repository::open_bare(&path).unwrap();
    let blob = repo.blob(b"evil").unwrap();
    let odb = repo.odb().unwrap();
    for (mode, name) in [("100644", ".."), ("100644", "a/b"), ("040000", "."), ("100644", ".git")] {
        let mut raw = Cursor::new(Vec::new());
        write!(raw, "{mode} {name}\0").unwrap();
        raw.write_all(blob.as_bytes()).unwrap();
        let Ok(tree) = odb.write(git2::ObjectType::Tree, raw.get_ref()) else { continue };
        let text = format!("tree {tree}\nauthor t <t@e> 1 +0000\ncommitter t <t@e> 1 +0000\n\nx");
        let commit = odb.write(git2::ObjectType::Commit, text.as_bytes()).unwrap();
        let commit: CommitId = commit.to_string().parse().unwrap();
        let source = Source::Commit { repository: path.clone(), quarantine: None, commit };
        let e = read(&source, &settings(dir.path()), at(0)).err().unwrap();
        assert!(matches!(e, BuildError::User { .. }), "{name}: {e}");
    }
}
