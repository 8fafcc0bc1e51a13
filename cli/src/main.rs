//! `flex`, the user's tool: reads the command line, asks the HTTP API, shows the answer. It has no private door: what it
//! does, any client of the API can do.

mod args;
mod client;
mod commands;
mod context;
mod error;
mod git;
mod known_hosts;
mod output;
mod settings;
mod terminal;

use args::{Cli, Command};
use clap::Parser;
use commands::{
    access, apps, authorizations, buildpacks, builds, canary, certs, checks, config, cp, deploy, doctor, domains, drains, events,
    exec, keys, logs, manual, port_forward, ps, releases, routes, run, seen, session, stack,
};
use context::Context;
use error::{EXIT_USAGE, Result};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = args::hoist_app(args::split_topic(std::env::args()));
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // One crypto backend for the process; an error means that it is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            output::say(format!("Cannot start: {e}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(dispatch(cli));
    // A read of stdin must not keep the process from ending.
    runtime.shutdown_background();
    result.unwrap_or_else(|e| {
        output::error(&e);
        ExitCode::from(e.exit)
    })
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    let cx = match &cli.command {
        // What must work without readable settings, or changes them.
        Command::Logout => return session::logout().map(|()| ExitCode::SUCCESS),
        Command::Help { topic } => return manual::help(topic).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => return manual::completions(*shell).map(|()| ExitCode::SUCCESS),
        Command::Man { folder } => return manual::pages(folder).map(|()| ExitCode::SUCCESS),
        _ => Context { client: client::Client::new(settings::Settings::load()?)?, common: cli.common },
    };
    let cx = &cx;
    match cli.command {
        Command::Create(args) => apps::create(cx, args).await,
        Command::Apps { verb } => apps::run(cx, verb).await,
        Command::Info(args) => apps::info(cx, args).await,
        Command::Destroy(args) => apps::destroy(cx, args).await,
        Command::Rename { new_name } => apps::rename(cx, &new_name).await,
        Command::Open => apps::open(cx).await,
        Command::Config { verb } => config::run(cx, verb).await,
        Command::Ps { list, verb } => ps::run(cx, list, verb).await,
        Command::Scale(args) => ps::scale(cx, args).await,
        Command::Restart(args) => ps::restart(cx, args).await,
        Command::Checks { verb } => checks::run(cx, verb).await,
        Command::Drains { verb } => drains::run(cx, verb).await,
        Command::Logs(args) => logs::run(cx, args).await,
        Command::Releases { verb, num } => releases::run(cx, verb, num).await,
        Command::Rollback { to, wait } => releases::rollback(cx, to.as_deref(), wait).await,
        Command::Run(args) => return run::run(cx, args).await,
        Command::Runs(args) => run::list(cx, &args).await,
        Command::Attach(args) => return exec::attach(cx, &args).await,
        Command::Exec(args) => return exec::exec(cx, &args).await,
        Command::Cp(args) => cp::run(cx, &args).await,
        Command::PortForward(args) => port_forward::run(cx, &args).await,
        Command::Certs { verb } => certs::run(cx, verb).await,
        Command::Domains { verb } => domains::run(cx, verb).await,
        Command::Routes { verb } => routes::run(cx, verb).await,
        Command::Canary { verb } => canary::run(cx, verb).await,
        Command::Metrics(args) => seen::metrics(cx, &args).await,
        Command::Router { verb } => seen::router(cx, verb).await,
        Command::Keys { verb } => keys::run(cx, verb).await,
        Command::Buildpacks { verb } => buildpacks::run(cx, verb).await,
        Command::Stack { verb } => stack::run(cx, verb).await,
        Command::Builds { verb } => builds::run(cx, verb).await,
        Command::Deploy(args) => deploy::run(cx, args).await,
        Command::Access { verb } => access::run(cx, verb).await,
        Command::Authorizations { verb } => authorizations::run(cx, verb).await,
        Command::Maintenance { verb } => apps::maintenance(cx, verb).await,
        Command::Events(args) => events::run(cx, args).await,
        Command::Git { verb: args::Git::Remote } => apps::git_remote(cx).await,
        Command::Login(args) => session::login(args).await,
        Command::Logout => session::logout(),
        Command::Whoami => session::whoami(cx).await,
        Command::Users { verb } => access::users(cx, verb).await,
        // Done above.
        Command::Help { .. } | Command::Completions { .. } | Command::Man { .. } => Ok(()),
        Command::Version => doctor::version(cx).await,
        Command::Doctor => doctor::doctor(cx).await,
    }
    .map(|()| ExitCode::SUCCESS)
}
