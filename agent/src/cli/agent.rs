//! `picket agent`: the options of the agent, handed to it untouched.

use std::path::PathBuf;

use super::Outcome;
use super::directories::Directories;
use crate::config::{
    Config, DEFAULT_CNI_WAIT, DEFAULT_DENIED_RETENTION, DEFAULT_DNS_CACHE, DEFAULT_DNS_SERVICE,
    DEFAULT_NETNS, DEFAULT_SOCKET, LogFormat, MidStreamGrace, OnCut, Options, Plugin, Posture,
};
use crate::dataplane::Method;
use crate::plugin::{OnTimeout, Places};

/// Set in every container of a cluster.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Enforce policy on this node
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is in force stays in force when the agent stops, crashes or is upgraded: programs and maps
are pinned. `picket uninstall` takes everything away.

Objects come from a directory of manifests, or from a Kubernetes API: the one that --kubeconfig
names, or, with neither option in a pod of a cluster, that cluster's with the pod's service account,
which needs list and watch of namespaces, nodes, pods, services, endpointslices and networkpolicies.
Of its own node (--node) it removes the taint picket.dev/agent-not-ready when policy is in force,
which takes patch of nodes; where there is no such taint, nothing is written.

Examples:
  picket agent --manifests manifests/
  picket agent --manifests manifests/ --metrics :9911
  picket agent --manifests manifests/ --node node-a --posture open
  picket agent --kubeconfig /etc/picket/kubeconfig --node node-a")]
pub(super) struct Args {
    /// Directory of manifests to enforce, watched with everything below it
    #[arg(long, value_name = "DIR", env = "PICKET_MANIFESTS")]
    manifests: Option<PathBuf>,
    /// Kubeconfig of the API server whose objects to enforce; $KUBECONFIG is not looked at
    #[arg(long, value_name = "FILE", env = "PICKET_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Only pods whose spec.nodeName is this are local; without it, every pod found here is
    #[arg(long, value_name = "NAME", env = "PICKET_NODE")]
    node: Option<String>,
    /// Serve Prometheus metrics at ADDR:PORT, ADDR, :PORT or PORT; loopback unless said
    #[arg(long, value_name = "ADDR", env = "PICKET_METRICS")]
    metrics: Option<String>,
    /// Unix socket of the API, for the other commands
    #[arg(long, value_name = "PATH", env = "PICKET_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Directory of the pods' network namespaces
    #[arg(long, value_name = "DIR", env = "PICKET_NETNS", default_value = DEFAULT_NETNS)]
    netns: PathBuf,
    #[command(flatten)]
    directories: Directories,
    /// What happens to what is not known yet or cannot be represented: closed or open
    #[arg(
        long,
        value_name = "POSTURE",
        env = "PICKET_POSTURE",
        default_value = "closed"
    )]
    posture: Posture,
    /// How long after its attachment a pod may go on with a connection that only its peer's
    /// opening would explain, as 60s; forever lets forgotten connections heal at any time
    #[arg(
        long,
        value_name = "DURATION",
        env = "PICKET_MID_STREAM_GRACE",
        default_value = "forever"
    )]
    mid_stream_grace: MidStreamGrace,
    /// What who still speaks on a TCP connection that a change has cut gets: silence, so that it may
    /// go on if the change is taken back; or reset, for which the agent opens
    /// raw sockets
    #[arg(
        long,
        value_name = "WORD",
        env = "PICKET_ON_CUT",
        default_value = "silence"
    )]
    on_cut: OnCut,
    /// How long `picket why` remembers a refusal after it last happened
    #[arg(
        long,
        value_name = "DURATION",
        env = "PICKET_DENIED_RETENTION",
        default_value = DEFAULT_DENIED_RETENTION
    )]
    denied_retention: String,
    /// How to hold programs on interfaces: tcx (Linux 6.6) or clsact; the best that the kernel
    /// has when left out
    #[arg(long, value_name = "METHOD", env = "PICKET_ATTACH")]
    attach: Option<Method>,
    /// Entries of a map, as NAME=ENTRIES; several with commas between, or given again
    #[arg(
        long = "map-capacity",
        value_name = "NAME=ENTRIES",
        env = "PICKET_MAP_CAPACITY",
        value_delimiter = ','
    )]
    capacities: Vec<String>,
    /// Addresses of a node-local DNS cache: they count as addresses of --dns-service, so that who may
    /// reach the pods behind that may ask it; several with commas between; empty where there is none
    #[arg(
        long,
        value_name = "ADDR",
        env = "PICKET_DNS_CACHE",
        value_delimiter = ',',
        default_value = DEFAULT_DNS_CACHE
    )]
    dns_cache: Vec<String>,
    /// The cluster's DNS Service
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        env = "PICKET_DNS_SERVICE",
        default_value = DEFAULT_DNS_SERVICE
    )]
    dns_service: String,
    /// Put a plugin behind those of the node's network that lets a pod start when its policy is in
    /// force: install, and keep it there; or off, and leave the network as it is
    #[arg(
        long,
        value_name = "WORD",
        env = "PICKET_CNI_PLUGIN",
        default_value = "off"
    )]
    cni_plugin: Plugin,
    /// What that plugin does with a pod whose policy is not in force in time: start, and its
    /// interface has the posture until it is; or fail, and the kubelet tries again
    #[arg(
        long,
        value_name = "WORD",
        env = "PICKET_CNI_ON_TIMEOUT",
        default_value = "start"
    )]
    cni_on_timeout: OnTimeout,
    /// How long it holds a pod's start up: 5s at most
    #[arg(long, value_name = "DURATION", env = "PICKET_CNI_WAIT", default_value = DEFAULT_CNI_WAIT)]
    cni_wait: String,
    /// How log lines look: text or json
    #[arg(
        long,
        value_name = "FORMAT",
        env = "PICKET_LOG_FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        let config = Config::new(Options {
            manifests: self.manifests,
            kubeconfig: self.kubeconfig,
            is_in_cluster: std::env::var_os(IN_CLUSTER).is_some(),
            node: self.node,
            metrics: self.metrics,
            socket: self.socket,
            pins: self.directories.pins,
            netns: self.netns,
            cni_results: self.directories.cni_results,
            state: self.directories.state,
            posture: self.posture,
            mid_stream_grace: self.mid_stream_grace,
            on_cut: self.on_cut,
            denied_retention: self.denied_retention,
            attach: self.attach,
            capacities: self.capacities,
            dns_cache: self.dns_cache,
            dns_service: self.dns_service,
            cni_plugin: self.cni_plugin,
            cni_places: Places {
                conf: self.directories.cni_conf_dir,
                bin: self.directories.cni_bin_dir,
            },
            cni_on_timeout: self.cni_on_timeout,
            cni_wait: self.cni_wait,
            log_format: self.log_format,
        })?;
        crate::agent::run(config)?;
        Ok(Outcome::Yes)
    }
}
