//! The result cache of CNI: what the container runtime wrote about each pod's interface when it was
//! made. The runtime's own library keeps it, whatever the plugins are, and it is whole some hundred
//! milliseconds before the pod's first packet: earlier than anything else that names a pod's UID.
//!
//! Files are `NETWORK-CONTAINER-INTERFACE`, JSON (containernetworking/cni, libcni/api.go,
//! `cachedInfo`; the namespace is in it since version 1.2, and in each interface of the result
//! always). They are the runtime's, so what they say is believed; one that cannot be read says
//! nothing, and the pod is then found by the address its object states.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use agent_policy::model::{ObjectName, PodUid};
use ipnet::IpNet;
use serde::Deserialize;

use crate::signature::Signature;

/// Where libcni keeps results when nothing else is said (libcni/api.go, `CacheDir`).
pub const DEFAULT_CNI_RESULTS: &str = "/var/lib/cni/results";

/// No result is larger: it repeats the plugins' configuration and names a few interfaces.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 20;

/// The pod sandbox that an interface was made for, by the word of the container runtime.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sandbox {
    /// Identity of the pod. A static pod's is the kubelet's own, not that of its mirror in the API.
    pub uid: PodUid,
    /// Namespace and name.
    pub pod: ObjectName,
    /// Its addresses, sorted.
    pub addresses: Vec<IpAddr>,
}

impl Sandbox {
    /// True when the UID is one that the kubelet gave, to a pod that it made without being told to by
    /// the API: a digest, without the dashes of a UUID (kubelet, pkg/kubelet/config, `applyDefaults`).
    pub fn is_static(&self) -> bool {
        !self.uid.0.contains('-')
    }
}

/// What one file says, or the chained plugin before there is one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Recorded {
    /// File name of the network namespace.
    pub(super) netns: OsString,
    /// What the interface was called inside when it was made.
    pub(super) inside: String,
    /// Interfaces that the plugins made on the node's side, none where they do not say. A pod may
    /// call its own end what it likes, not these.
    outside: Vec<String>,
    pub(super) sandbox: Sandbox,
}

impl Recorded {
    /// The sandbox, if this is about the interface that is `inside` and `outside` now.
    pub(super) fn of(&self, inside: &str, outside: &str) -> Option<&Sandbox> {
        let is_it = if self.outside.is_empty() {
            self.inside == inside
        } else {
            self.outside.iter().any(|name| name == outside)
        };
        is_it.then_some(&self.sandbox)
    }
}

/// What the files say, by file name of the network namespace.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Records(HashMap<OsString, Vec<Recorded>>);

impl Records {
    /// The sandbox that an interface was made for, by its namespace's file and its two names.
    pub(super) fn of(&self, netns: &Path, inside: &str, outside: &str) -> Option<&Sandbox> {
        let about = self.0.get(netns.file_name()?)?;
        about.iter().find_map(|each| each.of(inside, outside))
    }

    /// Adds what was said later than all that is here.
    pub(super) fn add(&mut self, recorded: Recorded) {
        let about = self.0.entry(recorded.netns.clone()).or_default();
        about.insert(0, recorded);
    }
}

/// What the cache's files say, read again only when a file has changed.
#[derive(Debug)]
pub(super) struct Results {
    directory: PathBuf,
    /// Last part of the name of the directory of namespaces. Results that speak of another kind of
    /// place, as `/proc/1/ns/net`, would all speak of one.
    netns: Option<OsString>,
    files: HashMap<OsString, (Signature, Option<Recorded>)>,
    /// It was said that files are there which say nothing.
    has_warned: bool,
}

impl Results {
    /// Those under `directory`, about namespaces of `netns_dir`.
    pub(super) fn of(directory: &Path, netns_dir: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            netns: netns_dir.file_name().map(ToOwned::to_owned),
            files: HashMap::new(),
            has_warned: false,
        }
    }

    /// Where the files are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the files say now. A directory that is not there says nothing: there is none before the
    /// node's first pod, and none at all with runtimes that do without it.
    pub(super) fn read(&mut self) -> Records {
        let mut before = std::mem::take(&mut self.files);
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            // Not what a link points to, and no pipe that would hold us up.
            if !metadata.is_file() {
                continue;
            }
            let signature = Signature::of(&metadata);
            let known = before.remove(&name).filter(|(at, _)| *at == signature);
            let said = match known {
                Some((_, said)) => said,
                None => self.read_one(&entry.path()),
            };
            self.files.insert(name, (signature, said));
        }
        self.warn_of_silence();
        let mut records = Records::default();
        for recorded in self.files.values().filter_map(|(_, said)| said.as_ref()) {
            records.add(recorded.clone());
        }
        records
    }

    /// Results that nobody can use are worse than none: pods would be known later, and nobody knew.
    fn warn_of_silence(&mut self) {
        let is_own = |name: &OsString| name.to_string_lossy().ends_with(DEFAULT_INTERFACE);
        let is_silent =
            self.files.keys().any(is_own) && self.files.values().all(|(_, said)| said.is_none());
        if is_silent && !self.has_warned {
            tracing::warn!(
                directory = %self.directory.display(),
                "CNI results are there and none says whose an interface is: pods are known by the \
                 addresses that their objects state, which come later"
            );
        }
        self.has_warned = is_silent;
    }

    fn read_one(&self, path: &Path) -> Option<Recorded> {
        let netns = self.netns.as_deref();
        match read_bounded(path).and_then(|bytes| parse(&bytes, netns)) {
            Ok(said) => said,
            // Half written, as a rule: the write's end makes it be read again.
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "CNI result cannot be read");
                None
            }
        }
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(bytes)
}

/// What the runtime calls a pod's own interface. Whatever else it makes for the pod is beside that:
/// its address is not the pod's (containerd, internal/cri/server, `defaultIfName`; CRI-O the same).
const DEFAULT_INTERFACE: &str = "eth0";

/// What libcni writes, as far as it says whose an interface is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    #[serde(default)]
    netns: PathBuf,
    if_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: Outcome,
}

/// A plugin's result; its form has been the same since version 0.3 of the specification.
#[derive(Default, Deserialize)]
struct Outcome {
    #[serde(default)]
    interfaces: Vec<Made>,
    #[serde(default)]
    ips: Vec<Given>,
}

#[derive(Deserialize)]
struct Made {
    name: String,
    /// The namespace it is in; empty for one of the node's.
    #[serde(default)]
    sandbox: String,
}

impl Cached {
    /// The pod's namespace: runtimes whose libcni does not say it have it from their plugins.
    fn netns(&self) -> &Path {
        if !self.netns.as_os_str().is_empty() {
            return &self.netns;
        }
        let mut made = self.result.interfaces.iter();
        let own = made.find(|made| made.name == self.if_name && !made.sandbox.is_empty());
        own.map_or(Path::new(""), |made| Path::new(&made.sandbox))
    }
}

#[derive(Deserialize)]
struct Given {
    /// With the length of its prefix.
    address: String,
    /// Index in `interfaces` of whose it is; anybody's without.
    interface: Option<usize>,
}

/// What a file says; nothing when it is not about a pod in a namespace of the directory `netns`.
pub(super) fn parse(bytes: &[u8], netns: Option<&OsStr>) -> io::Result<Option<Recorded>> {
    let cached: Cached = serde_json::from_slice(bytes)?;
    let place = cached.netns();
    if cached.if_name != DEFAULT_INTERFACE || place.parent().and_then(Path::file_name) != netns {
        return Ok(None);
    }
    let arg = |wanted: &str| {
        let mut args = cached.cni_args.iter();
        let found = args.find(|(name, value)| name == wanted && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    };
    let (Some(namespace), Some(name), Some(uid), Some(netns)) = (
        arg("K8S_POD_NAMESPACE"),
        arg("K8S_POD_NAME"),
        arg("K8S_POD_UID"),
        place.file_name(),
    ) else {
        return Ok(None);
    };
    let is_own = |given: &&Given| {
        let made = given
            .interface
            .and_then(|index| cached.result.interfaces.get(index));
        made.is_none_or(|made| made.name == cached.if_name && !made.sandbox.is_empty())
    };
    let own = cached.result.ips.iter().filter(is_own);
    let addresses = own.map(|given| Ok(given.address.parse::<IpNet>()?.addr()));
    let addresses: Result<Vec<IpAddr>, ipnet::AddrParseError> = addresses.collect();
    let mut addresses = addresses.map_err(io::Error::other)?;
    addresses.sort_unstable();
    addresses.dedup();
    let made = cached.result.interfaces.iter();
    let outside = made.filter(|made| made.sandbox.is_empty());
    Ok(Some(Recorded {
        netns: netns.to_owned(),
        outside: outside.map(|made| made.name.clone()).collect(),
        sandbox: Sandbox {
            uid: PodUid(uid.into()),
            pod: ObjectName::new(namespace, name),
            addresses,
        },
        inside: cached.if_name,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libcni writes it for a chain that ends in ptp.
    fn cached(args: &[(&str, &str)]) -> serde_json::Value {
        serde_json::json!({
            "kind": "cniCacheV1",
            "containerId": "0123456789ab",
            "config": "e30=",
            "ifName": "eth0",
            "networkName": "lab",
            "netns": "/var/run/netns/cni-1",
            "cniArgs": args,
            "capabilityArgs": {"portMappings": []},
            "result": {
                "cniVersion": "1.0.0",
                "dns": {},
                "interfaces": [
                    {"name": "veth1", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/var/run/netns/cni-1"},
                ],
                "ips": [
                    {"interface": 1, "address": "fd00::7/64", "gateway": "fd00::1"},
                    {"interface": 1, "address": "10.0.0.7/24", "gateway": "10.0.0.1"},
                    {"interface": 0, "address": "10.0.0.1/32"},
                ],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        })
    }

    const POD: [(&str, &str); 4] = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", "shop"),
        ("K8S_POD_NAME", "api-0"),
        ("K8S_POD_UID", "u-1"),
    ];

    fn said(value: &serde_json::Value) -> Option<Recorded> {
        parse(value.to_string().as_bytes(), Some("netns".as_ref())).unwrap()
    }

    #[test]
    fn a_result_says_whose_an_interface_is_and_which_addresses_are_its_own() {
        let Recorded { netns, sandbox, .. } = said(&cached(&POD)).unwrap();
        assert_eq!(netns, "cni-1");
        assert_eq!(sandbox.uid, PodUid("u-1".into()));
        assert_eq!(sandbox.pod, ObjectName::new("shop", "api-0"));
        let addresses: [IpAddr; 2] = ["10.0.0.7", "fd00::7"].map(|each| each.parse().unwrap());
        assert_eq!(
            sandbox.addresses, addresses,
            "the host side's is not the pod's"
        );
    }

    #[test]
    fn a_result_that_is_not_about_a_pod_says_nothing() {
        for (lacking, value) in POD.iter().skip(1) {
            let mut args = POD.to_vec();
            args.retain(|(name, _)| name != lacking);
            assert_eq!(said(&cached(&args)), None, "without {lacking} {value}");
            args.push((lacking, ""));
            assert_eq!(said(&cached(&args)), None, "with an empty {lacking}");
        }
    }

    #[test]
    fn what_a_pod_calls_its_end_does_not_change_which_interface_is_meant() {
        let recorded = said(&cached(&POD)).unwrap();
        assert!(recorded.of("eth0", "veth1").is_some());
        assert!(recorded.of("renamed", "veth1").is_some());
        assert!(recorded.of("eth0", "veth2").is_none());
        // Plugins that say nothing of the node's side.
        let mut silent = cached(&POD);
        silent["result"]["interfaces"][0]["sandbox"] = "/var/run/netns/cni-1".into();
        let recorded = said(&silent).unwrap();
        assert!(recorded.of("eth0", "veth2").is_some());
        assert!(recorded.of("net1", "veth2").is_none());
    }

    #[test]
    fn a_runtime_whose_libcni_does_not_name_the_namespace_is_understood() {
        let mut of_containerd_1 = cached(&POD);
        of_containerd_1.as_object_mut().unwrap().remove("netns");
        assert_eq!(said(&of_containerd_1), said(&cached(&POD)));
    }

    #[test]
    fn what_the_runtime_makes_beside_a_pods_own_interface_is_not_the_pods() {
        for name in ["net1", "lo", "eth1"] {
            let mut beside = cached(&POD);
            beside["ifName"] = name.into();
            beside["result"]["interfaces"][1]["name"] = name.into();
            assert_eq!(said(&beside), None, "{name}");
        }
    }

    #[test]
    fn a_namespace_that_has_no_file_of_its_own_is_nobodys() {
        let mut of_docker = cached(&POD);
        of_docker["netns"] = "/proc/4711/ns/net".into();
        assert_eq!(said(&of_docker), None);
    }

    #[test]
    fn a_file_is_read_again_when_it_changed_and_half_a_file_says_nothing() {
        let name = format!("picket-cni-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let mut results = Results::of(&directory, Path::new("/run/netns"));
        assert_eq!(results.read(), Records::default(), "no directory yet");
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("lab-0123456789ab-eth0");
        let whole = cached(&POD).to_string();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        let halves = results.read();
        fs::write(&file, &whole).unwrap();
        let written = results.read();
        let again = results.read();
        fs::remove_file(&file).unwrap();
        let gone = results.read();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(halves, Records::default());
        let netns = Path::new("/run/netns/cni-1");
        assert!(written.of(netns, "eth0", "veth1").is_some());
        assert_eq!(again, written);
        assert_eq!(gone, Records::default());
    }
}
