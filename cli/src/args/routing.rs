//! What is said of domains, certificates and routes.

use super::http::HttpFlags;
use clap::{Args, Subcommand};
use std::path::PathBuf;

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
    /// Show whether certificates are made automatically, and how it stands with each domain
    Auto {
        /// Wait until every domain has its certificate, or failed
        #[arg(long)]
        wait: bool,
    },
    /// Have certificates for the app's domains made and renewed automatically
    #[command(name = "auto:enable", after_help = "Example: flex certs:auto:enable --wait")]
    AutoEnable {
        /// Wait until every domain has its certificate, or failed
        #[arg(long)]
        wait: bool,
    },
    /// Make no more certificates, and remove those that were made
    #[command(name = "auto:disable")]
    AutoDisable {
        /// The app's name, instead of being asked for it
        #[arg(short, long, value_name = "APP")]
        confirm: Option<String>,
    },
    /// Try again for domains that have no certificate, now
    #[command(name = "auto:refresh")]
    AutoRefresh,
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
  flex routes:add --tcp 5433 --tls --process db        TLS ends at the router
  flex routes:add --sni db.example.com --port 5432 --process db
  flex routes:add --sni own-tls.example.com   on the HTTPS port
  flex routes:add --udp 20053 --process dns")]
    Add(Box<AddRoute>),
    /// Change where a route leads, or how
    #[command(after_help = "Examples:
  flex routes:set www.example.com/api --process api --balancing round_robin
  flex routes:set my-app.localhost --sticky
  flex routes:set grpc.example.com --protocol h2c
  flex routes:set tcp:5432 --proxy-protocol v2 --idle 3600
  flex routes:set www.example.com --https-redirect --hsts 1y --timeout 60s --max-body 10M
  flex routes:set www.example.com/admin --basic-auth ann --allow 10.0.0.0/8
  flex routes:set www.example.com/api --rate 100/1m --header \"Access-Control-Allow-Origin: *\"
  flex routes:set --all --compress --canonical-host www.example.com
  flex routes:set www.example.com/static --off compress
  flex routes:set www.example.com --default idle_seconds")]
    Set(Box<SetRoute>),
    /// Bring settings' defaults back
    #[command(after_help = "Examples:
  flex routes:unset www.example.com https-redirect hsts
  flex routes:unset --all compress")]
    Unset(UnsetRoute),
    /// Show all that is set for a route, or for all of them
    Info(RouteInfo),
    /// Set or remove a page of the app's own for maintenance or errors
    #[command(after_help = "Examples:
  flex routes:page maintenance public/503.html
  flex routes:page error public/500.html      every answer with status 503 that the router makes
  flex routes:page H12 public/slow.html       one code
  flex routes:page maintenance --remove")]
    Page(RoutePage),
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
    /// TLS connections that ask for this name, passed through as they are; without --port those to the HTTPS port
    #[arg(long, value_name = "HOST", conflicts_with = "udp")]
    pub sni: Option<String>,
    /// The port of --sni
    #[arg(long, value_name = "PORT", requires = "sni")]
    pub port: Option<u16>,
    /// End TLS, with the certificate of the name that a client asks for
    #[arg(long, requires = "tcp")]
    pub tls: bool,
    /// Datagrams to a UDP port; without PORT one is allotted
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0")]
    pub udp: Option<u16>,
    #[command(flatten)]
    pub to: RouteTo,
    #[command(flatten)]
    pub policy: RoutePolicy,
}

#[derive(Debug, Args, Default)]
pub struct SetRoute {
    /// As `flex routes` shows it, such as www.example.com/api or tcp:5432
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub route: Option<String>,
    /// What holds for all HTTP routes of the app
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub to: RouteTo,
    #[command(flatten)]
    pub policy: RoutePolicy,
    /// Bring a setting's default back
    #[arg(long, value_name = "SETTING")]
    pub default: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UnsetRoute {
    /// A route and settings; with --all only settings
    #[arg(required = true, value_name = "ROUTE|SETTING")]
    pub words: Vec<String>,
    /// What holds for all HTTP routes of the app
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct RouteInfo {
    /// As `flex routes` shows it; left out: what holds for all
    pub route: Option<String>,
}

#[derive(Debug, Args)]
pub struct RoutePage {
    /// maintenance, error, or a code such as H12
    pub name: String,
    /// An HTML file of at most 64 KiB
    #[arg(required_unless_present = "remove", conflicts_with = "remove")]
    pub file: Option<PathBuf>,
    /// Bring the platform's own page back
    #[arg(long)]
    pub remove: bool,
}

#[derive(Debug, Args, Default)]
pub struct RouteTo {
    /// The process type that it leads to [default: web]
    #[arg(long, value_name = "TYPE", conflicts_with = "weight")]
    pub process: Option<String>,
    /// Shares of several process types, such as web=90
    #[arg(long, value_name = "TYPE=N")]
    pub weight: Vec<String>,
}

#[derive(Debug, Args, Default)]
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
    /// What instances speak: http1, or h2c (HTTP/2 without TLS, from the first byte; gRPC needs it). HTTP only
    #[arg(long, value_name = "http1|h2c", value_parser = ["http1", "h2c"])]
    pub protocol: Option<String>,
    /// The most requests or connections at once on one instance
    #[arg(long, value_name = "N")]
    pub max_per_instance: Option<u32>,
    /// How many more may wait
    #[arg(long, value_name = "N")]
    pub queue: Option<u32>,
    /// The most connections at once (TCP) or sessions (UDP)
    #[arg(long, value_name = "N")]
    pub max_connections: Option<u32>,
    /// Seconds after which a connection with no traffic ends
    #[arg(long, value_name = "SECONDS")]
    pub idle: Option<u32>,
    #[command(flatten)]
    pub http: HttpFlags,
}
