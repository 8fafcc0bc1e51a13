//! The command line's grammar. `flex TOPIC:VERB` and `flex TOPIC VERB` are the same; a few verbs stand alone.
//! This file holds the topics; each subject's own arguments are in a file beside it.

mod account;
mod apps;
mod code;
pub mod http;
mod logs;
mod processes;
mod routing;
mod runs;
mod seen;
mod split;

pub use account::*;
pub use apps::*;
pub use code::*;
pub use logs::*;
pub use processes::*;
pub use routing::*;
pub use runs::*;
pub use seen::*;
pub use split::split_topic;

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "Examples:
  flex create my-app              make an app and the git remote \"flex\"
  git push flex main              build and start it
  flex config:set GREETING=hi     change its settings
  flex ps:scale web=2 worker=1    run more of it
  flex logs --tail                watch it
  flex run bash                   look inside

Settings: ~/.config/flex/config.toml; FLEX_API, FLEX_TOKEN and FLEX_APP override them.";

/// Run apps on your own machines.
#[derive(Debug, Parser)]
#[command(name = "flex", version, about, after_help = EXAMPLES, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The app; otherwise FLEX_APP, or the git remote named "flex"
    #[arg(short, long, global = true, env = "FLEX_APP", value_name = "NAME")]
    pub app: Option<String>,
    /// The git remote that names the app
    #[arg(short, long, global = true, value_name = "NAME")]
    pub remote: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an app and a git remote for it
    Create(Create),
    /// Apps: list, create, info, rename, transfer, lock, unlock, read-only, clone, export, import, destroy
    Apps {
        #[command(subcommand)]
        verb: Option<Apps>,
    },
    /// Show an app
    Info(Info),
    /// Destroy an app with everything it has
    Destroy(Confirm),
    /// Rename an app
    #[command(after_help = "Examples:\n  flex rename better-name\n  flex rename better-name --app old-name")]
    Rename { new_name: String },
    /// Open an app in the browser, or print its URL
    Open,
    /// Config vars: show, set, get, unset, edit
    #[command(
        after_help = "Examples:\n  flex config\n  flex config:set A=1 B='two words'\n  flex config:get A\n  flex config:unset A B\n  flex config:edit"
    )]
    Config {
        #[command(subcommand)]
        verb: Option<Config>,
    },
    /// Instances: list, scale, resize, restart, stop, start, why, history, sizes
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  flex ps\n  flex ps -t web --watch\n  flex ps:scale web=2 worker+1\n  flex ps:resize web=1G\n  flex ps:restart web.1\n  flex ps:why web.1\n  flex ps:history"
    )]
    Ps {
        #[command(flatten)]
        list: PsList,
        #[command(subcommand)]
        verb: Option<Ps>,
    },
    /// Set how many instances of a process type run; without arguments, show it
    Scale(Scale),
    /// Restart all instances, a process type, or one instance
    Restart(Restart),
    /// Health checks of process types: list, set, unset
    #[command(after_help = "Examples:\n  flex checks\n  flex checks:set web --http /health\n  flex checks:unset web")]
    Checks {
        #[command(subcommand)]
        verb: Option<Checks>,
    },
    /// Show or follow the log
    Logs(Logs),
    /// Drains: list, add, remove
    #[command(after_help = "Examples:\n  flex drains\n  flex drains:add syslog+tls://logs.example.com:6514")]
    Drains {
        #[command(subcommand)]
        verb: Option<Drains>,
    },
    /// Releases: list, info, diff, output, retry
    #[command(
        after_help = "Examples:\n  flex releases -n 50\n  flex releases:info v3\n  flex releases:diff v3 v5\n  flex releases:output v5\n  flex releases:retry"
    )]
    Releases {
        #[command(subcommand)]
        verb: Option<Releases>,
        #[arg(short = 'n', long, default_value_t = 15, value_name = "COUNT")]
        num: usize,
    },
    /// Go back to an earlier release
    #[command(after_help = "Examples:\n  flex rollback       the one before\n  flex rollback v3")]
    Rollback {
        #[arg(value_name = "VERSION")]
        to: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Run a one-off command in a new instance
    Run(Run),
    /// One-off commands, running and over
    Runs(Runs),
    /// Look on at an instance or a detached run, and type where it has a terminal
    Attach(Attach),
    /// Run a command inside a running instance; without one, a shell
    Exec(Exec),
    /// Copy files to or from an instance
    Cp(Cp),
    /// Reach a port of an instance at a port of this machine
    PortForward(PortForward),
    /// Domains: list, add, remove
    #[command(after_help = "Examples:\n  flex domains\n  flex domains:add www.example.com")]
    Domains {
        #[command(subcommand)]
        verb: Option<Domains>,
    },
    /// Certificates: list, add, update, info, remove, auto
    Certs {
        #[command(subcommand)]
        verb: Option<Certs>,
    },
    /// Routes: by host and path, TCP and UDP port, or TLS name
    Routes {
        #[command(subcommand)]
        verb: Option<Routes>,
    },
    /// Canary: a release with a share of the requests; start, weight, promote, abort
    #[command(
        after_help = "Examples:\n  flex canary:start --weight 10        the next push gets a tenth of the requests\n  flex canary:start v12 --weight 10    an earlier release does\n  flex metrics                         compare the two\n  flex canary:promote"
    )]
    Canary {
        #[command(subcommand)]
        verb: Option<Canary>,
    },
    /// An app's traffic: arrivals, requests under way, queue, times
    Metrics(Metrics),
    /// Routers: status, trace
    #[command(after_help = "Examples:\n  flex router:status\n  flex router:trace www.example.com/api")]
    Router {
        #[command(subcommand)]
        verb: Option<Routing>,
    },
    /// SSH keys: list, add, remove
    #[command(after_help = "Examples:\n  flex keys\n  flex keys:add\n  flex keys:add ~/.ssh/id_ed25519.pub")]
    Keys {
        #[command(subcommand)]
        verb: Option<Keys>,
    },
    /// Buildpacks: list, set, add, remove, clear
    #[command(
        after_help = "Examples:\n  flex buildpacks:set python\n  flex buildpacks:add --index 1 nodejs\n  flex buildpacks:add https://example.com/buildpack.git#v2"
    )]
    Buildpacks {
        #[command(subcommand)]
        verb: Option<Buildpacks>,
    },
    /// What the app is built and run on: list, set
    #[command(after_help = "Examples:\n  flex stack\n  flex stack:set flex-13\n  flex stack:set default")]
    Stack {
        #[command(subcommand)]
        verb: Option<Stack>,
    },
    /// Builds: list, info, output, cancel, cache:purge
    #[command(
        after_help = "Examples:\n  flex builds\n  flex builds:info       the newest, with the time of each phase\n  flex builds:output\n  flex builds:cancel"
    )]
    Builds {
        #[command(subcommand)]
        verb: Option<Builds>,
    },
    /// Deploy a directory, a tar archive or an image, without git
    Deploy(Deploy),
    /// Who else may work on the app: list, add, remove
    #[command(after_help = "Examples:\n  flex access\n  flex access:add you@example.com")]
    Access {
        #[command(subcommand)]
        verb: Option<Access>,
    },
    /// Tokens: list, create, revoke
    #[command(
        after_help = "Examples:\n  flex authorizations\n  flex authorizations:create -d CI -s write -e 86400\n  flex authorizations:revoke ID"
    )]
    Authorizations {
        #[command(subcommand)]
        verb: Option<Authorizations>,
    },
    /// Maintenance mode: on, off
    Maintenance {
        #[command(subcommand)]
        verb: Option<Maintenance>,
    },
    /// The history of changes: who did what, when, from where, with what outcome
    Events(Events),
    /// The git remote of an app
    Git {
        #[command(subcommand)]
        verb: Git,
    },
    /// Sign in
    Login(Login),
    /// Forget the token
    Logout,
    /// Who is signed in
    Whoami,
    /// Users (administrators): list, add
    Users {
        #[command(subcommand)]
        verb: Option<Users>,
    },
    /// Help on a topic or a command
    #[command(after_help = "Examples:\n  flex help\n  flex help ps\n  flex help ps:scale")]
    Help {
        #[arg(value_name = "TOPIC")]
        topic: Vec<String>,
    },
    /// Print a shell's completions
    #[command(
        visible_alias = "autocomplete",
        after_help = "Examples:\n  flex completions bash > ~/.local/share/bash-completion/completions/flex\n  flex completions zsh > \"${fpath[1]}/_flex\"\n  flex completions fish > ~/.config/fish/completions/flex.fish"
    )]
    Completions { shell: clap_complete::Shell },
    /// Write the man pages into a folder
    #[command(after_help = "Examples:\n  flex man ~/.local/share/man/man1 && man flex-ps")]
    Man { folder: std::path::PathBuf },
    /// Versions of the CLI and the server
    Version,
    /// Check this machine's way to the server, and the server
    #[command(after_help = "Examples:\n  flex doctor\n  flex doctor --json")]
    Doctor,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        for line in [
            "flex ps",
            "flex config",
            "flex run -e A=1 ls -la",
            "flex run --type worker",
            "flex run -- ls -la",
            "flex exec -p web.2 ls -la",
            "flex exec",
            "flex attach run.4711",
            "flex cp web.1:/app/x .",
            "flex port-forward 5432 8080:80 -p web.1",
            "flex releases -n 3",
            "flex apps:info x --url",
            "flex ps -t web --watch",
            "flex checks:set worker --interval 3 -- test -e /tmp/up",
            "flex ps:resize worker --cpu 0.5",
            "flex help ps:scale",
            "flex config:set -",
            "flex builds:cache:purge -a x",
            "flex router:trace a.test/x --json",
            "flex metrics --watch -a x",
            "flex certs:auto --wait -a x",
            "flex certs:auto:enable --wait -a x",
            "flex certs:auto:refresh -a x",
            "flex releases:canary v12 --weight 10",
            "flex canary",
        ] {
            Cli::try_parse_from(split_topic(line.split(' ').map(str::to_owned))).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }
}
