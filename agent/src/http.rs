//! The agent's API, metrics and health over HTTP: everything on the Unix socket, which only root
//! may open; metrics and health on a TCP address when one is asked for.

mod questions;
mod starts;
mod stream;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};

use crate::dto::{self, Kind};
use crate::endpoints::MAX_WORD_BYTES;
use crate::flows::{self, Flows};
use crate::metrics::{self, Metrics};
use crate::reading::{self, Reading, TakeError, Wanted};
use crate::reconcile::Handle;

pub use starts::Starts;

#[derive(Clone)]
struct Api {
    handle: Handle,
    starts: Starts,
    flows: Flows,
    metrics: Metrics,
}

/// Serves the API at `socket`, and metrics and health at an address of the node when there is one,
/// until the agent stops. `starts` is about the chained CNI plugin, `totals` is the file in
/// which counters outlive the agent.
///
/// # Errors
/// A listener failed.
pub async fn serve(
    handle: Handle,
    starts: Starts,
    socket: UnixListener,
    scrapes: Option<TcpListener>,
    totals: PathBuf,
) -> io::Result<()> {
    let (flows, flows_task) = flows::start(handle.clone());
    let (metrics, metrics_task) = metrics::start(handle.clone(), totals);
    let api = Api {
        handle,
        starts,
        flows,
        metrics,
    };
    let health = health(api.clone());
    let on_tcp = async {
        match scrapes {
            Some(listener) => axum::serve(listener, health).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = flows_task => Ok(()),
        () = metrics_task => Ok(()),
        ended = axum::serve(socket, routes(api)).into_future() => ended,
        ended = on_tcp => ended,
    }
}

fn routes(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/endpoints/wait", post(starts::wait))
        .layer(DefaultBodyLimit::max(MAX_WORD_BYTES))
        .route("/v1/flows", get(stream::flows))
        .route("/v1/edges", get(edges))
        .route("/v1/can", get(can))
        .route("/v1/why", get(why))
        .route("/v1/policy/{*endpoint}", get(policy))
        .route("/v1/maps", get(maps))
        .fallback(unknown)
        .with_state(api.clone())
        .merge(health(api))
}

fn health(api: Api) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(api)
}

/// Why there is no answer.
#[derive(Debug)]
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let problem = dto::Problem { message: self.1 };
        (self.0, Json(problem.into_document())).into_response()
    }
}

impl From<crate::reconcile::Stopped> for Failure {
    fn from(error: crate::reconcile::Stopped) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<flows::Stopped> for Failure {
    fn from(error: flows::Stopped) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<metrics::Stopped> for Failure {
    fn from(error: metrics::Stopped) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<TakeError> for Failure {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::Stopped(stopped) => stopped.into(),
            TakeError::Unreadable(_) | TakeError::BrokenOff => {
                Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
        }
    }
}

impl From<crate::answer::AnswerError> for Failure {
    fn from(error: crate::answer::AnswerError) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<crate::answer::ReferenceError> for Failure {
    fn from(error: crate::answer::ReferenceError) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

type Answer<T> = Result<Json<dto::Document<T>>, Failure>;

#[expect(clippy::unnecessary_wraps, reason = "the last line of every handler")]
fn answered<T: Kind + Serialize>(body: T) -> Answer<T> {
    Ok(Json(body.into_document()))
}

async fn unknown() -> Failure {
    Failure(
        StatusCode::NOT_FOUND,
        "no such path; there are /v1/status, endpoints, endpoints/wait, flows, edges, can, why, policy/{namespace}/{pod}, maps"
            .to_owned(),
    )
}

async fn status(State(api): State<Api>) -> Answer<dto::Status> {
    let reading = Reading::take(
        &api.handle,
        Wanted {
            maps: true,
            isolating: true,
        },
    )
    .await?;
    let mut status = reading.into_status();
    api.starts.say(&mut status);
    answered(status)
}

async fn endpoints(State(api): State<Api>) -> Answer<dto::EndpointList> {
    let reading = Reading::take(
        &api.handle,
        Wanted {
            maps: false,
            isolating: true,
        },
    )
    .await?;
    answered(dto::EndpointList {
        items: reading.endpoints,
    })
}

async fn maps(State(api): State<Api>) -> Answer<dto::MapList> {
    let items = reading::maps(&api.handle).await?;
    answered(dto::MapList { items })
}

async fn edges(State(api): State<Api>) -> Answer<dto::EdgeList> {
    answered(api.flows.edges().await?)
}

#[derive(Debug, Deserialize)]
struct Ends {
    from: Option<String>,
    to: Option<String>,
    namespace: Option<String>,
}

impl Ends {
    fn read(&self) -> Result<questions::Question, Failure> {
        let missing = || Failure(StatusCode::BAD_REQUEST, "say to=…".to_owned());
        Ok(questions::Question {
            from: self.from.as_deref().map(str::parse).transpose()?,
            to: self.to.as_deref().ok_or_else(missing)?.parse()?,
            namespace: self
                .namespace
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
        })
    }
}

async fn can(State(api): State<Api>, Query(ends): Query<Ends>) -> Answer<dto::Explanation> {
    let question = ends.read()?;
    let denials = reading::denials(&api.handle).await?;
    answered(
        api.handle
            .ask(move |view| questions::can(view, &question, &denials))
            .await??,
    )
}

async fn why(State(api): State<Api>, Query(ends): Query<Ends>) -> Result<Response, Failure> {
    let question = ends.read()?;
    let denials = reading::denials(&api.handle).await?;
    if question.from.is_some() {
        let list = api
            .handle
            .ask(move |view| questions::why(view, &question, &denials))
            .await??;
        return Ok(Json(list.into_document()).into_response());
    }
    let list = api
        .handle
        .ask(move |view| questions::latest(view, &question, &denials))
        .await??;
    Ok(Json(list.into_document()).into_response())
}

async fn policy(
    State(api): State<Api>,
    UrlPath(endpoint): UrlPath<String>,
) -> Answer<dto::EffectivePolicy> {
    let reference: crate::answer::Reference = endpoint.parse()?;
    let hits: BTreeMap<String, u64> = reading::rule_hits(&api.handle)
        .await?
        .into_iter()
        .map(|(_, rule, connections)| (rule.to_string(), connections))
        .collect();
    answered(
        api.handle
            .ask(move |view| questions::policy(view, &reference, &hits))
            .await??,
    )
}

async fn metrics_text(State(api): State<Api>) -> Result<Response, Failure> {
    let text = api.metrics.text().await?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn ready(State(api): State<Api>) -> Result<&'static str, Failure> {
    let unready = |why| Failure(StatusCode::SERVICE_UNAVAILABLE, why);
    let wanting = api.handle.ask(move |view| view.wanting().map(unready));
    wanting.await?.map_or(Ok("ok\n"), Err)
}
