//! Who else may work on an app, and users.

use crate::args::{Access, Users};
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::{Account, AddCollaborator, AddUser, Collaborator, CollaboratorRole};
use flex_model::{Email, Secret};
use std::io::IsTerminal;

fn email(text: &str) -> Result<Email> {
    text.parse().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))
}

pub async fn run(cx: &Context, verb: Option<Access>) -> Result<()> {
    let path = cx.path("/collaborators")?;
    match verb {
        None => {
            let Some(all) = cx.fetch_list::<Vec<Collaborator>>(&path).await? else { return Ok(()) };
            let role = |c: &Collaborator| match c.role {
                CollaboratorRole::Owner => "owner",
                CollaboratorRole::Collaborator => "collaborator",
            };
            let rows: Vec<_> = all.iter().map(|c| vec![c.user.email.clone(), role(c).to_owned()]).collect();
            output::table(&["user", "role"], &rows);
        }
        Some(Access::Add { email: who }) => {
            let who = email(&who)?;
            let progress = Progress::start(format!("Adding {who} to {} as a collaborator", cx.app()?));
            cx.client.post::<Collaborator>(&path, &AddCollaborator { user: who }).await?;
            progress.done();
        }
        Some(Access::Remove { email: who }) => {
            let who = email(&who)?;
            let progress = Progress::start(format!("Removing {who} from {}", cx.app()?));
            cx.client.delete(&format!("{path}/{who}")).await?;
            progress.done();
        }
    }
    Ok(())
}

pub async fn users(cx: &Context, verb: Option<Users>) -> Result<()> {
    match verb {
        None => {
            let Some(users) = cx.fetch_list::<Vec<Account>>("/users").await? else { return Ok(()) };
            let rows: Vec<_> = users
                .into_iter()
                .map(|u| {
                    let role = if u.admin { "administrator" } else { "" };
                    vec![u.email.to_string(), role.to_owned(), u.created_at.to_string()]
                })
                .collect();
            output::table(&["user", "role", "created_at"], &rows);
        }
        Some(Users::Add { email: who, admin }) => {
            let who = email(&who)?;
            let password = new_password()?;
            let progress = Progress::start(format!("Adding {who}"));
            let body = AddUser { email: who, password: Some(Secret::new(password)), admin };
            cx.client.post::<Account>("/users", &body).await?;
            progress.done();
            output::say(format!("They sign in with: flex login --api {}", cx.client.api));
        }
    }
    Ok(())
}

fn new_password() -> Result<String> {
    let password = if std::io::stdin().is_terminal() {
        let first = super::session::ask_hidden("Password for the new user: ")?;
        if first != super::session::ask_hidden("Once more: ")? {
            return Err(CliError::failed("The passwords differ."));
        }
        first
    } else {
        super::session::read_line()?
    };
    if password.is_empty() { Err(CliError::usage("The password is empty.")) } else { Ok(password) }
}
