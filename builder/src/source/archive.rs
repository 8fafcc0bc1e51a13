//! An uploaded tar or tar.gz as a source. Read strictly and twice: once to check everything and find `.slugignore` and
//! the top-level directory, once to write the tree.
//!
//! Extended headers are read here and not by the tar crate, because a reader must bound them and must refuse an archive
//! on whose entry sizes two readers could disagree (a PAX size beside another ustar size smuggles entries).

use super::{Place, SourcePath, SourceTree, Spool, ignore::Ignore, spool::refused};
use crate::{BuildError, BuildSettings, Limit};
use flate2::bufread::MultiGzDecoder;
use std::{
    cell::Cell,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    rc::Rc,
};
use tar::EntryType;

/// Longest extended header: paths have 4 KiB at most.
const MAX_EXTENDED: u64 = 64 << 10;
/// Unpacked to packed: source code reaches 20, a bomb a thousand and more.
const MAX_RATIO: u64 = 200;
/// Small archives may pack better than that (a file of zeros in a test).
const RATIO_FREE: u64 = 16 << 20;

/// Reads an archive into a tree. Blocking.
///
/// # Errors
/// It is not a tar, an entry is refused (with its name and the rule), or a limit is reached.
pub(crate) fn read_archive(path: &Path, settings: &BuildSettings, place: Place) -> Result<SourceTree, BuildError> {
    let mut survey = Survey::default();
    each_entry(path, settings, &mut |entry| survey.add(entry))?;
    let strip = survey.single_top();
    let ignore = survey.slugignore(strip);
    let mut spool = Spool::new(settings, place, ignore)?;
    each_entry(path, settings, &mut |entry| {
        let inside = |p: &SourcePath| if strip { p.without_first() } else { Some(p.clone()) };
        let Some(path) = inside(&entry.path) else { return Ok(()) };
        match &entry.what {
            What::Directory => spool.directory(&path),
            What::File { executable } => spool.file(&path, *executable, entry.size, entry.data),
            What::Symlink(target) => spool.symlink(&path, target),
            What::HardLink(target) => {
                let target = inside(target).ok_or_else(|| refused(path.bytes(), "is a hard link to a directory"))?;
                spool.hard_link(&path, &target)
            }
        }
    })?;
    spool.finish(survey.newest.clamp(EARLIEST, place.now.max(EARLIEST)))
}

/// 1980: zip files and some tools know no earlier date.
const EARLIEST: u64 = 315_532_800;

struct Entry<'a> {
    path: SourcePath,
    what: What,
    size: u64,
    mtime: u64,
    data: &'a mut dyn Read,
}

enum What {
    Directory,
    File { executable: bool },
    Symlink(Vec<u8>),
    HardLink(SourcePath),
}

/// What the first reading learns.
#[derive(Default)]
struct Survey {
    top: Option<Vec<u8>>,
    /// More than one top-level name, or a file at the top, or an entry for the root itself.
    plain: bool,
    newest: u64,
    ignore_at_root: Vec<u8>,
    ignore_below: Vec<u8>,
}

impl Survey {
    fn add(&mut self, entry: &mut Entry<'_>) -> Result<(), BuildError> {
        if entry.path.is_root() {
            self.plain = true;
            return Ok(());
        }
        self.newest = self.newest.max(entry.mtime);
        let parts: Vec<&[u8]> = entry.path.parts().collect();
        if parts.len() == 1 && !matches!(entry.what, What::Directory) || self.top.as_deref().is_some_and(|t| t != parts[0]) {
            self.plain = true;
        }
        self.top.get_or_insert_with(|| parts[0].to_vec());
        if parts.last() == Some(&b".slugignore".as_slice()) && parts.len() <= 2 && matches!(entry.what, What::File { .. }) {
            let out = if parts.len() == 1 { &mut self.ignore_at_root } else { &mut self.ignore_below };
            entry.data.take(1 << 20).read_to_end(out).map_err(unreadable)?;
        }
        Ok(())
    }
    fn single_top(&self) -> bool {
        self.top.is_some() && !self.plain
    }
    fn slugignore(&self, strip: bool) -> Ignore {
        Ignore::parse(if strip { &self.ignore_below } else { &self.ignore_at_root })
    }
}

/// What extended headers say of the entry that follows them.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

fn each_entry(
    path: &Path,
    settings: &BuildSettings,
    visit: &mut dyn FnMut(&mut Entry<'_>) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let reader = open(path, settings)?;
    let mut archive = tar::Archive::new(reader);
    let mut extended = Extended::default();
    let mut count = 0u64;
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        count += 1;
        // Extended headers and repeated directories count too: a million of them is as good as a million files.
        if count > settings.source_entries.saturating_mul(3).saturating_add(16) {
            return Err(BuildError::limit(Limit::Source, format!("the archive has more than {count} entries")));
        }
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => extended.path = Some(text_of(&mut entry)?),
            EntryType::GNULongLink => extended.link = Some(text_of(&mut entry)?),
            EntryType::XHeader => read_pax(&header_text(&mut entry)?, &mut extended)?,
            EntryType::XGlobalHeader => refuse_global_sizes(&header_text(&mut entry)?)?,
            _ => {
                let ext = std::mem::take(&mut extended);
                one_entry(&mut entry, ext, kind, visit)?;
            }
        }
    }
    Ok(())
}

fn one_entry<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    ext: Extended,
    kind: EntryType,
    visit: &mut dyn FnMut(&mut Entry<'_>) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let header = entry.header();
    let raw = ext.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let path = SourcePath::new(&raw).map_err(|rule| refused(&raw, rule))?;
    let size = header.entry_size().map_err(unreadable)?;
    if ext.size.is_some_and(|s| s != size) {
        return Err(refused(&raw, "states two different sizes"));
    }
    let link = || ext.link.clone().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default();
    let what = match kind {
        EntryType::Directory => What::Directory,
        // Old tars mark a directory by a trailing slash only.
        EntryType::Regular if raw.ends_with(b"/") => What::Directory,
        EntryType::Regular | EntryType::Continuous => What::File { executable: header.mode().map_err(unreadable)? & 0o111 != 0 },
        EntryType::Symlink => What::Symlink(link()),
        EntryType::Link => {
            let target = link();
            What::HardLink(SourcePath::new(&target).map_err(|_| refused(&raw, "is a hard link that leaves the archive"))?)
        }
        EntryType::Char | EntryType::Block => return Err(refused(&raw, "is a device")),
        EntryType::Fifo => return Err(refused(&raw, "is a named pipe")),
        EntryType::GNUSparse => return Err(refused(&raw, "is a sparse file: make the archive without --sparse")),
        _ => return Err(refused(&raw, "is an entry of an unknown type")),
    };
    if !matches!(what, What::File { .. }) && size != 0 {
        return Err(refused(&raw, "has contents although it is not a file"));
    }
    let mtime = header.mtime().unwrap_or(0);
    visit(&mut Entry { path, what, size, mtime, data: entry })
}

/// The contents of a PAX header.
fn header_text<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, BuildError> {
    let size = entry.header().entry_size().map_err(unreadable)?;
    if size > MAX_EXTENDED {
        return Err(BuildError::user("hostile_source", "the source was refused: an extended header is larger than 64 KiB"));
    }
    let mut out = Vec::new();
    entry.read_to_end(&mut out).map_err(unreadable)?;
    Ok(out)
}

/// The contents of a GNU long name, without its NUL.
fn text_of<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, BuildError> {
    let mut out = header_text(entry)?;
    if out.last() == Some(&0) {
        out.pop();
    }
    Ok(out)
}

fn read_pax(text: &[u8], ext: &mut Extended) -> Result<(), BuildError> {
    for record in tar::PaxExtensions::new(text) {
        let record = record.map_err(unreadable)?;
        match record.key_bytes() {
            b"path" => ext.path = Some(record.value_bytes().to_vec()),
            b"linkpath" => ext.link = Some(record.value_bytes().to_vec()),
            b"size" => {
                let size = std::str::from_utf8(record.value_bytes()).ok().and_then(|s| s.parse().ok());
                ext.size = Some(size.ok_or_else(|| refused(b"an entry", "states a size that is no number"))?);
            }
            key if key.starts_with(b"GNU.sparse") => {
                return Err(refused(b"an entry", "is a sparse file: make the archive without --sparse"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn refuse_global_sizes(text: &[u8]) -> Result<(), BuildError> {
    for record in tar::PaxExtensions::new(text) {
        if matches!(record.map_err(unreadable)?.key_bytes(), b"size" | b"path" | b"linkpath") {
            return Err(refused(b"a global header", "states a path or size for every entry"));
        }
    }
    Ok(())
}

/// Opens the archive, unpacking gzip, with the limits on bytes and ratio built into the reader.
fn open(path: &Path, settings: &BuildSettings) -> Result<Box<dyn Read>, BuildError> {
    let file = File::open(path).map_err(|e| BuildError::platform("opening the uploaded archive", e))?;
    let packed = Rc::new(Cell::new(0));
    let mut input = BufReader::with_capacity(128 << 10, Counted { inner: file, count: packed.clone() });
    let magic = input.fill_buf().map_err(unreadable)?;
    // Names and paddings of the allowed entries come on top of the files' bytes.
    let most = settings.source_bytes.saturating_add(settings.source_entries.saturating_mul(2048));
    if magic.starts_with(&[0x1f, 0x8b]) {
        let inner = MultiGzDecoder::new(input);
        return Ok(Box::new(Bounded { inner, packed: Some(packed), read: 0, most }));
    }
    let looks_like_tar = magic.len() >= 512 && (&magic[257..262] == b"ustar" || magic[..512].iter().all(|b| *b == 0));
    if !looks_like_tar {
        return Err(BuildError::user("broken_source", "the upload is not a tar or tar.gz archive"));
    }
    Ok(Box::new(Bounded { inner: input, packed: None, read: 0, most }))
}

struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}

struct Bounded<R> {
    inner: R,
    packed: Option<Rc<Cell<u64>>>,
    read: u64,
    most: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        let ratio = self.packed.as_ref().is_some_and(|p| self.read > RATIO_FREE && self.read / MAX_RATIO > p.get());
        if self.read > self.most || ratio {
            let why = if ratio { "it unpacks to more than 200 times its size" } else { "it is too large unpacked" };
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(n)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as map_err's function")]
fn unreadable(e: io::Error) -> BuildError {
    BuildError::user("broken_source", format!("the archive cannot be read: {e}"))
}
