//! Splits a command into words as a POSIX shell would, and does nothing else that a shell does. Pure.
//!
//! Quotes and backslashes keep characters together; `$`, `*`, `~`, `;`, `|`, `&`, `<` and `>` are characters like any other.

/// The words; none if a quote is not closed or the last backslash stands for nothing.
pub fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_a_shells() {
        let words = |t: &str| split(t).unwrap().join("|");
        assert_eq!(words("run bash -a shop"), "run|bash|-a|shop");
        assert_eq!(words("  run  'a b'\t\"c d\"e\\ f "), "run|a b|c de f");
        assert_eq!(words(r#"x "a\"b\\\$\n" '\' ''"#), r#"x|a"b\$\n|\|"#);
        assert_eq!(words("echo $HOME;id `id` $(id) *"), "echo|$HOME;id|`id`|$(id)|*");
        assert!(split("'open").is_none() && split("\"open").is_none() && split("end\\").is_none());
    }

    proptest! {
        /// What is quoted comes back as it was.
        #[test]
        fn quoting_is_undone(words in proptest::collection::vec("[ -~äß]{0,12}", 0..6)) {
            let text = words.iter().map(|w| format!("'{}'", w.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(split(&text), Some(words));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,80}") {
            let _ = split(&text);
        }
    }
}
