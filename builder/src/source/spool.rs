//! The one writer of source trees: every entry of every kind of source passes its checks.
//!
//! Invariants of what it writes: paths are relative, without `.`/`..`/empty components, unique, and no component of a
//! path's parents is a link; hard links name an earlier regular file of the tree; owner is the build user; modes are
//! 0644, 0755 or 0777 (links); no devices, no set-id bits.

use super::{KEY_FILE_BYTES, KEY_FILES, KeyFile, SourceTree, ignore::Ignore};
use crate::{APP_GID, APP_UID, BuildError, BuildSettings, Limit};
use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs::File,
    io::{BufWriter, Read},
    os::unix::ffi::OsStrExt,
};

/// What a path in a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Symlink,
}

/// How the tree is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Comes before every path: `build/`, or nothing.
    pub(crate) prefix: &'static str,
    /// Dates the files, seconds since 1970: the moment of the build, because older dates would make `make` and `cargo`
    /// trust a cache that they must not trust.
    pub(crate) now: u64,
}

/// A path that stays inside the tree, as bytes, without a leading `./` or trailing `/`; empty for the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SourcePath(Vec<u8>);

/// Linux's PATH_MAX, less room for the directory it is unpacked in.
const MAX_PATH: usize = 3500;
/// Deeper trees are an attack on whoever walks them.
const MAX_DEPTH: usize = 200;

impl SourcePath {
    /// Checks a path as an archive or a git tree states it.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn new(raw: &[u8]) -> Result<Self, &'static str> {
        if raw.len() > MAX_PATH {
            return Err("is longer than 3500 bytes");
        }
        if raw.starts_with(b"/") {
            return Err("is absolute");
        }
        if raw.contains(&0) {
            return Err("contains a NUL byte");
        }
        let mut out = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for part in raw.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err("leaves the source directory with `..`"),
                _ if part.len() > 255 => return Err("has a name longer than 255 bytes"),
                _ => {
                    if depth > 0 {
                        out.push(b'/');
                    }
                    depth += 1;
                    out.extend_from_slice(part);
                }
            }
        }
        if depth > MAX_DEPTH { Err("is nested too deeply") } else { Ok(Self(out)) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/')
    }
    /// For people: cut, with control characters escaped.
    pub(crate) fn shown(raw: &[u8]) -> String {
        String::from_utf8_lossy(raw).chars().take(200).flat_map(char::escape_default).collect()
    }
    /// The rest after the first component; none if there is no rest.
    pub(crate) fn without_first(&self) -> Option<Self> {
        let at = self.0.iter().position(|b| *b == b'/')?;
        Some(Self(self.0[at + 1..].to_vec()))
    }
    fn parents(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| &self.0[..i])
    }
    /// Git's own directory, at any depth and in any case, is never part of a source.
    fn in_git_dir(&self) -> bool {
        self.parts().any(|p| p.eq_ignore_ascii_case(b".git"))
    }
}

/// Writes a tree to a temporary tar.
pub(crate) struct Spool<'a> {
    tar: tar::Builder<BufWriter<File>>,
    path: tempfile::TempPath,
    seen: HashMap<Vec<u8>, Kind>,
    ignore: Ignore,
    settings: &'a BuildSettings,
    place: Place,
    entries: u64,
    bytes: u64,
    left_out: u64,
    key_files: BTreeMap<&'static str, KeyFile>,
    pub(crate) notes: Vec<String>,
}

impl<'a> Spool<'a> {
    /// An empty tree.
    pub(crate) fn new(settings: &'a BuildSettings, place: Place, ignore: Ignore) -> Result<Self, BuildError> {
        let failed = |e| BuildError::platform("making a temporary file for the source", e);
        let file = tempfile::NamedTempFile::new_in(settings.tmp_dir().map_err(failed)?).map_err(failed)?;
        let (file, path) = file.into_parts();
        Ok(Self {
            tar: tar::Builder::new(BufWriter::with_capacity(256 << 10, file)),
            path,
            seen: HashMap::new(),
            ignore,
            settings,
            place,
            entries: 0,
            bytes: 0,
            left_out: 0,
            key_files: BTreeMap::new(),
            notes: Vec::new(),
        })
    }

    /// Adds a directory; one that is there already is fine.
    pub(crate) fn directory(&mut self, path: &SourcePath) -> Result<(), BuildError> {
        if path.is_root() || self.seen.get(path.bytes()) == Some(&Kind::Directory) || !self.admit(path, Kind::Directory)? {
            return Ok(());
        }
        let mut header = self.header(tar::EntryType::Directory, 0o755, 0);
        let mut name = self.named(path);
        name.push(b'/');
        self.tar.append_data(&mut header, OsStr::from_bytes(&name), std::io::empty()).map_err(Self::full)
    }

    /// Adds a regular file of exactly `size` bytes.
    pub(crate) fn file(&mut self, path: &SourcePath, executable: bool, size: u64, data: &mut dyn Read) -> Result<(), BuildError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.settings.source_bytes {
            let mib = self.settings.source_bytes >> 20;
            return Err(BuildError::limit(
                Limit::Source,
                format!("the source is larger than {mib} MiB unpacked: keep large files out of it (a .slugignore helps)"),
            ));
        }
        if !self.admit(path, Kind::File)? {
            return Ok(());
        }
        let mut header = self.header(tar::EntryType::Regular, if executable { 0o755 } else { 0o644 }, size);
        let name = self.named(path);
        let key = KEY_FILES.iter().find(|k| k.as_bytes() == path.bytes());
        let written = if let Some(key) = key {
            let mut contents = Vec::new();
            data.take(KEY_FILE_BYTES.min(size)).read_to_end(&mut contents).map_err(Self::broken)?;
            let rest = size - contents.len() as u64;
            let all = contents.as_slice().chain(data.take(rest));
            let done = self.tar.append_data(&mut header, OsStr::from_bytes(&name), all);
            self.key_files.insert(key, KeyFile { contents, executable });
            done
        } else {
            self.tar.append_data(&mut header, OsStr::from_bytes(&name), data)
        };
        written.map_err(Self::full)
    }

    /// Adds a symbolic link. Where it points is the container's business: nothing follows it out here.
    pub(crate) fn symlink(&mut self, path: &SourcePath, target: &[u8]) -> Result<(), BuildError> {
        if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
            return Err(refused(path.bytes(), "is a symbolic link with an impossible target"));
        }
        if !self.admit(path, Kind::Symlink)? {
            return Ok(());
        }
        let mut header = self.header(tar::EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, OsStr::from_bytes(&self.named(path)), OsStr::from_bytes(target)).map_err(Self::full)
    }

    /// Adds a second name for a file that came earlier.
    pub(crate) fn hard_link(&mut self, path: &SourcePath, target: &SourcePath) -> Result<(), BuildError> {
        if self.ignore.matches(target.bytes(), false) || target.in_git_dir() {
            self.left_out += 1;
            return Ok(());
        }
        if self.seen.get(target.bytes()) != Some(&Kind::File) {
            return Err(refused(path.bytes(), "is a hard link to something that is not an earlier file of the archive"));
        }
        if !self.admit(path, Kind::File)? {
            return Ok(());
        }
        let mut header = self.header(tar::EntryType::Link, 0o644, 0);
        self.tar
            .append_link(&mut header, OsStr::from_bytes(&self.named(path)), OsStr::from_bytes(&self.named(target)))
            .map_err(Self::full)
    }

    /// Closes the tar.
    pub(crate) fn finish(mut self, epoch: u64) -> Result<SourceTree, BuildError> {
        if self.entries == 0 {
            return Err(BuildError::user("empty_source", "the source is empty: commit some files and push again"));
        }
        if self.left_out > 0 {
            self.notes.push(format!("       {} files left out (.slugignore)", self.left_out));
        }
        let file = self.tar.into_inner().map_err(Self::full)?.into_inner().map_err(|e| Self::full(e.into_error()))?;
        drop(file);
        Ok(SourceTree { tar: self.path, key_files: self.key_files, epoch, notes: self.notes })
    }

    /// Whether the entry is to be written; missing parents are written first.
    fn admit(&mut self, path: &SourcePath, kind: Kind) -> Result<bool, BuildError> {
        if path.is_root() {
            return Err(refused(b".", "is not a directory"));
        }
        if path.in_git_dir() {
            return Ok(false);
        }
        if self.ignore.matches(path.bytes(), kind == Kind::Directory) {
            self.left_out += u64::from(kind != Kind::Directory);
            return Ok(false);
        }
        let parents: Vec<Vec<u8>> = path.parents().map(<[u8]>::to_vec).collect();
        for parent in parents {
            match self.seen.get(&parent) {
                Some(Kind::Directory) => {}
                Some(_) => return Err(refused(path.bytes(), "lies below something that is not a directory")),
                None => self.directory(&SourcePath(parent))?,
            }
        }
        if self.seen.insert(path.bytes().to_vec(), kind).is_some() {
            return Err(refused(path.bytes(), "is in it twice"));
        }
        self.entries += 1;
        if self.entries > self.settings.source_entries {
            let most = self.settings.source_entries;
            return Err(BuildError::limit(
                Limit::Source,
                format!("the source has more than {most} files and directories: leave some out (a .slugignore helps)"),
            ));
        }
        Ok(true)
    }

    /// The path in the tar.
    fn named(&self, path: &SourcePath) -> Vec<u8> {
        [self.place.prefix.as_bytes(), path.bytes()].concat()
    }

    fn header(&self, kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut h = tar::Header::new_gnu();
        h.set_entry_type(kind);
        h.set_mode(mode);
        h.set_size(size);
        h.set_uid(APP_UID);
        h.set_gid(APP_GID);
        h.set_mtime(self.place.now);
        h
    }

    // A source that cannot be read shows as such: its reader's errors carry `InvalidData`.
    fn full(e: std::io::Error) -> BuildError {
        if matches!(e.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) {
            Self::broken(e)
        } else {
            BuildError::platform("writing the source to a temporary file", e)
        }
    }
    #[expect(clippy::needless_pass_by_value, reason = "used as map_err's function")]
    fn broken(e: std::io::Error) -> BuildError {
        BuildError::user("broken_source", format!("the source cannot be read: {e}"))
    }
}

/// The refusal of one entry.
pub(crate) fn refused(path: &[u8], rule: &str) -> BuildError {
    BuildError::user("hostile_source", format!("the source was refused: {} {rule}", SourcePath::shown(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        let p = |s: &str| SourcePath::new(s.as_bytes()).map(|p| String::from_utf8(p.0).unwrap());
        assert_eq!(p("./a//b/./c/").unwrap(), "a/b/c");
        assert_eq!(p("./").unwrap(), "");
        for bad in ["/etc/passwd", "../x", "a/../../x", "a/..", "a\0b"] {
            assert!(p(bad).is_err(), "{bad:?}");
        }
        assert!(SourcePath::new(&[b'a'; 300]).is_err());
        assert!(SourcePath::new("a/".repeat(201).as_bytes()).is_err());
        assert!(SourcePath::new(b"a/.GIT/hooks/x").unwrap().in_git_dir());
        assert!(!SourcePath::new(b"a/.gitignore").unwrap().in_git_dir());
    }
}
