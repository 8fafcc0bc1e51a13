//! What a block's index says of its lines, so that a search need not unpack blocks in which nothing can match.
//!
//! An index has the sources and processes of the block's lines, and a filter: a Bloom filter with one hash over every five
//! bytes in a row (5-grams) of the lines' texts. A text of n bytes has n - 4 of them, so that a text which is not there is
//! told apart many times over, and one hash each is best. Four would not do: a block of numbers has nearly all fours of
//! digits. The filter is as small as six tenths of its bits set allow.
//!
//! An index may say that lines may match where none does, and never the other way round. Must not: decide whether a line
//! matches.
//!
//! Its bytes are `form u8, sources u8, processes u8 (255: too many to tell)`, each process as `length u8, bytes`, then the
//! filter's bits, a power of two of bytes, or none: no filter.

use crate::{
    literals,
    query::{LogQuery, TextFilter, process_matches},
    wal::View,
};
use flex_model::LogSource;
use memchr::memmem::Finder;

/// 1 was an index with 4-grams, which is passed over.
const FORM: u8 = 2;
/// Processes that are not told any more.
const MANY: u8 = u8::MAX;
/// Processes of one block that are told; an app with more at a time writes blocks that have lines of nearly all of them.
const MAX_PROCESSES: usize = 64;
/// Bits of a filter before it is made smaller: 32 KiB.
const BITS: usize = 1 << 18;
/// Longest index believed: the filter, and processes with the longest names.
pub const MAX_BYTES: usize = BITS / 8 + MAX_PROCESSES * 256 + 3;
/// Bytes that the filter takes together.
const GRAM: usize = 5;

/// Where the filter has the bits of a text's 5-grams; smaller filters take the low bits of each.
fn slots(text: &[u8]) -> impl Iterator<Item = usize> {
    let mut gram = 0u64;
    text.iter().enumerate().filter_map(move |(n, byte)| {
        gram = gram >> 8 | u64::from(*byte) << (8 * (GRAM - 1));
        // The high bits of a product depend on all bits of its factor.
        let mixed = gram.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS.ilog2());
        (n + 1 >= GRAM).then_some(mixed as usize)
    })
}

fn source_bit(source: LogSource) -> u8 {
    match source {
        LogSource::App => 1,
        LogSource::Flex => 2,
    }
}

/// Makes the index of a block, line by line.
pub struct Builder<'a> {
    sources: u8,
    /// In the order in which they came; none: too many.
    processes: Option<Vec<&'a [u8]>>,
    filter: Vec<u64>,
}

impl<'a> Builder<'a> {
    pub fn new() -> Self {
        Self { sources: 0, processes: Some(Vec::new()), filter: vec![0; BITS / 64] }
    }

    pub fn add(&mut self, line: View<'a>) {
        self.sources |= source_bit(line.source);
        if let Some(known) = self.processes.as_mut().filter(|k| k.iter().rev().all(|p| *p != line.process)) {
            known.push(line.process);
            if known.len() > MAX_PROCESSES {
                self.processes = None;
            }
        }
        for slot in slots(line.text) {
            self.filter[slot / 64] |= 1 << (slot % 64);
        }
    }

    /// The index's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        let mut out = vec![FORM, self.sources];
        match &self.processes {
            Some(processes) => {
                out.push(processes.len() as u8);
                for process in processes {
                    out.push(process.len() as u8);
                    out.extend_from_slice(process);
                }
            }
            None => out.push(MANY),
        }
        fold(&mut self.filter);
        let ones: u32 = self.filter.iter().map(|w| w.count_ones()).sum();
        // One that is nearly full tells nothing.
        if (ones as usize) < self.filter.len() * 64 * 9 / 10 {
            out.extend(self.filter.iter().flat_map(|w| w.to_le_bytes()));
        }
        out
    }
}

/// Halves a filter as long as at most six tenths of its bits are set then.
fn fold(filter: &mut Vec<u64>) {
    while filter.len() > 1 {
        let (low, high) = filter.split_at(filter.len() / 2);
        let ones: u32 = low.iter().zip(high).map(|(l, h)| (l | h).count_ones()).sum();
        if ones as usize * 10 > low.len() * 64 * 6 {
            return;
        }
        *filter = low.iter().zip(high).map(|(l, h)| l | h).collect();
    }
}

/// A block's index as it lies in a file.
#[derive(Debug, Clone, Copy)]
pub struct Index<'a> {
    sources: u8,
    /// Their number and bytes; none: too many to tell.
    processes: Option<(u8, &'a [u8])>,
    filter: &'a [u8],
}

impl<'a> Index<'a> {
    /// Reads an index's bytes; none if they make no sense, or are of a form of later versions.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let [FORM, sources, count, rest @ ..] = bytes else { return None };
        if *count == MANY {
            return Self { sources: *sources, processes: None, filter: rest }.sound();
        }
        let mut filter = rest;
        for _ in 0..*count {
            let (len, after) = filter.split_first()?;
            filter = after.get(usize::from(*len)..)?;
        }
        let names = &rest[..rest.len() - filter.len()];
        Self { sources: *sources, processes: Some((*count, names)), filter }.sound()
    }

    fn sound(self) -> Option<Self> {
        (self.filter.is_empty() || self.filter.len().is_power_of_two()).then_some(self)
    }

    fn processes(&self) -> Option<impl Iterator<Item = &'a [u8]>> {
        let (count, mut rest) = self.processes?;
        Some((0..count).map_while(move |_| {
            let (len, after) = rest.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(*len))?;
            rest = after;
            Some(name)
        }))
    }

    fn may_hold(&self, slot: usize) -> bool {
        let at = slot & (self.filter.len() * 8 - 1);
        self.filter[at / 8] >> (at % 8) & 1 == 1
    }
}

/// What a query asks of whole blocks.
pub struct Probe<'a> {
    source: Option<LogSource>,
    process: Option<&'a [u8]>,
    /// Of each of these, at least one must be in a line's text; as the slots of its 5-grams.
    needs: Vec<Vec<Vec<usize>>>,
    /// Bytes that every line which matches has in its text.
    needle: Option<Finder<'static>>,
}

impl<'a> Probe<'a> {
    pub fn new(query: &'a LogQuery) -> Self {
        let required = match &query.text {
            None => Vec::new(),
            Some(TextFilter::Contains(text)) if text.is_empty() => Vec::new(),
            Some(TextFilter::Contains(text)) => vec![vec![text.as_bytes().to_vec()]],
            Some(TextFilter::Pattern(pattern)) => literals::required(pattern.as_str()),
        };
        let single = required.iter().filter_map(|any| <&[Vec<u8>; 1]>::try_from(any.as_slice()).ok());
        let needle = single.map(|[one]| one).max_by_key(|one| one.len()).map(|one| Finder::new(one).into_owned());
        let long = required.iter().filter(|any| any.iter().all(|one| one.len() >= GRAM));
        let needs = long.map(|any| any.iter().map(|one| slots(one).collect()).collect()).collect();
        Self { source: query.source, process: query.process.as_deref().map(str::as_bytes), needs, needle }
    }

    /// Whether an index could tell anything.
    pub fn asks(&self) -> bool {
        self.source.is_some() || self.process.is_some() || !self.needs.is_empty()
    }

    /// Whether no line of the block can match.
    pub fn excludes(&self, index: &Index<'_>) -> bool {
        let has_source = self.source.is_none_or(|s| index.sources & source_bit(s) != 0);
        let has_process = || {
            let Some((wanted, mut all)) = self.process.zip(index.processes()) else { return true };
            all.any(|process| process_matches(wanted, process))
        };
        let has_texts = || {
            let may_hold = |one: &Vec<usize>| one.iter().all(|slot| index.may_hold(*slot));
            index.filter.is_empty() || self.needs.iter().all(|any| any.iter().any(may_hold))
        };
        !(has_source && has_process() && has_texts())
    }

    /// Bytes without which no line of the block matches.
    pub fn needle(&self) -> Option<&Finder<'static>> {
        self.needle.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_model::Timestamp;
    use proptest::prelude::*;

    fn index_of<'a>(lines: impl IntoIterator<Item = (LogSource, &'a str, &'a [u8])>) -> Vec<u8> {
        let mut builder = Builder::new();
        for (source, process, text) in lines {
            builder.add(View { at: Timestamp::default(), source, process: process.as_bytes(), text });
        }
        builder.finish()
    }

    fn texts(text: &str) -> LogQuery {
        LogQuery { text: Some(TextFilter::contains(text).unwrap()), ..LogQuery::default() }
    }

    #[test]
    fn what_is_not_there_is_told_and_what_is_may_be() {
        let bytes = index_of([(LogSource::App, "web.1", &b"GET /items/17"[..]), (LogSource::App, "worker.2", b"done")]);
        assert!(bytes.len() < 64, "few lines have a small index: {}", bytes.len());
        assert!(Index::parse(&[&[FORM - 1], &bytes[1..]].concat()).is_none(), "one of another form is passed over");
        let index = Index::parse(&bytes).unwrap();
        let excluded = |query: &LogQuery| Probe::new(query).excludes(&index);
        for there in ["GET /items/17", "items", "T /", "done", ""] {
            assert!(!excluded(&texts(there)), "{there}");
        }
        for absent in ["get /items", "POST /users", "donedone of it"] {
            assert!(excluded(&texts(absent)), "{absent}");
        }
        for (process, gone) in [("web", false), ("web.1", false), ("web.2", true), ("work", true), ("worker", false)] {
            assert_eq!(excluded(&LogQuery { process: Some(process.into()), ..LogQuery::default() }), gone, "{process}");
        }
        for (source, gone) in [(LogSource::App, false), (LogSource::Flex, true)] {
            assert_eq!(excluded(&LogQuery { source: Some(source), ..LogQuery::default() }), gone, "{source:?}");
        }
        assert!(!excluded(&LogQuery::default()) && !Probe::new(&LogQuery::default()).asks());
        assert!(!Probe::new(&texts("four")).asks(), "four bytes have no 5-gram");
    }

    #[test]
    fn many_processes_are_not_told_and_a_full_filter_is_left_out() {
        let names: Vec<_> = (0..100).map(|n| format!("web.{n}")).collect();
        let bytes = index_of(names.iter().map(|n| (LogSource::App, n.as_str(), &b"a line of text"[..])));
        let index = Index::parse(&bytes).unwrap();
        assert!(!Probe::new(&LogQuery { process: Some("other".into()), ..LogQuery::default() }).excludes(&index));
        assert!(Probe::new(&texts("another text")).excludes(&index));
        let mut state = 1u64;
        let noise: Vec<u8> = (0..2 << 20)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        let bytes = index_of([(LogSource::App, "web.1", &noise[..])]);
        assert!(bytes.len() < 64, "{}", bytes.len());
        assert!(!Probe::new(&texts("another text")).excludes(&Index::parse(&bytes).unwrap()));
    }

    proptest! {
        #[test]
        fn nothing_that_is_there_is_excluded(
            lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..40),
            line in any::<prop::sample::Index>(),
            (from, to) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let bytes = index_of(lines.iter().map(|l| (LogSource::Flex, "release", l.as_slice())));
            prop_assert!(bytes.len() <= MAX_BYTES);
            let index = Index::parse(&bytes).unwrap();
            let text = line.get(&lines);
            let (from, to) = (from.index(text.len() + 1), to.index(text.len() + 1));
            let needed = vec![slots(&text[from.min(to)..from.max(to)]).collect()];
            let probe = Probe { source: Some(LogSource::Flex), process: Some(b"release"), needs: vec![needed], needle: None };
            prop_assert!(!probe.excludes(&index));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), form in any::<bool>()) {
            let mut bytes = bytes;
            if form {
                bytes.insert(0, FORM);
            }
            if let Some(index) = Index::parse(&bytes) {
                let query = LogQuery { process: Some("web".into()), ..texts("some text") };
                Probe::new(&query).excludes(&index);
            }
        }
    }
}
