//! One-off commands, and sessions with what runs.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flex run bash
  flex run -e DEBUG=1 python manage.py migrate
  flex run --type worker                   what the Procfile says of worker
  pg_dump old | flex run 'cat > dump.sql'
  flex run:detached rake reindex           goes on by itself; see it with flex attach

One word is a command line, as typed; several are words, each kept whole. What follows -- is the command's alone.
On a terminal the command has one. Its exit status is that of flex; 128+n says that signal n ended it.")]
pub struct Run {
    /// Config vars for this run alone
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// The same from a file of KEY=VALUE lines (- is stdin)
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Memory, e.g. 1G, or a size that the server names (flex ps:sizes)
    #[arg(short, long, value_name = "SIZE")]
    pub size: Option<String>,
    /// Size of this process type, and its command if none is given
    #[arg(long, value_name = "TYPE")]
    pub r#type: Option<String>,
    /// Stop it after this time: 90, 30s, 5m, 2h
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// No terminal, even on one
    #[arg(long, conflicts_with = "tty")]
    pub no_tty: bool,
    /// With --detach: a terminal, to attach to later
    #[arg(long, requires = "detach")]
    pub tty: bool,
    /// Say which exit status it had, if not 0; it is that of flex in any case
    #[arg(short = 'x', long, conflicts_with = "detach")]
    pub exit_code: bool,
    /// Start it and return; its output goes to the log
    #[arg(short, long)]
    pub detach: bool,
    /// The command and its arguments
    #[arg(required_unless_present = "type", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flex runs\n  flex runs -n 50 --json")]
pub struct Runs {
    #[arg(short = 'n', long, default_value_t = 15, value_name = "COUNT")]
    pub num: usize,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flex attach run.4711
  flex attach web.1 --lines 500

Leave with ~. at the beginning of a line. Leaving ends nothing, and several may look on at once.")]
pub struct Attach {
    /// web.1, run.4711
    pub process: String,
    /// Lines of earlier output to begin with
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub lines: u32,
    /// Only look
    #[arg(long)]
    pub no_stdin: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flex exec                        a shell in web.1
  flex exec -p worker.1 ps aux
  flex exec -p web.2 -- ls -la /tmp
  flex exec 'cat > /tmp/x' < x")]
pub struct Exec {
    /// The instance
    #[arg(short, long, value_name = "NAME", default_value = "web.1")]
    pub process: String,
    /// Environment variables for this command alone
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// No terminal, even on one
    #[arg(long)]
    pub no_tty: bool,
    /// The command and its arguments [default: a shell]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flex cp web.1:/app/log/production.log .
  flex cp ./fixtures web.1:/tmp/
  flex cp run.4711:/tmp/report.pdf report.pdf

Files of an instance are gone when it is: keep what matters elsewhere.")]
pub struct Cp {
    /// A local path, or INSTANCE:PATH
    pub from: String,
    /// A local path, or INSTANCE:PATH
    pub to: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flex port-forward 5432
  flex port-forward 8080:5000 -p worker.1
  flex port-forward 0:5000                 a free port, which is printed")]
pub struct PortForward {
    /// LOCAL[:REMOTE], one or more
    #[arg(required = true, value_name = "LOCAL[:REMOTE]")]
    pub ports: Vec<String>,
    /// The instance
    #[arg(short, long, value_name = "NAME", default_value = "web.1")]
    pub process: String,
    /// Listen at another address than this machine's own
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub address: std::net::IpAddr,
}

/// `flex run bash -a my-app`, as Heroku's users type it: an `-a NAME` that ends the command is ours, unless `--` stands
/// before it.
pub fn hoist_app(mut args: Vec<String>) -> Vec<String> {
    let at = super::split::command_at(&args).filter(|at| matches!(args[*at].as_str(), "run" | "exec"));
    let Some(at) = at else { return args };
    if args[at..].iter().any(|a| a == "--") {
        return args;
    }
    let n = args.len();
    let words = if n > at + 2 && matches!(args[n - 2].as_str(), "-a" | "--app") {
        2
    } else if n > at + 1 && args[n - 1].starts_with("--app=") {
        1
    } else {
        return args;
    };
    let ours = args.split_off(n - words);
    args.splice(at..at, ours);
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_at_the_end_is_ours() {
        let hoisted = |line: &str| hoist_app(line.split(' ').map(str::to_owned).collect()).join(" ");
        assert_eq!(hoisted("flex run bash -a shop"), "flex -a shop run bash");
        assert_eq!(hoisted("flex exec -p web.1 ls --app=shop"), "flex --app=shop exec -p web.1 ls");
        assert_eq!(hoisted("flex run -- ls -a x"), "flex run -- ls -a x");
        assert_eq!(hoisted("flex run ls -a"), "flex run ls -a");
        assert_eq!(hoisted("flex --json run --detach ls -a shop"), "flex --json -a shop run --detach ls");
        assert_eq!(hoisted("flex -r staging run ls --app shop"), "flex -r staging --app shop run ls");
        // The word alone is no command.
        for line in [
            "flex logs -a shop",
            "flex logs -p run -a shop",
            "flex logs --grep run -a shop",
            "flex events --kind run -a shop",
            "flex ps -t run -a shop",
            "flex -r run logs -a shop",
            "flex create exec -a shop",
        ] {
            assert_eq!(hoisted(line), line);
        }
    }
}
