//! Amounts of memory, as people write them: `512M`, `1.5G`, `64MiB`.

use serde::{Deserialize, Deserializer, Serialize};
use std::{fmt, str::FromStr};

/// An amount of memory in bytes; units are powers of 1024, as engines count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Memory(u64);

/// The least an instance may have: below it not even an init process starts reliably.
pub const MIN_MEMORY: Memory = Memory(16 << 20);

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("memory size {0:?} is not valid: use a number and a unit, such as 512M or 1.5G, from 16M up")]
pub struct ParseSizeError(pub String);

impl Memory {
    /// From whole MiB.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }
    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
    /// Whole MiB, rounded down.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1 << 30) { write!(f, "{}G", self.0 >> 30) } else { write!(f, "{}M", self.0 >> 20) }
    }
}

impl FromStr for Memory {
    type Err = ParseSizeError;
    fn from_str(s: &str) -> Result<Self, ParseSizeError> {
        let bad = || ParseSizeError(s.chars().take(40).collect());
        let at = s.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, unit) = s.split_at(at);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "m" | "mb" | "mib" => 20u32,
            "g" | "gb" | "gib" => 30,
            _ => return Err(bad()),
        };
        let n: f64 = number.parse().map_err(|_| bad())?;
        let bytes = n * f64::from(1u32 << shift);
        // 1 PiB: beyond any host, and far below where f64 loses whole bytes.
        if !(bytes >= MIN_MEMORY.0 as f64 && bytes <= (1u64 << 50) as f64) {
            return Err(bad());
        }
        Ok(Self((bytes as u64) & !0xfff))
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        u64::deserialize(d).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, mib) in [("512M", 512), ("512mb", 512), ("1G", 1024), ("1.5GiB", 1536)] {
            assert_eq!(text.parse::<Memory>().unwrap().mib(), mib, "{text}");
        }
        for bad in ["", "512", "M", "-1M", "1K", "8M", "9999999G", "1e9M"] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
        assert_eq!(Memory::from_mib(1024).to_string(), "1G");
        assert_eq!(Memory::from_mib(1536).to_string(), "1536M");
    }
}
