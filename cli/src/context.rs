//! What every command needs: the client, the app that is meant, and how to print.

use crate::args::Common;
use crate::client::Client;
use crate::error::{CliError, Result};
use crate::{git, output};
use flex_model::AppName;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// An answer as what it is.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| crate::client::unreadable("that", &e))
}

/// One run of the CLI.
pub struct Context {
    pub client: Client,
    pub common: Common,
}

impl Context {
    /// The app that is meant, from `-a`, `FLEX_APP`, or the git remote.
    pub fn app(&self) -> Result<AppName> {
        self.app_or(None)
    }

    /// As [`Context::app`], with a name from the command line first.
    pub fn app_or(&self, named: Option<&str>) -> Result<AppName> {
        let remote = self.common.remote.as_deref();
        let name = named.or(self.common.app.as_deref()).map(str::to_owned);
        let name = name.or_else(|| git::app_of_remote(remote.unwrap_or(git::REMOTE)));
        let name = name.ok_or_else(|| {
            CliError::usage("Which app? None was named, and there is no git remote named flex here.")
                .hint("Name it: --app NAME")
                .hint("Or make one here: flex create")
        })?;
        name.parse().map_err(|e| CliError::usage(format!("{e}")))
    }

    /// `/apps/NAME` and what follows.
    pub fn path(&self, rest: &str) -> Result<String> {
        Ok(format!("/apps/{}{rest}", self.app()?))
    }

    /// Reads a resource. With `--json` it is printed as the API gave it, and there is nothing left to show.
    pub async fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let value: Value = self.client.get(path).await?;
        self.show_or(value)
    }

    /// Reads a whole list, as [`Context::fetch`] does one thing.
    pub async fn fetch_list<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let value: Value = self.client.list(path).await?;
        self.show_or(value)
    }

    /// Prints a value with `--json`, or hands it back typed.
    pub fn show_or<T: DeserializeOwned>(&self, value: Value) -> Result<Option<T>> {
        if self.common.json {
            output::json(&value)?;
            return Ok(None);
        }
        typed(value).map(Some)
    }
}
