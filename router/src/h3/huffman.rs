//! The code of RFC 7541 appendix B, which QPACK uses for strings. It is canonical, so the lengths say all of it.

/// Bits of each byte's code, and of the end's.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15,
    6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22,
    20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23,
    23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22,
    22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26,
    27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27,
    26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const LONGEST: usize = 30;
const END: usize = 256;

/// By length: the first code, how many there are, and where their symbols begin.
struct Table {
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    begin: [usize; LONGEST + 1],
    symbols: [u16; 257],
}

static TABLE: Table = Table::new();

impl Table {
    const fn new() -> Self {
        let mut table = Self { first: [0; LONGEST + 1], count: [0; LONGEST + 1], begin: [0; LONGEST + 1], symbols: [0; 257] };
        let (mut length, mut code, mut at) = (1, 0_u32, 0);
        while length <= LONGEST {
            code <<= 1;
            (table.first[length], table.begin[length]) = (code, at);
            let mut symbol = 0;
            while symbol < LENGTHS.len() {
                if LENGTHS[symbol] as usize == length {
                    table.symbols[at] = symbol as u16;
                    at += 1;
                    code += 1;
                    table.count[length] += 1;
                }
                symbol += 1;
            }
            length += 1;
        }
        table
    }
}

/// Decodes into `out`. False: it is more than `most` bytes. `None`: it is not of this code.
pub(super) fn decode(coded: &[u8], most: usize, out: &mut Vec<u8>) -> Option<bool> {
    let (mut code, mut length) = (0_u32, 0);
    for byte in coded {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            length += 1;
            if length > LONGEST {
                return None;
            }
            let at = code.wrapping_sub(TABLE.first[length]);
            if at >= TABLE.count[length] {
                continue;
            }
            let symbol = TABLE.symbols[TABLE.begin[length] + at as usize];
            if usize::from(symbol) == END {
                return None;
            }
            if out.len() == most {
                return Some(false);
            }
            out.push(u8::try_from(symbol).ok()?);
            (code, length) = (0, 0);
        }
    }
    // What is left is the beginning of the end's code, and shorter than a byte.
    (length < 8 && code == (1 << length) - 1).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code of a symbol, by the same table read the other way.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let at = TABLE.symbols[TABLE.begin[length]..].iter().position(|s| *s == u16::from(*byte)).unwrap();
            let code = TABLE.first[length] + u32::try_from(at).unwrap();
            bits.extend((0..length).rev().map(|b| code >> b & 1 == 1));
        }
        bits.resize(bits.len().next_multiple_of(8), true);
        bits.chunks(8).map(|c| c.iter().fold(0, |n, b| n << 1 | u8::from(*b))).collect()
    }

    #[test]
    fn every_byte_is_read_again_and_the_code_is_the_standards() {
        let all: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        assert_eq!(decode(&encode(&all), 256, &mut out), Some(true));
        assert_eq!(out, all);
        assert_eq!(decode(&encode(&all), 255, &mut Vec::new()), Some(false));
        // RFC 7541 appendix C.6.1.
        let date = b"Mon, 21 Oct 2013 20:13:21 GMT";
        let coded = "d07abe941054d444a8200595040b8166e082a62d1bff";
        assert_eq!(hex::encode(encode(date)), coded);
        // The end's own code must not appear.
        assert_eq!(decode(&[0xff; 4], 256, &mut Vec::new()), None);
    }
}
