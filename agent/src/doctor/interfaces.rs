//! What others have on the node's interfaces, and whether this process sees them at all.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::{Check, Finding};
use crate::dataplane::{Foreign, foreign};

/// Inode of the first PID namespace (`PROC_PID_INIT_INO` of `linux/proc_ns.h`): in it process 1 is
/// the node's.
const FIRST_PIDS: u64 = 0xefff_fffc;

/// How programs of those who enforce policy are named.
const ENFORCING: [(&str, &str); 5] = [
    ("cil_", "Cilium"),
    ("calico", "Calico"),
    ("cali_", "Calico"),
    ("handle_ingress", "the AWS network policy agent"),
    ("handle_egress", "the AWS network policy agent"),
];

pub(super) fn examine() -> Vec<Finding> {
    let mut findings: Vec<Finding> = is_nodes_network()
        .and_then(judge_network)
        .into_iter()
        .collect();
    let found = foreign().map_err(|error| format!("{:#}", anyhow::Error::from(error)));
    findings.push(judge(&found));
    findings
}

/// Whether this is the network namespace of the node's first process; `None` where that is not
/// seen.
fn is_nodes_network() -> Option<bool> {
    if fs::metadata("/proc/self/ns/pid").ok()?.ino() != FIRST_PIDS {
        return None;
    }
    let first = fs::read_link("/proc/1/ns/net").ok()?;
    Some(fs::read_link("/proc/self/ns/net").ok()? == first)
}

fn judge_network(is_nodes: bool) -> Option<Finding> {
    let found = "this is not the network of the node's first process: what is said of interfaces, \
                 kube-proxy and DNS is about another";
    let remedy = "run picket doctor in the node's network (hostNetwork: true)";
    (!is_nodes).then(|| Finding::warning(Check::Network, found, remedy))
}

fn judge(found: &Result<Vec<Foreign>, String>) -> Finding {
    let foreign = match found {
        Ok(foreign) => foreign,
        Err(why) => {
            return Finding::unknown(Check::Interfaces, why, "run picket doctor as root");
        }
    };
    let taken: Vec<&str> = foreign
        .iter()
        .filter(|one| one.is_taken)
        .map(|one| one.interface.as_str())
        .collect();
    if let Some(first) = taken.first() {
        return Finding::problem(
            Check::Interfaces,
            format!(
                "an ingress qdisc leaves no place for programs on {} interfaces ({first}): their \
                 pods are not enforced",
                taken.len()
            ),
            "take the bandwidth plugin out of the network, or boot Linux 6.6 or newer",
        );
    }
    let mut names: Vec<&str> = foreign
        .iter()
        .flat_map(|one| one.programs.iter().map(String::as_str))
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Finding::ok(Check::Interfaces, "nobody else's programs are on them");
    }
    let all = names.join(", ");
    let found = format!("others' programs are on {} of them: {all}", foreign.len());
    let is_known = |(part, _): &&(&str, &str)| names.iter().any(|name| name.starts_with(part));
    if let Some((_, who)) = ENFORCING.iter().find(is_known) {
        return Finding::problem(
            Check::Interfaces,
            format!("{found}, which are of {who}, and enforce policy by themselves"),
            format!(
                "let one of the two enforce: switch {who}'s NetworkPolicy off, or do without Picket"
            ),
        );
    }
    Finding::warning(
        Check::Interfaces,
        found,
        "nothing, unless they enforce policy: Picket's run before them and leave them in place",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;

    fn one(programs: &[&str], is_taken: bool) -> Finding {
        judge(&Ok(vec![Foreign {
            interface: "veth1".to_owned(),
            programs: programs.iter().map(|name| (*name).to_owned()).collect(),
            is_taken,
        }]))
    }

    #[test]
    fn who_else_enforces_on_an_interface_or_leaves_no_place_there_is_a_problem() {
        for (programs, is_taken, said) in [
            (&["cil_from_container"][..], false, "Cilium"),
            (&["calico_tc_main"], false, "Calico"),
            (&["handle_ingress", "other"], false, "AWS"),
            (&[], true, "(veth1)"),
        ] {
            let finding = one(programs, is_taken);
            assert!(
                matches!(finding.judgement, Judgement::Problem(_)),
                "{finding:?}"
            );
            assert!(finding.found.contains(said), "{finding:?}");
        }
    }

    #[test]
    fn others_that_do_not_enforce_are_worth_a_warning_and_nobody_is_well() {
        assert!(matches!(
            one(&["meter"], false).judgement,
            Judgement::Warning(_)
        ));
        assert_eq!(judge(&Ok(Vec::new())).judgement, Judgement::Ok);
        let refused = judge(&Err("EPERM".to_owned()));
        assert!(matches!(refused.judgement, Judgement::Unknown(_)));
    }

    #[test]
    fn another_network_than_the_nodes_is_a_warning() {
        assert_eq!(judge_network(true), None);
        let other = judge_network(false).unwrap();
        assert!(matches!(other.judgement, Judgement::Warning(_)));
    }
}
