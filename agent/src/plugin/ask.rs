//! Asks the agent to say when a pod's policy is in force: HTTP over its Unix socket, and never for
//! longer than it may take.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::dto::{Document, PodStart, PodStartState, Problem};

/// An agent that is being replaced is back in a moment.
const AGAIN: Duration = Duration::from_millis(50);
/// The agent ends its wait so much before ours, or half of it, to say why it was in vain.
const TO_SAY_WHY: Duration = Duration::from_millis(500);
/// No answer is larger.
const LONGEST_ANSWER: usize = 1 << 16;

/// What came of waiting.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Waited {
    /// The pod's policy is in force.
    Programmed,
    /// It is not, and why.
    InVain(String),
}

/// Why there is no answer.
enum Trouble {
    /// Nobody is there; somebody may be soon.
    Absent(String),
    /// The agent cannot do anything with what it is told.
    Refused(String),
}

/// Hands over what is known of a pod, and waits for its policy.
pub(super) async fn wait(socket: &Path, word: Vec<u8>, within: Duration) -> Waited {
    let end = Instant::now() + within;
    let word = Bytes::from(word);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let asked = once(
            socket,
            word.clone(),
            left.saturating_sub(TO_SAY_WHY.min(left / 2)),
        );
        let why = match tokio::time::timeout(left, asked).await {
            Ok(Ok(PodStart {
                state: PodStartState::Programmed,
                ..
            })) => return Waited::Programmed,
            Ok(Ok(PodStart { message, .. })) => {
                return Waited::InVain(
                    message.unwrap_or_else(|| "the agent does not say why".into()),
                );
            }
            Ok(Err(Trouble::Refused(why))) => return Waited::InVain(why),
            Ok(Err(Trouble::Absent(why))) => why,
            Err(_elapsed) => format!("no answer at {} in time", socket.display()),
        };
        if Instant::now() + AGAIN >= end {
            return Waited::InVain(why);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn once(socket: &Path, word: Bytes, within: Duration) -> Result<PodStart, Trouble> {
    let absent = |error: &dyn std::fmt::Display| {
        Trouble::Absent(format!("no agent answers at {}: {error}", socket.display()))
    };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| absent(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| absent(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!(
        "/v1/endpoints/wait?waitMillis={}",
        within.as_millis()
    ))
    .header(hyper::header::HOST, "picket")
    .body(Full::new(word))
    .map_err(|error| absent(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| absent(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST_ANSWER)
        .collect()
        .await;
    let body = body.map_err(|error| absent(&error))?.to_bytes();
    connection.abort();
    if status == StatusCode::OK {
        let start = serde_json::from_slice::<Document<PodStart>>(&body);
        return start.map(|start| start.body).map_err(|error| {
            Trouble::Refused(format!("the agent's answer is not understood: {error}"))
        });
    }
    let problem = serde_json::from_slice::<Document<Problem>>(&body);
    let why = problem.map_or_else(
        |_| format!("the agent answers {status}"),
        |problem| problem.body.message,
    );
    // It stops; another one may start.
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Err(absent(&why));
    }
    Err(Trouble::Refused(why))
}
