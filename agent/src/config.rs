//! The agent's configuration: raw options in, typed and validated once, never seen raw again.

mod capacities;
mod dns_cache;
mod objects;
mod plugin;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::dataplane::Method;
use crate::endpoints::DEFAULT_CNI_RESULTS;
use crate::plugin::{DEFAULT_BIN_DIR, DEFAULT_CONF_DIR, Entry, OnTimeout, Places};

pub use capacities::Capacities;
pub use dns_cache::{DEFAULT_DNS_CACHE, DEFAULT_DNS_SERVICE, DnsCache};
pub use objects::Objects;
pub use plugin::Plugin;

/// Where the API's Unix socket is when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/picket/agent.sock";
/// Where maps and links are pinned when nothing else is said.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/picket";
/// Where container runtimes and `ip netns` keep network namespaces.
pub const DEFAULT_NETNS: &str = "/run/netns";
/// Where what an API server said is kept when nothing else is said.
pub const DEFAULT_STATE: &str = "/var/lib/picket";
/// Port of the metrics server when only an address is given.
pub const DEFAULT_METRICS_PORT: u16 = 9911;

/// How long the CNI plugin holds a pod's start up when nothing else is said.
pub const DEFAULT_CNI_WAIT: &str = "5s";
/// How long a refusal is remembered when nothing else is said.
pub const DEFAULT_DENIED_RETENTION: &str = "24h";
/// Longer than the time after which a refusal that goes on is reported again.
const SHORTEST_RETENTION: Duration = Duration::from_mins(1);

/// What happens to what Picket does not know: a pod whose policy is not in place, a full map.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Posture {
    /// Dropped, with reason `not-programmed` or `fail-closed`.
    #[default]
    Closed,
    /// Passed, with reason `fail-open`.
    Open,
}

impl Posture {
    /// The word used on the command line and in JSON.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

impl std::str::FromStr for Posture {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "closed" => Ok(Self::Closed),
            "open" => Ok(Self::Open),
            _ => Err(ConfigError::Posture(word.to_owned())),
        }
    }
}

/// How long after its attachment an endpoint may take up a connection in its middle, when only
/// the other direction's policy admits it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MidStreamGrace {
    /// At any time: an allowed connection that was forgotten heals from either side.
    #[default]
    Forever,
    /// This long: a peer that the pod may connect to cannot scan it with bare segments later on.
    For(Duration),
}

impl std::str::FromStr for MidStreamGrace {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        if word == "forever" {
            return Ok(Self::Forever);
        }
        let span = duration(word).ok_or_else(|| ConfigError::MidStreamGrace(word.to_owned()))?;
        Ok(Self::For(span))
    }
}

/// `60s`, `5m`, `1h 30m`; never negative.
fn duration(word: &str) -> Option<Duration> {
    let span: jiff::SignedDuration = word.parse().ok()?;
    Duration::try_from(span).ok()
}

impl std::str::FromStr for Method {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        [Self::Tcx, Self::Clsact]
            .into_iter()
            .find(|method| method.as_label() == word)
            .ok_or_else(|| ConfigError::Attach(word.to_owned()))
    }
}

/// What the ends of a TCP connection learn when a change has cut it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnCut {
    /// Nothing: its packets vanish, and the ends give up in their own time.
    #[default]
    Silence,
    /// Whoever still speaks on it gets a reset.
    Reset,
}

impl std::str::FromStr for OnCut {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "silence" => Ok(Self::Silence),
            "reset" => Ok(Self::Reset),
            _ => Err(ConfigError::OnCut(word.to_owned())),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(ConfigError::LogFormat(word.to_owned())),
        }
    }
}

/// What is wrong with an option.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// `--manifests` is not a directory.
    #[error("--manifests {0:?}: not a directory; name the directory that holds the objects")]
    Manifests(PathBuf),
    /// `--kubeconfig` is not a file.
    #[error("--kubeconfig {0:?}: not a file; name the file that says how to reach the API server")]
    Kubeconfig(PathBuf),
    /// Both `--manifests` and `--kubeconfig`.
    #[error("--manifests and --kubeconfig: objects come from one place; leave out one of them")]
    TwoSources,
    /// Neither, and not in a pod.
    #[error(
        "no source of objects: write --manifests DIR, or --kubeconfig FILE; in a pod of a cluster, \
         where KUBERNETES_SERVICE_HOST is set, neither is needed"
    )]
    NoSource,
    /// `--metrics` cannot be read.
    #[error("--metrics {0:?}: not an address; write 127.0.0.1:9911, :9911 or 9911")]
    Metrics(String),
    /// A path that has to be absolute is not.
    #[error("{option} {path:?}: relative; write the whole path, starting with /")]
    Relative {
        /// The option.
        option: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// `--node ""`.
    #[error("--node \"\": empty; leave the option out to enforce pods of every node name")]
    EmptyNode,
    /// `--posture` is neither word.
    #[error("--posture {0:?}: unknown; write closed or open")]
    Posture(String),
    /// `--mid-stream-grace` cannot be read.
    #[error("--mid-stream-grace {0:?}: write forever, or a duration such as 60s")]
    MidStreamGrace(String),
    /// `--denied-retention` cannot be read or is too short.
    #[error("--denied-retention {0:?}: write a duration of at least 1m, such as 24h")]
    DeniedRetention(String),
    /// `--attach` is neither word.
    #[error("--attach {0:?}: unknown; write tcx or clsact, or leave it out")]
    Attach(String),
    /// `--on-cut` is neither word.
    #[error("--on-cut {0:?}: unknown; write silence or reset")]
    OnCut(String),
    /// `--cni-plugin` is neither word.
    #[error("--cni-plugin {0:?}: unknown; write off or install")]
    Plugin(String),
    /// `--cni-on-timeout` is neither word.
    #[error("--cni-on-timeout {0:?}: unknown; write start or fail")]
    OnTimeout(String),
    /// `--cni-wait` cannot be read or is too long.
    #[error("--cni-wait {0:?}: write a duration of 1ms to 5s")]
    PluginWait(String),
    /// `--log-format` is neither word.
    #[error("--log-format {0:?}: unknown; write text or json")]
    LogFormat(String),
    /// `--map-capacity` cannot be read.
    #[error("--map-capacity {0:?}: write NAME=ENTRIES, for example PEERS_EXACT=262144")]
    CapacityForm(String),
    /// `--map-capacity` names no map.
    #[error("--map-capacity {name:?}: no such map; sizeable are {known}")]
    UnknownMap {
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// An address of `--dns-cache` is none.
    #[error("--dns-cache {0:?}: not an IP address; an empty value where the node has no cache")]
    DnsCacheAddress(String),
    /// `--dns-service` names no Service.
    #[error("--dns-service {0:?}: write NAMESPACE/NAME, as {DEFAULT_DNS_SERVICE}")]
    DnsService(String),
    /// `--map-capacity` is out of range.
    #[error("--map-capacity {name}={value}: must be at least 1 and at most {most}")]
    Capacity {
        /// The map.
        name: &'static str,
        /// The capacity given.
        value: u64,
        /// The largest one that is taken.
        most: u32,
    },
}

/// Options as they come from the command line and the environment.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--manifests`.
    pub manifests: Option<PathBuf>,
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// This runs in a pod, which knows its cluster.
    pub is_in_cluster: bool,
    /// `--node`.
    pub node: Option<String>,
    /// `--metrics`.
    pub metrics: Option<String>,
    /// `--socket`.
    pub socket: PathBuf,
    /// `--pins`.
    pub pins: PathBuf,
    /// `--netns`.
    pub netns: PathBuf,
    /// `--cni-results`.
    pub cni_results: PathBuf,
    /// `--state`.
    pub state: PathBuf,
    /// `--posture`.
    pub posture: Posture,
    /// `--mid-stream-grace`.
    pub mid_stream_grace: MidStreamGrace,
    /// `--on-cut`.
    pub on_cut: OnCut,
    /// `--denied-retention`.
    pub denied_retention: String,
    /// `--attach`.
    pub attach: Option<Method>,
    /// `--map-capacity`, each `NAME=ENTRIES`.
    pub capacities: Vec<String>,
    /// `--dns-cache`.
    pub dns_cache: Vec<String>,
    /// `--dns-service`.
    pub dns_service: String,
    /// `--cni-plugin`.
    pub cni_plugin: Plugin,
    /// `--cni-conf-dir` and `--cni-bin-dir`.
    pub cni_places: Places,
    /// `--cni-on-timeout`.
    pub cni_on_timeout: OnTimeout,
    /// `--cni-wait`.
    pub cni_wait: String,
    /// `--log-format`.
    pub log_format: LogFormat,
}

impl Options {
    /// The options of an agent of which only the directory was said.
    pub fn new(manifests: impl Into<PathBuf>) -> Self {
        Self {
            manifests: Some(manifests.into()),
            kubeconfig: None,
            is_in_cluster: false,
            node: None,
            metrics: None,
            socket: PathBuf::from(DEFAULT_SOCKET),
            pins: PathBuf::from(DEFAULT_PINS),
            netns: PathBuf::from(DEFAULT_NETNS),
            cni_results: PathBuf::from(DEFAULT_CNI_RESULTS),
            state: PathBuf::from(DEFAULT_STATE),
            posture: Posture::default(),
            mid_stream_grace: MidStreamGrace::default(),
            on_cut: OnCut::default(),
            denied_retention: DEFAULT_DENIED_RETENTION.to_owned(),
            attach: None,
            capacities: Vec::new(),
            dns_cache: vec![DEFAULT_DNS_CACHE.to_owned()],
            dns_service: DEFAULT_DNS_SERVICE.to_owned(),
            cni_plugin: Plugin::default(),
            cni_places: Places {
                conf: PathBuf::from(DEFAULT_CONF_DIR),
                bin: PathBuf::from(DEFAULT_BIN_DIR),
            },
            cni_on_timeout: OnTimeout::default(),
            cni_wait: DEFAULT_CNI_WAIT.to_owned(),
            log_format: LogFormat::default(),
        }
    }
}

/// The agent's configuration, valid as a whole.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Where objects come from.
    pub objects: Objects,
    /// Only pods whose `spec.nodeName` is this are local; without it, every pod that has an
    /// interface here is.
    pub node: Option<String>,
    /// Where `/metrics` is served beside the socket, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// Directory of bpffs under which the versioned pin directory is made.
    pub pins: PathBuf,
    /// Directory of network namespaces.
    pub netns: PathBuf,
    /// Directory of CNI's results.
    pub cni_results: PathBuf,
    /// Directory in which what an API server said is kept.
    pub state: PathBuf,
    /// What happens to the unknown.
    pub posture: Posture,
    /// How long connections may be taken up in their middle.
    pub mid_stream_grace: MidStreamGrace,
    /// What the ends of a cut TCP connection learn.
    pub on_cut: OnCut,
    /// How long a refusal is remembered after it last happened.
    pub denied_retention: Duration,
    /// How programs are held on interfaces; the best that the kernel has when not said.
    pub attach: Option<Method>,
    /// Capacities that differ from the default, by map name.
    pub capacities: Capacities,
    /// The node's DNS cache, and the Service that it stands for.
    pub dns_cache: DnsCache,
    /// Where the CNI plugin is put and what its entry says; nothing where it is not.
    pub plugin: Option<(Places, Entry)>,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Config {
    /// Validates options. Reads nothing but whether the directory or file that they name is one.
    ///
    /// # Errors
    /// The first option that cannot be what it says, with the remedy.
    pub fn new(options: Options) -> Result<Self, ConfigError> {
        let objects = Objects::of(&options)?;
        let plugin = plugin::of(&options)?;
        if options.node.as_deref() == Some("") {
            return Err(ConfigError::EmptyNode);
        }
        for (option, path) in [
            ("--socket", &options.socket),
            ("--pins", &options.pins),
            ("--netns", &options.netns),
            ("--cni-results", &options.cni_results),
            ("--state", &options.state),
        ] {
            absolute(option, path)?;
        }
        Ok(Self {
            metrics: options
                .metrics
                .as_deref()
                .map(metrics_address)
                .transpose()?,
            capacities: Capacities::parse(&options.capacities)?,
            dns_cache: DnsCache::parse(&options.dns_cache, &options.dns_service)?,
            plugin,
            objects,
            node: options.node,
            socket: options.socket,
            pins: options.pins,
            netns: options.netns,
            cni_results: options.cni_results,
            state: options.state,
            posture: options.posture,
            mid_stream_grace: options.mid_stream_grace,
            on_cut: options.on_cut,
            attach: options.attach,
            denied_retention: duration(&options.denied_retention)
                .filter(|kept| *kept >= SHORTEST_RETENTION)
                .ok_or(ConfigError::DeniedRetention(options.denied_retention))?,
            log_format: options.log_format,
        })
    }
}

fn absolute(option: &'static str, path: &Path) -> Result<(), ConfigError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(ConfigError::Relative {
        option,
        path: path.to_owned(),
    })
}

/// `ADDR:PORT`, `ADDR`, `:PORT` or `PORT`; the address is loopback unless said.
fn metrics_address(text: &str) -> Result<SocketAddr, ConfigError> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, DEFAULT_METRICS_PORT));
    }
    match text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        Ok(port) => Ok(SocketAddr::new(loopback, port)),
        Err(_) => Err(ConfigError::Metrics(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl FnOnce(&mut Options)) -> Result<Config, ConfigError> {
        let mut options = Options::new("/");
        change(&mut options);
        Config::new(options)
    }

    #[test]
    fn metrics_are_off_unless_asked_for_and_loopback_unless_told() {
        let metrics = |text: Option<&str>| {
            config(|options| options.metrics = text.map(str::to_owned)).map(|config| config.metrics)
        };
        let parsed = |text: &str| Some(text.parse().unwrap());
        assert_eq!(metrics(None), Ok(None));
        assert_eq!(metrics(Some(":9911")), Ok(parsed("127.0.0.1:9911")));
        assert_eq!(metrics(Some("8080")), Ok(parsed("127.0.0.1:8080")));
        assert_eq!(metrics(Some("0.0.0.0")), Ok(parsed("0.0.0.0:9911")));
        assert_eq!(metrics(Some("[::1]:1")), Ok(parsed("[::1]:1")));
        assert_eq!(
            metrics(Some("all")),
            Err(ConfigError::Metrics("all".to_owned()))
        );
    }

    #[test]
    fn the_mid_stream_grace_is_a_duration_or_has_no_end() {
        let of = |word: &str| word.parse::<MidStreamGrace>();
        assert_eq!(MidStreamGrace::default(), MidStreamGrace::Forever);
        assert_eq!(of("forever"), Ok(MidStreamGrace::Forever));
        assert_eq!(of("60s"), Ok(MidStreamGrace::For(Duration::from_mins(1))));
        for wrong in ["60", "-1s", "never", ""] {
            assert_eq!(
                of(wrong),
                Err(ConfigError::MidStreamGrace(wrong.to_owned()))
            );
        }
    }

    #[test]
    fn refusals_are_remembered_for_a_minute_at_least() {
        let of = |word: &str| {
            config(|options| options.denied_retention = word.to_owned())
                .map(|config| config.denied_retention)
        };
        assert_eq!(of("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(
            config(|_| {}).map(|config| config.denied_retention),
            Ok(Duration::from_hours(24))
        );
        for wrong in ["59s", "soon"] {
            assert_eq!(
                of(wrong),
                Err(ConfigError::DeniedRetention(wrong.to_owned()))
            );
        }
    }

    #[test]
    fn capacities_are_taken_by_name_within_limits() {
        let of = |item: &str| {
            config(|options| options.capacities = vec![item.to_owned()])
                .map(|config| config.capacities)
        };
        let taken = of("peers_exact=262144").unwrap();
        assert_eq!(taken.of("PEERS_EXACT"), 262_144);
        assert_eq!(taken.of("VERDICTS"), 524_288, "the default stays");
        assert!(matches!(
            of("PEERS_EXACT"),
            Err(ConfigError::CapacityForm(_))
        ));
        for sized_by_another in ["PASSED=9", "ENDPOINTS_COLLIDING=9"] {
            assert!(matches!(
                of(sized_by_another),
                Err(ConfigError::UnknownMap { .. })
            ));
        }
        assert!(matches!(
            of("VERDICTS=0"),
            Err(ConfigError::Capacity { value: 0, .. })
        ));
        assert!(matches!(
            of("VERDICTS=99999999999"),
            Err(ConfigError::Capacity { .. })
        ));
    }

    #[test]
    fn relative_paths_and_empty_names_are_refused() {
        assert!(matches!(
            config(|options| options.socket = "run/x.sock".into()),
            Err(ConfigError::Relative {
                option: "--socket",
                ..
            })
        ));
        assert_eq!(
            config(|options| options.node = Some(String::new())),
            Err(ConfigError::EmptyNode)
        );
    }
}
