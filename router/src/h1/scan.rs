//! Finds the end of a head in a growing buffer, looking at each byte once, and refuses what only lenient parsers take:
//! bare line feeds and bare carriage returns, the raw material of request smuggling.

/// What is known of the head so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scan {
    /// More bytes are needed.
    Partial,
    /// The head ends before this offset; it holds no bare CR or LF.
    Complete(usize),
    /// A bare CR, a bare LF or a NUL, or a first line that cannot be HTTP.
    Bad(&'static str),
}

/// Remembers where it stopped, so that a head that drips in costs no more than one that comes at once.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    seen: usize,
}

impl Scanner {
    /// Looks at what is new in `buf`, which must only have grown since the last call.
    pub(crate) fn advance(&mut self, buf: &[u8]) -> Scan {
        let start = self.seen;
        for i in memchr::memchr2_iter(b'\n', b'\r', &buf[start..]) {
            let i = start + i;
            if buf[i] == b'\r' {
                match buf.get(i + 1) {
                    Some(b'\n') => {}
                    Some(_) => return Scan::Bad("a carriage return without a line feed"),
                    // The CR is the last byte yet: come back to it.
                    None => {
                        self.seen = i;
                        return Scan::Partial;
                    }
                }
            } else if i == 0 || buf[i - 1] != b'\r' {
                return Scan::Bad("a line feed without a carriage return");
            } else if i >= 3 && buf[i - 2] == b'\n' {
                self.seen = i + 1;
                return if memchr::memchr(0, &buf[..=i]).is_some() { Scan::Bad("a NUL byte") } else { Scan::Complete(i + 1) };
            }
        }
        self.seen = buf.len();
        Scan::Partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ends_and_refusals() {
        let scan = |s: &[u8]| Scanner::default().advance(s);
        assert_eq!(scan(b"GET / HTTP/1.1\r\nA: b\r\n\r\nrest"), Scan::Complete(24));
        assert_eq!(scan(b"GET / HTTP/1.1\r\nA: b\r\n\r"), Scan::Partial);
        assert!(matches!(scan(b"GET / HTTP/1.1\nA: b\n\n"), Scan::Bad(_)));
        assert!(matches!(scan(b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n"), Scan::Bad(_)));
        assert!(matches!(scan(b"GET / HTTP/1.1\r\nA: b\r\r\n\r\n"), Scan::Bad(_)));
        assert!(matches!(scan(b"GET / HTTP/1.1\r\nA: \0\r\n\r\n"), Scan::Bad(_)));
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_gives(bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'a')], 0..60)) {
            let whole = Scanner::default().advance(&bytes);
            let mut scanner = Scanner::default();
            let mut last = Scan::Partial;
            for n in 0..=bytes.len() {
                last = scanner.advance(&bytes[..n]);
                if last != Scan::Partial { break; }
            }
            match (whole, last) {
                (Scan::Bad(_), Scan::Bad(_)) => {}
                (whole, last) => prop_assert_eq!(whole, last),
            }
        }
    }
}
