//! What an app is built and run on.

use crate::args::Stack;
use crate::context::Context;
use crate::error::Result;
use crate::output::{self, Progress};
use flex_api::{App, UpdateApp};

pub async fn run(cx: &Context, verb: Option<Stack>) -> Result<()> {
    let path = cx.path("")?;
    match verb {
        None => {
            let app: App = cx.client.get(&path).await?;
            let Some(stacks) = cx.fetch_list::<Vec<flex_api::Stack>>("/stacks").await? else { return Ok(()) };
            for stack in &stacks {
                let mark = if stack.name == app.build_stack.name { '*' } else { ' ' };
                output::line(format!("{mark} {}", stack.name));
            }
            if app.stack.name != app.build_stack.name {
                output::say(format!(
                    "{} runs on {}, which its app.json asks for or which it had before.",
                    app.name, app.stack.name
                ));
            }
        }
        Some(Stack::Set { stack }) => {
            let progress = Progress::start(format!("Setting the stack of {} to {stack}", cx.app()?));
            let body = UpdateApp { build_stack: Some(stack), ..UpdateApp::default() };
            let app: App = cx.client.patch(&path, &body).await?;
            progress.done_with(&app.build_stack.name);
            output::say("The next push is built on it.");
        }
    }
    Ok(())
}
