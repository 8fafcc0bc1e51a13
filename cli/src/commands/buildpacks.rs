//! The list of buildpacks of an app.

use crate::args::Buildpacks;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output;
use flex_api::{BuildpackInstallation, SetBuildpack, SetBuildpacks};
use flex_model::BuildpackRef;

pub async fn run(cx: &Context, verb: Option<Buildpacks>) -> Result<()> {
    let path = cx.path("/buildpack-installations")?;
    let Some(verb) = verb else {
        let Some(installed) = cx.fetch_list::<Vec<BuildpackInstallation>>(&path).await? else { return Ok(()) };
        return show(cx, &names(&installed));
    };
    let installed: Vec<BuildpackInstallation> = cx.client.list(&path).await?;
    let mut list = names(&installed);
    let parse = |s: &str| s.parse::<BuildpackRef>().map_err(|e| CliError::usage(e.to_string()));
    let parse_text = |s: &str| parse(s).map(|b| b.to_string());
    let said = match verb {
        Buildpacks::Set { buildpack, index: None } => {
            list = vec![parse_text(&buildpack)?];
            "Buildpack set."
        }
        Buildpacks::Set { buildpack, index: Some(at) } => {
            let at = place(at, list.len())?;
            let buildpack = parse_text(&buildpack)?;
            if at == list.len() {
                list.push(buildpack);
            } else {
                list[at] = buildpack;
            }
            "Buildpack set."
        }
        Buildpacks::Add { buildpack, index } => {
            let at = place(index.unwrap_or(list.len() + 1), list.len())?;
            list.insert(at, parse_text(&buildpack)?);
            "Buildpack added."
        }
        Buildpacks::Remove { buildpack, index } => {
            let at = match (buildpack, index) {
                (_, Some(i)) if (1..=list.len()).contains(&i) => i - 1,
                (Some(name), None) => list
                    .iter()
                    .position(|b| *b == name)
                    .ok_or_else(|| CliError::usage(format!("{name} is not among the buildpacks.")))?,
                _ => return Err(CliError::usage("Which buildpack? Give its name, or its place with --index.")),
            };
            list.remove(at);
            "Buildpack removed."
        }
        Buildpacks::Clear => {
            list.clear();
            "Buildpacks cleared. The next build detects again."
        }
    };
    let updates = list.iter().map(|b| Ok(SetBuildpack { buildpack: parse(b)? })).collect::<Result<_>>()?;
    let now: serde_json::Value = cx.client.put(&path, &SetBuildpacks { updates }).await?;
    output::say(said);
    let Some(_) = cx.show_or::<Vec<BuildpackInstallation>>(now)? else { return Ok(()) };
    if list.is_empty() {
        return Ok(());
    }
    show(cx, &list)?;
    output::say("The next build uses them: git push flex main");
    Ok(())
}

fn names(installed: &[BuildpackInstallation]) -> Vec<String> {
    installed.iter().map(|b| b.buildpack.url.clone()).collect()
}

/// A place from 1 to one behind the end, as an index.
fn place(at: usize, len: usize) -> Result<usize> {
    if (1..=len + 1).contains(&at) {
        Ok(at - 1)
    } else {
        Err(CliError::usage(format!("--index must be between 1 and {}.", len + 1)))
    }
}

fn show(cx: &Context, list: &[String]) -> Result<()> {
    if list.is_empty() {
        output::say(format!("{} has no buildpacks set; each build detects.", cx.app()?));
        return Ok(());
    }
    output::heading(&format!("{} Buildpacks", cx.app()?));
    for (i, name) in list.iter().enumerate() {
        output::line(format!("{}. {name}", i + 1));
    }
    Ok(())
}
