//! Checks that the compiler cannot make. `cargo xtask` lists them.
//!
//! Must not: change a file, or need anything but cargo and the checkout.

mod arrows;
mod documents;
mod errors;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."));
    let task = std::env::args().nth(1).unwrap_or_default();
    let problems = match task.as_str() {
        "check-arrows" => arrows::check(root),
        "check-docs" => documents::check(root).and_then(|found| Ok([found, errors::check(root)?].concat())),
        _ => {
            eprintln!("Usage: cargo xtask check-arrows|check-docs");
            eprintln!("  check-arrows  dependencies between crates against the table in docs/ARCHITECTURE.md");
            eprintln!(
                "  check-docs    every file that a document names exists; every error code has its page, and every page its code"
            );
            return ExitCode::from(2);
        }
    };
    match problems {
        Ok(problems) if problems.is_empty() => {
            println!("{task}: ok");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            for p in problems {
                eprintln!("{task}: {p}");
            }
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("{task}: {e}");
            ExitCode::FAILURE
        }
    }
}
