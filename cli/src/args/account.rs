//! What is said of users, keys and tokens.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Register a public key
    Add {
        /// The public key's file [default: ~/.ssh/id_ed25519.pub, or the first that there is]
        file: Option<PathBuf>,
        /// Say nothing if it is registered already
        #[arg(long)]
        quiet: bool,
    },
    /// Remove a key, by fingerprint, comment or id
    Remove { key: String },
}

#[derive(Debug, Subcommand)]
pub enum Authorizations {
    /// Make a token; it is shown once
    Create(NewAuthorization),
    /// Make a token useless
    Revoke { id: String },
}

#[derive(Debug, Args)]
pub struct NewAuthorization {
    /// What it is for
    #[arg(short, long, value_name = "TEXT")]
    pub description: Option<String>,
    /// global, identity, read, write, read-protected or write-protected; several with commas [default: global]
    #[arg(short, long, value_name = "SCOPE", value_delimiter = ',')]
    pub scope: Vec<String>,
    /// Seconds until it ends [default: never]
    #[arg(short, long, value_name = "SECONDS")]
    pub expires_in: Option<u64>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex login\n  flex login --api https://flex.example.com\n  flexd user:token me@example.com --admin | flex login --token-stdin"
)]
pub struct Login {
    /// The server
    #[arg(long, value_name = "URL")]
    pub api: Option<String>,
    /// Read a token from stdin instead of asking for e-mail and password
    #[arg(long)]
    pub token_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub enum Users {
    /// Add a user; the password is asked for, or read from stdin
    Add {
        email: String,
        #[arg(long)]
        admin: bool,
    },
}
