//! The server's own door on its machine: a unix socket in the data directory that only its owner can open. For what must
//! work before anyone has a token, and for what only the process that has the store open can do.
//!
//! One line of JSON each way.

use flex_controller::Controller;
use flex_model::Email;
use flex_store::EmbeddedStore;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A token for a user, who is made if need be.
    Token { email: Email, admin: bool },
    /// A token for a router elsewhere.
    RouterToken { name: String },
    /// Write the state to this file.
    Export { file: PathBuf },
}

/// What is answered: a text, or what went wrong.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Done(String),
    Failed(String),
}

fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// The door, open: who knocks from now on is heard, if not answered at once.
pub struct Door {
    path: PathBuf,
    listener: UnixListener,
}

/// Opens the door of a data directory. Must be called within the runtime.
///
/// # Errors
/// A sentence: the socket cannot be made.
pub fn open(data_dir: &Path) -> Result<Door, String> {
    let path = socket(data_dir);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| format!("cannot protect {}: {e}", path.display()))?;
    Ok(Door { path, listener })
}

/// Answers until told to stop.
pub async fn serve(door: Door, controller: Controller, store: Arc<EmbeddedStore>, stop: CancellationToken) -> Result<(), String> {
    let Door { path, listener } = door;
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => { tracing::warn!(error = %e, "a control connection failed"); continue; }
            }
        };
        let (controller, store) = (controller.clone(), store.clone());
        tokio::spawn(async move {
            if let Err(e) = answer(stream, controller, store).await {
                tracing::warn!(error = %e, "a control connection broke off");
            }
        });
    }
    let _ = std::fs::remove_file(&path);
    Ok(())
}

async fn answer(mut stream: UnixStream, controller: Controller, store: Arc<EmbeddedStore>) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await?;
    let reply = match serde_json::from_str::<Order>(&line) {
        Err(e) => Reply::Failed(format!("the order cannot be read: {e}")),
        Ok(Order::Token { email, admin }) => match controller.bootstrap(&email, admin).await {
            Ok(secret) => Reply::Done(secret.expose().to_owned()),
            Err(e) => Reply::Failed(e.to_string()),
        },
        Ok(Order::RouterToken { name }) => match controller.router_token(&name).await {
            Ok(secret) => Reply::Done(secret.expose().to_owned()),
            Err(e) => Reply::Failed(e.to_string()),
        },
        Ok(Order::Export { file }) => {
            match tokio::task::spawn_blocking(move || flex_store::export::export(&store, &file)).await {
                Ok(Ok(revision)) => Reply::Done(revision.to_string()),
                Ok(Err(e)) => Reply::Failed(e.to_string()),
                Err(e) => Reply::Failed(e.to_string()),
            }
        }
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// Asks the server of a data directory. `None`: none is running.
///
/// # Errors
/// What the server answered, or why the connection broke.
pub async fn ask(data_dir: &Path, order: &Order) -> Result<Option<String>, String> {
    let Ok(mut stream) = UnixStream::connect(socket(data_dir)).await else { return Ok(None) };
    let mut text = serde_json::to_vec(order).map_err(|e| e.to_string())?;
    text.push(b'\n');
    stream.write_all(&text).await.map_err(|e| format!("flexd does not answer: {e}"))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await.map_err(|e| format!("flexd does not answer: {e}"))?;
    match serde_json::from_str(&line) {
        Ok(Reply::Done(text)) => Ok(Some(text)),
        Ok(Reply::Failed(e)) => Err(e),
        Err(e) => Err(format!("flexd's answer cannot be read: {e}")),
    }
}
