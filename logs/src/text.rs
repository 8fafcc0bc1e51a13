//! Text as log lines: no line ends inside, and a largest size.

/// Longest text of one line in bytes; longer ones are split (Heroku cuts at the same place).
pub const MAX_LINE_BYTES: usize = 10 * 1024;

/// What every piece but the first of a split line starts with.
pub const CONTINUED: &str = "[continued] ";

/// Cuts text into lines: at its line ends (a `\r` before one goes too, and so does one last empty line), and where a line
/// is longer than [`MAX_LINE_BYTES`], with the further pieces marked by [`CONTINUED`].
pub fn split_lines(text: &str) -> Vec<String> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut out = Vec::with_capacity(1);
    for line in text.split('\n') {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.len() <= MAX_LINE_BYTES {
            out.push(line.to_owned());
        } else {
            split_long(line, &mut out);
        }
    }
    out
}

fn split_long(mut rest: &str, out: &mut Vec<String>) {
    let mut mark = "";
    while !rest.is_empty() {
        let cut = rest.floor_char_boundary(MAX_LINE_BYTES - mark.len());
        let (piece, more) = rest.split_at(cut);
        out.push(format!("{mark}{piece}"));
        rest = more;
        mark = CONTINUED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn line_ends_split_and_vanish() {
        assert_eq!(split_lines("a\r\nb\n\nc\n"), ["a", "b", "", "c"]);
        assert_eq!(split_lines(""), [""]);
        assert_eq!(split_lines("\n"), [""]);
    }

    proptest! {
        #[test]
        fn long_lines_lose_nothing(parts in prop::collection::vec("[a-zäß€😀]{0,3000}", 0..9)) {
            let text = parts.concat();
            let pieces = split_lines(&text);
            prop_assert!(pieces.iter().all(|p| p.len() <= MAX_LINE_BYTES));
            let joined: String = pieces.iter().enumerate()
                .map(|(i, p)| if i == 0 { p.as_str() } else { p.strip_prefix(CONTINUED).unwrap() }).collect();
            prop_assert_eq!(joined, text);
        }
    }
}
