//! The HTTP client: one request, one answer, and errors in the user's words.
//!
//! Must not: retry what may have changed something, or show a token.

use crate::error::{CliError, EXIT_USAGE, Result};
use crate::settings::Settings;
use futures_util::StreamExt;
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

/// An open WebSocket.
pub type Socket = WebSocketStream<reqwest::Upgraded>;

/// Long enough for a slow disk, short enough that a dead server is not waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that is not a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// An error's body, as far as a client needs it: one of a newer server must be readable too.
#[derive(serde::Deserialize)]
struct ErrorBody {
    #[serde(default)]
    id: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    url: Option<String>,
}

/// A signed-in connection to one server.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    pub api: String,
    settings: Settings,
}

impl Client {
    /// Needs no server yet.
    pub fn new(settings: Settings) -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("flex/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| CliError::failed(format!("Cannot set up the HTTP client: {e}")))?;
        Ok(Self { http, api: settings.api(), settings })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request_as(method, path, "application/vnd.heroku+json; version=3")
    }

    fn request_as(&self, method: Method, path: &str, accept: &str) -> reqwest::RequestBuilder {
        // Links that the server hands out are absolute.
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.api) };
        let same_server = url.starts_with(&self.api);
        let mut request = self.http.request(method, url).header("Accept", accept);
        if same_server && let Some(token) = &self.settings.token {
            request = request.bearer_auth(token.expose());
        }
        request
    }

    /// Sends it; an error status is an error.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    fn unreachable(&self, e: &reqwest::Error) -> CliError {
        if e.is_connect() {
            CliError::failed(format!("Nothing answers at {}.", self.api))
                .hint("Is flexd running there? On the server: scripts/up")
                .hint("Another server: flex login --api URL, or set FLEX_API")
        } else if e.is_timeout() {
            CliError::failed(format!("{} did not answer in time.", self.api))
        } else {
            CliError::failed(format!("The request to {} failed: {e}", self.api))
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T> {
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        self.read(response).await
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        let path = response.url().path().to_owned();
        let bytes = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| unreadable(&path, &e))
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(self.request(Method::GET, path)).await
    }
    /// A whole list: as many requests as it has parts.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let mut all = Vec::<serde_json::Value>::new();
        let mut range = None::<String>;
        loop {
            let mut request = self.request(Method::GET, path);
            if let Some(range) = &range {
                request = request.header("Range", range);
            }
            let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
            let next = response.headers().get("next-range").and_then(|v| v.to_str().ok()).map(str::to_owned);
            all.extend(self.read::<Vec<serde_json::Value>>(response).await?);
            // The same range again would go on for ever.
            if next.is_none() || next == range {
                break;
            }
            range = next;
        }
        serde_json::from_value(all.into()).map_err(|e| unreadable(path, &e))
    }
    /// Newest first, at most `max`.
    pub async fn get_newest<T: DeserializeOwned>(&self, path: &str, by: &str, max: usize) -> Result<T> {
        self.json(self.request(Method::GET, path).header("Range", format!("{by} ..; order=desc,max={max}"))).await
    }
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(self.request(Method::POST, path).json(body)).await
    }
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(self.request(Method::PATCH, path).json(body)).await
    }
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(self.request(Method::PUT, path).json(body)).await
    }
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.send(self.request(Method::DELETE, path).timeout(ANSWER_TIMEOUT)).await.map(drop)
    }
    /// With name and password in place of a token.
    pub async fn post_basic<T: DeserializeOwned>(
        &self,
        path: &str,
        user: &str,
        password: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let url = format!("{}{path}", self.api);
        self.json(self.http.post(url).basic_auth(user, Some(password)).json(body)).await
    }
    /// Uploads a body of unknown length.
    pub async fn upload(&self, url: &str, body: reqwest::Body) -> Result<()> {
        self.send(self.request(Method::PUT, url).body(body)).await.map(drop)
    }

    /// Opens a WebSocket, at a path of the API or at an address that the server gave.
    pub async fn websocket(&self, url: &str) -> Result<Socket> {
        let url = match url.strip_prefix("ws") {
            Some(rest) if !url.starts_with('/') => format!("http{rest}"),
            _ => url.to_owned(),
        };
        let request = self
            .request(Method::GET, &url)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", tokio_tungstenite::tungstenite::handshake::client::generate_key());
        let response = self.send_any(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let upgraded = response.upgrade().await.map_err(|e| self.unreachable(&e))?;
        Ok(Socket::from_raw_socket(upgraded, Role::Client, None).await)
    }

    async fn send_any(&self, request: reqwest::RequestBuilder) -> Result<Response> {
        request.send().await.map_err(|e| self.unreachable(&e))
    }

    /// Reads a text stream and hands on each line as it comes. `Ok(false)` from `each` ends it.
    pub async fn lines(&self, url: &str, accept: &str, mut each: impl FnMut(&str) -> Result<bool>) -> Result<()> {
        let response = self.send(self.request_as(Method::GET, url, accept)).await?;
        let mut stream = response.bytes_stream();
        let mut rest = Vec::<u8>::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| CliError::failed(format!("The stream broke off: {e}")))?;
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if !each(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']))? {
                    return Ok(());
                }
            }
        }
        if !rest.is_empty() {
            each(&String::from_utf8_lossy(&rest))?;
        }
        Ok(())
    }
}

/// An answer that is not what this version expects.
pub fn unreadable(path: &str, e: &serde_json::Error) -> CliError {
    CliError::failed(format!("The server's answer to {path} cannot be read: {e}"))
        .hint("Are flex and flexd of one version? flex version")
}

async fn refusal(response: Response) -> CliError {
    let status = response.status();
    let path = response.url().path().to_owned();
    let text = response.text().await.unwrap_or_default();
    let body: Option<ErrorBody> = serde_json::from_str(&text).ok();
    let (id, message, url) = body.map_or_else(
        || {
            let text = text.chars().take(200).collect::<String>();
            (String::new(), format!("The server answered {status} to {path}: {text}"), None)
        },
        |b| (b.id, b.message, b.url),
    );
    // What was asked for is not there, or cannot be asked for.
    let wrong_use = matches!(status, StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY);
    let exit = if wrong_use { EXIT_USAGE } else { 1 };
    let mut error = CliError { message, hints: Vec::new(), id: (!id.is_empty()).then_some(id), exit };
    match status {
        StatusCode::UNAUTHORIZED => error = error.hint("Sign in with: flex login"),
        // What the server cannot do is told on its page; the other messages say what to do themselves.
        s if s.is_server_error() => error.hints.extend(url.map(|u| format!("More: {u}"))),
        _ => {}
    }
    error
}

/// A text stream that is read line by line as it comes.
pub struct Events {
    stream: futures_util::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    rest: Vec<u8>,
    /// Where the first line not handed out begins in `rest`.
    start: usize,
}

impl Events {
    pub async fn open(client: &Client, url: &str) -> Result<Self> {
        let response = client.send(client.request_as(Method::GET, url, "text/event-stream")).await?;
        Ok(Self { stream: response.bytes_stream().boxed(), rest: Vec::new(), start: 0 })
    }

    /// The next whole line; none at the stream's end. Nothing for `silence` is an error.
    pub async fn next(&mut self, silence: Duration) -> Result<Option<String>> {
        let mut looked = self.start;
        loop {
            if let Some(end) = self.rest[looked..].iter().position(|b| *b == b'\n') {
                let line = String::from_utf8_lossy(&self.rest[self.start..looked + end]).into_owned();
                self.start = looked + end + 1;
                return Ok(Some(line));
            }
            self.rest.drain(..self.start);
            self.start = 0;
            looked = self.rest.len();
            match tokio::time::timeout(silence, self.stream.next()).await {
                Ok(Some(Ok(chunk))) => self.rest.extend_from_slice(&chunk),
                Ok(Some(Err(e))) => return Err(CliError::failed(format!("The stream broke off: {e}."))),
                Ok(None) => return Ok(None),
                Err(_) => return Err(CliError::failed(format!("The server was silent for {} s.", silence.as_secs()))),
            }
        }
    }
}
