//! What is said of logs.

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flex logs -n 200\n  flex logs --tail -p web\n  flex logs -s router --json")]
pub struct Logs {
    /// How many lines
    #[arg(short = 'n', long, default_value_t = 100, value_name = "COUNT")]
    pub num: usize,
    /// Keep following
    #[arg(short, long)]
    pub tail: bool,
    /// Only this process type or instance: web, web.1
    #[arg(short, long, alias = "ps", visible_alias = "dyno", value_name = "NAME")]
    pub process: Option<String>,
    /// Only this source: app or flex
    #[arg(short, long, value_name = "SOURCE")]
    pub source: Option<String>,
}
