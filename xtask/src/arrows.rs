//! Which crate may depend on which: the table in docs/ARCHITECTURE.md against `cargo metadata`.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// May depend on every room.
const ALL: &str = "all";

/// Crate name to the rooms that it may depend on, in the table's short names.
type Table = BTreeMap<String, BTreeSet<String>>;

pub fn check(root: &Path) -> Result<Vec<String>, String> {
    let page = root.join("docs/ARCHITECTURE.md");
    let text = std::fs::read_to_string(&page).map_err(|e| format!("{}: {e}", page.display()))?;
    let table = table(&text);
    if table.len() < 10 {
        return Err("docs/ARCHITECTURE.md: the table of rooms was not found".into());
    }
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    let metadata: Value = serde_json::from_slice(&out.stdout)
        .map_err(|e| format!("cargo metadata: {e}: {}", String::from_utf8_lossy(&out.stderr)))?;
    Ok(problems(&table, &metadata))
}

/// Reads the rows `| folder | `crate` | purpose | may depend on |`.
fn table(text: &str) -> Table {
    let mut table = Table::new();
    for row in text.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, name, _, allowed] = cells[..] else { continue };
        let name = name.trim_matches('`');
        if name.starts_with("flex") {
            let allowed = allowed.split(',').map(|a| a.trim().to_owned()).filter(|a| a != "–" && !a.is_empty()).collect();
            table.insert(name.to_owned(), allowed);
        }
    }
    table
}

fn problems(table: &Table, metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut problems = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if name == "xtask" {
            continue;
        }
        let Some(allowed) = table.get(name) else {
            problems.push(format!("{name} has no row in the table of rooms"));
            continue;
        };
        for dependency in package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let on = dependency["name"].as_str().unwrap_or_default();
            // What a crate's own tests use is no arrow of the architecture.
            let is_test = dependency["kind"].as_str() == Some("dev");
            let room = on.strip_prefix("flex-").unwrap_or(on);
            if ours.contains(on) && !is_test && !allowed.contains(ALL) && !allowed.contains(room) {
                problems.push(format!("{name} depends on {on}, which the table of rooms does not allow"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_arrow_against_the_table_is_found() {
        let table = table("| `a/` | `flex-a` | x | – |\n| `b/` | `flex-b` | x | a |\n| `d/` | `flexd` | x | all |\n");
        let package = |name: &str, deps: &[&str], kind: Option<&str>| {
            let deps: Vec<Value> = deps.iter().map(|d| json!({"name": d, "kind": kind})).collect();
            json!({"name": name, "dependencies": deps})
        };
        let good = json!({"packages": [package("flex-a", &["serde"], None), package("flex-b", &["flex-a"], None), package("flexd", &["flex-b"], None)]});
        assert_eq!(problems(&table, &good), Vec::<String>::new());
        let bad = json!({"packages": [package("flex-a", &["flex-b"], None), package("flex-b", &[], None), package("flex-c", &[], None)]});
        assert_eq!(problems(&table, &bad).len(), 2);
        let test_only = json!({"packages": [package("flex-a", &["flex-b"], Some("dev")), package("flex-b", &[], None)]});
        assert_eq!(problems(&table, &test_only), Vec::<String>::new());
    }
}
