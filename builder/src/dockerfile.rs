//! What of a Dockerfile must be known before the engine's builder gets it: the images that it begins with, and whether
//! it has the engine itself fetch something. Pure.
//!
//! The engine fetches `ADD http://…` from the machine and not from a container, past every rule of the builds' network; so it
//! is refused, also where a variable might make one of it, and also as an `ONBUILD` of the image begun with.
//!
//! Must not: judge what the engine's parser judges; a Dockerfile that cannot be understood here is the engine's to refuse.

use std::collections::{BTreeMap, BTreeSet};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outline {
    /// Images that stages begin with, each once; earlier stages and `scratch` left out.
    pub(crate) bases: BTreeSet<String>,
}

/// Reads a Dockerfile. `args` are the build arguments given from outside.
///
/// # Errors
/// A sentence for its author, with the line.
pub(crate) fn outline(text: &str, args: &BTreeMap<String, String>) -> Result<Outline, String> {
    let mut found = Outline::default();
    let (mut stages, mut globals) = (BTreeSet::new(), BTreeMap::new());
    let mut before_from = true;
    for (line, instruction) in instructions(text) {
        let at = |why: String| format!("Dockerfile line {line}: {why}");
        let (word, rest) = split_word(&instruction);
        match word.as_str() {
            "ARG" if before_from => {
                for pair in rest.split_whitespace() {
                    let (name, default) = pair.split_once('=').unwrap_or((pair, ""));
                    let value =
                        args.get(name).cloned().unwrap_or_else(|| expand(&unquoted(default), &globals).unwrap_or_default());
                    globals.insert(name.to_owned(), value);
                }
            }
            "FROM" => {
                before_from = false;
                let words: Vec<&str> = rest.split_whitespace().filter(|w| !w.starts_with("--")).collect();
                let Some(image) = words.first() else { continue };
                let image = expand(&unquoted(image), &globals).map_err(at)?;
                if !image.is_empty() && image != "scratch" && !stages.contains(&image.to_ascii_lowercase()) {
                    found.bases.insert(image);
                }
                if let [_, r#as, name] = words[..]
                    && r#as.eq_ignore_ascii_case("as")
                {
                    stages.insert(name.to_ascii_lowercase());
                }
            }
            _ => refuse_fetch(&instruction).map_err(at)?,
        }
    }
    Ok(found)
}

/// Refuses an instruction that has the engine fetch something.
///
/// # Errors
/// A sentence for the author.
pub(crate) fn refuse_fetch(instruction: &str) -> Result<(), String> {
    let (mut word, mut rest) = split_word(instruction);
    while word == "ONBUILD" {
        (word, rest) = split_word(&rest);
    }
    if word != "ADD" {
        return Ok(());
    }
    let rest = rest.trim();
    let listed = rest.find('[').filter(|at| rest[..*at].split_whitespace().all(|w| w.starts_with("--")));
    let words: Vec<String> = match listed.and_then(|at| serde_json::from_str(&rest[at..]).ok()) {
        Some(words) => words,
        None => rest.split_whitespace().filter(|w| !w.starts_with("--")).map(unquoted).collect(),
    };
    let sources = &words[..words.len().saturating_sub(1)];
    match sources.iter().find(|s| may_be_url(s)) {
        None => Ok(()),
        Some(source) => Err(format!(
            "ADD {source} is refused, since the engine would fetch it from this machine: fetch it in a step of its own (RUN curl -fsSLO …), or use COPY if it is a file of the app"
        )),
    }
}

/// Whether it is a URL, or a variable at its beginning can make it one.
fn may_be_url(source: &str) -> bool {
    let lower = source.to_ascii_lowercase();
    let fixed = lower.split('$').next().unwrap_or("");
    ["http://", "https://"].iter().any(|scheme| lower.starts_with(scheme) || (lower.contains('$') && scheme.starts_with(fixed)))
}

fn unquoted(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '"' | '\'' | '\\' | '`')).collect()
}

fn split_word(text: &str) -> (String, String) {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (text[..end].to_ascii_uppercase(), text[end..].to_owned())
}

/// `$X`, `${X}`, `${X:-word}` and `${X:+word}`, as the engine does it in `FROM`.
fn expand(text: &str, vars: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let value = |name: &str| vars.get(name).map(String::as_str).filter(|v| !v.is_empty());
        if let Some(inner) = rest.strip_prefix('{') {
            let end = inner.find('}').ok_or_else(|| format!("{text} has no closing brace"))?;
            let (name, form) = inner[..end].split_at(inner[..end].find(':').unwrap_or(end));
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            match form.get(..2).filter(|_| plain) {
                None if !plain => return Err(format!("{text}: {name} is no variable's name")),
                None if form.is_empty() => out.push_str(value(name).unwrap_or("")),
                Some(":-") => out.push_str(value(name).unwrap_or(&form[2..])),
                Some(":+") => out.push_str(value(name).map_or("", |_| &form[2..])),
                _ => {
                    return Err(format!(
                        "{text}: of a variable's forms only $X, ${{X}}, ${{X:-word}} and ${{X:+word}} are known"
                    ));
                }
            }
            rest = &inner[end + 1..];
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            out.push_str(value(&rest[..end]).unwrap_or(""));
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    if out.contains('$') { Err(format!("{text} cannot be expanded")) } else { Ok(out) }
}

/// The instructions with their lines' numbers: comments gone, continued lines joined, as the engine's parser does it.
fn instructions(text: &str) -> Vec<(usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_of(text);
    let mut all = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (body, more) = line.strip_suffix(escape).map_or((line, false), |body| (body, true));
        let entry = open.get_or_insert_with(|| (at + 1, String::new()));
        entry.1.push_str(body);
        if !more {
            all.extend(open.take());
        }
    }
    all.extend(open);
    all
}

/// The parser's directive of the first lines: `# escape=` and a backquote for Windows paths.
fn escape_of(text: &str) -> char {
    for line in text.lines() {
        let Some((key, value)) = line.trim().strip_prefix('#').and_then(|l| l.split_once('=')) else { break };
        if key.trim().eq_ignore_ascii_case("escape") && value.trim() == "`" {
            return '`';
        }
    }
    '\\'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(text: &str) -> Vec<String> {
        outline(text, &BTreeMap::from([("GIVEN".to_owned(), "given".to_owned())])).unwrap().bases.into_iter().collect()
    }

    #[test]
    fn the_images_begun_with_are_found() {
        let text = "# syntax=x\nARG V=1\nARG GIVEN=default\nfrom --platform=linux/amd64 golang:${V} AS Build\nRUN echo \\\n# a comment\n\n  FROM x\nFROM build\nFROM scratch\nFROM img-$GIVEN:${NONE:-latest}\nCOPY --from=build /a /b\n";
        assert_eq!(bases(text), ["golang:1", "img-given:latest"]);
        assert_eq!(bases("\u{feff}FROM a\r\nRUN x\r\n"), ["a"]);
        assert_eq!(bases("# escape=`\nRUN dir c:\\\nFROM b\n"), ["b"]);
        assert!(bases("").is_empty());
        assert!(outline("FROM ${X?y}", &BTreeMap::new()).unwrap_err().starts_with("Dockerfile line 1"));
    }

    #[test]
    fn what_the_engine_would_fetch_is_refused() {
        for bad in [
            "ADD http://169.254.169.254/latest /x",
            "add --chown=1:1 HTTPS://x/y /x",
            "ADD [\"http://x/y\", \"/x\"]",
            "ADD --chown=1 [\"\\u0068ttp://x/y\", \"/x\"]",
            "ADD $URL /x",
            "ADD h$X /x",
            "ADD \"ht\"tp://x /x",
            "ADD h\\ttp://x /x",
            "ONBUILD ADD http://x /y",
            "ONBUILD ONBUILD ADD ${U} /y",
            "ADD a b \\\n http://x \\\n# c\n /y/",
        ] {
            let e = outline(&format!("FROM a\n{bad}\n"), &BTreeMap::new()).unwrap_err();
            assert!(e.contains("line 2") && e.contains("RUN curl"), "{bad}: {e}");
        }
        for good in
            ["ADD app-$V.tar /x", "ADD . /app", "COPY $X /y", "RUN curl http://x", "ADD x http://y", "LABEL a=http://x", "ADD"]
        {
            outline(&format!("FROM a\n{good}\n"), &BTreeMap::new()).unwrap();
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_crashes_it(text in "(FROM|ADD|ARG|ONBUILD|[$\\{\\}:#\\\\`\"\\[ \na-z/é-])*") {
            let _ = outline(&text, &BTreeMap::new());
        }
    }
}
