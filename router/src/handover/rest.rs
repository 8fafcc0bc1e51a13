//! What a process that drains still has to say to the one that took over: the requests that it has under way, so that no
//! instance is stopped under them, and their access lines. One JSON object a line, until it ends.

use crate::shared::Shared;
use flex_model::{AppId, InstanceId, RouterStatus};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io, os::unix::net::UnixStream as StdStream, sync::Arc};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::{mpsc, watch},
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    InFlight(BTreeMap<InstanceId, u32>),
    Line(AppId, String),
}

fn open(stream: StdStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn say(stream: &mut UnixStream, word: &Word) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Tells until `over`, and then the last lines.
pub(super) async fn tell(
    stream: StdStream,
    mut status: watch::Receiver<RouterStatus>,
    mut lines: mpsc::UnboundedReceiver<(AppId, String)>,
    mut over: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut stream = open(stream)?;
    status.mark_changed();
    loop {
        let word = tokio::select! {
            biased;
            Some((app, text)) = lines.recv() => Word::Line(app, text),
            Ok(()) = status.changed() => Word::InFlight(status.borrow_and_update().in_flight.clone()),
            _ = over.wait_for(|over| *over) => break,
        };
        say(&mut stream, &word).await?;
    }
    while let Ok((app, text)) = lines.try_recv() {
        say(&mut stream, &Word::Line(app, text)).await?;
    }
    stream.shutdown().await
}

/// Takes what the process before tells, until it has ended.
pub(crate) async fn listen(shared: Arc<Shared>, stream: StdStream) {
    let heard = async {
        let mut lines = BufReader::new(open(stream)?).lines();
        while let Some(line) = lines.next_line().await? {
            match serde_json::from_str(&line)? {
                Word::InFlight(now) => shared.set_inherited(now),
                Word::Line(app, text) => shared.access.line(app, text),
            }
        }
        Ok::<_, io::Error>(())
    };
    match heard.await {
        Ok(()) => tracing::info!("the process before has ended"),
        Err(e) => tracing::warn!(error = %e, "the process before is not heard any more"),
    }
    shared.set_inherited(BTreeMap::new());
}
