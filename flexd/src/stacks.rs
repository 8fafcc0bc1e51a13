//! `flexd stack`: makes, lists and locks stacks.

use crate::commands::Stack;
use crate::installation::{cluster_id, make_data_dir};
use crate::server::{build_settings, runtime};
use crate::settings::Settings;
use flex_builder::{Lock, StackBuilder, StackRecord};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Does it.
///
/// # Errors
/// A sentence for the operator.
pub async fn run(settings: &Settings, verb: Stack) -> Result<(), String> {
    match verb {
        Stack::Build { name, force, locked } => build(settings, name, force, locked).await,
        Stack::List { json } => list(settings, json),
        Stack::Lock { name } => lock(settings, name),
    }
}

fn builder(settings: &Settings) -> Result<StackBuilder, String> {
    make_data_dir(&settings.data_dir)?;
    let cluster = cluster_id(&settings.data_dir)?;
    let engine = runtime(settings, &cluster)?;
    Ok(StackBuilder::new(build_settings(settings, &cluster), engine))
}

/// Where the recipe is: a name is one of those beside the buildpacks, a path is a path.
fn recipe_of(recipes: &Path, name: &str) -> Result<PathBuf, String> {
    let dir = if name.contains('/') || name == "." {
        PathBuf::from(name)
    } else {
        let name: flex_model::StackName = name.parse().map_err(|e| format!("{e}"))?;
        recipes.join(name.as_str())
    };
    if dir.join("stack.toml").is_file() {
        Ok(dir)
    } else {
        Err(format!("there is no recipe {}", dir.join("stack.toml").display()))
    }
}

async fn build(settings: &Settings, name: Option<String>, force: bool, locked: bool) -> Result<(), String> {
    let name = name.unwrap_or_else(|| settings.stack.clone());
    let dir = recipe_of(&settings.buildpacks.join("stacks"), &name)?;
    let builder = builder(settings)?;
    let (log, mut lines) = mpsc::channel::<String>(64);
    let printer = tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            println!("{line}");
        }
    });
    let result = if locked { builder.build_locked(&dir, force, log).await } else { builder.build(&dir, force, log).await };
    let _ = printer.await;
    let (record, made) = result.map_err(|e| crate::server::chain(&e))?;
    let what = if made { "made" } else { "is there already" };
    let (run, build) = (record.run.plain_bytes >> 20, record.build.plain_bytes >> 20);
    println!("       {} {what}: run {run} MiB, build {build} MiB", record.name);
    Ok(())
}

/// A stack with what is in it.
#[derive(serde::Serialize)]
struct Listed {
    #[serde(flatten)]
    record: StackRecord,
    /// None: made over an image.
    packages: Option<Lock>,
}

fn list(settings: &Settings, json: bool) -> Result<(), String> {
    let builder = builder(settings)?;
    let stacks = builder.list().map_err(|e| crate::server::chain(&e))?;
    if json {
        let all: Vec<Listed> =
            stacks.into_iter().map(|record| Listed { packages: builder.lock_of(&record).ok(), record }).collect();
        println!("{}", serde_json::to_string_pretty(&all).map_err(|e| e.to_string())?);
        return Ok(());
    }
    if stacks.is_empty() {
        println!("There are no stacks here. Make one: flexd stack build");
    }
    for s in stacks {
        println!("{}  built {}", s.name, s.built_at.rfc3339_seconds());
        for image in [&s.run, &s.build] {
            println!("  {:<24} {:>6} MiB  {}", image.tag, image.plain_bytes >> 20, image.id);
        }
    }
    Ok(())
}

fn lock(settings: &Settings, name: Option<String>) -> Result<(), String> {
    let name = name.unwrap_or_else(|| settings.stack.clone());
    let builder = builder(settings)?;
    let found = builder.list().map_err(|e| crate::server::chain(&e))?.into_iter().find(|s| s.name == name);
    let record =
        found.ok_or_else(|| format!("the stack {name} is not on this machine: make it with `flexd stack build {name}`"))?;
    let lock = builder.lock_of(&record).map_err(|e| crate::server::chain(&e))?;
    print!("{}", lock.text()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_named_or_is_a_path() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["stacks/mini", "own"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("stack.toml"), "").unwrap();
        }
        let recipes = dir.path().join("stacks");
        let own = dir.path().join("own");
        assert_eq!(recipe_of(&recipes, "mini"), Ok(recipes.join("mini")));
        assert_eq!(recipe_of(&recipes, own.to_str().unwrap()), Ok(own));
        assert!(recipe_of(&recipes, "own").unwrap_err().contains("no recipe"));
        assert!(recipe_of(&recipes, "./absent").unwrap_err().contains("./absent/stack.toml"));
    }
}
