//! One app's log on disk: a write-ahead file of raw records, and segment files of compressed blocks before it.
//!
//! File names are the number of their first line, so that sorting names sorts lines. A write-ahead file that is full becomes a
//! block at the end of the newest segment and is removed afterwards; when a crash falls between the two, its records
//! are recognised by their numbers and skipped. Both kinds of file only grow; readers hold open handles and lengths.
//!
//! Blocks the calling thread. Must not be called from an async task directly.

use crate::{block, index, wal};
use flex_model::{LogLine, Timestamp};
use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A write-ahead file of this size becomes a block.
const BLOCK_BYTES: u64 = 256 << 10;

/// Sizes that bound an app's files.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all segments of the app.
    pub max_bytes: u64,
    /// A segment of this size is finished, and a new one is begun.
    pub segment_bytes: u64,
    /// Lines of one file are at most this far apart, so that age is a matter of whole files.
    pub span: Duration,
}

#[derive(Debug)]
struct Wal {
    path: PathBuf,
    file: Arc<File>,
    /// End of the last good record.
    len: u64,
    unsynced: bool,
    /// Its name may not survive a power cut yet.
    unnamed: bool,
    /// Time of its first line.
    began: Option<Timestamp>,
}

#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub path: PathBuf,
    pub len: u64,
}

impl Segment {
    /// Number of its first line; its name.
    pub fn first_seq(&self) -> Option<u64> {
        self.path.file_stem()?.to_str()?.parse().ok()
    }
}

/// One app's files.
#[derive(Debug)]
pub struct AppDisk {
    dir: PathBuf,
    limits: Limits,
    /// Oldest first.
    segments: VecDeque<Segment>,
    wal: Option<Wal>,
    next_seq: u64,
}

/// The files as they were at one moment; reading them needs no lock.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) wal: Option<(Arc<File>, u64)>,
}

impl AppDisk {
    /// Opens an app's directory, which need not exist, and cuts torn ends off.
    pub fn open(dir: PathBuf, limits: Limits) -> io::Result<Self> {
        let mut disk = Self { segments: files(&dir, "seg")?.into(), wal: None, next_seq: 0, dir, limits };
        if let Some(last) = disk.segments.back_mut() {
            disk.next_seq = recover_segment(last)?.unwrap_or(0);
        }
        for found in files(&disk.dir, "wal")? {
            disk.recover_wal(&found.path)?;
        }
        Ok(disk)
    }

    /// The number that the next line gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    fn recover_wal(&mut self, path: &Path) -> io::Result<()> {
        let bytes = fs::read(path)?;
        let mut records = wal::Records::new(&bytes);
        let (mut last, mut began) = (None, None);
        for record in records.by_ref() {
            began = began.or_else(|| wal::get_entry(record.entry).map(|(v, _)| v.at));
            last = Some(record);
        }
        let good = records.good() as u64;
        let Some(next) = last.map(|r| r.seq + 1).filter(|next| *next > self.next_seq) else {
            // Empty, or already in a block.
            return fs::remove_file(path);
        };
        if self.wal.is_some() {
            self.compact()?;
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if good < bytes.len() as u64 {
            tracing::warn!(path = %path.display(), cut = bytes.len() as u64 - good, "cut a torn end off an app's log");
            file.set_len(good)?;
        }
        self.wal = Some(Wal { path: path.to_owned(), file: Arc::new(file), len: good, unsynced: true, unnamed: true, began });
        self.next_seq = next;
        Ok(())
    }

    /// Writes lines, the first of which must have the number [`AppDisk::next_seq`]. Either all are written, or none.
    pub fn append(&mut self, lines: &[Arc<LogLine>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (seq, line) in (self.next_seq..).zip(lines) {
            wal::put_record(seq, line, &mut bytes);
        }
        let span = self.limits.span;
        let spans = |began: Option<Timestamp>| began.is_some_and(|b| lines.last().is_some_and(|l| l.at.since(b) > span));
        if self.wal.as_ref().is_some_and(|w| spans(w.began)) {
            self.compact()?;
        }
        if self.wal.is_none() {
            self.wal = Some(self.new_wal()?);
        }
        let Some(wal) = &mut self.wal else { return Ok(()) };
        if let Err(e) = wal.file.write_all_at(&bytes, wal.len) {
            // What was written in part would be cut at the next start; a later write overwrites it before.
            let _ = wal.file.set_len(wal.len);
            return Err(e);
        }
        wal.len += bytes.len() as u64;
        wal.unsynced = true;
        wal.began = wal.began.or_else(|| lines.first().map(|l| l.at));
        self.next_seq += lines.len() as u64;
        if wal.len >= BLOCK_BYTES {
            // The lines are written: a block that cannot be made now is made after the next append.
            if let Err(e) = self.compact() {
                tracing::warn!(dir = %self.dir.display(), error = %e, "cannot compress an app's log");
            }
        }
        Ok(())
    }

    fn new_wal(&self) -> io::Result<Wal> {
        fs::create_dir_all(&self.dir)?;
        let path = self.dir.join(format!("{:020}.wal", self.next_seq));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(Wal { path, file: Arc::new(file), len: 0, unsynced: false, unnamed: true, began: None })
    }

    /// Turns the write-ahead file into a block of the newest segment.
    fn compact(&mut self) -> io::Result<()> {
        let Some(wal) = &self.wal else { return Ok(()) };
        let path = wal.path.clone();
        let mut bytes = vec![0; wal.len as usize];
        wal.file.read_exact_at(&mut bytes, 0)?;
        let (mut entries, mut count, mut first) = (Vec::with_capacity(bytes.len()), 0u32, None);
        let (mut oldest, mut newest) = (Timestamp::from_micros(i64::MAX), Timestamp::from_micros(i64::MIN));
        let mut index = index::Builder::new();
        for record in wal::Records::new(&bytes) {
            let Some((line, _)) = wal::get_entry(record.entry) else { continue };
            first.get_or_insert(record.seq);
            oldest = oldest.min(line.at);
            newest = newest.max(line.at);
            entries.extend_from_slice(record.entry);
            index.add(line);
            count += 1;
        }
        if let Some(first_seq) = first {
            let packed = block::pack(first_seq, count, oldest, newest, &entries, &index.finish())?;
            self.append_block(first_seq, &packed, newest)?;
        }
        fs::remove_file(path)?;
        self.wal = None;
        self.enforce_size();
        Ok(())
    }

    fn append_block(&mut self, first_seq: u64, packed: &[u8], newest: Timestamp) -> io::Result<()> {
        let spans = |s: &Segment| {
            let head = File::open(&s.path).and_then(|f| block::head_at(&f, 0, s.len));
            head.ok().flatten().is_some_and(|h| newest.since(h.oldest) > self.limits.span)
        };
        let is_new = self.segments.back().is_none_or(|s| s.len >= self.limits.segment_bytes || spans(s));
        if is_new {
            let path = self.dir.join(format!("{first_seq:020}.seg"));
            self.segments.push_back(Segment { path, len: 0 });
        }
        let Some(segment) = self.segments.back_mut() else { return Ok(()) };
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&segment.path)?;
        let written = file.write_all_at(packed, segment.len).and_then(|()| file.sync_data());
        if let Err(e) = written {
            let _ = file.set_len(segment.len);
            return Err(e);
        }
        segment.len += packed.len() as u64;
        // The write-ahead file goes next: the segment's name must be there to stay.
        if is_new { File::open(&self.dir)?.sync_all() } else { Ok(()) }
    }

    /// Sets other bounds; what is beyond them goes.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.enforce_size();
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.len).sum::<u64>() + self.wal.as_ref().map_or(0, |w| w.len)
    }

    fn enforce_size(&mut self) {
        let mut total: u64 = self.segments.iter().map(|s| s.len).sum();
        while total > self.limits.max_bytes && self.segments.len() > 1 {
            let Some(oldest) = self.segments.pop_front() else { break };
            total -= oldest.len;
            if let Err(e) = fs::remove_file(&oldest.path) {
                tracing::warn!(path = %oldest.path.display(), error = %e, "cannot remove an old log segment");
            }
        }
    }

    /// Removes what nobody wrote to since `before`.
    pub fn enforce_age(&mut self, before: SystemTime) {
        let is_old = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).is_ok_and(|t| t < before);
        self.segments.retain(|s| !(is_old(&s.path) && fs::remove_file(&s.path).is_ok()));
        if self.wal.as_ref().is_some_and(|w| is_old(&w.path) && fs::remove_file(&w.path).is_ok()) {
            self.wal = None;
        }
    }

    /// Makes what was written survive a power cut.
    pub fn sync(&mut self) -> io::Result<()> {
        if let Some(wal) = self.wal.as_mut().filter(|w| w.unsynced) {
            wal.file.sync_data()?;
            wal.unsynced = false;
            if std::mem::take(&mut wal.unnamed) {
                File::open(&self.dir)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// The files as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { segments: self.segments.clone(), wal: self.wal.as_ref().map(|w| (w.file.clone(), w.len)) }
    }

    /// Removes everything.
    pub fn remove(&mut self) -> io::Result<()> {
        self.wal = None;
        self.segments.clear();
        remove_dir(&self.dir)
    }
}

/// Removes a directory with all that is in it; absent is fine.
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes files of an app that nobody wrote to since `before`, and the directory once it is empty.
pub fn sweep_unopened(dir: &Path, before: SystemTime) -> io::Result<()> {
    let mut left = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.metadata()?.modified()? < before {
            fs::remove_file(entry.path())?;
        } else {
            left += 1;
        }
    }
    if left == 0 && fs::metadata(dir)?.modified()? + Duration::from_secs(60) < SystemTime::now() {
        fs::remove_dir(dir)?;
    }
    Ok(())
}

fn files(dir: &Path, extension: &str) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(Segment { len: fs::metadata(&path)?.len(), path });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Cuts a torn block off the newest segment; says the number of the line after its last block.
fn recover_segment(segment: &mut Segment) -> io::Result<Option<u64>> {
    let file = OpenOptions::new().read(true).write(true).open(&segment.path)?;
    let mut unpacker = block::Unpacker::new()?;
    if let Some((start, head)) = block::head_before(&file, segment.len)?
        && unpacker.unpack(&file, start, &head)?.is_some()
    {
        return Ok(Some(head.next_seq()));
    }
    let (mut at, mut next) = (0, None);
    while let Some(head) = block::head_at(&file, at, segment.len)? {
        if unpacker.unpack(&file, at, &head)?.is_none() {
            break;
        }
        at += head.block_len();
        next = Some(head.next_seq());
    }
    tracing::warn!(path = %segment.path.display(), cut = segment.len - at, "cut a torn end off an app's log");
    file.set_len(at)?;
    segment.len = at;
    // An empty segment still knows its first line by its name.
    Ok(next.or_else(|| segment.first_seq()))
}
