//! Reading an app's files: backwards for the newest lines that match, onwards from a number for readers that follow.
//!
//! Works on a [`Snapshot`], so no lock is held. Lines are copied out only once they match: a search walks the unpacked
//! bytes. Must not: fail because retention takes files meanwhile.

use crate::{
    LogQuery, Numbered, block,
    disk::{Segment, Snapshot},
    query::Filter,
    wal::{self, View},
};
use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

/// What a reader that goes on remembers, so that it need not look for its place again.
#[derive(Debug, Clone, Default)]
pub struct Place {
    segment: Option<(PathBuf, u64)>,
}

/// A stretch of the log.
#[derive(Debug, Default)]
pub struct Stretch {
    /// The lines that match, oldest first.
    pub lines: Vec<Numbered>,
    /// Number of the first line not looked at.
    pub next: u64,
    /// Lines that are gone: retention took them, or the disk damaged them.
    pub missed: u64,
}

fn numbered(seq: u64, view: View<'_>) -> Numbered {
    Numbered { seq, line: Arc::new(view.to_line()) }
}

fn read_wal(wal: &(Arc<File>, u64)) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; wal.1 as usize];
    wal.0.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

impl Snapshot {
    /// The newest `max` lines below the number `below` that match, oldest first.
    pub fn read_back(&self, below: u64, max: usize, query: &LogQuery) -> io::Result<Vec<Numbered>> {
        let filter = query.filter();
        // Newest first.
        let mut found = Vec::new();
        if let Some(wal) = &self.wal {
            let bytes = read_wal(wal)?;
            let records = wal::Records::new(&bytes).take_while(|r| r.seq < below);
            let lines = records.filter_map(|r| Some((r.seq, wal::get_entry(r.entry)?.0)));
            take_newest(lines, max, &filter, &mut found);
        }
        let mut unpacker = block::Unpacker::new()?;
        for segment in self.segments.iter().rev() {
            if found.len() >= max {
                break;
            }
            match File::open(&segment.path) {
                Ok(file) => read_segment(segment, &file, below, max, &filter, &mut unpacker, &mut found)?,
                // Retention took it since the snapshot.
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(e),
            }
        }
        found.reverse();
        Ok(found)
    }

    /// Lines from number `from` on that match, until about `max_bytes` were looked at.
    pub fn read_on(&self, from: u64, max_bytes: usize, query: &LogQuery, place: &mut Place) -> io::Result<Stretch> {
        let filter = query.filter();
        let mut out = Stretch { next: from, ..Stretch::default() };
        let mut room = max_bytes;
        let first = self.segments.iter().rposition(|s| s.first_seq().is_some_and(|n| n <= from)).unwrap_or(0);
        let mut unpacker = block::Unpacker::new()?;
        for segment in self.segments.iter().skip(first) {
            let file = match File::open(&segment.path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let known = place.segment.as_ref().filter(|(path, _)| *path == segment.path);
            let mut at = known.map_or(0, |(_, at)| *at);
            while let Some(head) = block::head_at(&file, at, segment.len)? {
                if head.next_seq() > out.next {
                    if room == 0 {
                        return Ok(out);
                    }
                    out.missed += head.first_seq.saturating_sub(out.next);
                    match unpacker.unpack(&file, at, &head)? {
                        Some(raw) => {
                            room = room.saturating_sub(raw.len());
                            let lines = (head.first_seq..).zip(block::entries(raw)).skip_while(|(n, _)| *n < out.next);
                            out.lines.extend(lines.filter(|(_, v)| filter.matches(*v)).map(|(n, v)| numbered(n, v)));
                        }
                        None => {
                            tracing::error!(path = %segment.path.display(), at, "a log block is damaged; its lines are left out");
                            out.missed += head.next_seq() - head.first_seq.max(out.next);
                        }
                    }
                    out.next = head.next_seq();
                }
                at += head.block_len();
                place.segment = Some((segment.path.clone(), at));
            }
        }
        if let Some(wal) = self.wal.as_ref().filter(|_| room > 0) {
            let bytes = read_wal(wal)?;
            for record in wal::Records::new(&bytes).skip_while(|r| r.seq < from) {
                if record.seq < out.next {
                    continue;
                }
                out.missed += record.seq - out.next;
                out.next = record.seq + 1;
                let view = wal::get_entry(record.entry).map(|(v, _)| v);
                out.lines.extend(view.filter(|v| filter.matches(*v)).map(|v| numbered(record.seq, v)));
            }
        }
        Ok(out)
    }
}

/// Walks a segment from its end; `found` is newest first.
fn read_segment(
    segment: &Segment,
    file: &File,
    below: u64,
    max: usize,
    filter: &Filter<'_>,
    unpacker: &mut block::Unpacker,
    found: &mut Vec<Numbered>,
) -> io::Result<()> {
    let mut end = segment.len;
    while end > 0 && found.len() < max {
        let Some((start, head)) = block::head_before(file, end)? else {
            tracing::error!(path = %segment.path.display(), at = end, "a log segment is damaged; its older lines are left out");
            return Ok(());
        };
        end = start;
        if head.first_seq >= below || !filter.overlaps(head.oldest, head.newest) {
            continue;
        }
        let Some(raw) = unpacker.unpack(file, start, &head)? else {
            tracing::error!(path = %segment.path.display(), at = start, "a log block is damaged; its lines are left out");
            continue;
        };
        if !filter.may_match_in(raw) {
            continue;
        }
        let lines = (head.first_seq..below).zip(block::entries(raw));
        take_newest(lines, max, filter, found);
    }
    Ok(())
}

/// Adds the newest of these lines (oldest first) that match, newest first, until there are `max`.
fn take_newest<'a>(lines: impl Iterator<Item = (u64, View<'a>)>, max: usize, filter: &Filter<'_>, found: &mut Vec<Numbered>) {
    let room = max.saturating_sub(found.len());
    let mut newest = VecDeque::new();
    for (seq, view) in lines.filter(|(_, view)| filter.matches(*view)) {
        if newest.len() == room {
            newest.pop_front();
        }
        newest.push_back((seq, view));
    }
    found.extend(newest.into_iter().rev().map(|(seq, view)| numbered(seq, view)));
}
