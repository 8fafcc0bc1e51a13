//! A live data directory as a tar archive: files come, grow and go while it is read, and the archive is sound all the same.
//!
//! Each file goes in with the length that it had when it was opened; what has vanished is passed over; what is still being
//! written (drafts, quarantines of pushes, locks) is left out. Things that name others go in before those: a repository's refs
//! before its objects, an image's index before its blobs, so that whatever is named was there already and is in the archive.
//!
//! Must not: follow a link out of the directory, or take a file's length and its content from two different moments.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use tar::{EntryType, Header};

/// What an archive holds: read again, it must be the same.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    pub entries: u64,
    /// Content of its files.
    pub bytes: u64,
}

/// An archive that is being written.
pub struct Packer<W: Write> {
    tar: tar::Builder<W>,
    packed: Packed,
    /// Files with several names, by device and inode, and the name under which each is in already.
    linked: HashMap<(u64, u64), PathBuf>,
}

fn doing(what: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let text = format!("cannot {what} {}", path.display());
    move |e| format!("{text}: {e}")
}

/// `None`: it has vanished.
fn still_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

impl<W: Write> Packer<W> {
    pub fn new(out: W) -> Self {
        Self { tar: tar::Builder::new(out), packed: Packed::default(), linked: HashMap::new() }
    }

    /// Adds a file, or a folder with all that is in it, under a name. Says whether there was something to add.
    ///
    /// # Errors
    /// What cannot be read or written; the archive is of no use then.
    pub fn add(&mut self, path: &Path, name: &Path) -> Result<bool, String> {
        if is_unfinished(name) {
            return Ok(false);
        }
        let meta = still_there(fs::symlink_metadata(path)).map_err(doing("pack", path))?;
        match meta {
            None => Ok(false),
            Some(meta) if meta.is_dir() => self.add_folder(path, name, &meta),
            Some(meta) if meta.is_file() => self.add_file(path, name),
            Some(meta) if meta.is_symlink() => self.add_link(path, name, &meta),
            // Sockets and the like mean nothing elsewhere.
            Some(_) => Ok(false),
        }
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Its end cannot be written.
    pub fn finish(self) -> io::Result<(W, Packed)> {
        Ok((self.tar.into_inner()?, self.packed))
    }

    fn add_file(&mut self, path: &Path, name: &Path) -> Result<bool, String> {
        let Some(file) = still_there(File::open(path)).map_err(doing("pack", path))? else { return Ok(false) };
        let meta = file.metadata().map_err(doing("pack", path))?;
        let mut header = Header::new_gnu();
        header.set_metadata(&meta);
        let id = (meta.dev(), meta.ino());
        if let Some(first) = self.linked.get(&id) {
            header.set_entry_type(EntryType::Link);
            header.set_size(0);
            self.tar.append_link(&mut header, name, first).map_err(doing("pack", path))?;
            self.packed.entries += 1;
            return Ok(true);
        }
        let content = Exactly { from: file, left: meta.len() };
        self.tar.append_data(&mut header, name, content).map_err(doing("pack", path))?;
        self.packed.entries += 1;
        self.packed.bytes += meta.len();
        if meta.nlink() > 1 {
            self.linked.insert(id, name.to_owned());
        }
        Ok(true)
    }

    fn add_link(&mut self, path: &Path, name: &Path, meta: &Metadata) -> Result<bool, String> {
        let Some(to) = still_there(fs::read_link(path)).map_err(doing("pack", path))? else { return Ok(false) };
        let mut header = Header::new_gnu();
        header.set_metadata(meta);
        header.set_size(0);
        self.tar.append_link(&mut header, name, to).map_err(doing("pack", path))?;
        self.packed.entries += 1;
        Ok(true)
    }

    fn add_folder(&mut self, path: &Path, name: &Path, meta: &Metadata) -> Result<bool, String> {
        let mut header = Header::new_gnu();
        header.set_metadata(meta);
        header.set_size(0);
        self.tar.append_data(&mut header, name, io::empty()).map_err(doing("pack", path))?;
        self.packed.entries += 1;
        if place(name) == Place::Packs {
            return self.add_packs(path, name);
        }
        let mut children = list(path)?;
        children.sort_by_key(|child| (turn(name, child), child.clone()));
        for child in children {
            self.add(&path.join(&child), &name.join(&child))?;
        }
        Ok(true)
    }

    /// A repository's packs: each with its index or not at all, and until there are none but known ones, since git joins several
    /// in a new one before it deletes them.
    fn add_packs(&mut self, path: &Path, name: &Path) -> Result<bool, String> {
        let mut known = HashSet::new();
        loop {
            let fresh: Vec<_> = list(path)?
                .into_iter()
                .filter(|child| Path::new(child).extension() == Some(OsStr::new("pack")) && known.insert(child.clone()))
                .collect();
            if fresh.is_empty() {
                return Ok(true);
            }
            for pack in fresh {
                if !self.add(&path.join(&pack), &name.join(&pack))? {
                    continue;
                }
                // The index last: it is what makes a pack of it.
                for kind in ["rev", "mtimes", "bitmap", "idx"] {
                    let other = Path::new(&pack).with_extension(kind);
                    self.add(&path.join(&other), &name.join(&other))?;
                }
            }
        }
    }
}

/// The names in a folder; none if it has vanished.
fn list(path: &Path) -> Result<Vec<std::ffi::OsString>, String> {
    let Some(entries) = still_there(fs::read_dir(path)).map_err(doing("pack", path))? else { return Ok(Vec::new()) };
    entries.map(|e| e.map(|e| e.file_name())).collect::<io::Result<_>>().map_err(doing("pack", path))
}

/// Where a name of the archive is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Repositories,
    Repository,
    Objects,
    Packs,
    /// `images` and below.
    Images,
    Other,
}

fn place(name: &Path) -> Place {
    let parts: Vec<&str> = name.iter().map(|p| p.to_str().unwrap_or_default()).collect();
    match parts[..] {
        ["repositories"] => Place::Repositories,
        ["repositories", _] => Place::Repository,
        ["repositories", _, "objects", "pack"] => Place::Packs,
        ["repositories", _, "objects", ..] => Place::Objects,
        ["images", ..] => Place::Images,
        _ => Place::Other,
    }
}

/// In which turn a child of a folder goes in.
fn turn(folder: &Path, child: &OsStr) -> u8 {
    match (place(folder), child.to_str().unwrap_or_default()) {
        // Loose refs before packed ones: git writes a packed one before it deletes the loose one.
        (Place::Repository, "packed-refs") => 1,
        (Place::Repository, "objects") => 2,
        (Place::Objects, "pack") => 1,
        (Place::Images, "blobs") => 1,
        _ => 0,
    }
}

/// Whether this is still being written, or is a cache that may not fit what else is in the archive.
fn is_unfinished(name: &Path) -> bool {
    let Some(file) = name.file_name().map(OsStr::to_string_lossy) else { return false };
    let at = name.parent().map_or(Place::Other, place);
    let in_repository = name.starts_with("repositories");
    match at {
        Place::Repositories => file.starts_with('.') && file.contains(".new-"),
        Place::Repository if file == "gc.pid" => true,
        Place::Objects | Place::Packs if file.starts_with("tmp_") || file.starts_with(".tmp-") => true,
        Place::Objects if file.starts_with("commit-graph") => true,
        Place::Images => file.starts_with(".part") || file.starts_with(".tmp") || file.ends_with(".part"),
        // No ref's name ends so.
        _ => in_repository && file.ends_with(".lock"),
    }
}

/// So many bytes of a file, neither more nor less.
struct Exactly {
    from: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = to.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.from.read(&mut to[..most])?;
        if read == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter meanwhile; run the backup again"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Reads an archive from its beginning to its end.
///
/// # Errors
/// A header is not sound, an entry is cut off, or the archive does not hold what was packed.
pub fn read_back(archive: impl Read, packed: Packed) -> Result<(), String> {
    let damaged = |e: io::Error| format!("the archive cannot be read back: {e}");
    let mut found = Packed::default();
    for entry in tar::Archive::new(archive).entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        found.entries += 1;
        found.bytes += io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
    }
    match found == packed {
        true => Ok(()),
        false => Err(format!("the archive cannot be read back: {packed:?} went in, {found:?} came out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    fn make(root: &Path, files: &[&str]) {
        for name in files {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), name.as_bytes()).unwrap();
        }
    }

    fn pack(root: &Path, names: &[&str]) -> Result<(Vec<u8>, Packed), String> {
        let mut packer = Packer::new(Vec::new());
        for name in names {
            packer.add(&root.join(name), Path::new(name))?;
        }
        packer.finish().map_err(|e| e.to_string())
    }

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string());
        entries.filter(|n| !n.is_empty()).collect()
    }

    #[test]
    fn what_is_unfinished_stays_out_and_what_is_named_comes_after() {
        let dir = tempfile::tempdir().unwrap();
        make(
            dir.path(),
            &[
                "repositories/.b.git.new-1/HEAD",
                "repositories/a.git/HEAD",
                "repositories/a.git/gc.pid",
                "repositories/a.git/packed-refs",
                "repositories/a.git/packed-refs.lock",
                "repositories/a.git/refs/heads/main",
                "repositories/a.git/refs/heads/tmp_mine",
                "repositories/a.git/refs/heads/x.part",
                "repositories/a.git/objects/ab/cdef",
                "repositories/a.git/objects/ab/tmp_obj_1",
                "repositories/a.git/objects/info/commit-graph",
                "repositories/a.git/objects/tmp_objdir-incoming-1/pack/tmp_pack_1",
                "repositories/a.git/objects/pack/.tmp-1-pack-2.pack",
                "repositories/a.git/objects/pack/pack-1.idx",
                "repositories/a.git/objects/pack/pack-1.pack",
                "repositories/a.git/objects/pack/pack-1.keep",
                "repositories/a.git/objects/pack/pack-2.idx",
                "repositories/a.git/objects/pack/multi-pack-index",
                "images/a/blobs/sha256/aa",
                "images/a/blobs/sha256/bb.part",
                "images/a/blobs/sha256/.partxyz",
                "images/a/index.json",
            ],
        );
        let (archive, packed) = pack(dir.path(), &["repositories", "images", "nothing"]).unwrap();
        read_back(&archive[..], packed).unwrap();
        let files: Vec<String> = names(&archive).into_iter().filter(|n| dir.path().join(n).is_file()).collect();
        assert_eq!(
            files,
            [
                "repositories/a.git/HEAD",
                "repositories/a.git/refs/heads/main",
                "repositories/a.git/refs/heads/tmp_mine",
                "repositories/a.git/refs/heads/x.part",
                "repositories/a.git/packed-refs",
                "repositories/a.git/objects/ab/cdef",
                "repositories/a.git/objects/pack/pack-1.pack",
                "repositories/a.git/objects/pack/pack-1.idx",
                "images/a/index.json",
                "images/a/blobs/sha256/aa",
            ]
        );
    }

    #[test]
    fn files_that_grow_come_and_go_leave_the_archive_sound() {
        let dir = tempfile::tempdir().unwrap();
        let grown = dir.path().join("images/a/blobs/sha256/grows");
        make(dir.path(), &["images/a/blobs/sha256/grows", "images/a/blobs/sha256/stays", "images/a/blobs/sha256/zz"]);
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut file = File::options().append(true).open(&grown).unwrap();
                for n in 0u64.. {
                    if done.load(SeqCst) {
                        break;
                    }
                    file.write_all(&[7; 999]).unwrap();
                    if file.metadata().unwrap().len() > 1 << 20 {
                        fs::remove_file(&grown).unwrap();
                        file = File::create(&grown).unwrap();
                    }
                    let passing = dir.path().join(format!("images/a/blobs/sha256/m{}", n % 20));
                    match n % 40 < 20 {
                        true => fs::write(passing, [1; 3000]).unwrap(),
                        false => fs::remove_file(passing).unwrap(),
                    }
                }
            });
            let trials = std::panic::catch_unwind(|| {
                for round in 0..40 {
                    let (archive, packed) = pack(dir.path(), &["images"]).unwrap();
                    read_back(&archive[..], packed).unwrap_or_else(|e| panic!("round {round}: {e}"));
                    let to = tempfile::tempdir().unwrap();
                    tar::Archive::new(&archive[..]).unpack(to.path()).unwrap();
                    let kept = to.path().join("images/a/blobs/sha256/stays");
                    assert_eq!(fs::read_to_string(kept).unwrap(), "images/a/blobs/sha256/stays", "round {round}");
                }
            });
            done.store(true, SeqCst);
            trials.unwrap_or_else(|e| std::panic::resume_unwind(e));
        });
    }

    #[test]
    fn a_file_that_became_shorter_is_told_and_a_torn_archive_noticed() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["images/a", "images/b"]);
        let file = File::open(dir.path().join("images/a")).unwrap();
        let mut shorter = Exactly { from: file, left: 100 };
        assert!(shorter.read_to_end(&mut Vec::new()).unwrap_err().to_string().contains("shorter"));

        let (archive, packed) = pack(dir.path(), &["images"]).unwrap();
        let mut flipped = archive.clone();
        flipped[600] ^= 1;
        for torn in [&flipped[..], &archive[..archive.len() / 2], &archive[..1500]] {
            assert!(read_back(torn, packed).is_err());
        }
    }

    #[test]
    fn one_file_with_two_names_is_in_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("images")).unwrap();
        fs::write(dir.path().join("images/a"), vec![5; 100_000]).unwrap();
        fs::hard_link(dir.path().join("images/a"), dir.path().join("images/b")).unwrap();
        let (archive, packed) = pack(dir.path(), &["images"]).unwrap();
        assert_eq!((packed.bytes, packed.entries), (100_000, 3));
        let to = tempfile::tempdir().unwrap();
        tar::Archive::new(&archive[..]).unpack(to.path()).unwrap();
        assert_eq!(fs::read(to.path().join("images/b")).unwrap(), vec![5; 100_000]);
    }
}
