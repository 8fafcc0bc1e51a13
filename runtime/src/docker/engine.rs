//! The line to the Docker daemon: one client, a time limit on every call, and errors in the seam's three kinds.
//!
//! The client is made at first use and every request opens its own connection, so an engine that is down when this
//! process starts, or goes away later, needs nothing but patience.

use crate::RuntimeError;
use bollard::Docker;
use bollard::errors::Error;
use futures_util::{Stream, StreamExt};
use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

/// Reads and small changes: 0.3 to 50 ms when all is well, so this is only ever met by an engine that hangs.
pub(crate) const QUICK: Duration = Duration::from_secs(15);
/// Creating, starting and removing: under heavy load the engine queues them for seconds.
pub(crate) const SLOW: Duration = Duration::from_secs(60);
/// Between two lines of progress of a pull, a load or a build.
pub(crate) const PROGRESS: Duration = Duration::from_secs(15 * 60);
/// The client's own limit must never be the first to strike.
const CLIENT_SECONDS: u64 = 3600;

/// The connection.
pub(crate) struct Engine {
    socket: PathBuf,
    client: OnceLock<Docker>,
    api: tokio::sync::OnceCell<(u32, u32)>,
}

impl Engine {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, client: OnceLock::new(), api: tokio::sync::OnceCell::new() }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The client; fails while there is no socket.
    pub(crate) fn docker(&self) -> Result<&Docker, RuntimeError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = Docker::connect_with_unix(&self.socket.to_string_lossy(), CLIENT_SECONDS, bollard::API_DEFAULT_VERSION)
            .map_err(|e| RuntimeError::Unavailable(format!("connecting to {}: {e}", self.socket.display())))?;
        Ok(self.client.get_or_init(|| client))
    }

    /// The API version that the engine speaks, asked once: fields are gated by it, since the client sends any.
    pub(crate) async fn api(&self) -> Result<(u32, u32), RuntimeError> {
        let ask = || async {
            let version = self.call("asking for its version", QUICK, async |d| d.version().await).await?;
            let text = version.api_version.unwrap_or_default();
            let (major, minor) = text.split_once('.').unwrap_or(("1", "24"));
            Ok((major.parse().unwrap_or(1), minor.parse().unwrap_or(24)))
        };
        self.api.get_or_try_init(ask).await.copied()
    }

    /// One call with its time limit. `doing` completes "while …" in the error.
    pub(crate) async fn call<T, F>(&self, doing: &str, limit: Duration, f: impl FnOnce(Docker) -> F) -> Result<T, RuntimeError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let docker = self.docker()?.clone();
        match tokio::time::timeout(limit, f(docker)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => Err(refine(doing, &e)),
            Err(_) => Err(RuntimeError::Unavailable(format!("{doing}: no answer within {} s", limit.as_secs()))),
        }
    }

    /// The next item of a progress stream, with the limit between two of them.
    pub(crate) async fn next<T>(
        doing: &str,
        stream: &mut (impl Stream<Item = Result<T, Error>> + Unpin),
    ) -> Result<Option<T>, RuntimeError> {
        match tokio::time::timeout(PROGRESS, stream.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(item))) => Ok(Some(item)),
            Ok(Some(Err(e))) => Err(refine(doing, &e)),
            Err(_) => Err(RuntimeError::Unavailable(format!("{doing}: no progress within {} s", PROGRESS.as_secs()))),
        }
    }
}

/// An engine's error in the seam's words.
pub(crate) fn refine(doing: &str, e: &Error) -> RuntimeError {
    match e {
        Error::DockerResponseServerError { status_code, message } => by_status(doing, *status_code, message),
        Error::DockerStreamError { error } => by_status(doing, 500, error),
        // Nothing that the caller asks for differently would help against these.
        Error::JsonDataError { .. } | Error::JsonSerdeError { .. } | Error::URLEncodedError { .. } => {
            RuntimeError::Refused(format!("{doing}: {e}"))
        }
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            RuntimeError::Unavailable(format!("{doing}: {text}"))
        }
    }
}

/// An HTTP answer of the engine in the seam's words. Docker answers 500 both for what it will always refuse and for what
/// its own parts (containerd) could not do just now; the texts of the latter are known.
pub(crate) fn by_status(doing: &str, status: u16, message: &str) -> RuntimeError {
    const PASSING: [&str; 6] = [
        "connection refused",
        "transport is closing",
        "connection error: desc",
        "context canceled",
        "context deadline exceeded",
        "daemon is shutting down",
    ];
    let message = message.trim();
    if status == 404 {
        RuntimeError::NotFound(format!("{doing}: {message}"))
    } else if status == 503 || (status >= 500 && PASSING.iter().any(|p| message.contains(p))) {
        RuntimeError::Unavailable(format!("{doing}: {message}"))
    } else {
        RuntimeError::Refused(format!("{doing}: {message}"))
    }
}

/// True when the engine says that it is so already (same name taken, removal in progress): the caller looks again.
pub(crate) fn is_conflict(e: &Error) -> bool {
    matches!(e, Error::DockerResponseServerError { status_code: 409, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_whether_to_retry() {
        let status = |code, text: &str| by_status("starting it", code, text);
        assert!(matches!(status(404, "No such image: x"), RuntimeError::NotFound(_)));
        assert!(matches!(status(400, "bad"), RuntimeError::Refused(_)));
        assert!(matches!(status(500, "no space left on device"), RuntimeError::Refused(_)));
        assert!(matches!(status(500, "dial unix containerd.sock: connection refused"), RuntimeError::Unavailable(_)));
        assert!(matches!(status(503, ""), RuntimeError::Unavailable(_)));
        assert!(matches!(refine("x", &Error::RequestTimeoutError), RuntimeError::Unavailable(_)));
    }
}
