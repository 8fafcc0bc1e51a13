//! What is said of apps, of who may work on them, and of their git remotes.

use clap::{Args, Subcommand};

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

#[derive(Debug, Subcommand)]
pub enum Git {
    /// Make the git remote of an app
    Remote,
}
