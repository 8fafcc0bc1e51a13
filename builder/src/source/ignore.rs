//! `.slugignore`: which files of a source stay out of the build. Gitignore's patterns without `!`, as Heroku documents.
//! Pure: patterns and a path in, a decision out.

/// Patterns of a `.slugignore`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    /// Path segments; `**` stands for any number of them.
    segments: Vec<Vec<u8>>,
    /// Matches from the root only; else at any depth.
    anchored: bool,
    /// Ended in `/`: directories only.
    directory: bool,
}

/// More patterns than this are a mistake or an attack on the matcher.
const MAX_PATTERNS: usize = 1000;
/// No file name is longer (Linux's NAME_MAX), so no useful segment is.
const MAX_SEGMENT: usize = 255;

impl Ignore {
    /// Reads the file. Blank lines, `#` comments and lines that can match nothing are passed over; negations are not
    /// supported and are passed over too.
    pub fn parse(text: &[u8]) -> Self {
        let patterns = text.split(|b| *b == b'\n').filter_map(parse_line).take(MAX_PATTERNS).collect();
        Self { patterns }
    }

    /// Whether the entry at `path` (without a leading `/`) is left out, by itself or with a directory above it.
    pub fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let segments: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        (1..=segments.len()).any(|n| {
            let dir = n < segments.len() || is_dir;
            self.patterns.iter().any(|p| p.matches(&segments[..n], dir))
        })
    }
}

impl Pattern {
    fn matches(&self, path: &[&[u8]], is_dir: bool) -> bool {
        if self.directory && !is_dir {
            return false;
        }
        if self.anchored {
            return match_segments(&self.segments, path);
        }
        path.last().is_some_and(|name| glob(&self.segments[0], name))
    }
}

fn parse_line(line: &[u8]) -> Option<Pattern> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") || line.starts_with(b"!") {
        return None;
    }
    let directory = line.ends_with(b"/");
    let body = line.strip_suffix(b"/").unwrap_or(line);
    let anchored = body.contains(&b'/');
    let body = body.strip_prefix(b"./").or_else(|| body.strip_prefix(b"/")).unwrap_or(body);
    let segments: Vec<Vec<u8>> = body.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
    let usable = |s: &Vec<u8>| !s.is_empty() && s.len() <= MAX_SEGMENT && s != b"." && s != b"..";
    (!body.is_empty() && segments.len() <= 64 && segments.iter().all(usable)).then_some(Pattern { segments, anchored, directory })
}

/// Whether a path's segments match a pattern's.
pub(crate) fn segments_match(pattern: &[Vec<u8>], path: &[&[u8]]) -> bool {
    match_segments(pattern, path)
}

fn match_segments(pattern: &[Vec<u8>], path: &[&[u8]]) -> bool {
    // Row by row over the pattern, so that many `**` cost products and never powers.
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    for p in pattern {
        let mut next = vec![false; path.len() + 1];
        if p == b"**" {
            let mut seen = false;
            for i in 0..=path.len() {
                seen |= reach[i];
                next[i] = seen;
            }
        } else {
            for i in 0..path.len() {
                next[i + 1] = reach[i] && glob(p, path[i]);
            }
        }
        reach = next;
    }
    reach[path.len()]
}

/// `*`, `?`, `[a-z]`, `[!a]` and `\x` within one segment. Linear in the product of both lengths.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match one(&pattern[p..], name[n]) {
            Step::Matched(used) => {
                p += used;
                n += 1;
                continue;
            }
            Step::Star => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            Step::No => {}
        }
        let Some((after, at)) = star else { return false };
        star = Some((after, at + 1));
        p = after;
        n = at + 1;
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

enum Step {
    Matched(usize),
    Star,
    No,
}

fn one(pattern: &[u8], byte: u8) -> Step {
    let yes = |ok: bool, used: usize| if ok { Step::Matched(used) } else { Step::No };
    match pattern {
        [] => Step::No,
        [b'*', ..] => Step::Star,
        [b'?', ..] => Step::Matched(1),
        [b'\\', escaped, ..] => yes(*escaped == byte, 2),
        [b'[', rest @ ..] => match class(rest, byte) {
            Some((ok, used)) => yes(ok, used + 1),
            None => yes(byte == b'[', 1),
        },
        [literal, ..] => yes(*literal == byte, 1),
    }
}

/// Whether `byte` is in the class whose text follows `[`, and how many bytes that text takes; none without a `]`.
fn class(text: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(text.first(), Some(b'!' | b'^'));
    let mut i = usize::from(negated);
    let (start, mut found) = (i, false);
    loop {
        let low = *text.get(i)?;
        if low == b']' && i > start {
            return Some((found != negated, i + 1));
        }
        if text.get(i + 1) == Some(&b'-') && text.get(i + 2).is_some_and(|b| *b != b']') {
            found |= (low..=text[i + 2]).contains(&byte);
            i += 3;
        } else {
            found |= low == byte;
            i += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_heroku_documents() {
        let ignore =
            Ignore::parse(b"# big\n*.psd\n*.pdf\r\n/test\ndocs/\nspec/fixtures\n**/tmp/*.log\n!keep.psd\n\n../etc\n/\n[ab]?.x\n");
        for (path, dir) in [
            ("logo.psd", false),
            ("a/b/logo.psd", false),
            ("keep.psd", false),
            ("test", true),
            ("test/unit/a.rb", false),
            ("docs", true),
            ("a/docs/x.md", false),
            ("spec/fixtures/x", false),
            ("a/tmp/x.log", false),
            ("tmp/x.log", false),
            ("a1.x", false),
        ] {
            assert!(ignore.matches(path.as_bytes(), dir), "{path}");
        }
        for (path, dir) in [
            ("a/test", true),
            ("docs", false),
            ("spec", true),
            ("x/spec/fixtures", true),
            ("tmp/a/x.log", false),
            ("c1.x", false),
            ("etc", false),
            ("psd", false),
        ] {
            assert!(!ignore.matches(path.as_bytes(), dir), "{path}");
        }
    }

    #[test]
    fn a_hostile_pattern_costs_little() {
        let stars = format!("{}b\n{}/x", "*a".repeat(120), vec!["**"; 60].join("/"));
        let ignore = Ignore::parse(stars.as_bytes());
        let name = "a".repeat(250);
        assert!(!ignore.matches(name.as_bytes(), false));
        assert!(!ignore.matches(vec!["a"; 200].join("/").as_bytes(), false));
    }

    #[test]
    fn broken_classes_are_literal() {
        assert!(Ignore::parse(b"a[b").matches(b"a[b", false));
        assert!(Ignore::parse(b"a[]]").matches(b"a]", false));
        assert!(Ignore::parse(b"a[!b]").matches(b"ac", false));
    }
}
