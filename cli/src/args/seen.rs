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

#[derive(Debug, Args)]
pub struct Lines {
    /// As JSON objects
    #[arg(long, conflicts_with = "text")]
    pub json_form: bool,
    /// In Heroku's form
    #[arg(long)]
    pub text: bool,
    /// Share of the requests without an error that leave a line, 0 to 1; those with one always do
    #[arg(long, value_name = "SHARE")]
    pub sample: Option<f64>,
    /// As the server is set
    #[arg(long = "default", conflicts_with_all = ["json_form", "text", "sample"])]
    pub reset: bool,
}

#[derive(Debug, Subcommand)]
pub enum Canary {
    /// Give a release a share of the requests
    Start {
        /// Such as v12; without, the next release that a push or a deploy makes
        #[arg(value_name = "VERSION")]
        release: Option<String>,
        /// Its share in percent, 1 to 99
        #[arg(short, long, default_value_t = 10, value_name = "PERCENT")]
        weight: u32,
    },
    /// Change the share
    Weight {
        /// In percent, 1 to 99
        #[arg(value_name = "PERCENT")]
        weight: u32,
    },
    /// Make it what runs, for all requests
    Promote,
    /// End it: what ran before gets all requests
    Abort,
}

#[derive(Debug, Subcommand)]
pub enum Routing {
    /// Which routers there are, what they route by, and how far they are behind (administrators)
    #[command(after_help = "Examples:\n  flex router:status\n  flex router:status --json")]
    Status,
    /// How the app's access lines are written, and how many
    #[command(
        after_help = "Examples:\n  flex router:lines --json-form            one JSON object a request\n  flex router:lines --sample 0.1           of requests without an error one in ten\n  flex router:lines --default              as the server is set"
    )]
    Lines(Lines),
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
