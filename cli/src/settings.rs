//! Where the CLI talks to and as whom: `~/.config/flex/config.toml`, overridden by `FLEX_API` and `FLEX_TOKEN`.

use crate::error::{CliError, Result, while_doing};
use flex_model::Secret;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Where a server on this machine listens when nobody said otherwise.
pub const DEFAULT_API: &str = "http://127.0.0.1:7070";

/// The file. Nothing in it is required.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

impl Settings {
    /// The file's place.
    pub fn path() -> Result<PathBuf> {
        let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let base = base.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".config")));
        base.map(|b| b.join("flex/config.toml")).ok_or_else(|| CliError::failed("HOME is not set: where are the settings?"))
    }

    fn read() -> Result<Self> {
        let path = Self::path()?;
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(while_doing(format!("read {}", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(while_doing(format!("read {}", path.display()))(e)),
        }
    }

    /// The file with the environment laid over it.
    pub fn load() -> Result<Self> {
        let mut settings = Self::read()?;
        let var = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
        if let Some(api) = var("FLEX_API") {
            // A token goes to the server that it was made by, and to no other.
            if settings.api.as_deref().unwrap_or(DEFAULT_API).trim_end_matches('/') != api.trim_end_matches('/') {
                settings.token = None;
            }
            settings.api = Some(api);
        }
        if let Some(token) = var("FLEX_TOKEN") {
            settings.token = Some(Secret::new(token));
        }
        Ok(settings)
    }

    /// The API's base URL, without a slash at the end.
    pub fn api(&self) -> String {
        self.api.as_deref().unwrap_or(DEFAULT_API).trim_end_matches('/').to_owned()
    }

    /// Writes the file, readable by its owner alone.
    pub fn save(&self) -> Result<PathBuf> {
        let path = Self::path()?;
        let doing = || while_doing(format!("write {}", path.display()));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(doing())?;
        }
        let text = toml::to_string(self).map_err(while_doing("write the settings"))?;
        let part = path.with_extension("part");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part).map_err(doing())?;
        file.write_all(text.as_bytes()).map_err(doing())?;
        std::fs::rename(&part, &path).map_err(doing())?;
        Ok(path)
    }
}
