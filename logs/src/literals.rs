//! Which texts a regular expression cannot match without.
//!
//! A pattern's matches all begin with one of a few texts, or have one of a few after a part that can be anything:
//! `user=\w+ (GET|HEAD) /` has `user=` and one of ` GET /` and ` HEAD /`. What is given back is necessary, never enough.
//! Pure. Must not: take long, whatever the pattern (users write them).

use regex_syntax::{
    ParserBuilder,
    hir::{Hir, HirKind, literal::Extractor},
};

/// Looks for texts in one pattern; further ones are not looked for.
const MAX_LOOKS: usize = 48;
/// Texts of which one must be there.
pub type AnyOf = Vec<Vec<u8>>;

/// For each of the answers, every match of the pattern holds at least one of its texts, none of which is empty. No answer: nothing is
/// known, as for what is no pattern.
pub fn required(pattern: &str) -> Vec<AnyOf> {
    // As `regex::bytes` reads it.
    let Ok(hir) = ParserBuilder::new().utf8(false).build().parse(pattern) else { return Vec::new() };
    let mut search = Search { found: Vec::new(), looks: MAX_LOOKS };
    search.within(&hir);
    search.found
}

struct Search {
    found: Vec<AnyOf>,
    looks: usize,
}

impl Search {
    /// What a part that every match has says.
    fn within(&mut self, part: &Hir) {
        self.beginnings(part);
        match part.kind() {
            HirKind::Capture(capture) => self.within(&capture.sub),
            HirKind::Repetition(repetition) if repetition.min > 0 => self.within(&repetition.sub),
            HirKind::Concat(parts) => {
                for (n, part) in parts.iter().enumerate() {
                    if self.looks == 0 {
                        return;
                    }
                    if n > 0 && !matches!(part.kind(), HirKind::Look(_)) {
                        self.beginnings(&Hir::concat(parts[n..].to_vec()));
                    }
                    if matches!(part.kind(), HirKind::Capture(_) | HirKind::Repetition(_)) {
                        self.within(part);
                    }
                }
            }
            _ => {}
        }
    }

    /// The texts with one of which this part begins.
    fn beginnings(&mut self, part: &Hir) {
        let Some(looks) = self.looks.checked_sub(1) else { return };
        self.looks = looks;
        let texts = Extractor::new().extract(part);
        let Some(texts) = texts.literals().filter(|t| !t.is_empty() && t.iter().all(|one| !one.is_empty())) else { return };
        let any: AnyOf = texts.iter().map(|one| one.as_bytes().to_vec()).collect();
        if !self.found.contains(&any) {
            self.found.push(any);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn has(found: &[AnyOf], wanted: &[&str]) -> bool {
        found.iter().any(|any| any.len() == wanted.len() && wanted.iter().all(|w| any.contains(&w.as_bytes().to_vec())))
    }

    #[test]
    fn texts_are_found_wherever_they_are() {
        for (pattern, wanted) in [
            ("timeout", &["timeout"][..]),
            ("^level=info n=12 ", &["level=info n=12 "]),
            (r"user=\w+ status=500", &["user="]),
            (r"user=\w+ status=500", &[" status=500"]),
            (r"\d+ (GET|HEAD) /x", &[" GET /x", " HEAD /x"]),
            (r"\d+(?: refused)+", &[" refused"]),
            (r"(.*needle.*)", &["needle"]),
            (r"a*bcde", &["bcde"]),
            (r"(?i)id=7", &["id=7", "Id=7", "iD=7", "ID=7"]),
            (r"(?-u)caf\xe9 ", &[]),
        ] {
            let found = required(pattern);
            assert!(wanted.is_empty() || has(&found, wanted), "{pattern}: {found:?}");
        }
        assert_eq!(required(r"(?-u)caf\xe9 "), [[b"caf\xe9 ".to_vec()]]);
    }

    #[test]
    fn nothing_is_said_where_nothing_is_known() {
        for pattern in ["", ".*", "a?", r"\w+", "(", "[a&&b]", "x*y*", "^$"] {
            assert_eq!(required(pattern), Vec::<AnyOf>::new(), "{pattern}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let began = std::time::Instant::now();
        for pattern in
            ["(a|b)".repeat(200), "[ab]?x".repeat(160), "(".repeat(240) + "abcd" + &")+".repeat(240), "(?i)kelvins".repeat(60)]
        {
            required(&pattern);
        }
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    }

    fn piece() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "ab",
            "a",
            "bc",
            "(?i:ab)",
            "(?:ab|cd)",
            "(a|)",
            "b+",
            "c*",
            "d?",
            "[ab]",
            ".",
            "^",
            "$",
            r"\b",
            "(?:ab){2}",
            "(?:a|bc){1,3}",
            r"\w",
            r"\d*",
            "é",
            "(?i:k)",
            "(?-u:\\xe9)",
            "a|b",
            "(?:",
            ")",
            "x{0}",
            "(bc+|d)??",
            "[^a]",
        ])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn each_match_has_what_is_required(
            pieces in prop::collection::vec(piece(), 0..6),
            text in "[a-dABCKké\u{212a} ]{0,14}",
            odd in any::<bool>(),
        ) {
            let pattern = pieces.concat();
            let Ok(regex) = regex::bytes::Regex::new(&pattern) else { return Ok(()) };
            let mut text = text.into_bytes();
            if odd {
                text.push(0xe9);
            }
            if regex.is_match(&text) {
                for any in required(&pattern) {
                    let there = any.iter().any(|one| memchr::memmem::find(&text, one).is_some());
                    prop_assert!(there, "{} matches {:?} without {:?}", pattern, text, any);
                }
            }
        }
    }
}
