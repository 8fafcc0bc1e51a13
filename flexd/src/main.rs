//! `flexd`, the one server executable: every role on this machine, and what is done on the server itself. The only place
//! that names a concrete store, engine or builder.

mod acme_settings;
mod backup;
mod commands;
mod control;
mod front;
mod installation;
mod log_settings;
mod metrics;
mod pack;
mod ports;
mod restore;
mod router_limits;
mod router_role;
mod runs;
mod server;
mod setting_list;
mod settings;
mod ssh_sessions;
mod stacks;
mod tls;
mod upgrade;

use clap::Parser;
use settings::{Flags, Settings};
use std::process::ExitCode;

const EXAMPLES: &str = "
Examples:
  flexd                                     serve, with every role on this machine
  flexd --take-over                         the same, in place of the one that runs here, with no failed request
  flexd server                              everything but the router
  flexd router --server https://flex.example.com --token-file router.token
                                            a router alone, here or on another machine
  flexd settings                            the settings in force
  flexd stack build                         make the stack images
  flexd user:token me@example.com --admin   the first user's token
  flexd backup flex.tar.zst                 back everything up";

/// Run apps on your own machines: the server.
#[derive(Debug, Parser)]
#[command(name = "flexd", version, about, after_help = setting_list::help() + EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    /// Take over from the flexd that runs on the data directory: its sockets first, so that no request fails
    #[arg(long, global = true)]
    take_over: bool,
    #[command(subcommand)]
    command: Option<commands::Command>,
}

fn main() -> ExitCode {
    // git starts its hook by a link to this executable.
    if std::env::args_os().next().is_some_and(|a| a.to_string_lossy().ends_with("pre-receive")) {
        return flex_gitreceive::run_hook();
    }
    let cli = Cli::parse();
    if let Some(commands::Command::Hook { name }) = &cli.command
        && name == "pre-receive"
    {
        return flex_gitreceive::run_hook();
    }
    let mut filter = tracing_subscriber::EnvFilter::try_from_env("FLEXD_LOG").unwrap_or_else(|_| "info".into());
    // The engine's client writes whole requests at debug level, and with them the config vars of apps.
    if let Ok(quiet) = "bollard=info".parse() {
        filter = filter.add_directive(quiet);
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if cli.flags.log_json {
        log.json().init();
    } else {
        log.with_ansi(false).init();
    }
    // One crypto backend for the process; an error means that it is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut flags = cli.flags;
    let builds = matches!(
        cli.command,
        None | Some(commands::Command::Server | commands::Command::Stack { .. } | commands::Command::Settings { .. })
    );
    if !builds && flags.buildpacks.is_none() {
        // That there are none is no reason not to route, to make a token or to restore.
        flags.buildpacks = Some("/".into());
    }
    let take_over = cli.take_over;
    let result = Settings::load(flags).and_then(|settings| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| format!("cannot start: {e}"))?;
        let result = runtime.block_on(async {
            match cli.command {
                None => server::serve(settings, server::Roles::All, take_over).await,
                Some(commands::Command::Server) => server::serve(settings, server::Roles::ServerAlone, take_over).await,
                Some(commands::Command::Router(args)) => router_role::serve(settings, args, take_over).await,
                Some(command) => commands::run(command, settings).await,
            }
        });
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("flexd: {e}");
            ExitCode::FAILURE
        }
    }
}
