//! The sum over all entries by which damage is found: no engine's own check notices a log that ends too early.

use crate::Revision;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// How many entries there are, and the sum (mod 2^128) of a hash of each. Order does not matter, so that one commit
/// changes it by the difference alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Digest {
    count: u64,
    sum: u128,
}

impl Digest {
    pub(crate) fn of<'a>(entries: impl IntoIterator<Item = (&'a str, Revision, &'a [u8])>) -> Self {
        entries.into_iter().fold(Self::default(), |total, (key, revision, value)| {
            let mut hash = Sha256::new();
            hash.update((key.len() as u64).to_be_bytes());
            hash.update(key);
            hash.update(revision.to_be_bytes());
            hash.update(value);
            let hash = hash.finalize();
            let mut half = [0; 16];
            half.copy_from_slice(&hash[..16]);
            total.plus(Self { count: 1, sum: u128::from_be_bytes(half) })
        })
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self { count: self.count.wrapping_add(other.count), sum: self.sum.wrapping_add(other.sum) }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self { count: self.count.wrapping_sub(other.count), sum: self.sum.wrapping_sub(other.sum) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries with sum {:032x}", self.count, self.sum)
    }
}

/// The state of a whole store in 40 bytes; stored in the same batch as the entries that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Head {
    pub revision: Revision,
    pub digest: Digest,
}

/// Bytes of an encoded [`Head`].
pub(crate) const HEAD_BYTES: usize = 40;

impl Head {
    pub(crate) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[..8].copy_from_slice(&self.revision.to_be_bytes());
        out[8..16].copy_from_slice(&self.digest.count.to_be_bytes());
        out[16..32].copy_from_slice(&self.digest.sum.to_be_bytes());
        let check = Sha256::digest(&out[..32]);
        out[32..].copy_from_slice(&check[..8]);
        out
    }

    /// None: not the bytes of a head, or damaged ones.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD_BYTES] = bytes.try_into().ok()?;
        let head = Self {
            revision: u64::from_be_bytes(bytes[..8].try_into().ok()?),
            digest: Digest {
                count: u64::from_be_bytes(bytes[8..16].try_into().ok()?),
                sum: u128::from_be_bytes(bytes[16..32].try_into().ok()?),
            },
        };
        (head.to_bytes() == *bytes).then_some(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_and_a_flipped_bit_is_seen() {
        let head = Head { revision: 7, digest: Digest::of([("a", 1, &b"x"[..]), ("b", 2, &b"y"[..])]) };
        assert_eq!(Head::from_bytes(&head.to_bytes()), Some(head));
        for bit in 0..HEAD_BYTES * 8 {
            let mut bytes = head.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::from_bytes(&bytes), None);
        }
    }

    #[test]
    fn differences_add_up() {
        let (a, b) = (Digest::of([("a", 1, &b"x"[..])]), Digest::of([("b", 2, &b"y"[..])]));
        assert_eq!(Digest::of([("b", 2, &b"y"[..]), ("a", 1, &b"x"[..])]), a.plus(b));
        assert_eq!(a.plus(b).minus(a), b);
        assert_ne!(Digest::of([("a", 1, &b"xb"[..])]), Digest::of([("ax", 1, &b"b"[..])]));
    }
}
