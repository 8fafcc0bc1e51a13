//! The command line's grammar. `flex TOPIC:VERB` and `flex TOPIC VERB` are the same; a few verbs stand alone.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

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
    /// Apps: list, create, info, rename, destroy
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
    /// Config vars: show, set, get, unset
    #[command(
        after_help = "Examples:\n  flex config\n  flex config:set A=1 B='two words'\n  flex config:get A\n  flex config:unset A B"
    )]
    Config {
        #[command(subcommand)]
        verb: Option<Config>,
    },
    /// Instances: list, scale, restart, stop, why
    #[command(after_help = "Examples:\n  flex ps\n  flex ps:scale web=2 worker+1\n  flex ps:restart web.1\n  flex ps:why web.1")]
    Ps {
        #[command(subcommand)]
        verb: Option<Ps>,
    },
    /// Set how many instances of a process type run; without arguments, show it
    Scale(Scale),
    /// Restart all instances, a process type, or one instance
    #[command(after_help = "Examples:\n  flex restart\n  flex restart web\n  flex restart web.1")]
    Restart {
        #[arg(value_name = "PROCESS")]
        process: Option<String>,
    },
    /// Show or follow the log
    Logs(Logs),
    /// Releases: list, info
    #[command(after_help = "Examples:\n  flex releases -n 50\n  flex releases:info v3")]
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
    },
    /// Run a one-off command in a new instance
    Run(Run),
    /// Domains: list, add, remove
    #[command(after_help = "Examples:\n  flex domains\n  flex domains:add www.example.com")]
    Domains {
        #[command(subcommand)]
        verb: Option<Domains>,
    },
    /// Certificates: list, add, update, info, remove
    Certs {
        #[command(subcommand)]
        verb: Option<Certs>,
    },
    /// Routes: by host and path, TCP and UDP port, or TLS name
    Routes {
        #[command(subcommand)]
        verb: Option<Routes>,
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
    /// The history of changes
    Events {
        #[arg(short = 'n', long, default_value_t = 30, value_name = "COUNT")]
        num: usize,
    },
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
    /// Versions of the CLI and the server
    Version,
    /// Check this machine's way to the server, and the server
    #[command(after_help = "Examples:\n  flex doctor\n  flex doctor --json")]
    Doctor,
}

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
pub enum Config {
    /// Set config vars; makes a release
    #[command(
        after_help = "Examples:\n  flex config:set A=1 B='two words'\n  flex config:set -f .env\n  pass show db | flex config:set -f -"
    )]
    Set {
        /// KEY=VALUE ...
        pairs: Vec<String>,
        /// Read KEY=VALUE lines from a file (- is stdin)
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Print one value
    Get {
        key: String,
        /// As KEY='VALUE'
        #[arg(short, long)]
        shell: bool,
    },
    /// Remove config vars; makes a release
    Unset {
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

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

#[derive(Debug, Subcommand)]
pub enum Releases {
    /// Show a release
    Info {
        #[arg(value_name = "VERSION")]
        of: Option<String>,
    },
}

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

#[derive(Debug, Subcommand)]
pub enum Domains {
    /// Add a domain
    Add { hostname: String },
    /// Remove a domain
    Remove { hostname: String },
}

#[derive(Debug, Subcommand)]
pub enum Certs {
    /// Add a certificate, for those of the app's domains that it covers
    #[command(after_help = "Example: flex certs:add fullchain.pem privkey.pem")]
    Add {
        /// PEM file: the certificate, then its issuers
        certificate: PathBuf,
        /// PEM file: its private key, not encrypted
        key: PathBuf,
    },
    /// Put a certificate in another's place
    Update {
        certificate: PathBuf,
        key: PathBuf,
        /// Which one, where the app has several
        #[arg(long)]
        name: Option<String>,
    },
    /// Show a certificate
    Info {
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove a certificate
    Remove {
        #[arg(long)]
        name: Option<String>,
        /// The app's name, instead of being asked for it
        #[arg(short, long, value_name = "APP")]
        confirm: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Routes {
    /// Add a route
    #[command(after_help = "Examples:
  flex routes:add www.example.com --path /api --process api
  flex routes:add www.example.com --weight web=90 --weight canary=10
  flex routes:add --tcp                       a port of the range, to the process type web
  flex routes:add --tcp 5432 --process db
  flex routes:add --sni db.example.com --port 5432 --process db
  flex routes:add --udp 20053 --process dns")]
    Add(AddRoute),
    /// Change where a route leads, or how
    #[command(after_help = "Examples:
  flex routes:set www.example.com/api --process api --balancing round_robin
  flex routes:set my-app.localhost --sticky
  flex routes:set tcp:5432 --proxy-protocol v2 --idle 3600
  flex routes:set www.example.com --default idle_seconds")]
    Set(SetRoute),
    /// Remove a route
    Remove {
        /// As `flex routes` shows it, such as www.example.com/api or tcp:5432
        route: String,
    },
}

#[derive(Debug, Args)]
pub struct AddRoute {
    /// A domain of the app
    #[arg(value_name = "HOST", required_unless_present_any = ["tcp", "sni", "udp"], conflicts_with_all = ["tcp", "sni", "udp"])]
    pub host: Option<String>,
    /// The beginning of the paths that it is for
    #[arg(long, value_name = "PATH", requires = "host")]
    pub path: Option<String>,
    /// Connections to a TCP port; without PORT one is allotted
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0", conflicts_with_all = ["sni", "udp"])]
    pub tcp: Option<u16>,
    /// TLS connections that ask for this name, passed through as they are
    #[arg(long, value_name = "HOST", requires = "port", conflicts_with = "udp")]
    pub sni: Option<String>,
    /// The port of --sni
    #[arg(long, value_name = "PORT", requires = "sni")]
    pub port: Option<u16>,
    /// Datagrams to a UDP port; without PORT one is allotted
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0")]
    pub udp: Option<u16>,
    #[command(flatten)]
    pub to: RouteTo,
    #[command(flatten)]
    pub policy: RoutePolicy,
}

#[derive(Debug, Args)]
pub struct SetRoute {
    /// As `flex routes` shows it, such as www.example.com/api or tcp:5432
    pub route: String,
    #[command(flatten)]
    pub to: RouteTo,
    #[command(flatten)]
    pub policy: RoutePolicy,
    /// Bring a setting's default back
    #[arg(long, value_name = "SETTING")]
    pub default: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RouteTo {
    /// The process type that it leads to [default: web]
    #[arg(long, value_name = "TYPE", conflicts_with = "weight")]
    pub process: Option<String>,
    /// Shares of several process types, such as web=90
    #[arg(long, value_name = "TYPE=N")]
    pub weight: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RoutePolicy {
    /// How an instance is chosen: least_busy_of_two, round_robin or random
    #[arg(long, value_name = "WAY")]
    pub balancing: Option<String>,
    /// Keep each client with one instance, by a cookie
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub sticky: Option<bool>,
    /// Begin connections to instances with a PROXY header: v1 or v2
    #[arg(long, value_name = "VERSION")]
    pub proxy_protocol: Option<String>,
    /// The most requests or connections at once on one instance
    #[arg(long, value_name = "N")]
    pub max_per_instance: Option<u32>,
    /// How many more may wait
    #[arg(long, value_name = "N")]
    pub queue: Option<u32>,
    /// The most connections at once (TCP) or sessions (UDP)
    #[arg(long, value_name = "N")]
    pub max_connections: Option<u32>,
    /// Seconds after which a connection with no traffic ends (TCP, UDP)
    #[arg(long, value_name = "SECONDS")]
    pub idle: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Register a public key
    Add {
        /// The public key's file [default: ~/.ssh/id_ed25519.pub, or the first that there is]
        file: Option<PathBuf>,
        /// Say nothing if it is registered already
        #[arg(long)]
        quiet: bool,
    },
    /// Remove a key, by fingerprint, comment or id
    Remove { key: String },
}

#[derive(Debug, Subcommand)]
pub enum Buildpacks {
    /// Replace the list by one buildpack (or, with --index, one place of the list)
    Set {
        buildpack: String,
        #[arg(short, long, value_name = "PLACE")]
        index: Option<usize>,
    },
    /// Add a buildpack at the end, or at a place
    Add {
        buildpack: String,
        #[arg(short, long, value_name = "PLACE")]
        index: Option<usize>,
    },
    /// Remove a buildpack, by name or place
    Remove {
        buildpack: Option<String>,
        #[arg(short, long, value_name = "PLACE")]
        index: Option<usize>,
    },
    /// Detect again from now on
    Clear,
}

#[derive(Debug, Subcommand)]
pub enum Builds {
    /// Show a build, with the time of each phase
    Info { build: Option<String> },
    /// Print a build's output (following it while it runs)
    Output { build: Option<String> },
    /// Stop a running build
    Cancel { build: Option<String> },
    /// Remove the build cache
    #[command(name = "cache:purge", alias = "cache-purge")]
    CachePurge,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex deploy                      this directory\n  flex deploy app.tar.gz\n  flex deploy --image registry.example.com/app:1.2"
)]
pub struct Deploy {
    /// A directory or a tar archive (.tar, .tar.gz) [default: .]
    #[arg(conflicts_with = "image")]
    pub source: Option<PathBuf>,
    /// An image that the engine has or can pull, instead of a build
    #[arg(long, value_name = "REF")]
    pub image: Option<String>,
    /// What to call this version [default: the commit, if there is one]
    #[arg(long, value_name = "TEXT")]
    pub version_name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Access {
    /// Let a user work on the app
    Add { email: String },
    /// No longer let a user work on the app
    Remove { email: String },
}

#[derive(Debug, Subcommand)]
pub enum Authorizations {
    /// Make a token; it is shown once
    Create(NewAuthorization),
    /// Make a token useless
    Revoke { id: String },
}

#[derive(Debug, Args)]
pub struct NewAuthorization {
    /// What it is for
    #[arg(short, long, value_name = "TEXT")]
    pub description: Option<String>,
    /// global, identity, read, write, read-protected or write-protected; several with commas [default: global]
    #[arg(short, long, value_name = "SCOPE", value_delimiter = ',')]
    pub scope: Vec<String>,
    /// Seconds until it ends [default: never]
    #[arg(short, long, value_name = "SECONDS")]
    pub expires_in: Option<u64>,
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

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flex login\n  flex login --api https://flex.example.com\n  flexd user:token me@example.com --admin | flex login --token-stdin"
)]
pub struct Login {
    /// The server
    #[arg(long, value_name = "URL")]
    pub api: Option<String>,
    /// Read a token from stdin instead of asking for e-mail and password
    #[arg(long)]
    pub token_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub enum Users {
    /// Add a user; the password is asked for, or read from stdin
    Add {
        email: String,
        #[arg(long)]
        admin: bool,
    },
}

/// Splits `topic:verb` (and `topic:verb:more`) into words, so that both spellings reach the same place. Only the first
/// word that is not an option is looked at.
pub fn split_topic(args: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut out = Vec::new();
    let mut args = args.into_iter();
    out.extend(args.next());
    let mut value_follows = false;
    let mut done = false;
    for arg in args {
        if done || value_follows || arg.starts_with('-') {
            value_follows = !done && matches!(arg.as_str(), "-a" | "--app" | "-r" | "--remote");
            out.push(arg);
            continue;
        }
        done = true;
        match arg.split_once(':') {
            Some((topic, verb)) if !topic.is_empty() && !verb.is_empty() => {
                out.extend(standing_alone(topic, verb).unwrap_or_else(|| vec![topic.to_owned(), verb.to_owned()]));
            }
            _ => out.push(arg),
        }
    }
    out
}

/// Spellings that lead elsewhere.
fn standing_alone(topic: &str, verb: &str) -> Option<Vec<String>> {
    let words: &[&str] = match (topic, verb) {
        ("run", "detached") => &["run", "--detach"],
        ("auth", "whoami") => &["whoami"],
        ("auth", "login") => &["login"],
        ("auth", "logout") => &["logout"],
        ("releases", "rollback") => &["rollback"],
        ("apps", "open") => &["open"],
        ("config", "add") => &["config", "set"],
        ("config", "remove") => &["config", "unset"],
        ("authorizations", "rm") => &["authorizations", "revoke"],
        _ => return None,
    };
    Some(words.iter().map(|w| (*w).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> String {
        split_topic(line.split(' ').map(str::to_owned)).join(" ")
    }

    #[test]
    fn both_spellings_are_one() {
        assert_eq!(split("flex ps:scale web=2"), "flex ps scale web=2");
        assert_eq!(split("flex -a my-app config:set A=b:c"), "flex -a my-app config set A=b:c");
        assert_eq!(split("flex builds:cache:purge"), "flex builds cache:purge");
        assert_eq!(split("flex run:detached rake x:y"), "flex run --detach rake x:y");
        assert_eq!(split("flex run rake db:migrate"), "flex run rake db:migrate");
    }

    #[test]
    fn the_grammar_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        for line in [
            "flex ps",
            "flex config",
            "flex run -e A=1 ls -la",
            "flex releases -n 3",
            "flex apps:info x --url",
            "flex builds:cache:purge -a x",
        ] {
            Cli::try_parse_from(split_topic(line.split(' ').map(str::to_owned))).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }
}
