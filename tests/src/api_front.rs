//! A front before an API server that can be told to misbehave: to refuse, to forget, to repeat, to
//! fall silent. It speaks plain HTTP to whoever watches, and asks the server as somebody who may do
//! everything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use futures::{Stream, StreamExt as _, stream};
use http_body_util::BodyExt as _;
use kube::Client;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the front does instead of handing an answer on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Answers with this code, as an API server words it.
    Refuse(u16),
    /// Takes the request and never answers.
    Silence,
    /// Sends each event of a watch twice, and every earlier one of the watch again after it.
    Repeat,
    /// Sends the events of a watch in pairs, the later one first.
    Swap,
    /// Ends the body after this many bytes.
    CutAfter(usize),
    /// Waits before each piece of a body.
    Slow(Duration),
}

/// When a fault is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Times {
    /// After one request.
    Once,
    /// When another is set.
    Always,
}

#[derive(Debug)]
struct Rule {
    part: String,
    fault: Fault,
    times: Times,
}

#[derive(Debug, Default)]
struct Books {
    rules: Vec<Rule>,
    requests: Vec<String>,
    bytes: u64,
}

/// A running front.
#[derive(Debug)]
pub struct Front {
    url: String,
    shared: Shared,
    cut: watch::Sender<()>,
    server: JoinHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Books>>);

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Handler {
    client: Client,
    shared: Shared,
    cut: watch::Receiver<()>,
}

impl Front {
    /// Starts a front before a server.
    pub async fn start(client: Client) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.context("looking for a free port")?;
        let address = listener.local_addr().context("asking for the port")?;
        let (cut, cuts) = watch::channel(());
        let shared = Shared::default();
        let handler = Handler {
            client,
            shared: shared.clone(),
            cut: cuts,
        };
        let app = axum::Router::new().fallback(answer).with_state(handler);
        let server = tokio::spawn(async move {
            // It ends with the test, which is the only one that would mind.
            drop(axum::serve(listener, app).await);
        });
        Ok(Self {
            url: format!("http://{address}"),
            shared,
            cut,
            server,
        })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on requests whose path and query contain `part` meet a fault.
    pub fn set(&self, part: &str, fault: Fault, times: Times) {
        let rule = Rule {
            part: part.to_owned(),
            fault,
            times,
        };
        self.shared.books().rules.insert(0, rule);
    }

    /// No faults any more.
    pub fn clear(&self) {
        self.shared.books().rules.clear();
    }

    /// Ends every answer that is under way.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }

    /// Requests since the last call, each as path and query.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.books().requests)
    }

    /// Bytes of bodies handed on so far.
    pub fn bytes(&self) -> u64 {
        self.shared.books().bytes
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(handler): State<Handler>, request: Request) -> Response<Body> {
    let path = request.uri().to_string();
    // Whoever cuts from now on means this answer, too.
    let mut cuts = handler.cut;
    cuts.mark_unchanged();
    let fault = {
        let mut books = handler.shared.books();
        books.requests.push(path.clone());
        let found = books
            .rules
            .iter()
            .position(|rule| path.contains(&rule.part));
        found.map(|at| {
            let rule = books.rules.remove(at);
            let fault = rule.fault;
            if rule.times == Times::Always {
                books.rules.insert(at, rule);
            }
            fault
        })
    };
    match fault {
        Some(Fault::Refuse(code)) => return refusal(code, &path),
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Repeat | Fault::Swap | Fault::CutAfter(_) | Fault::Slow(_)) | None => {}
    }
    let request = match Request::get(&path).body(kube::client::Body::empty()) {
        Ok(request) => request,
        Err(error) => return refusal(400, &error.to_string()),
    };
    let response = match handler.client.send(request).await {
        Ok(response) => response,
        Err(error) => return refusal(502, &error.to_string()),
    };
    let status = response.status();
    let pieces = response.into_body().into_data_stream().map(|piece| {
        piece
            .map(|bytes| bytes.to_vec())
            .map_err(std::io::Error::other)
    });
    let pieces = spoilt(pieces, fault);
    let shared = handler.shared;
    let pieces = pieces
        .take_until(async move { drop(cuts.changed().await) })
        .inspect(move |piece| {
            if let Ok(bytes) = piece {
                shared.books().bytes += bytes.len() as u64;
            }
        });
    let mut response = Response::new(Body::from_stream(pieces));
    *response.status_mut() = status;
    response
}

fn refusal(code: u16, path: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                        "message": format!("the front refuses {path}")});
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
    response
}

type Piece = std::io::Result<Vec<u8>>;

/// The body as the fault has it.
fn spoilt(
    pieces: impl Stream<Item = Piece> + Send + Unpin + 'static,
    fault: Option<Fault>,
) -> std::pin::Pin<Box<dyn Stream<Item = Piece> + Send>> {
    match fault {
        Some(Fault::CutAfter(bytes)) => Box::pin(stream::unfold(
            (pieces, bytes),
            |(mut pieces, left)| async move {
                let mut piece = pieces.next().await?.ok()?;
                // The rest never comes; and an error in its place, so that nobody takes it for the end.
                if left == 0 {
                    return Some((Err(std::io::Error::other("cut")), (pieces, 0)));
                }
                piece.truncate(left);
                let left = left - piece.len();
                Some((Ok(piece), (pieces, left)))
            },
        )),
        Some(Fault::Slow(pause)) => Box::pin(pieces.then(move |piece| async move {
            tokio::time::sleep(pause).await;
            piece
        })),
        Some(Fault::Repeat) => {
            let mut earlier: Vec<u8> = Vec::new();
            Box::pin(lines(pieces).map(move |line| {
                let line = line?;
                let twice = [line.as_slice(), &line, &earlier].concat();
                earlier.extend_from_slice(&line);
                Ok(twice)
            }))
        }
        Some(Fault::Swap) => {
            let mut held: Option<Vec<u8>> = None;
            Box::pin(lines(pieces).map(move |line| {
                let line = line?;
                if let Some(before) = held.take() {
                    return Ok([line, before].concat());
                }
                held = Some(line);
                Ok(Vec::new())
            }))
        }
        Some(Fault::Refuse(_) | Fault::Silence) | None => Box::pin(pieces),
    }
}

/// Whole lines, each with its end.
fn lines(pieces: impl Stream<Item = Piece> + Send + Unpin) -> impl Stream<Item = Piece> + Send {
    stream::unfold((pieces, Vec::new()), |(mut pieces, mut bytes)| async move {
        loop {
            if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                let rest = bytes.split_off(end + 1);
                return Some((Ok(bytes), (pieces, rest)));
            }
            match pieces.next().await? {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(error) => return Some((Err(error), (pieces, bytes))),
            }
        }
    })
}
