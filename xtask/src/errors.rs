//! The codes of errors that users meet, read from the sources, against the pages of `docs/errors/`: each has its page, each
//! page its code, and the list there names all of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What stands before a code where an error is made.
const MADE: &[&str] = &["::user(", "Problem::new(", "code: "];
/// And where a kind of error is given its name, in files called `error.rs`.
const NAMED: &str = "=> ";

pub fn check(root: &Path) -> Result<Vec<String>, String> {
    let mut codes = BTreeSet::new();
    for crate_dir in entries(root)?.into_iter().map(|p| p.join("src")).filter(|p| p.is_dir()) {
        for file in sources(crate_dir)? {
            let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            codes.extend(MADE.iter().flat_map(|before| codes_after(&text, before)));
            if file.ends_with("error.rs") {
                codes.extend(codes_after(&text, NAMED));
            }
        }
    }
    let folder = root.join("docs/errors");
    let list = std::fs::read_to_string(folder.join("README.md")).map_err(|e| format!("docs/errors/README.md: {e}"))?;
    let page = |p: PathBuf| Some(p.file_name()?.to_str()?.strip_suffix(".md")?.to_owned());
    let pages: BTreeSet<String> = entries(&folder)?.into_iter().filter_map(page).filter(|p| p != "README").collect();
    let without_page = codes.difference(&pages).map(|c| format!("the error code {c} has no page docs/errors/{c}.md"));
    let without_code = pages.difference(&codes).map(|p| format!("docs/errors/{p}.md is of an error that nothing makes"));
    let not_listed = pages.iter().filter(|p| !list.contains(&format!("({p}.md)")));
    let not_listed = not_listed.map(|p| format!("docs/errors/README.md does not name {p}.md"));
    Ok(without_page.chain(without_code).chain(not_listed).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let items = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(items.flatten().map(|i| i.path()).collect())
}

fn sources(folder: PathBuf) -> Result<Vec<PathBuf>, String> {
    let (mut found, mut folders) = (Vec::new(), vec![folder]);
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Texts of small letters and underscores in quotes that follow `before`, blanks or a line's end between.
fn codes_after<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = String> + 'a {
    text.split(before).skip(1).filter_map(|rest| {
        let (code, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
        let fits = !code.is_empty() && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        fits.then(|| code.to_owned())
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn codes_are_found_across_lines_and_texts_are_not() {
        let text = "E::user(\"one_two\", x); E::user(\n    \"three\", y); E::user(code, \"four\"); E::user(\"Not one.\", z)";
        assert_eq!(super::codes_after(text, "::user(").collect::<Vec<_>>(), ["one_two", "three"]);
    }
}
