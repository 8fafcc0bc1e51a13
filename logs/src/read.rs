//! Reading an app's files: backwards for the newest lines that match, onwards from a number for readers that follow.
//!
//! Works on a [`Snapshot`], so no lock is held. A search leaves blocks packed whose index says that nothing in them matches,
//! walks the bytes of the others, and copies lines out only once they match. Must not: fail because retention takes files meanwhile.

use crate::{
    LogQuery, Numbered, block,
    disk::{Segment, Snapshot},
    index::Probe,
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
        let (filter, probe) = (query.filter(), Probe::new(query));
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
                Ok(file) => read_segment(segment, &file, below, max, (&filter, &probe), &mut unpacker, &mut found)?,
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
        let (filter, probe) = (query.filter(), Probe::new(query));
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
                    let is_skipped = may_skip(&probe, &mut unpacker, &file, at, &head);
                    let raw = if is_skipped { Some(&[][..]) } else { unpacker.unpack(&file, at, &head)? };
                    match raw {
                        Some(raw) => {
                            room = room.saturating_sub(raw.len());
                            let lines = block::entries(raw, probe.needle()).map(|(n, v)| (head.first_seq + n, v));
                            let matching = lines.filter(|(n, v)| *n >= out.next && filter.matches(*v));
                            out.lines.extend(matching.map(|(n, v)| numbered(n, v)));
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

/// Whether the block's index says that no line in it can match.
fn may_skip(probe: &Probe<'_>, unpacker: &mut block::Unpacker, file: &File, start: u64, head: &block::Head) -> bool {
    probe.asks() && unpacker.index(file, start, head).is_some_and(|index| probe.excludes(&index))
}

/// Walks a segment from its end; `found` is newest first.
fn read_segment(
    segment: &Segment,
    file: &File,
    below: u64,
    max: usize,
    (filter, probe): (&Filter<'_>, &Probe<'_>),
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
        if head.first_seq >= below || !filter.overlaps(head.oldest, head.newest) || may_skip(probe, unpacker, file, start, &head)
        {
            continue;
        }
        let Some(raw) = unpacker.unpack(file, start, &head)? else {
            tracing::error!(path = %segment.path.display(), at = start, "a log block is damaged; its lines are left out");
            continue;
        };
        let lines = block::entries(raw, probe.needle()).map(|(n, v)| (head.first_seq + n, v));
        take_newest(lines.take_while(|(n, _)| *n < below), max, filter, found);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TextFilter, index::Builder};
    use flex_model::{LogLine, LogSource, Timestamp};
    use proptest::prelude::*;

    /// How a block is stored.
    #[derive(Debug, Clone, Copy)]
    enum Form {
        Indexed,
        /// As earlier versions wrote it.
        Unindexed,
        /// With one bit of its index turned.
        Damaged(prop::sample::Index),
    }

    fn forms() -> impl Strategy<Value = Form> {
        prop_oneof![3 => Just(Form::Indexed), 1 => Just(Form::Unindexed), 1 => any::<prop::sample::Index>().prop_map(Form::Damaged)]
    }

    fn words() -> impl Strategy<Value = String> {
        let words = ["error", "Error", "ERROR ", "id=17", "id=18 ", " GET /a", "\u{e9}", "time", "out", "timeout", " ", "x"];
        prop::collection::vec(prop::sample::select(words.to_vec()), 0..6).prop_map(|w| w.concat())
    }

    fn moment() -> impl Strategy<Value = Timestamp> {
        (0i64..50).prop_map(Timestamp::from_micros)
    }

    fn source() -> impl Strategy<Value = LogSource> {
        prop::sample::select(vec![LogSource::App, LogSource::Flex])
    }

    fn any_line() -> impl Strategy<Value = LogLine> {
        let process = prop::sample::select(vec!["web.1", "web.2", "worker.1", "router"]);
        let parts = (moment(), source(), process, words(), any::<bool>());
        parts.prop_map(|(at, source, process, text, is_odd)| {
            let text = [text.as_bytes(), if is_odd { &b"\xff"[..] } else { b"" }].concat();
            LogLine { at, source, process: process.into(), text: text.into() }
        })
    }

    fn any_filter() -> impl Strategy<Value = TextFilter> {
        let patterns = [
            "error",
            "(?i)error",
            "id=1[78] ",
            "time ?out",
            "^id",
            "GET /a$",
            "(error|timeout) +GET",
            r"\w+ GET",
            r"(?i)timeout|x{3}",
            r"id=\d+.*error",
            "",
            ".*",
            r"(?-u)\xff",
            "(id=17){2}",
        ];
        prop_oneof![
            words().prop_map(|text| TextFilter::contains(&text).unwrap()),
            prop::sample::select(patterns.to_vec()).prop_map(|p| TextFilter::pattern(p).unwrap()),
        ]
    }

    fn any_query() -> impl Strategy<Value = LogQuery> {
        let process = prop::sample::select(vec!["web", "web.1", "worker", "router", "wor", "web.3"]);
        let process = prop::option::of(process.prop_map(str::to_owned));
        let (since, until) = (prop::option::weighted(0.2, moment()), prop::option::weighted(0.2, moment()));
        let text = prop::option::weighted(0.8, any_filter());
        (0usize..40, prop::option::of(source()), process, since, until, text)
            .prop_map(|(lines, source, process, since, until, text)| LogQuery { lines, source, process, since, until, text })
    }

    fn packed(first: u64, lines: &[LogLine], form: Form) -> Vec<u8> {
        let mut bytes = Vec::new();
        lines.iter().for_each(|l| wal::put_entry(l, &mut bytes));
        let mut index = Builder::new();
        block::entries(&bytes, None).for_each(|(_, view)| index.add(view));
        let times = lines.iter().map(|l| l.at);
        let (oldest, newest) = (times.clone().min().unwrap(), times.max().unwrap());
        let mut index = index.finish();
        let count = lines.len() as u32;
        if let Form::Unindexed = form {
            return block::tests::pack_unindexed(first, count, oldest, newest, &bytes);
        }
        let mut packed = block::pack(first, count, oldest, newest, &bytes, &index).unwrap();
        if let Form::Damaged(at) = form {
            let at = at.index(index.len() * 8);
            index[at / 8] ^= 1 << (at % 8);
            let place = packed.len() - index.len() - block::tests::len_after_index(&packed);
            packed[place..place + index.len()].copy_from_slice(&index);
        }
        packed
    }

    /// A segment of these blocks, and all lines in it.
    fn stored(dir: &std::path::Path, blocks: &[(Form, Vec<LogLine>)]) -> (Snapshot, Vec<Numbered>) {
        let (mut bytes, mut all) = (Vec::new(), Vec::new());
        for (form, lines) in blocks {
            bytes.extend(packed(all.len() as u64, lines, *form));
            let numbers = all.len() as u64..;
            all.extend(numbers.zip(lines).map(|(seq, l)| Numbered { seq, line: Arc::new(l.clone()) }));
        }
        let path = dir.join("00000000000000000000.seg");
        std::fs::write(&path, &bytes).unwrap();
        (Snapshot { segments: [Segment { path, len: bytes.len() as u64 }].into(), wal: None }, all)
    }

    fn blocks() -> impl Strategy<Value = Vec<(Form, Vec<LogLine>)>> {
        prop::collection::vec((forms(), prop::collection::vec(any_line(), 1..12)), 1..8)
    }

    proptest! {
        #[test]
        fn a_search_finds_what_a_look_at_each_line_finds(
            blocks in blocks(), query in any_query(), place in any::<prop::sample::Index>(), step in 1usize..2_000,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (snapshot, all) = stored(dir.path(), &blocks);
            let place = place.index(all.len() + 1);
            let mut newest: Vec<_> = all[..place].iter().filter(|n| query.matches(&n.line)).cloned().collect();
            newest.drain(..newest.len().saturating_sub(query.lines));
            prop_assert_eq!(snapshot.read_back(place as u64, query.lines, &query).unwrap(), newest);

            let onwards: Vec<_> = all[place..].iter().filter(|n| query.matches(&n.line)).cloned().collect();
            let (mut next, mut at, mut read) = (place as u64, Place::default(), Vec::new());
            while next < all.len() as u64 {
                let stretch = snapshot.read_on(next, step, &query, &mut at).unwrap();
                prop_assert!(stretch.next > next && stretch.missed == 0);
                next = stretch.next;
                read.extend(stretch.lines);
            }
            prop_assert_eq!(read, onwards);
        }

        #[test]
        fn damage_leaves_lines_out_and_makes_up_none(
            blocks in blocks(), query in any_query(), at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (snapshot, all) = stored(dir.path(), &blocks);
            let path = &snapshot.segments[0].path;
            let mut bytes = std::fs::read(path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            std::fs::write(path, bytes).unwrap();
            for found in snapshot.read_back(u64::MAX, usize::MAX, &query).unwrap() {
                prop_assert!(query.matches(&found.line));
                prop_assert_eq!(Some(&found), all.get(found.seq as usize));
            }
        }
    }
}
