//! The ways in which programs read a request's path. Some decode `%61`, drop `.` and `..`, merge slashes, or leave out what
//! follows a `;` in a segment, and some do none of that: who decides by a path what a client may do has to think of each.
//!
//! Must not: change what is sent on. These are readings for choosing, and the instance gets what the client sent.

/// A longer path is not read in every way: that would be work that a client can ask for.
pub const READ_MOST: usize = 8 << 10;

/// Whether all programs read it alike (but for upper and lower case).
pub fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.iter().enumerate().all(|(at, b)| match b {
        b'/' => !matches!(&bytes[at + 1..], [b'/', ..] | [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..]),
        b => stands_for_itself(*b),
    })
}

/// What a segment may hold as it is (RFC 3986 section 3.3), but for `;`, which begins a parameter.
fn stands_for_itself(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&b)
}

/// Whether `path` begins with the whole segments of `prefix`, written in upper or lower case. Empty: the root.
pub fn begins_in_any_case(path: &str, prefix: &str) -> bool {
    let rest = path.as_bytes().split_at_checked(prefix.len()).filter(|(b, _)| b.eq_ignore_ascii_case(prefix.as_bytes()));
    prefix.is_empty() || rest.is_some_and(|(_, rest)| matches!(rest, [] | [b'/', ..]))
}

/// As most programs read it: decoded where that changes no structure, without parameters and dot segments, each slash once.
pub fn normal(path: &str) -> String {
    shape(&cut(&decode(path, false)), true, true)
}

/// Every reading of a path, each once, the normal one first.
pub fn readings(path: &str) -> Vec<String> {
    let mut out = vec![normal(path)];
    for text in [path.to_owned(), decode(path, false), decode(path, true)] {
        for text in [cut(&text), text] {
            for (merge, dots) in [(false, false), (true, false), (false, true), (true, true)] {
                let reading = shape(&text, merge, dots);
                if !out.contains(&reading) {
                    out.push(reading);
                }
            }
        }
    }
    out
}

/// Decodes what may stand in a path as it is, and writes the rest in one way. `slashes`: decodes those too, and takes `\` for one.
fn decode(path: &str, slashes: bool) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let (bytes, mut out, mut at) = (path.as_bytes(), String::with_capacity(path.len()), 0);
    let hex = |b: Option<&u8>| b.and_then(|b| (*b as char).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    while let Some(&byte) = bytes.get(at) {
        let (byte, coded) = match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => (high << 4 | low, true),
            _ => (byte, false),
        };
        at += if coded { 3 } else { 1 };
        match byte {
            b'/' | b'\\' if slashes => out.push('/'),
            b'/' | b'\\' | b';' if !coded => out.push(char::from(byte)),
            // A lone % means itself.
            b'%' if !coded => out.push('%'),
            b if stands_for_itself(b) => out.push(char::from(b)),
            b => {
                out.push('%');
                out.push(char::from(DIGITS[usize::from(b >> 4)]));
                out.push(char::from(DIGITS[usize::from(b & 15)]));
            }
        }
    }
    out
}

/// Leaves out what follows a `;` in each segment.
fn cut(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for segment in path.split_inclusive('/') {
        match segment.split_once(';') {
            None => out.push_str(segment),
            Some((kept, rest)) => {
                out.push_str(kept);
                out.push_str(if rest.ends_with('/') { "/" } else { "" });
            }
        }
    }
    out
}

fn shape(path: &str, merge: bool, dots: bool) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let (mut out, mut ends_open): (Vec<&str>, bool) = (Vec::new(), false);
    for segment in path[1..].split('/') {
        ends_open = true;
        match segment {
            "" if merge => {}
            "." if dots => {}
            ".." if dots => _ = out.pop(),
            segment => {
                out.push(segment);
                ends_open = segment.is_empty();
            }
        }
    }
    let mut path = String::with_capacity(path.len());
    for segment in &out {
        path.push('/');
        path.push_str(segment);
    }
    if ends_open && !path.ends_with('/') {
        path.push('/');
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_reading() {
        for (path, read) in [
            ("/admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("//admin", "/admin"),
            ("/./admin", "/admin"),
            ("/x/../admin", "/admin"),
            ("/%2e%2E/admin", "/admin"),
            ("/admin;x", "/admin"),
            ("/a;b=c/..;d/admin;x/y", "/admin/y"),
            ("/../../admin/", "/admin/"),
            ("/admin/.", "/admin/"),
            ("/admin/x/..", "/admin/"),
            ("/", "/"),
            ("/..", "/"),
            ("*", "*"),
            ("/.well-known/x", "/.well-known/x"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            // A slash or a semicolon that was encoded is part of a name.
            ("/a%2fb%3bc", "/a%2Fb%3Bc"),
            ("/100%", "/100%"),
            ("/%zz%4", "/%zz%4"),
        ] {
            assert_eq!(normal(path), read, "{path}");
        }
    }

    #[test]
    fn other_readings() {
        let has = |path: &str, reading: &str| readings(path).iter().any(|r| r == reading);
        assert!(has("/x%2Fadmin", "/x/admin") && has("/x%2fadmin", "/x%2Fadmin") && has("/x\\admin", "/x/admin"));
        assert!(has("/admin/../x", "/admin/../x") && has("/admin/../x", "/x"));
        assert!(has("/%61dmin/../x", "/admin/../x"));
        assert!(has("/a//../admin", "/a/admin") && has("/a//../admin", "/admin"));
        assert!(has("/admin;x", "/admin;x") && has("/x/..%2fadmin", "/admin"));
        assert_eq!(readings("/a/b"), ["/a/b"]);
    }

    #[test]
    fn plain_ones_are_known_without_reading_them() {
        for path in ["/", "/a/b.c/", "/.well-known/x", "/a..b/..c", "*", "/a+b@c~"] {
            assert!(is_plain(path), "{path}");
        }
        for path in ["/%61", "//", "/./a", "/a/..", "/a/.", "/..", "/a;b", "/a\\b", "/\u{e9}", "/a|b"] {
            assert!(!is_plain(path), "{path}");
        }
    }

    #[test]
    fn a_plain_path_has_one_reading_and_the_normal_one_is_its_own() {
        const PARTS: [&str; 9] = ["/", ".", ";", "a", "%2e", "%2F", "%25", "\\", "%"];
        for n in 0..PARTS.len().pow(4) {
            let part = |at: u32| PARTS[n / PARTS.len().pow(at) % PARTS.len()];
            let path = format!("/{}{}{}{}", part(0), part(1), part(2), part(3));
            let all = readings(&path);
            assert_eq!(normal(&all[0]), all[0], "{path}");
            if is_plain(&path) {
                assert_eq!(all, [path]);
            }
        }
    }
}
