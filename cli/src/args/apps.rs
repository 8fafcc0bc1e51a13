//! What is said of apps, of who may work on them, and of their git remotes.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex create\n  flex create my-app\n  flex create my-app --buildpack python --remote staging"
)]
pub struct Create {
    /// 2 to 30 lower-case letters, digits and dashes; made up if left out
    pub name: Option<String>,
    /// A buildpack instead of detection
    #[arg(short, long, value_name = "BUILDPACK")]
    pub buildpack: Option<String>,
    /// What to build and run on, instead of the server's or app.json's
    #[arg(short, long, value_name = "STACK")]
    pub stack: Option<String>,
    /// Make no git remote
    #[arg(short, long)]
    pub no_remote: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flex info\n  flex info my-app --url")]
pub struct Info {
    /// The app (instead of --app)
    pub name: Option<String>,
    /// Print only the app's URL
    #[arg(long)]
    pub url: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flex destroy my-app\n  flex destroy my-app --confirm my-app")]
pub struct Confirm {
    /// The app (instead of --app)
    pub name: Option<String>,
    /// The app's name once more, instead of being asked
    #[arg(short, long, value_name = "NAME")]
    pub confirm: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Apps {
    /// Make an app and a git remote for it
    Create(Create),
    /// Show an app
    Info(Info),
    /// Rename an app
    Rename { new_name: String },
    /// Give the app to another user
    #[command(after_help = "Examples:\n  flex apps:transfer you@example.com")]
    Transfer { recipient: String },
    /// Show or choose the branches that deploy when they are pushed
    #[command(
        after_help = "Examples:\n  flex apps:branches\n  flex apps:branches production\n  flex apps:branches main production"
    )]
    Branches {
        /// Those that are to deploy, instead of the ones that do; clones get the first
        branches: Vec<String>,
    },
    /// Refuse deploys until it is unlocked
    #[command(after_help = "Examples:\n  flex apps:lock\n  flex apps:lock --reason 'audit until Friday'")]
    Lock {
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Allow deploys again
    Unlock,
    /// Whether instances may write to no more than /tmp: on, off
    #[command(
        after_help = "Examples:\n  flex apps:read-only\n  flex apps:read-only on && flex ps:restart\n\napp.json says the same of what it is deployed with: {\"flex\": {\"read_only_root\": true}}. It is on where either says so."
    )]
    ReadOnly {
        #[command(subcommand)]
        verb: Option<ReadOnly>,
    },
    /// Make another app with the same settings and config vars
    #[command(after_help = "Examples:\n  flex apps:clone my-app-staging\n  flex apps:clone my-app-staging --no-config")]
    Clone {
        new_name: String,
        /// Without the config vars
        #[arg(long)]
        no_config: bool,
    },
    /// Write the app's settings and config vars as JSON
    #[command(after_help = "Examples:\n  flex apps:export my-app.json\n  flex apps:export - --no-config | jq .formation")]
    Export {
        /// A new file, readable by you alone; - is stdout
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Without the config vars
        #[arg(long)]
        no_config: bool,
    },
    /// Make an app from what apps:export wrote
    #[command(after_help = "Examples:\n  flex apps:import my-app.json\n  flex apps:import my-app.json other-name")]
    Import {
        /// - is stdin
        file: PathBuf,
        /// Another name
        new_name: Option<String>,
    },
    /// Destroy an app with everything it has
    Destroy(Confirm),
}

#[derive(Debug, Subcommand)]
pub enum Access {
    /// Let a user work on the app
    Add { email: String },
    /// No longer let a user work on the app
    Remove { email: String },
}

#[derive(Debug, Subcommand)]
pub enum Maintenance {
    /// Answer every request with a maintenance page
    On,
    /// Serve again
    Off,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum ReadOnly {
    /// The image's file system is read-only, /tmp is not
    On,
    /// Instances may write everywhere that their user may
    Off,
}

#[derive(Debug, Subcommand)]
pub enum Git {
    /// Make the git remote of an app
    Remote,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex events\n  flex events -a my-app -n 100\n  flex events --tail\n  flex events --kind config.update --json"
)]
pub struct Events {
    #[arg(short = 'n', long, default_value_t = 30, value_name = "COUNT")]
    pub num: usize,
    /// Keep following
    #[arg(short, long)]
    pub tail: bool,
    /// Only these: config.update, or ps for ps.restart and the like
    #[arg(short, long, value_name = "KIND")]
    pub kind: Option<String>,
}
