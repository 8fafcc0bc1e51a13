//! `.dockerignore`: which files of a source stay out of a Dockerfile's context, by Docker's own rules: patterns from the root,
//! the last one that matches decides, `!` takes back. Pure but for [`filter`], which copies a tar without them.

use super::ignore::segments_match;
use crate::BuildError;
use std::{ffi::OsStr, fs::File, io::BufWriter, os::unix::ffi::OsStrExt, path::Path};

/// Patterns of a `.dockerignore`.
#[derive(Debug, Clone, Default)]
pub(crate) struct DockerIgnore {
    /// Whether it takes back, and the pattern's segments.
    rules: Vec<(bool, Vec<Vec<u8>>)>,
}

/// More than this are a mistake or an attack on the matcher.
const MAX_RULES: usize = 1000;

impl DockerIgnore {
    pub(crate) fn parse(text: &[u8]) -> Self {
        let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
        let rule = |line: &[u8]| {
            if line.is_empty() || line.starts_with(b"#") {
                return None;
            }
            let (back, body) = line.strip_prefix(b"!").map_or((false, line), |rest| (true, rest.trim_ascii()));
            let parts = body.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".");
            let segments: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
            let usable = !segments.is_empty() && segments.len() <= 64 && segments.iter().all(|s| s.len() <= 255 && s != b"..");
            usable.then_some((back, segments))
        };
        Self { rules: lines.filter_map(rule).take(MAX_RULES).collect() }
    }

    /// Whether the entry at `path` is left out. What the build itself needs never is.
    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        if path == b"Dockerfile" || path == b".dockerignore" {
            return false;
        }
        let segments: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        let mut out = false;
        for (back, pattern) in &self.rules {
            // A pattern that names a directory names what is below it.
            if out == *back && (1..=segments.len()).any(|n| segments_match(pattern, &segments[..n])) {
                out = !back;
            }
        }
        out
    }
}

/// Copies a source's tar without what is left out. Returns the new one and how many entries were.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn filter(tar: &Path, ignore: &DockerIgnore, tmp: &Path) -> Result<(tempfile::TempPath, u64), BuildError> {
    let failed = |e: std::io::Error| BuildError::platform("preparing the Dockerfile's context", e);
    let (file, path) = tempfile::NamedTempFile::new_in(tmp).map_err(failed)?.into_parts();
    let mut to = tar::Builder::new(BufWriter::with_capacity(256 << 10, file));
    let mut from = tar::Archive::new(std::io::BufReader::with_capacity(256 << 10, File::open(tar).map_err(failed)?));
    let mut left_out = 0;
    for entry in from.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = entry.path_bytes().into_owned();
        let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
        let hard = entry.header().entry_type().is_hard_link();
        let bare = |name: &[u8]| name.strip_suffix(b"/").unwrap_or(name).to_vec();
        // A second name of a file that is left out would lead nowhere.
        if ignore.matches(&bare(&name)) || (hard && link.as_deref().is_some_and(|l| ignore.matches(l))) {
            left_out += u64::from(!entry.header().entry_type().is_dir());
            continue;
        }
        let mut header = entry.header().clone();
        match link {
            Some(link) => to.append_link(&mut header, OsStr::from_bytes(&name), OsStr::from_bytes(&link)),
            None => to.append_data(&mut header, OsStr::from_bytes(&name), &mut entry),
        }
        .map_err(failed)?;
    }
    to.into_inner().and_then(|w| w.into_inner().map_err(std::io::IntoInnerError::into_error)).map_err(failed)?;
    Ok((path, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let ignore = DockerIgnore::parse(
            b"# c\n/node_modules\n*.md\n!README.md\n**/*.log\ntmp/\nsecret*\n!secret.pub\n../x\n/\n*/deep\nDockerfile\n",
        );
        for out in ["node_modules/a/b", "node_modules", "a.md", "x.log", "a/b/x.log", "tmp/x", "secret.key", "a/deep/x"] {
            assert!(ignore.matches(out.as_bytes()), "{out}");
        }
        for kept in
            ["README.md", "a/node_modules/x", "a/b.md", "secret.pub", "deep", "a/b/deep", "Dockerfile", ".dockerignore", "x"]
        {
            assert!(!ignore.matches(kept.as_bytes()), "{kept}");
        }
        let all_but = DockerIgnore::parse(b"*\n!src\n!go.mod\n");
        assert!(all_but.matches(b"x/y") && !all_but.matches(b"src/a.go") && !all_but.matches(b"go.mod"));
        assert!(!DockerIgnore::default().matches(b"x"));
    }
}
