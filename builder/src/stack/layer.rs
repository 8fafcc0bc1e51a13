//! The build image's own layer: what its tree has over the run image's, from two tars. Blocking.

use crate::oci::digest_text;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom},
    os::unix::ffi::OsStrExt,
    path::Path,
};
use tar::EntryType;

/// One entry of a tree.
#[derive(Debug, Clone)]
struct Node {
    kind: EntryType,
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    link: Vec<u8>,
    content: String,
    offset: u64,
    mtime: u64,
}

impl Node {
    /// Dates do not count: a directory's differs as soon as something in it was touched.
    fn same(&self, other: &Self) -> bool {
        let key = |n: &Self| (n.kind.as_byte(), n.mode, n.uid, n.gid, n.size, n.link.clone(), n.content.clone());
        key(self) == key(other)
    }
}

type Tree = BTreeMap<Vec<u8>, Node>;

/// Writes the layer that turns the tree of `base` into that of `full`. Returns the bytes of its files.
pub(crate) fn difference(base: &Path, full: &Path, out: File, epoch: u64) -> io::Result<()> {
    let (old, new) = (index(base)?, index(full)?);
    let mut wanted: BTreeSet<&[u8]> = BTreeSet::new();
    for (path, node) in &new {
        if old.get(path).is_none_or(|o| !o.same(node)) {
            with_parents(path, &mut wanted);
        }
    }
    let mut gone: BTreeSet<Vec<u8>> = BTreeSet::new();
    for path in old.keys().filter(|p| !new.contains_key(*p)) {
        // The topmost missing directory hides everything below it.
        if parent(path).is_none_or(|p| new.contains_key(p)) {
            parent(path).into_iter().for_each(|p| with_parents(p, &mut wanted));
            gone.insert(path.clone());
        }
    }
    let mut source = File::open(full)?;
    let mut tar = tar::Builder::new(BufWriter::with_capacity(256 << 10, out));
    for path in &wanted {
        let Some(node) = new.get(*path) else { continue };
        append(&mut tar, path, node, &new, &wanted, &mut source)?;
    }
    for path in gone {
        let (dir, name) = path.iter().rposition(|b| *b == b'/').map_or((&b""[..], &path[..]), |i| (&path[..=i], &path[i + 1..]));
        let mark = [dir, b".wh.", name].concat();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mtime(epoch);
        tar.append_data(&mut header, OsStr::from_bytes(&mark), io::empty())?;
    }
    tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(())
}

fn append<W: io::Write>(
    tar: &mut tar::Builder<W>,
    path: &[u8],
    node: &Node,
    all: &Tree,
    wanted: &BTreeSet<&[u8]>,
    source: &mut File,
) -> io::Result<()> {
    // A hard link works only within one layer: where its target stays below, the file is written out.
    let node = match all.get(&node.link) {
        Some(target) if node.kind == EntryType::Link && !wanted.contains(node.link.as_slice()) => target,
        _ => node,
    };
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(node.kind);
    header.set_mode(node.mode);
    header.set_uid(node.uid);
    header.set_gid(node.gid);
    header.set_mtime(node.mtime);
    header.set_size(0);
    match node.kind {
        EntryType::Symlink | EntryType::Link => {
            tar.append_link(&mut header, OsStr::from_bytes(path), OsStr::from_bytes(&node.link))
        }
        EntryType::Directory => tar.append_data(&mut header, OsStr::from_bytes(&[path, b"/"].concat()), io::empty()),
        _ => {
            header.set_size(node.size);
            source.seek(SeekFrom::Start(node.offset))?;
            tar.append_data(&mut header, OsStr::from_bytes(path), source.take(node.size))
        }
    }
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|b| *b == b'/').map(|i| &path[..i])
}

fn with_parents<'a>(path: &'a [u8], out: &mut BTreeSet<&'a [u8]>) {
    let mut at = Some(path);
    while let Some(p) = at {
        out.insert(p);
        at = parent(p);
    }
}

fn index(path: &Path) -> io::Result<Tree> {
    let mut archive = tar::Archive::new(BufReader::with_capacity(256 << 10, File::open(path)?));
    let mut out = Tree::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        let regular = matches!(kind, EntryType::Regular | EntryType::Continuous);
        let content = if regular { hash(&mut entry)? } else { String::new() };
        let header = entry.header();
        let node = Node {
            kind: if regular { EntryType::Regular } else { kind },
            mode: header.mode()?,
            uid: header.uid()?,
            gid: header.gid()?,
            size: entry.size(),
            link: entry.link_name_bytes().map(|l| clean(&l)).unwrap_or_default(),
            content,
            offset: entry.raw_file_position(),
            mtime: header.mtime()?,
        };
        let name = clean(&entry.path_bytes());
        if !name.is_empty() {
            out.insert(name, node);
        }
    }
    Ok(out)
}

fn hash(entry: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = entry.read(&mut buffer)?;
        if n == 0 {
            return Ok(digest_text(hash));
        }
        hash.update(&buffer[..n]);
    }
}

fn clean(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(entries: &[(&str, EntryType, &str)]) -> tempfile::TempPath {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file);
        for (path, kind, text) in entries {
            let mut h = tar::Header::new_gnu();
            h.set_entry_type(*kind);
            h.set_mode(0o755);
            h.set_uid(0);
            h.set_gid(0);
            h.set_mtime(0);
            h.set_size(0);
            match kind {
                EntryType::Link | EntryType::Symlink => tar.append_link(&mut h, path, text).unwrap(),
                _ => {
                    h.set_size(text.len() as u64);
                    tar.append_data(&mut h, path, text.as_bytes()).unwrap();
                }
            }
        }
        tar.into_inner().unwrap().into_temp_path()
    }

    #[test]
    fn holds_what_changed_and_hides_what_went() {
        let (d, f, l) = (EntryType::Directory, EntryType::Regular, EntryType::Link);
        let base =
            tar_of(&[("a/", d, ""), ("a/one", f, "1"), ("a/two", f, "2"), ("b/", d, ""), ("b/c/", d, ""), ("b/c/x", f, "x")]);
        let full = tar_of(&[("a/", d, ""), ("a/one", f, "1"), ("a/two", f, "22"), ("a/link", l, "a/one"), ("b/", d, "")]);
        let (out, path) = tempfile::NamedTempFile::new().unwrap().into_parts();
        difference(&base, &full, out, 0).unwrap();
        let tree = index(&path).unwrap();
        let names: Vec<_> = tree.keys().map(|k| String::from_utf8(k.clone()).unwrap()).collect();
        assert_eq!(names, ["a", "a/link", "a/two", "b", "b/.wh.c"]);
        assert_eq!((tree[&b"a/link"[..]].kind, tree[&b"a/link"[..]].size), (f, 1));
    }
}
