//! Tokens of the signed-in user: what each may do, and until when.

use crate::args::{Authorizations, NewAuthorization};
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::{Authorization, CreateAuthorization};
use flex_model::user::Scope;
use serde_json::Value;

pub async fn run(cx: &Context, verb: Option<Authorizations>) -> Result<()> {
    match verb {
        None => list(cx).await,
        Some(Authorizations::Create(args)) => create(cx, args).await,
        Some(Authorizations::Revoke { id }) => revoke(cx, &id).await,
    }
}

async fn list(cx: &Context) -> Result<()> {
    let Some(all) = cx.fetch_list::<Vec<Authorization>>("/oauth/authorizations").await? else { return Ok(()) };
    let rows: Vec<_> = all
        .into_iter()
        .map(|a| {
            let end = a.access_token.expires_in.map_or_else(|| "never".to_owned(), |s| format!("in {}", span(s)));
            vec![a.description, a.id.to_string(), a.scope.join(","), end]
        })
        .collect();
    output::table(&["description", "id", "scope", "expires"], &rows);
    Ok(())
}

/// Roughly, in the largest unit that fits.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

async fn create(cx: &Context, args: NewAuthorization) -> Result<()> {
    for scope in &args.scope {
        scope.parse::<Scope>().map_err(|e| CliError::usage(e.to_string()))?;
    }
    let body = CreateAuthorization {
        description: args.description,
        scope: (!args.scope.is_empty()).then_some(args.scope),
        expires_in: args.expires_in,
    };
    let progress = Progress::start("Creating a token");
    let made: Value = cx.client.post("/oauth/authorizations", &body).await?;
    let id = typed::<Authorization>(made.clone())?.id;
    progress.done_with(&id.to_string());
    let Some(made) = cx.show_or::<Authorization>(made)? else { return Ok(()) };
    output::line(made.access_token.token.expose());
    output::say("It is not shown again. Use it as FLEX_TOKEN.");
    Ok(())
}

async fn revoke(cx: &Context, id: &str) -> Result<()> {
    let id: flex_model::TokenId =
        id.parse().map_err(|_| CliError::usage(format!("{id} is no token's id. See: flex authorizations")))?;
    let progress = Progress::start(format!("Revoking {id}"));
    cx.client.delete(&format!("/oauth/authorizations/{id}")).await?;
    progress.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn spans_in_one_unit() {
        assert_eq!([5, 61, 7200, 200_000].map(span), ["5s", "1m", "2h", "2d"]);
    }
}
