//! One API server: how it is reached, requests to it, and every way in which an answer fails.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use agent_policy::manifest::brief;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Deserialize;

/// A server that has not taken a connection by then takes none.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Of what a server says about a refusal, this much is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;
/// However long a server asks to be left alone, we ask again then.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How the API is reached and who asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Access {
    /// As a kubeconfig file says.
    Kubeconfig(PathBuf),
    /// With the service account of the pod this runs in.
    InCluster,
}

/// The way to the API cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig does not say how.
    #[error("kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The service account is not there.
    #[error(
        "the pod's service account, which automountServiceAccountToken puts at \
         /var/run/secrets/kubernetes.io/serviceaccount"
    )]
    ServiceAccount(#[source] kube::config::InClusterError),
    /// Certificates or credentials cannot be used.
    #[error("certificates and credentials for {url}")]
    Client {
        /// The API's address.
        url: String,
        /// What is wrong with them.
        #[source]
        source: kube::Error,
    },
}

impl Access {
    /// Reads files; the server itself is not asked yet.
    pub(super) async fn open(&self) -> Result<Api, AccessError> {
        let mut config = match self {
            Self::Kubeconfig(path) => {
                let wrong = |source| AccessError::Kubeconfig {
                    path: path.clone(),
                    source,
                };
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(wrong)?
            }
            Self::InCluster => Config::incluster().map_err(AccessError::ServiceAccount)?,
        };
        config.connect_timeout = Some(CONNECT_WITHIN);
        // Whoever asks knows best when to ask again.
        config.default_retry = false;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|source| AccessError::Client {
            url: url.clone(),
            source,
        })?;
        Ok(Api { client, url })
    }
}

/// Why there is no answer, or none that can be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// The server does not let us, or does not know us (`is_unknown`).
    Forbidden { message: String, is_unknown: bool },
    /// It has no such kind.
    Absent,
    /// It has forgotten the version that was asked for.
    Expired,
    /// It answers with an error.
    Refused {
        code: u16,
        message: String,
        /// The time for which it asks not to be asked again.
        pause: Option<Duration>,
    },
    /// It does not answer.
    Unreachable(String),
    /// What it answers is no list or watch of the kind.
    Garbled(String),
}

/// An API server that may be asked.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    url: String,
}

impl Api {
    /// Where it is, for people.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Asks; the answer's body, when it is one.
    pub(super) async fn get(&self, path: &str, within: Duration) -> Result<Answer, Failure> {
        self.send(Request::get(path).body(Body::empty()), within)
            .await
    }

    /// Changes an object by a JSON patch (RFC 6902).
    pub(super) async fn patch(
        &self,
        path: &str,
        steps: &serde_json::Value,
        within: Duration,
    ) -> Result<(), Failure> {
        let request = Request::patch(path)
            .header(CONTENT_TYPE, "application/json-patch+json")
            .body(Body::from(steps.to_string().into_bytes()));
        let mut answer = self.send(request, within).await?;
        // Read to its end, the connection can be used again.
        while answer.next(within).await?.is_some() {}
        Ok(())
    }

    async fn send(
        &self,
        request: hyper::http::Result<Request<Body>>,
        within: Duration,
    ) -> Result<Answer, Failure> {
        let request = request.map_err(|error| Failure::Garbled(words(&error)))?;
        let asked = tokio::time::timeout(within, self.client.send(request)).await;
        let response = asked
            .map_err(|_elapsed| Failure::Unreachable(no_word_for(within)))?
            .map_err(|error| Failure::Unreachable(words(&error)))?;
        if response.status() == StatusCode::OK {
            return Ok(Answer(response.into_body()));
        }
        Err(refusal(response).await)
    }
}

/// A body, as it comes.
pub(super) struct Answer(Body);

impl Answer {
    /// The next bytes; `None` at the end, an error when none come in time.
    pub(super) async fn next(&mut self, within: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = tokio::time::timeout(within, self.0.frame()).await;
            let frame = frame.map_err(|_elapsed| Failure::Unreachable(no_word_for(within)))?;
            match frame.transpose() {
                Ok(None) => return Ok(None),
                // Trailers say nothing.
                Ok(Some(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(_trailers) => {}
                },
                Err(error) => return Err(Failure::Unreachable(words(&error))),
            }
        }
    }
}

/// What a server says about a request that it does not answer (`Status`), or an event about the
/// watch that it ends.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    message: String,
    code: u16,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        failure(status.code, &status.message, None)
    }
}

async fn refusal(response: Response<Body>) -> Failure {
    let code = response.status().as_u16();
    let pause = response.headers().get(RETRY_AFTER);
    let pause = pause.and_then(|value| value.to_str().ok()?.parse().ok());
    let pause = pause.map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
    let mut answer = Answer(response.into_body());
    let mut text = Vec::new();
    // Without its words, the code has to do.
    while let Ok(Some(bytes)) = answer.next(CONNECT_WITHIN).await
        && text.len() < MAX_REFUSAL_BYTES
    {
        text.extend_from_slice(&bytes);
    }
    let message = match serde_json::from_slice::<Status>(&text) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(&text).trim().to_owned(),
    };
    failure(code, &message, pause)
}

fn failure(code: u16, message: &str, pause: Option<Duration>) -> Failure {
    let message = brief(message);
    match code {
        401 | 403 => Failure::Forbidden {
            message,
            is_unknown: code == 401,
        },
        404 => Failure::Absent,
        410 => Failure::Expired,
        _ => Failure::Refused {
            code,
            message,
            pause,
        },
    }
}

fn no_word_for(within: Duration) -> String {
    format!("no word for {} s", within.as_secs())
}

/// An error with its causes; most of them repeat the one below.
fn words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    brief(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_meaning() {
        let message = "no".to_owned();
        let of = |code| failure(code, &message, None);
        for (code, is_unknown) in [(401, true), (403, false)] {
            let message = message.clone();
            assert_eq!(
                of(code),
                Failure::Forbidden {
                    message,
                    is_unknown
                }
            );
        }
        assert_eq!(of(404), Failure::Absent);
        assert_eq!(of(410), Failure::Expired);
        for code in [301, 400, 429, 500, 503, 504] {
            assert!(
                matches!(of(code), Failure::Refused { .. }),
                "{code}: {:?}",
                of(code)
            );
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_that_says_nothing_is_named() {
        let path = PathBuf::from("/nowhere/kubeconfig");
        let Err(error) = Access::Kubeconfig(path).open().await else {
            panic!("it was read");
        };
        assert_eq!(error.to_string(), "kubeconfig /nowhere/kubeconfig");
    }
}
