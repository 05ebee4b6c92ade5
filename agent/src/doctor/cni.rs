//! What makes pods' network, and whether that enforces NetworkPolicy by itself: two who judge the
//! same packets deny what either denies.

use std::path::Path;

use super::{Check, Finding, Places};
use crate::plugin::{InstallError, NAME, NodeNetwork, network_in_force, network_of_results};

/// A CNI that enforces NetworkPolicy, and whether it always does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Enforcer {
    name: &'static str,
    /// What has to be so for it to enforce; nothing when it always does.
    only_if: Option<&'static str>,
}

/// Who enforces, by a plugin's type.
const BY_TYPE: [(&str, Enforcer); 12] = [
    ("calico", always("Calico (or Canal)")),
    ("cilium-cni", always("Cilium")),
    ("antrea", always("Antrea")),
    ("weave-net", always("Weave Net")),
    ("ovn-k8s-cni-overlay", always("OVN-Kubernetes")),
    ("kube-ovn", always("Kube-OVN")),
    ("openshift-sdn", always("OpenShift SDN")),
    ("kube-router", always("kube-router")),
    ("romana", always("Romana")),
    (
        "aws-cni",
        when("the AWS VPC CNI", "its network policy agent is on"),
    ),
    (
        "azure-vnet",
        when("Azure CNI", "a network policy manager runs beside it"),
    ),
    (
        "multus",
        when("Multus", "the network that it hands over to does"),
    ),
];

/// Who enforces and makes its network of plain plugins, by a part of the list's or its file's name.
const BY_NAME: [(&str, Enforcer); 3] = [
    ("kuberouter", always("kube-router")),
    ("kube-router", always("kube-router")),
    (
        "kindnet",
        when("kindnet", "it is of kind 0.24 (August 2024) or newer"),
    ),
];

/// Plugins that wire pods and enforce nothing.
const WIRES: [&str; 5] = ["flannel", "bridge", "ptp", "loopback", "netkit"];
/// Plugins that give a pod no veth: no place for Picket's programs.
const WITHOUT_VETH: [&str; 5] = ["macvlan", "ipvlan", "sriov", "host-device", "vlan"];
/// Plugins that come after the one that wires.
const BESIDES: [&str; 6] = ["portmap", "bandwidth", "tuning", "firewall", "sbr", NAME];

const fn always(name: &'static str) -> Enforcer {
    Enforcer {
        name,
        only_if: None,
    }
}

const fn when(name: &'static str, only_if: &'static str) -> Enforcer {
    Enforcer {
        name,
        only_if: Some(only_if),
    }
}

impl Enforcer {
    /// Who enforces in this network, if anybody but Picket.
    fn of(network: &NodeNetwork) -> Option<Self> {
        let by_type = network.plugins.iter().find_map(|plugin| {
            let found = BY_TYPE.iter().find(|(kind, _)| kind == plugin);
            found.map(|(_, enforcer)| *enforcer)
        });
        by_type.or_else(|| {
            let file = network
                .path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy();
            let is_named = |part: &str| network.name.contains(part) || file.contains(part);
            let found = BY_NAME.iter().find(|(part, _)| is_named(part));
            found.map(|(_, enforcer)| *enforcer)
        })
    }
}

/// The network in force; where its directory is not seen, the one that the latest pod got.
pub(super) fn read(places: &Places) -> Result<NodeNetwork, InstallError> {
    let latest = |error| network_of_results(&places.cni_results).ok_or(error);
    network_in_force(&places.cni_conf).or_else(latest)
}

pub(super) fn judge_all(
    network: &Result<NodeNetwork, InstallError>,
    places: &Places,
) -> Vec<Finding> {
    let mut findings = vec![judge(network)];
    if let Ok(network) = network {
        findings.extend(plugin(network, &places.cni_bin));
    }
    findings
}

fn judge(network: &Result<NodeNetwork, InstallError>) -> Finding {
    let network = match network {
        Ok(network) => network,
        Err(InstallError::NoNetwork(conf)) => {
            return Finding::unknown(
                Check::Cni,
                format!("no network in {}", conf.display()),
                "in a container mount that directory; on a node install a CNI, or name its \
                 directory with --cni-conf-dir",
            );
        }
        Err(error) => {
            return Finding::problem(
                Check::Cni,
                error.to_string(),
                "mend it: the container runtime reads it, too",
            );
        }
    };
    let plugins = network.plugins.join(", ");
    let found = format!("{}: {plugins}", network.path.display());
    if let Some(enforcer) = Enforcer::of(network) {
        let name = enforcer.name;
        let remedy = format!(
            "let one of the two enforce: switch {name}'s NetworkPolicy off, or do without Picket; \
             until then packets pass that both allow"
        );
        return match enforcer.only_if {
            None => Finding::problem(
                Check::Cni,
                format!("{found}; {name} enforces NetworkPolicy by itself"),
                remedy,
            ),
            Some(condition) => Finding::warning(
                Check::Cni,
                format!("{found}; {name} enforces NetworkPolicy by itself if {condition}"),
                remedy,
            ),
        };
    }
    let is_any = |of: &[&str]| {
        network
            .plugins
            .iter()
            .any(|plugin| of.contains(&plugin.as_str()))
    };
    if is_any(&WITHOUT_VETH) {
        return Finding::problem(
            Check::Cni,
            format!("{found}; it gives pods no veth: Picket cannot enforce them"),
            "wire pods with a plugin that makes a veth, such as ptp or bridge",
        );
    }
    let is_known = |plugin: &String| {
        let plugin = plugin.as_str();
        WIRES.contains(&plugin) || BESIDES.contains(&plugin)
    };
    if !network.plugins.iter().all(is_known) {
        return Finding::warning(
            Check::Cni,
            format!("{found}; whether that enforces NetworkPolicy by itself is not known"),
            "look into its documentation; pods of a network that gives them no veth are told of by \
             `picket status`",
        );
    }
    Finding::ok(
        Check::Cni,
        format!("{found}; none of it enforces NetworkPolicy"),
    )
}

/// Whether our entry names a program that is there.
fn plugin(network: &NodeNetwork, bin: &Path) -> Option<Finding> {
    let is_ours = network.plugins.iter().any(|plugin| plugin == NAME);
    let program = bin.join(NAME);
    is_ours.then(|| entry(&network.path, bin, bin.is_dir(), program.is_file()))
}

fn entry(list: &Path, bin: &Path, is_bin_seen: bool, is_there: bool) -> Finding {
    let list = list.display();
    if is_there {
        return Finding::ok(
            Check::CniPlugin,
            format!("{list} names {NAME}, which is in {}", bin.display()),
        );
    }
    if !is_bin_seen {
        return Finding::unknown(
            Check::CniPlugin,
            format!("{list} names {NAME}; {} is not seen here", bin.display()),
            "mount that directory, or name the right one with --cni-bin-dir",
        );
    }
    Finding::problem(
        Check::CniPlugin,
        format!(
            "{list} names {NAME}, and {} has no such program: no pod can start",
            bin.display()
        ),
        "take the entry out with `picket uninstall`, or start the agent with --cni-plugin install, \
         which puts the program there",
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::Judgement;
    use super::*;

    fn network(file: &str, name: &str, plugins: &[&str]) -> Finding {
        judge(&Ok(NodeNetwork {
            path: Path::new("/etc/cni/net.d").join(file),
            name: name.to_owned(),
            plugins: plugins.iter().map(|plugin| (*plugin).to_owned()).collect(),
        }))
    }

    #[test]
    fn who_enforces_by_itself_is_a_problem() {
        for (file, name, plugins, who) in [
            (
                "10-calico.conflist",
                "k8s-pod-network",
                &["calico", "bandwidth", "portmap"][..],
                "Calico",
            ),
            (
                "10-canal.conflist",
                "k8s-pod-network",
                &["calico", "portmap"],
                "Canal",
            ),
            ("05-cilium.conflist", "cilium", &["cilium-cni"], "Cilium"),
            (
                "10-antrea.conflist",
                "antrea",
                &["antrea", "portmap"],
                "Antrea",
            ),
            (
                "10-weave.conflist",
                "weave",
                &["weave-net", "portmap"],
                "Weave",
            ),
            (
                "10-kuberouter.conflist",
                "kubernetes",
                &["bridge", "portmap"],
                "kube-router",
            ),
            (
                "10-ovn-kubernetes.conf",
                "ovn-kubernetes",
                &["ovn-k8s-cni-overlay"],
                "OVN",
            ),
        ] {
            let finding = network(file, name, plugins);
            assert!(
                matches!(finding.judgement, Judgement::Problem(_)),
                "{finding:?}"
            );
            assert!(finding.found.contains(who), "{finding:?}");
        }
    }

    #[test]
    fn who_may_enforce_or_is_not_known_is_a_warning() {
        for (file, name, plugins) in [
            (
                "10-aws.conflist",
                "aws-cni",
                &["aws-cni", "egress-cni", "portmap"][..],
            ),
            ("10-kindnet.conflist", "kindnet", &["ptp", "portmap"]),
            ("00-multus.conf", "multus-cni-network", &["multus"]),
            ("10-new.conflist", "new", &["somebodys"]),
        ] {
            let finding = network(file, name, plugins);
            assert!(
                matches!(finding.judgement, Judgement::Warning(_)),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn networks_that_ignore_policy_are_what_picket_is_for_unless_they_make_no_veth() {
        for (file, plugins) in [
            ("10-flannel.conflist", &["flannel", "portmap"][..]),
            ("10-bridge.conf", &["bridge"]),
            ("10-ptp.conflist", &["ptp", "portmap", "bandwidth", NAME]),
        ] {
            let finding = network(file, "cbr0", plugins);
            assert_eq!(finding.judgement, Judgement::Ok, "{finding:?}");
        }
        let without = network("10-macvlan.conflist", "lan", &["macvlan"]);
        assert!(
            matches!(without.judgement, Judgement::Problem(_)),
            "{without:?}"
        );
    }

    #[test]
    fn no_network_is_unknown_and_one_that_cannot_be_read_a_problem() {
        let conf = PathBuf::from("/etc/cni/net.d");
        let none = judge(&Err(InstallError::NoNetwork(conf.clone())));
        assert!(matches!(none.judgement, Judgement::Unknown(_)), "{none:?}");
        let broken = judge(&Err(InstallError::NoFile(conf)));
        assert!(
            matches!(broken.judgement, Judgement::Problem(_)),
            "{broken:?}"
        );
    }

    #[test]
    fn an_entry_without_its_program_is_a_problem() {
        let judged = |is_bin_seen, is_there| {
            let list = Path::new("/etc/cni/net.d/10-ptp.conflist");
            entry(list, Path::new("/opt/cni/bin"), is_bin_seen, is_there).judgement
        };
        assert_eq!(judged(true, true), Judgement::Ok);
        assert!(matches!(judged(true, false), Judgement::Problem(_)));
        assert!(matches!(judged(false, false), Judgement::Unknown(_)));
    }
}
