//! What is said of what an app is made of: config, releases, buildpacks, builds, deploys.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Set config vars; makes a release
    #[command(
        after_help = "Examples:\n  flex config:set A=1 B='two words'\n  flex config:set -f .env\n  pass show db | flex config:set -f -"
    )]
    Set {
        /// KEY=VALUE ...; - reads such lines from stdin
        pairs: Vec<String>,
        /// Read KEY=VALUE lines from a file (- is stdin)
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Leave what runs as it is: it sees the change when it is restarted
        #[arg(long)]
        no_restart: bool,
    },
    /// Change config vars in $EDITOR; makes a release
    Edit {
        /// Only this one, its value being the whole file
        key: Option<String>,
        /// Leave what runs as it is: it sees the change when it is restarted
        #[arg(long)]
        no_restart: bool,
    },
    /// Print one value
    Get {
        key: String,
        /// As KEY='VALUE'
        #[arg(short, long)]
        shell: bool,
    },
    /// Remove config vars; makes a release
    Unset {
        #[arg(required = true)]
        keys: Vec<String>,
        /// Leave what runs as it is: it sees the change when it is restarted
        #[arg(long)]
        no_restart: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Releases {
    /// Show a release
    Info {
        #[arg(value_name = "VERSION")]
        of: Option<String>,
    },
    /// What differs between two releases: code, process types, config vars (their values only if asked for)
    #[command(
        after_help = "Examples:\n  flex releases:diff v3 v5\n  flex releases:diff v3             against the current one\n  flex releases:diff v3 v5 --show-values"
    )]
    Diff {
        #[arg(value_name = "VERSION")]
        from: String,
        #[arg(value_name = "VERSION")]
        to: Option<String>,
        /// Print config vars' values
        #[arg(long)]
        show_values: bool,
    },
    /// What the release phase printed
    Output {
        #[arg(value_name = "VERSION")]
        of: Option<String>,
    },
    /// Make a failed release anew, with its release phase
    Retry {
        #[arg(value_name = "VERSION")]
        of: Option<String>,
        #[command(flatten)]
        wait: super::Wait,
    },
}

#[derive(Debug, Subcommand)]
pub enum Buildpacks {
    /// Replace the list by one buildpack (or, with --index, one place of the list)
    Set {
        buildpack: String,
        #[arg(short, long, value_name = "PLACE")]
        index: Option<usize>,
    },
    /// Add a buildpack at the end, or at a place
    Add {
        buildpack: String,
        #[arg(short, long, value_name = "PLACE")]
        index: Option<usize>,
    },
    /// Remove a buildpack, by name or place
    Remove {
        buildpack: Option<String>,
        #[arg(short, long, value_name = "PLACE")]
        index: Option<usize>,
    },
    /// Detect again from now on
    Clear,
}

#[derive(Debug, Subcommand)]
pub enum Stack {
    /// Build on this one from the next push on; `default`: as the server and app.json say
    Set { stack: String },
}

#[derive(Debug, Subcommand)]
pub enum Builds {
    /// Show a build, with the time of each phase
    Info { build: Option<String> },
    /// Print a build's output (following it while it runs)
    Output { build: Option<String> },
    /// Stop a running build
    Cancel { build: Option<String> },
    /// Remove the build cache
    #[command(name = "cache:purge", alias = "cache-purge")]
    CachePurge,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex deploy                      this directory\n  flex deploy app.tar.gz\n  flex deploy --image registry.example.com/app:1.2"
)]
pub struct Deploy {
    /// A directory or a tar archive (.tar, .tar.gz) [default: .]
    #[arg(conflicts_with = "image")]
    pub source: Option<PathBuf>,
    /// An image that the engine has or can pull, instead of a build
    #[arg(long, value_name = "REF")]
    pub image: Option<String>,
    /// What to call this version [default: the commit, if there is one]
    #[arg(long, value_name = "TEXT")]
    pub version_name: Option<String>,
}
