//! Looks into a head that this router wrote itself, so that its form is known: lines end in CRLF, and a name is followed by a
//! colon at once.

/// A request's head as it goes to instances, or an answer's as it goes to clients.
#[derive(Clone, Copy)]
pub(super) struct Head<'a>(&'a [u8]);

impl<'a> Head<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn first_line(self, part: usize) -> &'a str {
        let line = self.0.split(|b| *b == b'\r').next().unwrap_or_default();
        line.split(|b| *b == b' ').nth(part).and_then(|p| std::str::from_utf8(p).ok()).unwrap_or("")
    }

    pub(super) fn method(self) -> &'a str {
        self.first_line(0)
    }

    /// Path and query; `*` where the request is for no path.
    pub(super) fn target(self) -> &'a str {
        self.first_line(1)
    }

    /// The values of that name. Bytes that are not UTF-8 are in none that is asked for here.
    fn values(self, name: &str) -> impl Iterator<Item = &'a str> {
        let lines = self.0.split(|b| *b == b'\n').skip(1);
        let named = lines.filter_map(move |line| {
            let at = memchr::memchr(b':', line)?;
            line[..at].eq_ignore_ascii_case(name.as_bytes()).then(|| &line[at + 1..])
        });
        named.filter_map(|value| std::str::from_utf8(value).ok()).map(str::trim)
    }

    /// The first field of that name.
    pub(super) fn field(self, name: &str) -> Option<&'a str> {
        self.values(name).next()
    }

    /// The items of all fields of that name.
    pub(super) fn items(self, name: &str) -> impl Iterator<Item = &'a str> {
        self.values(name).flat_map(|value| value.split(',')).map(str::trim)
    }
}
