//! What is done on the server itself, beside serving.

use crate::control::{Order, ask};
use crate::installation::{self, make_data_dir};
use crate::settings::Settings;
use crate::stacks;
use crate::{backup, restore, setting_list};
use clap::Subcommand;
use flex_model::Email;
use flex_store::Engine;
use std::path::PathBuf;

/// Beside serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve with every role but the router (the agent stays: hosts cannot join yet)
    Server,
    /// Serve as a router alone, fed by a server elsewhere
    Router(crate::router_role::RouterArgs),
    /// Print a new token for a router elsewhere (flexd must be running)
    #[command(name = "router:token", alias = "router-token")]
    RouterToken {
        /// The router's name, such as its host's
        name: String,
    },
    /// Stack images: what apps are built and run on
    Stack {
        #[command(subcommand)]
        verb: Stack,
    },
    /// Print a new token for a user, who is added if need be (flexd must be running)
    #[command(name = "user:token", alias = "user-token")]
    UserToken {
        email: Email,
        /// Make a new user an administrator
        #[arg(long)]
        admin: bool,
    },
    /// Print the settings in force, wherever they come from; secrets are left out
    Settings {
        /// Only this one, as flexd.toml names it, such as api or logs.days
        name: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Write everything that cannot be made again to a file: state, keys, repositories, images of apps
    Backup { file: PathBuf },
    /// Bring a backup (or a snapshot of the state) back; what is there is set aside. flexd must not be running
    Restore { file: PathBuf },
    /// The state store
    Store {
        #[command(subcommand)]
        verb: Store,
    },
    /// What is not there yet
    #[command(hide = true)]
    Agent {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// For git: the hook of a push
    #[command(hide = true)]
    Hook { name: String },
}

#[derive(Debug, Subcommand)]
pub enum Stack {
    /// Make a stack's images, unless they are there
    Build {
        /// The stack, or the folder of a recipe (./my-stack) [default: the stack of new apps]
        name: Option<String>,
        /// Make them anew
        #[arg(long)]
        force: bool,
        /// With the package versions of the recipe's stack.lock, and no others
        #[arg(long)]
        locked: bool,
    },
    /// List the stacks on this machine
    List {
        /// Everything about them, the versions of their packages too
        #[arg(long)]
        json: bool,
    },
    /// Print the versions of a stack's packages, to be kept as stack.lock beside its recipe
    Lock {
        /// The stack [default: that of new apps]
        name: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Store {
    /// Move the state into another engine's format
    Convert {
        #[arg(long, value_name = "ENGINE")]
        to: Engine,
    },
}

/// Does it.
///
/// # Errors
/// A sentence for the operator.
pub async fn run(command: Command, settings: Settings) -> Result<(), String> {
    match command {
        Command::Stack { verb } => stacks::run(&settings, verb).await,
        Command::UserToken { email, admin } => {
            let answer = ask(&settings.data_dir, &Order::Token { email, admin }).await?;
            println!(
                "{}",
                answer.ok_or_else(|| format!("no flexd is running on {}; start it first", settings.data_dir.display()))?
            );
            Ok(())
        }
        Command::RouterToken { name } => {
            let answer = ask(&settings.data_dir, &Order::RouterToken { name }).await?;
            println!(
                "{}",
                answer.ok_or_else(|| format!("no flexd is running on {}; start it first", settings.data_dir.display()))?
            );
            Ok(())
        }
        Command::Server | Command::Router(_) => Err("this role is served, not run".into()),
        Command::Settings { name, json } => {
            println!("{}", setting_list::show(&settings, name.as_deref(), json)?);
            Ok(())
        }
        Command::Agent { rest: _asked } => Err(
            "`flexd agent` comes with installations of several hosts, which are not there yet: today an installation has one \
                 machine, and its agent is part of `flexd` and of `flexd server`"
                .into(),
        ),
        Command::Backup { file } => backup::write(&settings, &file).await,
        Command::Restore { file } => {
            make_data_dir(&settings.data_dir)?;
            let _alone = installation::lock(&settings.data_dir)?;
            println!("{}", restore::restore(&settings, &file).await?);
            Ok(())
        }
        Command::Store { verb: Store::Convert { to } } => {
            let from = Engine::ALL.into_iter().find(|e| *e != to && e.dir(&settings.data_dir).exists());
            let from = from.ok_or_else(|| format!("there is no store of another engine in {}", settings.data_dir.display()))?;
            let _alone = installation::lock(&settings.data_dir)?;
            let dir = settings.data_dir.clone();
            let revision = tokio::task::spawn_blocking(move || flex_store::export::convert(&dir, from, to))
                .await
                .map_err(|e| e.to_string())?;
            println!("The state is kept by {} now, at revision {}.", to.name(), revision.map_err(|e| e.to_string())?);
            println!("Set it for good: store = \"{}\" in flexd.toml, or FLEXD_STORE={}", to.name(), to.name());
            Ok(())
        }
        Command::Hook { name } => Err(format!("{name} is called by git, not by hand")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[tokio::test]
    async fn an_agent_of_its_own_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let cli = crate::Cli::try_parse_from(["flexd", "agent", "--server", "https://flex.example.com"]).unwrap();
        let flags = crate::settings::Flags {
            data_dir: Some(dir.path().join("none")),
            buildpacks: Some("/bp".into()),
            ..Default::default()
        };
        let said = run(cli.command.unwrap(), Settings::load(flags).unwrap()).await.unwrap_err();
        assert!(said.contains("not there yet") && said.contains("flexd server"), "{said}");
        assert!(!dir.path().join("none").exists());
    }
}
