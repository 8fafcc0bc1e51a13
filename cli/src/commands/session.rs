//! Signing in and out.

use crate::args::Login;
use crate::client::Client;
use crate::context::Context;
use crate::error::{CliError, Result, while_doing};
use crate::output;
use crate::settings::Settings;
use flex_api::{Account, Authorization, CreateAuthorization};
use flex_model::Secret;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use std::io::IsTerminal;

pub async fn login(args: Login) -> Result<()> {
    let mut settings = Settings::load()?;
    if let Some(api) = args.api {
        let known = api.starts_with("http://") || api.starts_with("https://");
        settings.api = Some(if known { api } else { format!("https://{api}") });
        settings.token = None;
    }
    let token = if args.token_stdin { read_line()? } else { by_password(&settings).await? };
    if token.is_empty() {
        return Err(CliError::usage("No token was given on stdin."));
    }
    settings.token = Some(Secret::new(token));
    let account: Account = Client::new(settings.clone())?.get("/account").await?;
    settings.save()?;
    output::say(format!("Logged in as {} at {}", account.email, settings.api()));
    Ok(())
}

async fn by_password(settings: &Settings) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        return Err(
            CliError::usage("There is no terminal to ask for a password on.").hint("Give a token: flex login --token-stdin")
        );
    }
    eprint!("E-mail: ");
    let email = read_line()?;
    let password = ask_hidden("Password: ")?;
    let client = Client::new(Settings { token: None, ..settings.clone() })?;
    let host = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
    let body = CreateAuthorization { description: Some(format!("flex login on {host}")), ..CreateAuthorization::default() };
    let made: Authorization = client.post_basic("/oauth/authorizations", &email, &password, &body).await?;
    Ok(made.access_token.token.expose().to_owned())
}

/// One line of stdin, without its end.
pub fn read_line() -> Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(while_doing("read stdin"))?;
    Ok(line.trim().to_owned())
}

/// Asks on the terminal without showing what is typed.
pub fn ask_hidden(prompt: &str) -> Result<String> {
    let stdin = std::io::stdin();
    eprint!("{prompt}");
    let shown = tcgetattr(&stdin).map_err(while_doing("read the terminal's settings"))?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSANOW, &hidden).map_err(while_doing("hide what is typed"))?;
    let line = read_line();
    // Restored before anything else may fail.
    let restored = tcsetattr(&stdin, SetArg::TCSANOW, &shown);
    eprintln!();
    restored.map_err(while_doing("restore the terminal"))?;
    line
}

pub fn logout() -> Result<()> {
    let mut settings = Settings::load()?;
    settings.token = None;
    settings.save()?;
    output::say("Logged out");
    Ok(())
}

pub async fn whoami(cx: &Context) -> Result<()> {
    let Some(account) = cx.fetch::<Account>("/account").await? else { return Ok(()) };
    output::line(account.email.as_str());
    Ok(())
}
