//! What is said of traffic and of the routers.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flex metrics                     the last ten seconds
  flex metrics --seconds 60
  flex metrics --watch             again each second
  flex metrics --json")]
pub struct Metrics {
    /// Of how many seconds: 1 to 60
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub seconds: u32,
    /// Show it again each second, until interrupted
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Subcommand)]
pub enum Routing {
    /// Which routers there are, what they route by, and how far they are behind (administrators)
    #[command(after_help = "Examples:\n  flex router:status\n  flex router:status --json")]
    Status,
    /// Which way a request takes: the route, the instances that may get it, and why the others do not
    #[command(
        after_help = "Examples:\n  flex router:trace www.example.com/api/users\n  flex router:trace https://my-app.localhost"
    )]
    Trace {
        /// A URL, or a host and a path
        #[arg(value_name = "HOST/PATH")]
        url: String,
    },
}
