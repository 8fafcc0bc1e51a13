//! Compressed blocks of a segment file, which can be walked from its end without a table of them.
//!
//! A block is a fixed head, an index ([`crate::index`]) that says which searches need not look at it, zstd data of
//! concatenated entries, and its own whole length once more, so that a reader at a block's end finds its start. Head, index
//! and data have a checksum each: a block with a damaged index is unpacked as if it had none.
//!
//! Blocks of earlier versions have a shorter head, no index, and one checksum for head and data; a segment may have both.

use crate::{
    index::{self, Index},
    wal::{self, View},
};
use flex_model::Timestamp;
use memchr::memmem::Finder;
use std::{fs::File, io, os::unix::fs::FileExt};

const MAGIC: u32 = u32::from_le_bytes(*b"FLB2");
const MAGIC_UNINDEXED: u32 = u32::from_le_bytes(*b"FLB1");
/// What heads of both forms begin with.
const COMMON: usize = 40;
const HEAD: usize = COMMON + 4 * 4;
const HEAD_UNINDEXED: usize = COMMON + 4;
const TAIL: usize = 4;
/// Largest block believed, packed or unpacked.
const MAX_BLOCK: usize = 64 << 20;
/// The fastest level: logs shrink about tenfold with it, and blocks are made beside the apps.
const LEVEL: i32 = 1;

/// A block's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    packed: u32,
    raw: u32,
    pub count: u32,
    pub first_seq: u64,
    pub oldest: Timestamp,
    pub newest: Timestamp,
    /// Length and checksum of the index; none in blocks of earlier versions.
    index: Option<(u32, u32)>,
    /// Of the data; in blocks of earlier versions of the head too.
    crc: u32,
}

impl Head {
    fn len(&self) -> usize {
        if self.index.is_some() { HEAD } else { HEAD_UNINDEXED }
    }

    fn index_len(&self) -> usize {
        self.index.map_or(0, |(len, _)| len as usize)
    }

    /// Length of the whole block in the file.
    pub fn block_len(&self) -> u64 {
        (self.len() + self.index_len() + self.packed as usize + TAIL) as u64
    }

    /// Number of the first line after this block.
    pub fn next_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD);
        let magic = if self.index.is_some() { MAGIC } else { MAGIC_UNINDEXED };
        for n in [magic, self.packed, self.raw, self.count] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(&self.oldest.micros().to_le_bytes());
        out.extend_from_slice(&self.newest.micros().to_le_bytes());
        if let Some((len, crc)) = self.index {
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(&crc.to_le_bytes());
        }
        out.extend_from_slice(&self.crc.to_le_bytes());
        if self.index.is_some() {
            let crc = crc32fast::hash(&out);
            out.extend_from_slice(&crc.to_le_bytes());
        }
        out
    }

    /// Reads the head at the start of these bytes, which may go on after it.
    fn decode(b: &[u8]) -> Option<Self> {
        let u32_at = |i: usize| Some(u32::from_le_bytes(b.get(i..i + 4)?.try_into().ok()?));
        let u64_at = |i: usize| Some(u64::from_le_bytes(b.get(i..i + 8)?.try_into().ok()?));
        let (index, crc) = match u32_at(0)? {
            MAGIC if crc32fast::hash(b.get(..HEAD - 4)?) == u32_at(HEAD - 4)? => {
                (Some((u32_at(COMMON)?, u32_at(COMMON + 4)?)), u32_at(COMMON + 8)?)
            }
            MAGIC_UNINDEXED => (None, u32_at(COMMON)?),
            _ => return None,
        };
        let head = Self {
            packed: u32_at(4)?,
            raw: u32_at(8)?,
            count: u32_at(12)?,
            first_seq: u64_at(16)?,
            oldest: Timestamp::from_micros(u64_at(24)?.cast_signed()),
            newest: Timestamp::from_micros(u64_at(32)?.cast_signed()),
            index,
            crc,
        };
        let sane = head.packed as usize <= MAX_BLOCK && head.raw as usize <= MAX_BLOCK && head.index_len() <= index::MAX_BYTES;
        sane.then_some(head)
    }

    fn checksum(&self, data: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        if self.index.is_none() {
            hasher.update(&self.encode()[..COMMON]);
        }
        hasher.update(data);
        hasher.finalize()
    }
}

/// Packs entries (as [`crate::wal::put_entry`] writes them) and their index into a block's bytes.
pub fn pack(
    first_seq: u64,
    count: u32,
    oldest: Timestamp,
    newest: Timestamp,
    entries: &[u8],
    index: &[u8],
) -> io::Result<Vec<u8>> {
    let data = zstd::bulk::compress(entries, LEVEL)?;
    let (packed, raw) = (data.len() as u32, entries.len() as u32);
    let indexed = Some((index.len() as u32, crc32fast::hash(index)));
    let head = Head { packed, raw, count, first_seq, oldest, newest, index: indexed, crc: crc32fast::hash(&data) };
    let mut out = head.encode();
    out.extend_from_slice(index);
    out.extend_from_slice(&data);
    out.extend_from_slice(&(head.block_len() as u32).to_le_bytes());
    Ok(out)
}

/// The head of the block that starts at `start`, if there is one that ends by `limit`.
pub fn head_at(file: &File, start: u64, limit: u64) -> io::Result<Option<Head>> {
    let mut bytes = [0; HEAD];
    let there = usize::try_from(limit.saturating_sub(start)).unwrap_or(HEAD).min(HEAD);
    if there < HEAD_UNINDEXED + TAIL {
        return Ok(None);
    }
    file.read_exact_at(&mut bytes[..there], start)?;
    Ok(Head::decode(&bytes[..there]).filter(|h| start + h.block_len() <= limit))
}

/// The block that ends at `end`: where it starts, and its head.
pub fn head_before(file: &File, end: u64) -> io::Result<Option<(u64, Head)>> {
    if end < (HEAD_UNINDEXED + TAIL) as u64 {
        return Ok(None);
    }
    let mut tail = [0; TAIL];
    file.read_exact_at(&mut tail, end - TAIL as u64)?;
    let Some(start) = end.checked_sub(u64::from(u32::from_le_bytes(tail))) else { return Ok(None) };
    Ok(head_at(file, start, end)?.filter(|h| start + h.block_len() == end).map(|h| (start, h)))
}

/// Unpacks blocks, with buffers that serve for all of them.
pub struct Unpacker {
    zstd: zstd::bulk::Decompressor<'static>,
    packed: Vec<u8>,
    raw: Vec<u8>,
}

impl Unpacker {
    pub fn new() -> io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Decompressor::new()?, packed: Vec::new(), raw: Vec::new() })
    }

    /// The index of the block at `start`; none if it has none, or one that cannot be read.
    pub fn index(&mut self, file: &File, start: u64, head: &Head) -> Option<Index<'_>> {
        let (len, crc) = head.index?;
        self.packed.resize(len as usize, 0);
        file.read_exact_at(&mut self.packed, start + HEAD as u64).ok()?;
        (crc32fast::hash(&self.packed) == crc).then(|| Index::parse(&self.packed)).flatten()
    }

    /// The entries of the block at `start`, oldest first, as bytes; none if it is damaged.
    pub fn unpack(&mut self, file: &File, start: u64, head: &Head) -> io::Result<Option<&[u8]>> {
        self.packed.resize(head.packed as usize, 0);
        file.read_exact_at(&mut self.packed, start + (head.len() + head.index_len()) as u64)?;
        if head.checksum(&self.packed) != head.crc {
            return Ok(None);
        }
        self.raw.clear();
        self.raw.reserve(head.raw as usize);
        self.zstd.decompress_to_buffer(&self.packed, &mut self.raw)?;
        Ok(Some(&self.raw))
    }
}

/// Walks the entries of a block, oldest first, with their places in it; with a needle only those that may have it in their
/// text.
pub fn entries<'a>(raw: &'a [u8], needle: Option<&'a Finder<'_>>) -> impl Iterator<Item = (u64, View<'a>)> {
    let find = move |from: usize| needle.map_or(from, |f| f.find(&raw[from..]).map_or(usize::MAX, |i| from + i));
    let (mut at, mut count, mut hit) = (0, 0, find(0));
    std::iter::from_fn(move || {
        while hit != usize::MAX {
            let (start, n) = (at, count);
            at += wal::entry_len(raw.get(start..)?)?;
            count += 1;
            if hit < start {
                hit = find(start);
            }
            if hit < at {
                return Some((n, wal::get_entry(raw.get(start..at)?)?.0));
            }
        }
        None
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A block as earlier versions wrote it.
    pub fn pack_unindexed(first_seq: u64, count: u32, oldest: Timestamp, newest: Timestamp, entries: &[u8]) -> Vec<u8> {
        let data = zstd::bulk::compress(entries, LEVEL).unwrap();
        let (packed, raw) = (data.len() as u32, entries.len() as u32);
        let mut head = Head { packed, raw, count, first_seq, oldest, newest, index: None, crc: 0 };
        head.crc = head.checksum(&data);
        [&head.encode()[..], &data, &(head.block_len() as u32).to_le_bytes()].concat()
    }

    /// Bytes of a packed block that follow its index.
    pub fn len_after_index(block: &[u8]) -> usize {
        block.len() - HEAD - Head::decode(block).unwrap().index_len()
    }
}
