//! Procfiles as people write them. Pure: text in, process types out, or the line that is wrong.
//!
//! Grammar: `name: command` a line; blank lines and `#` comments are passed over; CRLF and a byte-order mark are
//! tolerated; a whole command in matching quotes loses them. Nothing here runs or expands anything.

use crate::ProcessType;
use std::collections::BTreeMap;

/// The longest accepted command: a line beyond it is a mistake or an attack.
pub const MAX_COMMAND: usize = 8192;
/// The most process types of one Procfile.
pub const MAX_PROCESSES: usize = 100;

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Procfile line {line}: {problem}")]
pub struct ProcfileError {
    /// From 1.
    pub line: usize,
    pub problem: String,
}

/// Reads a Procfile.
///
/// # Errors
/// The first line that is neither blank, a comment, nor `name: command`; a merge marker; a name given twice; a NUL byte;
/// an over-long command; or too many process types.
pub fn parse(text: &str) -> Result<BTreeMap<ProcessType, String>, ProcfileError> {
    let mut out = BTreeMap::new();
    for (i, raw) in text.trim_start_matches('\u{feff}').split('\n').enumerate() {
        let line = i + 1;
        let fail = |problem: String| Err(ProcfileError { line, problem });
        let text = raw.trim();
        if ["<<<<<<<", "=======", ">>>>>>>", "|||||||"].iter().any(|m| raw.starts_with(m)) {
            return fail("a merge conflict was committed here: resolve it and commit again".into());
        }
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let Some((name, command)) = text.split_once(':') else {
            return fail(format!("expected `name: command`, found {:?}", cut(text)));
        };
        let name: ProcessType = match name.trim().parse() {
            Ok(n) => n,
            Err(e) => return fail(e.to_string()),
        };
        let command = unquote(command.trim());
        if command.is_empty() {
            return fail(format!("process type {name} has no command"));
        }
        if command.contains('\0') || command.contains('\r') {
            return fail("the command holds a control character".into());
        }
        if command.len() > MAX_COMMAND {
            return fail(format!("the command is longer than {MAX_COMMAND} bytes"));
        }
        if out.insert(name.clone(), command.to_owned()).is_some() {
            return fail(format!("process type {name} is given twice"));
        }
        if out.len() > MAX_PROCESSES {
            return fail(format!("more than {MAX_PROCESSES} process types"));
        }
    }
    Ok(out)
}

fn unquote(s: &str) -> &str {
    for q in ['"', '\''] {
        if let Some(inner) = s.strip_prefix(q).and_then(|s| s.strip_suffix(q))
            && !inner.contains(q)
        {
            return inner.trim();
        }
    }
    s
}

fn cut(s: &str) -> String {
    s.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }

    #[test]
    fn as_people_write_them() {
        let text =
            "\u{feff}# the app\r\nweb: bundle exec puma -p $PORT\r\n\r\n  worker :  'rake jobs:work'\nrelease: ./migrate \"a b\"";
        assert_eq!(
            ok(text),
            [
                ("release".into(), "./migrate \"a b\"".into()),
                ("web".into(), "bundle exec puma -p $PORT".into()),
                ("worker".into(), "rake jobs:work".into())
            ]
        );
    }

    #[test]
    fn names_the_line_that_is_wrong() {
        for (text, line) in [
            ("web: a\n<<<<<<< HEAD\n", 2),
            ("web: a\n=======\n", 2),
            ("web a", 1),
            ("web: a\nweb: b", 2),
            ("\n\nweb:", 3),
            ("$(id): x", 1),
            ("web: a\0b", 1),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
        assert!(parse(&format!("web: {}", "x".repeat(MAX_COMMAND + 1))).is_err());
        assert_eq!(ok(""), []);
    }
}
