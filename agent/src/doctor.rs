//! What `picket doctor` looks at: whether this node can be enforced, and whether it is. A file a
//! subject; in each, reading the node is apart from judging what was read.
//!
//! Nothing here changes the node. What has to be made to find out is made in namespaces of this
//! process's own, which the kernel takes away with it.

mod capabilities;
mod clock;
mod cni;
mod dns;
mod interfaces;
mod kernel;
mod memory;
mod mountinfo;
mod mounts;
mod packets;
mod proxy;
mod running;

use std::path::PathBuf;

use crate::dataplane::pinned_interfaces;
use crate::dto::{CheckReport, CheckResult, Doctor};

pub use running::Agent;

/// Version of this program, as agents say theirs.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is looked at; the words that lines begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Check {
    /// The kernel's version, BTF and JIT.
    Kernel,
    /// Room for maps.
    Memory,
    /// What this process may do.
    Capabilities,
    /// The BPF file system that pins are in.
    Bpffs,
    /// Where pods' network namespaces are.
    Netns,
    /// Where the container runtime says whose an interface is.
    Results,
    /// The agent's own directories.
    Directories,
    /// What makes pods' network, and whether it enforces policy.
    Cni,
    /// Our entry in that network.
    CniPlugin,
    /// Whether this is the node's network.
    Network,
    /// What others have put on interfaces.
    Interfaces,
    /// What serves Services.
    Proxy,
    /// Whether Services reach pods of the same bridge.
    Bridge,
    /// Where pods ask for names.
    Dns,
    /// Whether something keeps the clock right.
    Clock,
    /// That our programs load, and how they are held.
    Programs,
    /// That policy decides about packets.
    Packets,
    /// The agent of this node, and what it says of itself.
    Agent,
}

impl Check {
    /// The word.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Memory => "memory",
            Self::Capabilities => "capabilities",
            Self::Bpffs => "bpffs",
            Self::Netns => "netns",
            Self::Results => "cni-results",
            Self::Directories => "directories",
            Self::Cni => "cni",
            Self::CniPlugin => "cni-plugin",
            Self::Network => "network",
            Self::Interfaces => "interfaces",
            Self::Proxy => "kube-proxy",
            Self::Bridge => "bridge",
            Self::Dns => "dns",
            Self::Clock => "clock",
            Self::Programs => "programs",
            Self::Packets => "packets",
            Self::Agent => "agent",
        }
    }

    /// Whether the answer hangs on it: what is not known of it leaves the whole unknown.
    pub const fn is_essential(self) -> bool {
        match self {
            Self::Kernel | Self::Capabilities | Self::Bpffs | Self::Programs | Self::Packets => {
                true
            }
            Self::Memory
            | Self::Netns
            | Self::Results
            | Self::Directories
            | Self::Cni
            | Self::CniPlugin
            | Self::Network
            | Self::Interfaces
            | Self::Proxy
            | Self::Bridge
            | Self::Dns
            | Self::Clock
            | Self::Agent => false,
        }
    }
}

/// What was found means; all but the first say what to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Judgement {
    /// As it should be.
    Ok,
    /// Policy is enforced, and somebody may wonder.
    Warning(String),
    /// Policy is not enforced as it should be, or something is broken.
    Problem(String),
    /// It could not be found out.
    Unknown(String),
}

/// One answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// What was found.
    pub found: String,
    /// What that means.
    pub judgement: Judgement,
}

impl Finding {
    fn new(check: Check, found: impl Into<String>, judgement: Judgement) -> Self {
        Self {
            check,
            found: found.into(),
            judgement,
        }
    }

    fn ok(check: Check, found: impl Into<String>) -> Self {
        Self::new(check, found, Judgement::Ok)
    }

    fn warning(check: Check, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, found, Judgement::Warning(remedy.into()))
    }

    fn problem(check: Check, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, found, Judgement::Problem(remedy.into()))
    }

    /// What somebody without root's rights cannot do says nothing of the agent.
    fn unless_only_rights_lack(self, is_root: bool) -> Self {
        if is_root || !matches!(self.judgement, Judgement::Problem(_)) {
            return self;
        }
        Self::unknown(self.check, self.found, "run picket doctor as root")
    }

    fn into_report(self) -> CheckReport {
        let (result, remedy) = match self.judgement {
            Judgement::Ok => (CheckResult::Ok, None),
            Judgement::Warning(remedy) => (CheckResult::Warning, Some(remedy)),
            Judgement::Problem(remedy) => (CheckResult::Problem, Some(remedy)),
            Judgement::Unknown(remedy) => (CheckResult::Unknown, Some(remedy)),
        };
        CheckReport {
            check: self.check.as_label().to_owned(),
            result,
            found: self.found,
            remedy,
        }
    }

    fn unknown(check: Check, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, found, Judgement::Unknown(remedy.into()))
    }
}

/// Where things are on the node.
#[derive(Clone, Debug)]
pub struct Places {
    /// Its file system.
    pub root: PathBuf,
    /// The directory that pins are made under.
    pub pins: PathBuf,
    /// Of pods' network namespaces.
    pub netns: PathBuf,
    /// Of the container runtime's CNI results.
    pub cni_results: PathBuf,
    /// In which the agent keeps what an API server said.
    pub state: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Of the container runtime's networks.
    pub cni_conf: PathBuf,
    /// Of the container runtime's plugins.
    pub cni_bin: PathBuf,
}

impl Places {
    /// The same places as this process sees them, below the node's root.
    #[must_use]
    pub fn below_root(self) -> Self {
        let root = &self.root;
        let below = |path: PathBuf| match path.strip_prefix("/") {
            Ok(relative) => root.join(relative),
            Err(_) => path,
        };
        Self {
            root: root.clone(),
            pins: below(self.pins),
            netns: below(self.netns),
            cni_results: below(self.cni_results),
            state: below(self.state),
            socket: below(self.socket),
            cni_conf: below(self.cni_conf),
            cni_bin: below(self.cni_bin),
        }
    }
}

/// The whole of it, as it leaves the process.
pub fn report(findings: Vec<Finding>) -> Doctor {
    let is_problem = |finding: &Finding| matches!(finding.judgement, Judgement::Problem(_));
    let is_open = |finding: &Finding| {
        finding.check.is_essential() && matches!(finding.judgement, Judgement::Unknown(_))
    };
    let result = if findings.iter().any(is_problem) {
        CheckResult::Problem
    } else if findings.iter().any(is_open) {
        CheckResult::Unknown
    } else {
        CheckResult::Ok
    };
    Doctor {
        version: VERSION.to_owned(),
        result,
        checks: findings.into_iter().map(Finding::into_report).collect(),
    }
}

/// Looks at everything, in the order of the answer. `agent` is what was learnt of the agent.
pub fn examine(places: &Places, agent: &Agent) -> Vec<Finding> {
    let kernel = kernel::Kernel::read();
    let mut findings = vec![kernel.judge()];
    findings.push(memory::Memory::read().judge());
    let held = capabilities::Held::read();
    findings.push(held.judge(&kernel));
    let mounts = mounts::examine(places).into_iter();
    findings.extend(mounts.map(|finding| finding.unless_only_rights_lack(held.is_root)));
    let network = cni::read(places);
    findings.extend(cni::judge_all(&network, places));
    findings.extend(interfaces::examine());
    findings.extend(proxy::Proxy::read().judge(network.as_ref().ok()));
    findings.push(dns::Names::read(&places.root).judge());
    findings.push(clock::judge(clock::read()));
    findings.extend(packets::attempt().judge());
    findings.extend(agent.judge(pinned_interfaces(&places.pins), VERSION));
    findings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_problem_outweighs_what_is_unknown_and_only_what_matters_may_be_unknown() {
        let ok = || Finding::ok(Check::Kernel, "");
        let warning = || Finding::warning(Check::Cni, "", "");
        let problem = || Finding::problem(Check::Cni, "", "");
        let unseen = || Finding::unknown(Check::Cni, "", "");
        let open = || Finding::unknown(Check::Capabilities, "", "");
        for (findings, whole) in [
            (vec![ok(), warning(), unseen()], CheckResult::Ok),
            (vec![ok(), open(), warning()], CheckResult::Unknown),
            (vec![open(), problem()], CheckResult::Problem),
        ] {
            assert_eq!(report(findings).result, whole);
        }
    }

    #[test]
    fn what_only_root_could_do_is_unknown_to_others() {
        let problem = || Finding::problem(Check::Bpffs, "no writing", "");
        assert_eq!(problem().unless_only_rights_lack(true), problem());
        let unknown = problem().unless_only_rights_lack(false);
        assert!(
            matches!(unknown.judgement, Judgement::Unknown(_)),
            "{unknown:?}"
        );
    }

    #[test]
    fn a_nodes_files_are_looked_for_below_its_root() {
        let places = |root: &str| Places {
            root: root.into(),
            pins: "/sys/fs/bpf/picket".into(),
            netns: "/run/netns".into(),
            cni_results: "/var/lib/cni/results".into(),
            state: "/var/lib/picket".into(),
            socket: "/run/picket/agent.sock".into(),
            cni_conf: "/etc/cni/net.d".into(),
            cni_bin: "/opt/cni/bin".into(),
        };
        let host = places("/host").below_root();
        assert_eq!(host.pins, Path::new("/host/sys/fs/bpf/picket"));
        assert_eq!(host.cni_bin, Path::new("/host/opt/cni/bin"));
        assert_eq!(places("/").below_root().netns, Path::new("/run/netns"));
    }
}
