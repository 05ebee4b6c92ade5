//! Pods that start: the chained CNI plugin says whose an interface is and waits until its policy is
//! in force.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Answer, Api, Failure, answered};
use crate::dto::{CniPlugin, Finding, PodStart, PodStartState, Status};
use crate::endpoints::{HandError, Handed, Hands};
use crate::plugin::{LONGEST_WAIT, Standing};
use crate::reconcile::{EndpointState, View};

/// What the API has to do with pods that start.
#[derive(Clone, Debug)]
pub struct Starts {
    /// Take what the plugin says of each.
    pub hands: Hands,
    /// How the plugin stands in the node's network.
    pub stands: watch::Receiver<Standing>,
}

impl Starts {
    /// Adds to a status how the plugin stands, where it was asked for.
    pub(super) fn say(&self, status: &mut Status) {
        let Standing {
            list,
            writes,
            problem,
        } = self.stands.borrow().clone();
        if list.is_none() && problem.is_none() {
            return;
        }
        status.cni_plugin = Some(CniPlugin { list, writes });
        status.findings.extend(problem.map(|message| Finding {
            severity: "error".to_owned(),
            message: format!("cni plugin: {message}"),
        }));
    }
}

/// How long to wait.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Within {
    wait_millis: u64,
}

impl From<HandError> for Failure {
    fn from(error: HandError) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

/// Answers when the interface is programmed, never will be, or the time is over.
pub(super) async fn wait(
    State(api): State<Api>,
    Query(within): Query<Within>,
    word: Bytes,
) -> Answer<PodStart> {
    let within = Duration::from_millis(within.wait_millis).min(LONGEST_WAIT);
    let handed = api.starts.hands.take(&word)?;
    let began = std::time::Instant::now();
    let ended = {
        let handed = handed.clone();
        let end = api.handle.ask_until(move |view| end(view, &handed));
        tokio::time::timeout(within, end).await
    };
    let start = match ended {
        Ok(end) => end?,
        Err(_elapsed) => {
            let handed = handed.clone();
            let message = api.handle.ask(move |view| wanting(view, &handed)).await?;
            PodStart {
                state: PodStartState::Pending,
                message: Some(message),
            }
        }
    };
    let (pod, waited_ms) = (handed.pod(), began.elapsed().as_millis());
    match start.state {
        PodStartState::Programmed => info!(%pod, waited_ms, "pod may start"),
        PodStartState::Pending | PodStartState::Unenforced => {
            warn!(%pod, waited_ms, why = start.message, "pod starts without its policy, or not");
        }
    }
    answered(start)
}

/// What there is to say without waiting any longer.
fn end(view: &View<'_>, handed: &Handed) -> Option<PodStart> {
    let programmed = view.endpoints.values().any(|endpoint| {
        endpoint.state == EndpointState::Enforced
            && handed.is(&endpoint.interface)
            && handed.is_of(&endpoint.pod, &endpoint.uid)
    });
    if programmed {
        return Some(PodStart {
            state: PodStartState::Programmed,
            message: None,
        });
    }
    let mut unenforced = view.unenforced.iter();
    let unenforced = unenforced.find(|each| handed.is_in(&each.place.netns));
    unenforced.map(|each| PodStart {
        state: PodStartState::Unenforced,
        message: Some(each.place.why.clone()),
    })
}

/// Why it is not programmed yet.
fn wanting(view: &View<'_>, handed: &Handed) -> String {
    let mut endpoints = view.endpoints.values();
    let here = endpoints.find(|endpoint| handed.is(&endpoint.interface));
    match here.map(|endpoint| &endpoint.state) {
        Some(EndpointState::Failed { error }) => error.clone(),
        Some(EndpointState::NoSlot) => "every place for a pod is taken".to_owned(),
        Some(EndpointState::Pending | EndpointState::Orphaned | EndpointState::Enforced) => view
            .wanting()
            .unwrap_or_else(|| "its policy is not in the kernel yet".to_owned()),
        None => view.wanting().unwrap_or_else(|| {
            "no object of the pod is known, or its interface is not seen".to_owned()
        }),
    }
}
