//! What is said of instances and the formation.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct Scale {
    /// web=2 worker+1 web=1:512M
    pub changes: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Ps {
    /// Set how many instances of a process type run; without arguments, show it
    #[command(after_help = "Examples:\n  flex ps:scale web=2 worker+1\n  flex ps:scale web=1:1G")]
    Scale(Scale),
    /// Restart all instances, a process type, or one instance
    Restart { process: Option<String> },
    /// Stop one instance; it is replaced
    Stop { process: String },
    /// Say why an instance is where it is, or why it is not running
    Why { process: String },
}
