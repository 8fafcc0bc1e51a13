//! Compressed blocks of a segment file, which can be walked from its end without an index.
//!
//! A block is a fixed head, zstd data of concatenated entries, and its own whole length once more, so that a reader at a
//! block's end finds its start. The head's checksum covers head and data.

use crate::wal::{View, get_entry};
use flex_model::Timestamp;
use std::{fs::File, io, os::unix::fs::FileExt};

const MAGIC: u32 = u32::from_le_bytes(*b"FLB1");
const HEAD: usize = 44;
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
    crc: u32,
}

impl Head {
    /// Length of the whole block in the file.
    pub fn block_len(&self) -> u64 {
        (HEAD + self.packed as usize + TAIL) as u64
    }

    /// Number of the first line after this block.
    pub fn next_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count)
    }

    fn encode(&self) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&self.packed.to_le_bytes());
        out[8..12].copy_from_slice(&self.raw.to_le_bytes());
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.oldest.micros().to_le_bytes());
        out[32..40].copy_from_slice(&self.newest.micros().to_le_bytes());
        out[40..44].copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    fn decode(b: &[u8; HEAD]) -> Option<Self> {
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        let head = Self {
            packed: u32_at(4),
            raw: u32_at(8),
            count: u32_at(12),
            first_seq: u64_at(16),
            oldest: Timestamp::from_micros(u64_at(24) as i64),
            newest: Timestamp::from_micros(u64_at(32) as i64),
            crc: u32_at(40),
        };
        (u32_at(0) == MAGIC && head.packed as usize <= MAX_BLOCK && head.raw as usize <= MAX_BLOCK).then_some(head)
    }
}

/// Packs entries (as [`crate::wal::put_entry`] writes them) into a block's bytes.
pub fn pack(first_seq: u64, count: u32, oldest: Timestamp, newest: Timestamp, entries: &[u8]) -> io::Result<Vec<u8>> {
    let data = zstd::bulk::compress(entries, LEVEL)?;
    let mut head = Head { packed: data.len() as u32, raw: entries.len() as u32, count, first_seq, oldest, newest, crc: 0 };
    head.crc = checksum(&head, &data);
    let mut out = Vec::with_capacity(HEAD + data.len() + TAIL);
    out.extend_from_slice(&head.encode());
    out.extend_from_slice(&data);
    out.extend_from_slice(&(head.block_len() as u32).to_le_bytes());
    Ok(out)
}

fn checksum(head: &Head, data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head.encode()[..HEAD - 4]);
    hasher.update(data);
    hasher.finalize()
}

/// The head of the block that starts at `start`, if there is one that ends by `limit`.
pub fn head_at(file: &File, start: u64, limit: u64) -> io::Result<Option<Head>> {
    if start + (HEAD + TAIL) as u64 > limit {
        return Ok(None);
    }
    let mut bytes = [0; HEAD];
    file.read_exact_at(&mut bytes, start)?;
    Ok(Head::decode(&bytes).filter(|h| start + h.block_len() <= limit))
}

/// The block that ends at `end`: where it starts, and its head.
pub fn head_before(file: &File, end: u64) -> io::Result<Option<(u64, Head)>> {
    if end < (HEAD + TAIL) as u64 {
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

    /// The entries of the block at `start`, oldest first, as bytes; none if it is damaged.
    pub fn unpack(&mut self, file: &File, start: u64, head: &Head) -> io::Result<Option<&[u8]>> {
        self.packed.resize(head.packed as usize, 0);
        file.read_exact_at(&mut self.packed, start + HEAD as u64)?;
        if checksum(head, &self.packed) != head.crc {
            return Ok(None);
        }
        self.raw.clear();
        self.raw.reserve(head.raw as usize);
        self.zstd.decompress_to_buffer(&self.packed, &mut self.raw)?;
        Ok(Some(&self.raw))
    }
}

/// Walks the entries of a block.
pub fn entries(raw: &[u8]) -> impl Iterator<Item = View<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (view, len) = get_entry(&raw[at..])?;
        at += len;
        Some(view)
    })
}
