//! Builds: what was built, how long each phase took, what it said.

use crate::args::Builds;
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::Build;
use serde_json::Value;

pub async fn run(cx: &Context, verb: Option<Builds>) -> Result<()> {
    match verb {
        None => list(cx).await,
        Some(Builds::Info { build }) => info(cx, build.as_deref()).await,
        Some(Builds::Output { build }) => print_output(cx, build.as_deref()).await,
        Some(Builds::Cancel { build }) => cancel(cx, build.as_deref()).await,
        Some(Builds::CachePurge) => {
            let progress = Progress::start(format!("Purging the build cache of {}", cx.app()?));
            cx.client.delete(&cx.path("/build-cache")?).await?;
            progress.done();
            Ok(())
        }
    }
}

async fn newest(cx: &Context, max: usize) -> Result<Value> {
    cx.client.get_newest(&cx.path("/builds")?, "created_at", max).await
}

async fn list(cx: &Context) -> Result<()> {
    let Some(builds) = cx.show_or::<Vec<Build>>(newest(cx, 15).await?)? else { return Ok(()) };
    if builds.is_empty() {
        output::say(format!("{} has no builds. Make one: git push flex main", cx.app()?));
        return Ok(());
    }
    let now = jiff::Timestamp::now();
    let rows: Vec<_> = builds
        .into_iter()
        .map(|b| {
            let version = b.source_blob.version.unwrap_or_default();
            vec![
                b.id.to_string(),
                b.status.name().to_owned(),
                version.chars().take(12).collect(),
                b.user.email,
                output::moment(b.created_at, now),
            ]
        })
        .collect();
    output::table(&["id", "status", "version", "user", "created_at"], &rows);
    Ok(())
}

/// The build that is meant: by id, or the newest.
async fn find(cx: &Context, id: Option<&str>) -> Result<Value> {
    match id {
        Some(id) => {
            let id: flex_model::BuildId =
                id.parse().map_err(|_| CliError::usage(format!("{id} is no build's id. See: flex builds")))?;
            cx.client.get(&cx.path(&format!("/builds/{id}"))?).await
        }
        None => newest(cx, 1).await?.get(0).cloned().ok_or_else(|| CliError::failed("There are no builds yet.")),
    }
}

async fn info(cx: &Context, id: Option<&str>) -> Result<()> {
    let Some(b) = cx.show_or::<Build>(find(cx, id).await?)? else { return Ok(()) };
    output::heading(&format!("Build {}", b.id));
    let packs = b.buildpacks.into_iter().map(|p| p.name).collect::<Vec<_>>();
    let rows = [
        ("Status", b.status.name().to_owned()),
        ("By", b.user.email),
        ("Version", b.source_blob.version.unwrap_or_default()),
        ("Buildpacks", packs.join(", ")),
        ("When", output::moment(b.created_at, jiff::Timestamp::now())),
        ("Error", b.error.unwrap_or_default()),
    ];
    for (label, value) in rows.iter().filter(|(_, v)| !v.is_empty()) {
        output::line(format!("{:<12} {value}", format!("{label}:")));
    }
    for p in b.phases {
        output::line(format!("{:<12} {:>7} ms", format!("  {}", p.phase.replace('_', " ")), p.millis));
    }
    Ok(())
}

async fn print_output(cx: &Context, id: Option<&str>) -> Result<()> {
    let build: Build = typed(find(cx, id).await?)?;
    follow(cx, &build).await
}

/// Prints the output of a build until it ends.
pub async fn follow(cx: &Context, build: &Build) -> Result<()> {
    cx.client
        .lines(&build.output_stream_url, "text/plain", |text| {
            output::line(text);
            Ok(true)
        })
        .await
}

async fn cancel(cx: &Context, id: Option<&str>) -> Result<()> {
    let build: Build = typed(find(cx, id).await?)?;
    let progress = Progress::start(format!("Cancelling build {}", build.id));
    cx.client.delete(&cx.path(&format!("/builds/{}", build.id))?).await?;
    progress.done();
    Ok(())
}
