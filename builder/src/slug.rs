//! The built tree becomes a layer: a tar stream from the container in, a checked, normalised tar out, with its digests.
//!
//! Invariants: the same tree gives the same bytes (sorted paths, one owner, one date, no extended attributes); nothing of
//! the tree is ever unpacked here or held in memory whole; set-id bits are dropped; devices and whiteouts are refused.

use crate::{APP_GID, APP_UID, BuildError, BuildSettings, Limit, oci::LayerRecord, settings::Compression, source::SourcePath};
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::ffi::OsStrExt,
};
use tar::EntryType;

/// Files of the built tree that say how to run it.
const RUN_FILES: [&str; 2] = ["Procfile", "app.json"];

/// A finished layer: compressed for storage, plain for the engine on this machine.
pub(crate) struct Packed {
    pub(crate) record: LayerRecord,
    /// Removed when dropped, unless it was moved away.
    pub(crate) blob: tempfile::TempPath,
    pub(crate) plain: tempfile::TempPath,
    pub(crate) run_files: BTreeMap<&'static str, Vec<u8>>,
    pub(crate) notes: Vec<String>,
}

/// Packs the tar of a directory (every path under one top directory, as engines hand it out) as the layer `app/`.
/// Blocking.
///
/// # Errors
/// An entry that no image can hold, or a slug that is too large; or the platform's.
pub(crate) fn pack(input: impl Read, settings: &BuildSettings, epoch: u64) -> Result<Packed, BuildError> {
    let mut writer = Writer::new(settings, epoch)?;
    let mut archive = tar::Archive::new(input);
    for entry in archive.entries().map_err(lost)? {
        writer.entry(&mut entry.map_err(lost)?)?;
    }
    writer.finish()
}

struct Item {
    /// The path as components, so that a directory's children follow it directly.
    key: Vec<Vec<u8>>,
    offset: u64,
    length: u64,
}

struct Writer<'a> {
    settings: &'a BuildSettings,
    epoch: u64,
    tar: tar::Builder<Position<BufWriter<File>>>,
    path: tempfile::TempPath,
    items: Vec<Item>,
    sorted: bool,
    run_files: BTreeMap<&'static str, Vec<u8>>,
    notes: Vec<String>,
}

impl<'a> Writer<'a> {
    fn new(settings: &'a BuildSettings, epoch: u64) -> Result<Self, BuildError> {
        let (file, path) = temporary(settings)?;
        let tar = tar::Builder::new(Position { inner: BufWriter::with_capacity(256 << 10, file), at: 0 });
        let (items, run_files, notes) = (Vec::new(), BTreeMap::new(), Vec::new());
        Ok(Self { settings, epoch, tar, path, items, sorted: true, run_files, notes })
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), BuildError> {
        let raw = entry.path_bytes().into_owned();
        let Some(name) = under_app(&raw)? else { return Ok(()) };
        let kind = entry.header().entry_type();
        let mode = entry.header().mode().map_err(lost)?;
        let size = entry.size();
        let mut header = tar::Header::new_gnu();
        header.set_uid(APP_UID);
        header.set_gid(APP_GID);
        header.set_mtime(self.epoch);
        header.set_size(0);
        let start = self.tar.get_ref().at;
        let (mut path, mut data): (Vec<u8>, Box<dyn Read + '_>) = (name.clone(), Box::new(io::empty()));
        let mut link = None;
        match kind {
            EntryType::Directory => {
                header.set_mode(mode & 0o777 | 0o700);
                path.push(b'/');
            }
            EntryType::Regular | EntryType::Continuous => {
                header.set_mode(mode & 0o777);
                header.set_size(size);
                data = self.with_run_file(&name, size, entry)?;
            }
            EntryType::Symlink => {
                header.set_mode(0o777);
                link = Some(entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default());
            }
            EntryType::Link => {
                header.set_mode(mode & 0o777);
                let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
                link = Some(under_app(&target)?.ok_or_else(|| unpackable(&raw, "is a hard link that leaves the app"))?);
            }
            EntryType::Fifo => {
                self.notes.push(format!(" !     {} is a named pipe and was left out", SourcePath::shown(&raw)));
                return Ok(());
            }
            _ => return Err(unpackable(&raw, "is neither a file, a directory nor a link")),
        }
        header.set_entry_type(kind);
        let path_text = OsStr::from_bytes(&path);
        match link {
            Some(link) => self.tar.append_link(&mut header, path_text, OsStr::from_bytes(&link)),
            None => self.tar.append_data(&mut header, path_text, data),
        }
        .map_err(writing)?;
        self.index(&name, start)
    }

    fn with_run_file<'r, R: Read>(
        &mut self,
        name: &[u8],
        size: u64,
        entry: &'r mut tar::Entry<'_, R>,
    ) -> Result<Box<dyn Read + 'r>, BuildError> {
        let Some(key) = RUN_FILES.iter().find(|f| name.strip_prefix(b"app/") == Some(f.as_bytes())) else {
            return Ok(Box::new(entry));
        };
        let mut contents = Vec::new();
        entry.take(size.min(1 << 20)).read_to_end(&mut contents).map_err(lost)?;
        self.run_files.insert(key, contents.clone());
        Ok(Box::new(io::Cursor::new(contents).chain(entry)))
    }

    fn index(&mut self, name: &[u8], start: u64) -> Result<(), BuildError> {
        let end = self.tar.get_ref().at;
        if end > self.settings.slug_unpacked_bytes {
            let mib = self.settings.slug_unpacked_bytes >> 20;
            let message = format!("the slug is larger than {mib} MiB uncompressed: leave files out with a .slugignore");
            return Err(BuildError::limit(Limit::Slug, message));
        }
        let key: Vec<Vec<u8>> = name.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        self.sorted &= self.items.last().is_none_or(|last| last.key < key);
        self.items.push(Item { key, offset: start, length: end - start });
        Ok(())
    }

    fn finish(self) -> Result<Packed, BuildError> {
        let Self { settings, tar, path, mut items, sorted, run_files, notes, .. } = self;
        let file = tar.into_inner().map_err(writing)?.inner.into_inner().map_err(|e| writing(e.into_error()))?;
        let (plain_file, plain) = if sorted {
            (file, path)
        } else {
            items.sort_by(|a, b| a.key.cmp(&b.key));
            in_order(settings, file, &items)?
        };
        let (record, blob) = compress(settings, plain_file)?;
        if record.size > settings.slug_bytes {
            let (mb, most) = (record.size / 1_000_000, settings.slug_bytes / 1_000_000);
            let message =
                format!("the slug is {mb} MB compressed, more than the {most} MB allowed: leave files out with a .slugignore");
            return Err(BuildError::limit(Limit::Slug, message));
        }
        Ok(Packed { record, blob, plain, run_files, notes })
    }
}

/// `build/x` → `app/x`; none for what lies outside (engines hand out nothing there).
fn under_app(raw: &[u8]) -> Result<Option<Vec<u8>>, BuildError> {
    let path = SourcePath::new(raw).map_err(|rule| unpackable(raw, rule))?;
    if path.is_root() {
        return Ok(None);
    }
    if path.parts().any(|p| p.starts_with(b".wh.")) {
        return Err(unpackable(raw, "has a name that images use as a mark of deletion: rename it"));
    }
    let mut out = b"app".to_vec();
    if let Some(rest) = path.without_first() {
        out.push(b'/');
        out.extend_from_slice(rest.bytes());
    }
    Ok(Some(out))
}

/// Copies the entries of a tar in another order.
fn in_order(settings: &BuildSettings, mut from: File, items: &[Item]) -> Result<(File, tempfile::TempPath), BuildError> {
    let (file, path) = temporary(settings)?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    for item in items {
        from.seek(SeekFrom::Start(item.offset)).map_err(writing)?;
        io::copy(&mut (&mut from).take(item.length), &mut out).map_err(writing)?;
    }
    // The end of a tar: two blocks of zeros.
    out.write_all(&[0; 1024]).map_err(writing)?;
    Ok((out.into_inner().map_err(|e| writing(e.into_error()))?, path))
}

/// Compresses a tar as a layer, computing both its digests on the way.
pub(crate) fn compress(settings: &BuildSettings, mut plain: File) -> Result<(LayerRecord, tempfile::TempPath), BuildError> {
    plain.seek(SeekFrom::Start(0)).map_err(writing)?;
    compress_from(settings, plain)
}

/// [`compress`] of what is left in a reader.
pub(crate) fn compress_from(
    settings: &BuildSettings,
    mut plain: impl Read,
) -> Result<(LayerRecord, tempfile::TempPath), BuildError> {
    let (file, path) = temporary(settings)?;
    let sink = Hashed::new(BufWriter::with_capacity(256 << 10, file));
    let mut diff = Sha256::new();
    let (sink, media_type) = match settings.compression {
        Compression::Gzip => {
            let mut out = GzEncoder::new(sink, flate2::Compression::new(1));
            copy_hashed(&mut plain, &mut diff, &mut out)?;
            (out.finish().map_err(writing)?, crate::oci::LAYER_GZIP)
        }
        Compression::Zstd => {
            let mut out = zstd::Encoder::new(sink, 1).map_err(writing)?;
            copy_hashed(&mut plain, &mut diff, &mut out)?;
            (out.finish().map_err(writing)?, crate::oci::LAYER_ZSTD)
        }
    };
    let (digest, size) = (sink.hash, sink.bytes);
    let file = sink.inner.into_inner().map_err(|e| writing(e.into_error()))?;
    // What the control plane hands out by digest must survive a power cut whole.
    file.sync_all().map_err(writing)?;
    let record = LayerRecord {
        digest: crate::oci::digest_text(digest),
        diff_id: crate::oci::digest_text(diff),
        size,
        media_type: media_type.into(),
    };
    Ok((record, path))
}

fn copy_hashed(from: &mut impl Read, diff: &mut Sha256, out: &mut dyn Write) -> Result<(), BuildError> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = from.read(&mut buffer).map_err(writing)?;
        if n == 0 {
            return Ok(());
        }
        diff.update(&buffer[..n]);
        out.write_all(&buffer[..n]).map_err(writing)?;
    }
}

fn temporary(settings: &BuildSettings) -> Result<(File, tempfile::TempPath), BuildError> {
    let dir = settings.tmp_dir().map_err(writing)?;
    Ok(tempfile::NamedTempFile::new_in(dir).map_err(writing)?.into_parts())
}

fn unpackable(path: &[u8], rule: &str) -> BuildError {
    BuildError::user("unpackable", format!("the built app cannot be packed: {} {rule}", SourcePath::shown(path)))
}

fn lost(e: io::Error) -> BuildError {
    BuildError::platform("reading the built app from its container", e)
}

fn writing(e: io::Error) -> BuildError {
    BuildError::platform("writing the slug", e)
}

/// Counts what passes.
struct Position<W> {
    inner: W,
    at: u64,
}

impl<W: Write> Write for Position<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.at += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hashes and counts what passes.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &std::path::Path) -> BuildSettings {
        BuildSettings::new(dir, dir)
    }

    fn tree(entries: &[(&str, EntryType, u32, &str)], mtime: u64) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, kind, mode, text) in entries {
            let mut h = tar::Header::new_gnu();
            h.set_entry_type(*kind);
            h.set_mode(*mode);
            h.set_mtime(mtime);
            if matches!(kind, EntryType::Link | EntryType::Symlink) {
                tar.append_link(&mut h, path, text).unwrap();
            } else {
                h.set_size(text.len() as u64);
                tar.append_data(&mut h, path, text.as_bytes()).unwrap();
            }
        }
        tar.into_inner().unwrap()
    }

    fn names(packed: &Packed) -> Vec<String> {
        let mut archive = tar::Archive::new(File::open(&packed.plain).unwrap());
        let entries = archive.entries().unwrap().map(Result::unwrap);
        entries.map(|e| format!("{} {:o}", String::from_utf8_lossy(&e.path_bytes()), e.header().mode().unwrap())).collect()
    }

    const D: EntryType = EntryType::Directory;
    const F: EntryType = EntryType::Regular;

    #[test]
    fn order_dates_and_owners_do_not_change_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let s = settings(dir.path());
        let long = format!("build/{}", "n".repeat(150));
        let (a, b, c) = (("build/a", D, 0o2775, ""), ("build/a/x", F, 0o4755, "x"), ("build/a.b", F, 0o644, "web: y"));
        let sorted = tree(&[("build", D, 0o755, ""), a, b, c, (&long, F, 0o600, "l")], 5);
        let mixed = tree(&[("build", D, 0o755, ""), c, (&long, F, 0o600, "l"), a, b], 6);
        let (one, two) = (pack(&sorted[..], &s, 7).unwrap(), pack(&mixed[..], &s, 7).unwrap());
        assert_eq!(one.record, two.record);
        assert_eq!(names(&one)[..4], ["app/ 755", "app/a/ 775", "app/a/x 755", "app/a.b 644"]);
        assert_eq!(names(&one), names(&two));
        assert_ne!(one.record, pack(&sorted[..], &s, 8).unwrap().record);
        // What the record says is what is there.
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(File::open(&one.blob).unwrap()).read_to_end(&mut plain).unwrap();
        assert_eq!(crate::oci::digest_of(&plain), one.record.diff_id);
        assert_eq!(crate::oci::digest_of(&std::fs::read(&one.blob).unwrap()), one.record.digest);
    }

    #[test]
    fn what_no_image_can_hold_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let s = settings(dir.path());
        for (bad, says) in [
            (("build/dev", EntryType::Char, 0o666, ""), "neither a file"),
            (("build/.wh.x", F, 0o644, ""), "mark of deletion"),
            (("build/.wh..wh..opq/x", F, 0o644, ""), "mark of deletion"),
        ] {
            let e = pack(&tree(&[("build", D, 0o755, ""), bad], 0)[..], &s, 0).err().unwrap();
            assert!(matches!(e, BuildError::User { .. }) && e.to_string().contains(says), "{e}");
        }
        let fifo = pack(&tree(&[("build/p", EntryType::Fifo, 0o644, "")], 0)[..], &s, 0).unwrap();
        assert!(fifo.notes[0].contains("named pipe"));
    }

    #[test]
    fn a_slug_too_large_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let small = BuildSettings { slug_bytes: 100, ..settings(dir.path()) };
        let noise: String =
            (0..4000u32).map(|i| char::from(33 + u8::try_from(i.wrapping_mul(2_654_435_761) >> 26).unwrap())).collect();
        let e = pack(&tree(&[("build/x", F, 0o644, &noise)], 0)[..], &small, 0).err().unwrap();
        assert!(matches!(e, BuildError::Limit { limit: Limit::Slug, .. }) && e.to_string().contains(".slugignore"), "{e}");
        let unpacked = BuildSettings { slug_unpacked_bytes: 100, ..settings(dir.path()) };
        assert!(pack(&tree(&[("build/x", F, 0o644, &noise)], 0)[..], &unpacked, 0).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("build-tmp")).unwrap().count(), 0, "nothing half done is left");
    }

    #[test]
    fn zstd_layers_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let s = BuildSettings { compression: Compression::Zstd, ..settings(dir.path()) };
        let packed = pack(&tree(&[("build/Procfile", F, 0o644, "web: x")], 0)[..], &s, 0).unwrap();
        assert_eq!(packed.record.media_type, crate::oci::LAYER_ZSTD);
        assert_eq!(packed.run_files["Procfile"], b"web: x");
        let plain = zstd::decode_all(File::open(&packed.blob).unwrap()).unwrap();
        assert_eq!(crate::oci::digest_of(&plain), packed.record.diff_id);
    }
}
