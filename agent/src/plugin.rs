//! The chained CNI plugin: the runtime calls it last when it makes a pod's network, and it returns
//! when the pod's policy is in force. What it is asked and answers, as the specification of CNI has
//! it (containernetworking/cni, SPEC.md, versions 0.3.0 to 1.1.0); no I/O but the agent's socket.
//!
//! It changes nothing of the network: what the plugins before it made is what it returns. Removing a
//! pod always succeeds, so that a pod can go whatever has become of the agent.

mod ask;
mod conflist;
mod install;
mod keep;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::config::DEFAULT_SOCKET;
use ask::Waited;

pub use install::{
    DEFAULT_BIN_DIR, DEFAULT_CONF_DIR, Entry, InstallError, Installed, Installer, ListFault,
    NodeNetwork, Places, Unplugged, network_in_force, network_of_results, uninstall,
};
pub use keep::{Standing, keep};

/// Name of the plugin, which is that of its program, and the `type` of its configuration.
pub const NAME: &str = "picket-cni";
/// Versions of the specification that it speaks.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// How long a pod's start is held up at most.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A configuration with its result is not larger.
pub const MAX_INPUT_BYTES: u64 = 1 << 20;

/// What becomes of a pod whose policy is not in force in time.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It starts. Its interface has the agent's posture until its policy is in force.
    #[default]
    Start,
    /// It does not; the kubelet tries again.
    Fail,
}

/// What the runtime asks, besides the configuration: its environment.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub arguments: String,
}

/// The plugin's part of a network's configuration, as the runtime hands it over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network<'a> {
    #[serde(default)]
    cni_version: String,
    #[serde(default = "default_socket")]
    socket: PathBuf,
    #[serde(default)]
    on_timeout: OnTimeout,
    #[serde(default = "longest_wait")]
    wait_millis: u64,
    #[serde(default, borrow)]
    prev_result: Option<&'a RawValue>,
}

fn default_socket() -> PathBuf {
    PathBuf::from(DEFAULT_SOCKET)
}

fn longest_wait() -> u64 {
    u64::try_from(LONGEST_WAIT.as_millis()).unwrap_or(u64::MAX)
}

/// An error as the runtime reads it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    cni_version: String,
    /// One of the specification's.
    pub code: u32,
    /// What is wrong, and what to do.
    pub msg: String,
}

/// Codes of the specification that are used here.
mod code {
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(super) const INVALID_ENVIRONMENT: u32 = 4;
    pub(super) const UNDECODABLE: u32 = 6;
    pub(super) const INVALID_CONFIGURATION: u32 = 7;
    pub(super) const TRY_AGAIN_LATER: u32 = 11;
}

/// What the agent is told of a pod, in the form in which the runtime's library keeps results.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Word<'a> {
    container_id: &'a str,
    netns: &'a str,
    if_name: &'a str,
    cni_args: Vec<(&'a str, &'a str)>,
    result: &'a RawValue,
}

impl Call {
    /// Carries out what is asked; what to print, if anything.
    ///
    /// # Errors
    /// What to print instead.
    pub async fn run(&self, input: &[u8]) -> Result<Option<String>, Refusal> {
        // Whatever the input is: what is to go has to be able to.
        if self.command == "DEL" || self.command == "GC" {
            return Ok(None);
        }
        let network: Network<'_> = serde_json::from_slice(input).map_err(|error| Refusal {
            cni_version: "1.0.0".to_owned(),
            code: code::UNDECODABLE,
            msg: format!("the network's configuration: {error}"),
        })?;
        let refuse = |code, msg: String| Refusal {
            cni_version: network.cni_version.clone(),
            code,
            msg,
        };
        if self.command == "VERSION" {
            let versions = serde_json::json!({
                "cniVersion": network.cni_version, "supportedVersions": VERSIONS});
            return Ok(Some(versions.to_string()));
        }
        if !VERSIONS.contains(&network.cni_version.as_str()) {
            let known = VERSIONS.join(", ");
            return Err(refuse(
                code::INCOMPATIBLE_VERSION,
                format!(
                    "cniVersion {:?}: only {known} are known",
                    network.cni_version
                ),
            ));
        }
        match self.command.as_str() {
            "ADD" => self.add(&network, refuse).await,
            // What was in force is, whatever has become of the agent: nothing to be undone.
            "CHECK" => self.result(&network, refuse).map(|_result| None),
            // An agent that is being replaced makes the node no less ready: pods that run keep
            // their policy, and those that start are tried again.
            "STATUS" => Ok(None),
            other => Err(refuse(
                code::INVALID_ENVIRONMENT,
                format!("CNI_COMMAND {other:?}: not a command of the specification"),
            )),
        }
    }

    async fn add(
        &self,
        network: &Network<'_>,
        refuse: impl Fn(u32, String) -> Refusal,
    ) -> Result<Option<String>, Refusal> {
        let result = self.result(network, &refuse)?;
        let unchanged = Ok(Some(result.get().to_owned()));
        let Some(word) = self.word(result) else {
            return unchanged;
        };
        let within = Duration::from_millis(network.wait_millis).min(LONGEST_WAIT);
        let why = match ask::wait(&network.socket, word, within).await {
            Waited::Programmed => return unchanged,
            Waited::InVain(why) => why,
        };
        match network.on_timeout {
            OnTimeout::Start => unchanged,
            OnTimeout::Fail => Err(refuse(
                code::TRY_AGAIN_LATER,
                format!(
                    "the pod's policy is not in force: {why}; `picket status` says more, and \
                     onTimeout \"start\" in the network's configuration lets pods start without"
                ),
            )),
        }
    }

    /// The result of the plugins before this one.
    fn result<'a>(
        &self,
        network: &Network<'a>,
        refuse: impl Fn(u32, String) -> Refusal,
    ) -> Result<&'a RawValue, Refusal> {
        for (variable, value) in [
            ("CNI_CONTAINERID", &self.container),
            ("CNI_NETNS", &self.netns),
            ("CNI_IFNAME", &self.interface),
        ] {
            if value.is_empty() {
                let msg = format!("{variable} is not set; only a container runtime calls this");
                return Err(refuse(code::INVALID_ENVIRONMENT, msg));
            }
        }
        network.prev_result.ok_or_else(|| {
            refuse(
                code::INVALID_CONFIGURATION,
                format!("no prevResult: {NAME} makes no network, put it behind plugins that do"),
            )
        })
    }

    /// What to tell the agent; nothing when this is no pod's.
    fn word(&self, result: &RawValue) -> Option<Vec<u8>> {
        let arguments = self.arguments.split(';');
        let arguments: BTreeMap<&str, &str> =
            arguments.filter_map(|pair| pair.split_once('=')).collect();
        arguments.get("K8S_POD_UID").filter(|uid| !uid.is_empty())?;
        let word = Word {
            container_id: &self.container,
            netns: &self.netns,
            if_name: &self.interface,
            cni_args: arguments.into_iter().collect(),
            result,
        };
        serde_json::to_vec(&word).ok()
    }
}
