//! What is said of instances, the formation, and health checks.

use clap::{Args, Subcommand};

/// Whether to wait until what was asked for is so.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Return at once instead of waiting until it is so
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
    /// Wait until it is so (what happens anyhow)
    #[arg(long)]
    pub wait: bool,
}

/// Which instances `flex ps` shows, and how often.
#[derive(Debug, Clone, Args)]
pub struct PsList {
    /// Only this process type
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// Show again every second until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex scale                     what there is\n  flex scale web=2 worker+1\n  flex scale web=1:1G --no-wait"
)]
pub struct Scale {
    /// web=2 worker+1 web=1:512M
    pub changes: Vec<String>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex ps:resize web=1G\n  flex ps:resize web=small            a size that the server names; see: flex ps:sizes\n  flex ps:resize worker --cpu 0.5     at most half a core\n  flex ps:resize worker --cpu none"
)]
pub struct Resize {
    /// web=1G, worker=small; or the process type alone with --cpu or --cpu-shares
    #[arg(required = true)]
    pub sizes: Vec<String>,
    /// The most that it may use, in cores; "none" takes the limit away
    #[arg(long, value_name = "CORES")]
    pub cpu: Option<String>,
    /// Its weight where the CPU is short; 1024 is ordinary
    #[arg(long, value_name = "N")]
    pub cpu_shares: Option<u32>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flex restart\n  flex restart web\n  flex restart web.1 --no-wait")]
pub struct Restart {
    /// A process type or an instance; all of them if left out
    #[arg(value_name = "PROCESS")]
    pub process: Option<String>,
    /// The same, as Heroku's client takes it
    #[arg(short = 'd', long = "dyno-name", hide = true, conflicts_with = "process")]
    pub dyno: Option<String>,
    /// The same, as Heroku's client takes it
    #[arg(short = 'p', long = "process-type", hide = true, conflicts_with_all = ["process", "dyno"])]
    pub kind: Option<String>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Args)]
pub struct StopStart {
    /// A process type or an instance; all of them if left out
    #[arg(value_name = "PROCESS")]
    pub process: Option<String>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Subcommand)]
pub enum Ps {
    /// Set how many instances of a process type run; without arguments, show it
    Scale(Scale),
    /// Set memory and CPU of a process type
    #[command(visible_alias = "type")]
    Resize(Resize),
    /// Restart all instances, a process type, or one instance
    Restart(Restart),
    /// Stop all instances, a process type, or one instance, until they are started
    #[command(after_help = "Examples:\n  flex ps:stop\n  flex ps:stop worker\n  flex ps:stop web.2")]
    Stop(StopStart),
    /// Start what was stopped
    #[command(after_help = "Examples:\n  flex ps:start\n  flex ps:start worker")]
    Start(StopStart),
    /// Say why an instance is where it is, or why it is not running
    #[command(after_help = "Examples:\n  flex ps:why web.2")]
    Why { process: String },
    /// Past instances: how each ended, and the last that it printed
    #[command(after_help = "Examples:\n  flex ps:history\n  flex ps:history web.1 -n 3 --lines")]
    History {
        /// Only this process type or instance
        process: Option<String>,
        #[arg(short = 'n', long, default_value_t = 20, value_name = "COUNT")]
        num: usize,
        /// With the last lines that each printed
        #[arg(short, long)]
        lines: bool,
    },
    /// Sizes that the server names
    Sizes,
}

#[derive(Debug, Subcommand)]
pub enum Checks {
    /// Set the health check of a process type; makes a release
    Set(SetCheck),
    /// Go back to app.json's health check, or the default; makes a release
    Unset {
        #[arg(value_name = "TYPE")]
        process: String,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex checks:set web --http /health\n  flex checks:set web --tcp --grace 120\n  flex checks:set worker --interval 30 --failures 2 -- pgrep -f worker.py"
)]
pub struct SetCheck {
    #[arg(value_name = "TYPE")]
    pub process: String,
    /// GET this path; 200 to 399 is well
    #[arg(long, value_name = "PATH", conflicts_with_all = ["tcp", "running", "command"])]
    pub http: Option<String>,
    /// The port accepts connections
    #[arg(long, conflicts_with_all = ["running", "command"])]
    pub tcp: bool,
    /// It has run for this many milliseconds
    #[arg(long, value_name = "MS", num_args = 0..=1, default_missing_value = "2000", conflicts_with = "command")]
    pub running: Option<u64>,
    /// Seconds that it may take to become healthy the first time [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub grace: Option<u32>,
    /// Seconds between probes [default: 5]
    #[arg(long, value_name = "SECONDS")]
    pub interval: Option<u32>,
    /// Seconds that one probe may take [default: 5]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u32>,
    /// Successes in a row that make it healthy [default: 1]
    #[arg(long, value_name = "N")]
    pub successes: Option<u32>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "N", visible_alias = "threshold")]
    pub failures: Option<u32>,
    /// A command in the instance that exits 0 while all is well
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
    #[command(flatten)]
    pub wait: Wait,
}
