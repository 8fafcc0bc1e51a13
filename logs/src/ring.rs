//! The newest lines of one app in memory: what is not on disk yet, and some more for tails.

use flex_model::LogLine;
use std::{collections::VecDeque, sync::Arc};

/// What stays although it is on disk.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    pub lines: usize,
    pub bytes: usize,
}

impl Keep {
    /// Enough for tails: as many lines as `flex logs -n` may ask for.
    pub const TAIL: Self = Self { lines: 1500, bytes: 256 << 10 };
    /// While somebody follows: a reader of ordinary speed misses nothing of a full burst.
    pub const FOLLOWED: Self = Self { lines: usize::MAX, bytes: 16 << 20 };
    /// Nobody wrote or read for long.
    pub const IDLE: Self = Self { lines: 0, bytes: 0 };
}

/// Bytes that may wait for the disk; more are dropped.
pub const MAX_UNWRITTEN: usize = 16 << 20;
/// What a line weighs beside its text.
const LINE_OVERHEAD: usize = 96;

/// A queue of consecutively numbered lines; the front part is on disk, the rest is not.
#[derive(Debug)]
pub struct Ring {
    lines: VecDeque<Arc<LogLine>>,
    /// Number of the first line in `lines`.
    first: u64,
    /// Lines below this number are on disk.
    written: u64,
    bytes: usize,
    unwritten_bytes: usize,
}

fn weight(line: &LogLine) -> usize {
    line.text.len() + LINE_OVERHEAD
}

impl Ring {
    /// Empty; the first line pushed gets the number `next`.
    pub fn new(next: u64) -> Self {
        Self { lines: VecDeque::new(), first: next, written: next, bytes: 0, unwritten_bytes: 0 }
    }

    /// Number of the first line here: everything below it is on disk.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Lines below this number are on disk.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The number that the next line gets.
    pub fn next(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    /// Whether lines wait for the disk.
    pub fn is_dirty(&self) -> bool {
        self.written < self.next()
    }

    /// Adds a line, unless too much waits for the disk.
    pub fn push(&mut self, line: LogLine) -> bool {
        let w = weight(&line);
        if self.unwritten_bytes + w > MAX_UNWRITTEN {
            return false;
        }
        self.bytes += w;
        self.unwritten_bytes += w;
        self.lines.push_back(Arc::new(line));
        true
    }

    /// The oldest lines that wait for the disk, about `max_bytes` of them, and the first one's number.
    pub fn unwritten(&self, max_bytes: usize) -> (u64, Vec<Arc<LogLine>>) {
        let mut room = max_bytes;
        let lines = self
            .from(self.written)
            .take_while(|line| {
                let fits = room > 0;
                room = room.saturating_sub(weight(line));
                fits
            })
            .cloned()
            .collect();
        (self.written, lines)
    }

    /// Notes that lines below `next` are on disk, and lets go of the oldest beyond the limits.
    pub fn mark_written(&mut self, next: u64, keep: Keep) {
        let done: usize = self.from(self.written).take((next - self.written) as usize).map(|l| weight(l)).sum();
        self.unwritten_bytes -= done;
        self.written = next;
        self.trim(keep);
    }

    /// Lets go of the oldest lines beyond the limits, as far as they are on disk.
    pub fn trim(&mut self, keep: Keep) {
        while self.first < self.written && (self.lines.len() > keep.lines || self.bytes > keep.bytes) {
            let Some(line) = self.lines.pop_front() else { break };
            self.bytes -= weight(&line);
            self.first += 1;
        }
    }

    /// The lines from number `seq` on, as far as they are here.
    pub fn from(&self, seq: u64) -> impl DoubleEndedIterator<Item = &Arc<LogLine>> + ExactSizeIterator {
        let skip = usize::try_from(seq.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.lines.len());
        self.lines.range(skip..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_model::{LogSource, Timestamp};
    use proptest::prelude::*;

    fn line(n: u64) -> LogLine {
        LogLine { at: Timestamp::default(), source: LogSource::App, process: "web.1".into(), text: n.to_string().into() }
    }

    proptest! {
        #[test]
        fn nothing_leaves_before_it_is_written(ops in prop::collection::vec((0u8..4, 0usize..40), 1..200)) {
            let mut ring = Ring::new(7);
            let mut disk = Vec::new();
            let mut next = 7;
            for (op, n) in ops {
                match op {
                    0 | 1 => for _ in 0..n {
                        prop_assert!(ring.push(line(next)));
                        next += 1;
                    },
                    2 => {
                        let (from, lines) = ring.unwritten(n * 100);
                        let upto = from + lines.len() as u64;
                        disk.extend(lines.iter().map(|l| l.text.clone()));
                        ring.mark_written(upto, Keep { lines: n, bytes: 1000 });
                    }
                    _ => ring.trim(Keep { lines: n, bytes: n * 100 }),
                }
                prop_assert_eq!(ring.next(), next);
                let on_disk = (ring.first() - 7) as usize;
                prop_assert!(on_disk <= disk.len());
                let all: Vec<_> = disk[..on_disk].iter().cloned().chain(ring.from(0).map(|l| l.text.clone())).collect();
                prop_assert_eq!(all, (7..next).map(|n| n.to_string()).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_disk_that_does_not_take_lines_has_a_limit() {
        let mut ring = Ring::new(0);
        let big = LogLine { text: "x".repeat(1 << 20).into(), ..line(0) };
        let taken = (0..40).filter(|_| ring.push(big.clone())).count();
        assert!((10..16).contains(&taken), "{taken}");
        let (_, lines) = ring.unwritten(usize::MAX);
        ring.mark_written(lines.len() as u64, Keep::TAIL);
        assert!(ring.push(big));
    }
}
