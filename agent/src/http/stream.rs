//! `/v1/flows`: the latest flows, or with `?follow` each one as it comes, as server-sent events
//! (HTML Standard §9.2): `flow` with a Flow, `lost` with a number.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::Stream;
use serde::Deserialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Api, Failure};
use crate::dto::Kind as _;
use crate::flows::Live;

/// Proxies and people drop connections that say nothing.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
pub(super) struct Follow {
    /// `?follow` and `?follow=true` mean yes.
    follow: Option<String>,
}

pub(super) async fn flows(
    State(api): State<Api>,
    Query(query): Query<Follow>,
) -> Result<Response, Failure> {
    if query.follow.is_some_and(|follow| follow != "false") {
        let events = events(api.flows.follow());
        return Ok(Sse::new(events)
            .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
            .into_response());
    }
    Ok(Json(api.flows.recent().await?.into_document()).into_response())
}

fn events(live: Receiver<Live>) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold(live, async |mut live| {
        let event = match live.recv().await {
            Ok(Live::Flow(flow)) => {
                let document = crate::dto::Flow::clone(&flow).into_document();
                Event::default()
                    .event("flow")
                    .json_data(document)
                    .unwrap_or_else(|error| {
                        tracing::error!(%error, "a flow could not be written as JSON");
                        lost(1)
                    })
            }
            Ok(Live::Lost(count)) | Err(RecvError::Lagged(count)) => lost(count),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(event), live))
    })
}

fn lost(count: u64) -> Event {
    Event::default().event("lost").data(count.to_string())
}
