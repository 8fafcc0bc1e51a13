//! What documents name must exist: files in back-ticks.

use std::path::{Path, PathBuf};

/// Folders of the checkout that a document may name files in.
const ROOTS: &[&str] = &[
    "agent/",
    "api/",
    "builder/",
    "buildpacks/",
    "cli/",
    "controller/",
    "docs/",
    "flexd/",
    "gitreceive/",
    "logs/",
    "model/",
    "router/",
    "runtime/",
    "scheduler/",
    "scripts/",
    "store/",
    "tests/",
    "xtask/",
    ".ci/",
];

pub fn check(root: &Path) -> Result<Vec<String>, String> {
    let mut problems = Vec::new();
    for page in pages(root)? {
        let text = std::fs::read_to_string(&page).map_err(|e| format!("{}: {e}", page.display()))?;
        let shown = page.strip_prefix(root).unwrap_or(&page).display().to_string();
        for name in named_files(&text) {
            if !root.join(&name).exists() {
                problems.push(format!("{shown} names {name}, which does not exist"));
            }
        }
    }
    Ok(problems)
}

fn pages(root: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].iter().map(|f| root.join(f)).collect();
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for item in std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?.flatten() {
            let path = item.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.retain(|p| p.exists());
    found.sort();
    Ok(found)
}

/// Texts in back-ticks that look like a path in the checkout. `a/b.rs:12` and `a/b.rs#x` name `a/b.rs`; patterns are passed over.
fn named_files(text: &str) -> Vec<String> {
    let inline = text.split("```").step_by(2).flat_map(|part| part.split('`').skip(1).step_by(2));
    inline
        .filter(|s| ROOTS.iter().any(|r| s.starts_with(r)))
        .filter(|s| !s.contains(['*', '<', '{', '$', ' ', '…']) && !s.chars().any(char::is_uppercase) || s.ends_with(".md"))
        .map(|s| s.split([':', '#']).next().unwrap_or(s).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn finds_paths_and_passes_over_patterns() {
        let text = "see `model/src/app.rs:3` and `docs/errors/NAME.md`\n```\n`router/x`\n```\n`scripts/up --no-sample` `tests/*.rs` `cargo`";
        assert_eq!(super::named_files(text), ["model/src/app.rs", "docs/errors/NAME.md"]);
    }
}
