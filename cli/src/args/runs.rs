//! What is said of one-off commands and sessions.

use clap::Args;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex run bash\n  flex run -e DEBUG=1 python manage.py migrate\n  pg_dump old | flex run 'cat > dump.sql'"
)]
pub struct Run {
    /// Config vars for this run alone
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Memory, e.g. 1G
    #[arg(short, long, value_name = "SIZE")]
    pub size: Option<String>,
    /// No terminal, even on one
    #[arg(long)]
    pub no_tty: bool,
    /// Start it and return; its output goes to the log
    #[arg(short, long)]
    pub detach: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
