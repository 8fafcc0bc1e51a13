//! Field sections of HTTP/3 (QPACK, RFC 9204), without a dynamic table: we announce that we keep none, so a client may refer to
//! the static table alone, and one that refers to more has broken the protocol. So a section says all by itself, and no
//! stream ever waits for another.
//!
//! Must not: give out more than the caller's limit, or take a string's length as reason to reserve memory.

use super::huffman;
use bytes::Bytes;

/// Why a section cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// Not a section of fields, or one that needs a dynamic table.
    Malformed,
    TooLarge,
}

/// RFC 9114 section 4.2.2: what a field counts beside its name and value.
const OVERHEAD: usize = 32;

/// The fields of a section, of which there may be `most` bytes in the sense of RFC 9114 section 4.2.2.
pub(super) fn decode(mut block: &[u8], most: usize) -> Result<Vec<(Bytes, Bytes)>, Bad> {
    let input = &mut block;
    // No entry of the dynamic table is required, so there is no base to count from either.
    if integer(input, 8)?.1 != 0 || integer(input, 7)?.0 & 0x80 != 0 {
        return Err(Bad::Malformed);
    }
    let (mut fields, mut size) = (Vec::new(), 0);
    while let Some(first) = input.first() {
        let (name, value) = match first {
            // Both from the table.
            first if first & 0x80 != 0 => {
                let (flags, index) = integer(input, 6)?;
                let (name, value) = entry(flags & 0x40 != 0, index)?;
                (Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()))
            }
            // The name from the table.
            first if first & 0x40 != 0 => {
                let (flags, index) = integer(input, 4)?;
                let (name, _) = entry(flags & 0x10 != 0, index)?;
                (Bytes::from_static(name.as_bytes()), string(input, 7, most)?)
            }
            first if first & 0x20 != 0 => (string(input, 3, most)?, string(input, 7, most)?),
            // With what comes after the base: of the dynamic table.
            _ => return Err(Bad::Malformed),
        };
        size += name.len() + value.len() + OVERHEAD;
        if size > most {
            return Err(Bad::TooLarge);
        }
        fields.push((name, value));
    }
    Ok(fields)
}

/// Begins a section.
pub(super) fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0]);
}

/// Adds a field. The name is in lower case.
pub(super) fn encode(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let mut named = None;
    for (index, (n, v)) in STATIC.iter().enumerate() {
        if n.as_bytes() != name {
            continue;
        }
        if v.as_bytes() == value {
            return put_integer(0xc0, 6, index, out);
        }
        named.get_or_insert(index);
    }
    match named {
        Some(index) => put_integer(0x50, 4, index, out),
        None => {
            put_integer(0x20, 3, name.len(), out);
            out.extend_from_slice(name);
        }
    }
    put_integer(0, 7, value.len(), out);
    out.extend_from_slice(value);
}

fn entry(of_static: bool, index: u64) -> Result<(&'static str, &'static str), Bad> {
    let index = usize::try_from(index).map_err(|_| Bad::Malformed)?;
    STATIC.get(index).filter(|_| of_static).copied().ok_or(Bad::Malformed)
}

/// RFC 7541 section 5.1: the first byte, and the number whose first `bits` are in it.
fn integer(input: &mut &[u8], bits: u32) -> Result<(u8, u64), Bad> {
    let (&first, mut rest) = input.split_first().ok_or(Bad::Malformed)?;
    let mask = (1_u64 << bits) - 1;
    let mut number = u64::from(first) & mask;
    if number == mask {
        // More than 2^28 is no length or index of ours.
        for shift in [0, 7, 14, 21] {
            let (&next, after) = rest.split_first().ok_or(Bad::Malformed)?;
            rest = after;
            number += u64::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                *input = rest;
                return Ok((first, number));
            }
        }
        return Err(Bad::Malformed);
    }
    *input = rest;
    Ok((first, number))
}

/// A string whose length has a prefix of `bits`, with the flag for Huffman's code before it.
fn string(input: &mut &[u8], bits: u32, most: usize) -> Result<Bytes, Bad> {
    let (flags, length) = integer(input, bits)?;
    let length = usize::try_from(length).map_err(|_| Bad::Malformed)?;
    if length > input.len() {
        return Err(Bad::Malformed);
    }
    let (text, rest) = input.split_at(length);
    *input = rest;
    if flags & (1 << bits) == 0 {
        return Ok(Bytes::copy_from_slice(text));
    }
    let mut out = Vec::with_capacity(length + length / 2);
    match huffman::decode(text, most, &mut out) {
        Some(true) => Ok(out.into()),
        Some(false) => Err(Bad::TooLarge),
        None => Err(Bad::Malformed),
    }
}

fn put_integer(flags: u8, bits: u32, number: usize, out: &mut Vec<u8>) {
    let mask = (1_usize << bits) - 1;
    if number < mask {
        return out.push(flags | u8::try_from(number).unwrap_or(0));
    }
    out.push(flags | u8::try_from(mask).unwrap_or(0));
    let mut rest = number - mask;
    while rest >= 0x80 {
        out.push(0x80 | u8::try_from(rest & 0x7f).unwrap_or(0));
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap_or(0));
}

/// RFC 9204 appendix A.
#[rustfmt::skip]
const STATIC: [(&str, &str); 99] = [
    (":authority", ""),
    (":path", "/"),
    ("age", "0"),
    ("content-disposition", ""),
    ("content-length", "0"),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("referer", ""),
    ("set-cookie", ""),
    (":method", "CONNECT"),
    (":method", "DELETE"),
    (":method", "GET"),
    (":method", "HEAD"),
    (":method", "OPTIONS"),
    (":method", "POST"),
    (":method", "PUT"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "103"),
    (":status", "200"),
    (":status", "304"),
    (":status", "404"),
    (":status", "503"),
    ("accept", "*/*"),
    ("accept", "application/dns-message"),
    ("accept-encoding", "gzip, deflate, br"),
    ("accept-ranges", "bytes"),
    ("access-control-allow-headers", "cache-control"),
    ("access-control-allow-headers", "content-type"),
    ("access-control-allow-origin", "*"),
    ("cache-control", "max-age=0"),
    ("cache-control", "max-age=2592000"),
    ("cache-control", "max-age=604800"),
    ("cache-control", "no-cache"),
    ("cache-control", "no-store"),
    ("cache-control", "public, max-age=31536000"),
    ("content-encoding", "br"),
    ("content-encoding", "gzip"),
    ("content-type", "application/dns-message"),
    ("content-type", "application/javascript"),
    ("content-type", "application/json"),
    ("content-type", "application/x-www-form-urlencoded"),
    ("content-type", "image/gif"),
    ("content-type", "image/jpeg"),
    ("content-type", "image/png"),
    ("content-type", "text/css"),
    ("content-type", "text/html; charset=utf-8"),
    ("content-type", "text/plain"),
    ("content-type", "text/plain;charset=utf-8"),
    ("range", "bytes=0-"),
    ("strict-transport-security", "max-age=31536000"),
    ("strict-transport-security", "max-age=31536000; includesubdomains"),
    ("strict-transport-security", "max-age=31536000; includesubdomains; preload"),
    ("vary", "accept-encoding"),
    ("vary", "origin"),
    ("x-content-type-options", "nosniff"),
    ("x-xss-protection", "1; mode=block"),
    (":status", "100"),
    (":status", "204"),
    (":status", "206"),
    (":status", "302"),
    (":status", "400"),
    (":status", "403"),
    (":status", "421"),
    (":status", "425"),
    (":status", "500"),
    ("accept-language", ""),
    ("access-control-allow-credentials", "FALSE"),
    ("access-control-allow-credentials", "TRUE"),
    ("access-control-allow-headers", "*"),
    ("access-control-allow-methods", "get"),
    ("access-control-allow-methods", "get, post, options"),
    ("access-control-allow-methods", "options"),
    ("access-control-expose-headers", "content-length"),
    ("access-control-request-headers", "content-type"),
    ("access-control-request-method", "get"),
    ("access-control-request-method", "post"),
    ("alt-svc", "clear"),
    ("authorization", ""),
    ("content-security-policy", "script-src 'none'; object-src 'none'; base-uri 'none'"),
    ("early-data", "1"),
    ("expect-ct", ""),
    ("forwarded", ""),
    ("if-range", ""),
    ("origin", ""),
    ("purpose", "prefetch"),
    ("server", ""),
    ("timing-allow-origin", "*"),
    ("upgrade-insecure-requests", "1"),
    ("user-agent", ""),
    ("x-forwarded-for", ""),
    ("x-frame-options", "deny"),
    ("x-frame-options", "sameorigin"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(block: &[u8]) -> Result<Vec<(String, String)>, Bad> {
        let text = |b: Bytes| String::from_utf8_lossy(&b).into_owned();
        Ok(decode(block, 1 << 16)?.into_iter().map(|(n, v)| (text(n), text(v))).collect())
    }

    #[test]
    fn sections_of_the_standard_are_read() {
        // RFC 9204 appendix B.1, and names and values under Huffman's code (RFC 7541 appendix C.4.1).
        let literal = [&[0, 0, 0x51, 0x0b][..], b"/index.html"].concat();
        assert_eq!(texts(&literal).unwrap(), [(":path".to_owned(), "/index.html".to_owned())]);
        let coded = [0, 0, 0xd1, 0xd7, 0x50, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        let fields = texts(&coded).unwrap();
        let want = [(":method", "GET"), (":scheme", "https"), (":authority", "www.example.com")];
        assert_eq!(fields, want.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn what_needs_a_dynamic_table_is_cut_off_or_is_too_much_is_refused() {
        for bad in [
            &[][..],
            &[1, 0],
            &[0, 0x80],
            &[0, 0, 0x80],
            &[0, 0, 0x40, 0],
            &[0, 0, 0x10],
            &[0, 0, 0x00, 0],
            &[0, 0, 0xff, 0x24],
            &[0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00],
            &[0, 0, 0x51, 5, b'/'],
            &[0, 0, 0x23, b'a'],
            // Huffman's code with more than seven bits of padding, and with padding that is not ones.
            &[0, 0, 0x51, 0x82, 0xff, 0xff],
            &[0, 0, 0x51, 0x81, 0x00],
        ] {
            assert_eq!(decode(bad, 1 << 16), Err(Bad::Malformed), "{bad:x?}");
        }
        let mut block = Vec::new();
        begin(&mut block);
        encode(b"x-a", &[b'1'; 65], &mut block);
        assert_eq!(decode(&block, 100).unwrap().len(), 1);
        assert_eq!(decode(&block, 99), Err(Bad::TooLarge));
        // A bomb: 99 bytes that say fifty fields.
        let block = [&[0, 0][..], &[0xc1; 97]].concat();
        assert_eq!(decode(&block, 2000), Err(Bad::TooLarge));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_again(fields in proptest::collection::vec(("[a-z:-]{1,40}", "[ -~]{0,300}"), 0..20)) {
            let mut block = Vec::new();
            begin(&mut block);
            for (name, value) in &fields {
                encode(name.as_bytes(), value.as_bytes(), &mut block);
            }
            prop_assert_eq!(texts(&block).unwrap(), fields);
        }

        #[test]
        fn no_bytes_panic(block in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(fields) = decode(&block, 1000) {
                prop_assert!(fields.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>() <= 1000);
            }
        }
    }
}
