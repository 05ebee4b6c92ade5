//! Asks the agent: HTTP over its Unix socket.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::output::append;
use crate::config::DEFAULT_SOCKET;
use crate::dto::{Document, Problem};

/// Longest answer that is read whole; a larger one is no answer of ours.
const LONGEST_ANSWER: usize = 256 << 20;

/// Where the agent is.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Socket {
    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", env = "PICKET_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

impl Socket {
    /// The one at a path.
    pub(super) const fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks once and reads the answer whole.
    pub(super) fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<Document<T>> {
        runtime()?.block_on(async {
            let response = self.send(path, query).await?;
            let status = response.status();
            let body = http_body_util::Limited::new(response.into_body(), LONGEST_ANSWER)
                .collect()
                .await
                .map_err(|error| anyhow!(error))
                .with_context(|| format!("reading the answer of {}", self.socket.display()))?
                .to_bytes();
            if status != StatusCode::OK {
                bail!(problem(status, &body));
            }
            serde_json::from_slice(&body).with_context(|| {
                format!(
                    "the answer of {} to {path} is not what this version understands",
                    self.socket.display()
                )
            })
        })
    }

    /// Asks for server-sent events and hands each one's kind and data to `each`, until Ctrl-C; the
    /// agent's end is an error, and so is what `each` refuses.
    pub(super) fn follow(
        &self,
        path: &str,
        query: &[(&str, String)],
        mut each: impl FnMut(Received<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        runtime()?.block_on(async {
            let response = self.send(path, query).await?;
            let status = response.status();
            let mut body = response.into_body();
            if status != StatusCode::OK {
                let body = body.collect().await?.to_bytes();
                bail!(problem(status, &body));
            }
            each(Received::Connected)?;
            let mut reader = EventReader::default();
            let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
            let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
            loop {
                tokio::select! {
                    frame = body.frame() => {
                        let Some(frame) = frame else { bail!(gone(&self.socket)) };
                        let Ok(data) = frame.map_err(|error| {
                            tracing::debug!(%error, "the stream broke");
                            anyhow!(gone(&self.socket))
                        })?.into_data() else { continue };
                        for event in reader.push(&data) {
                            each(Received::Event { kind: &event.kind, data: &event.data })?;
                        }
                    }
                    _ = tick.tick() => each(Received::Second)?,
                    _ = &mut interrupted => return Ok(()),
                }
            }
        })
    }

    async fn send(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| anyhow!(absent(&self.socket, &error)))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .with_context(|| format!("speaking HTTP at {}", self.socket.display()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the agent ended");
            }
        });
        let request = Request::get(uri(path, query))
            .header(hyper::header::HOST, "picket")
            .body(Empty::<Bytes>::new())
            .context("making the request")?;
        sender
            .send_request(request)
            .await
            .with_context(|| format!("asking {}", self.socket.display()))
    }
}

/// What [`Socket::follow`] hands on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Received<'a> {
    /// The agent answered and the stream is open.
    Connected,
    /// One server-sent event.
    Event {
        /// Its `event:` field, `message` when it has none.
        kind: &'a str,
        /// Its `data:` field.
        data: &'a str,
    },
    /// A second has passed.
    Second,
}

/// What a command waits in.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the client")
}

/// Why nobody answers, and what to do.
fn absent(socket: &Path, error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let kind = error.kind();
    let why = if kind == ErrorKind::NotFound {
        "there is no such socket; is the agent running, and is --socket right?".to_owned()
    } else if kind == ErrorKind::ConnectionRefused && !is_socket(socket) {
        "that is no socket; is --socket right?".to_owned()
    } else if kind == ErrorKind::ConnectionRefused {
        "the socket is there, but nobody listens: the agent has ended; pods keep the policy they had".to_owned()
    } else if kind == ErrorKind::PermissionDenied {
        "permission denied; ask as root".to_owned()
    } else {
        error.to_string()
    };
    format!("no agent answers at {}: {why}", socket.display())
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// The agent ended while it was listened to.
fn gone(socket: &Path) -> String {
    format!(
        "the agent at {} is gone; pods keep the policy they had until it is back",
        socket.display()
    )
}

fn problem(status: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<Document<Problem>>(body) {
        Ok(problem) => problem.body.message,
        Err(_) => format!(
            "the agent answers {status}: {}",
            String::from_utf8_lossy(body).trim()
        ),
    }
}

/// Path and query, percent-encoded (RFC 3986 §2.1).
fn uri(path: &str, query: &[(&str, String)]) -> String {
    let mut uri = String::from(path);
    for (place, (name, value)) in query.iter().enumerate() {
        uri.push(if place == 0 { '?' } else { '&' });
        uri.push_str(name);
        uri.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
                uri.push(char::from(byte));
            } else {
                append(&mut uri, format_args!("%{byte:02X}"));
            }
        }
    }
    uri
}

#[derive(Debug, Default)]
struct ServerSentEvent {
    kind: String,
    data: String,
}

/// Splits a byte stream into events (HTML Standard §9.2.6), of which our agent uses `event` and
/// `data` with `\n` line ends.
#[derive(Debug, Default)]
struct EventReader {
    rest: Vec<u8>,
    event: ServerSentEvent,
}

impl EventReader {
    fn push(&mut self, bytes: &[u8]) -> Vec<ServerSentEvent> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let mut event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    if event.kind.is_empty() {
                        "message".clone_into(&mut event.kind);
                    }
                    events.push(event);
                }
            } else if let Some(value) = field(line, "event") {
                value.clone_into(&mut self.event.kind);
            } else if let Some(value) = field(line, "data") {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
        }
        events
    }
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let value = line.strip_prefix(name)?.strip_prefix(':')?;
    Some(value.strip_prefix(' ').unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_the_bytes_are_cut() {
        let text = ": hello\n\nevent: flow\ndata: {\"a\":1}\n\ndata: x\ndata: y\n\n";
        for cut in 1..text.len() {
            let mut reader = EventReader::default();
            let mut events = Vec::new();
            for chunk in text.as_bytes().chunks(cut) {
                events.extend(reader.push(chunk));
            }
            let read: Vec<(&str, &str)> = events
                .iter()
                .map(|event| (event.kind.as_str(), event.data.as_str()))
                .collect();
            assert_eq!(
                read,
                [("flow", "{\"a\":1}"), ("message", "x\ny")],
                "cut every {cut}"
            );
        }
    }

    #[test]
    fn questions_are_percent_encoded() {
        assert_eq!(
            uri(
                "/v1/can",
                &[("from", "a/b c".to_owned()), ("to", "ü&x:80".to_owned())]
            ),
            "/v1/can?from=a/b%20c&to=%C3%BC%26x:80"
        );
    }

    #[test]
    fn a_missing_agent_is_said_with_the_socket_and_what_to_do() {
        let socket = Socket {
            socket: PathBuf::from("/nonexistent/agent.sock"),
        };
        let error = socket.get::<Problem>("/v1/status", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no agent answers at /nonexistent/agent.sock: there is no such socket; \
             is the agent running, and is --socket right?"
        );
    }
}
