//! The agent of this node: whether one runs, and what it says of itself.

use super::{Check, Finding};
use crate::dto::{EndpointState, Status};

/// What was learnt of the agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Agent {
    /// There is no socket of one.
    Absent,
    /// Its socket is there, and it gives no answer: why.
    Silent(String),
    /// What it answers.
    Answers(Box<Status>),
}

const LOOK: &str = "look at `picket status`, and at the agent's log: kubectl -n picket-system logs \
                    -l app.kubernetes.io/name=picket";

impl Agent {
    /// `pinned`: interfaces that programs of ours are pinned for.
    pub(super) fn judge(&self, pinned: usize, own_version: &str) -> Vec<Finding> {
        match self {
            Self::Absent if pinned == 0 => {
                vec![Finding::ok(
                    Check::Agent,
                    "none runs here, and nothing of one is in force",
                )]
            }
            Self::Absent => vec![Finding::problem(
                Check::Agent,
                format!("none runs here; {pinned} interfaces keep the policy that they had"),
                "start it, or take what is in force out with `picket uninstall`",
            )],
            Self::Silent(why) => vec![Finding::problem(Check::Agent, why, LOOK)],
            Self::Answers(status) => answers(status, own_version),
        }
    }
}

fn answers(status: &Status, own_version: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut problem = |found: String, remedy: &str| {
        findings.push(Finding::problem(Check::Agent, found, remedy));
    };
    match &status.error {
        Some(error) => problem(format!("what is wanted is not in force: {error}"), LOOK),
        None if !status.enforcing => problem("it does not enforce yet".to_owned(), LOOK),
        None => {}
    }
    let is_waiting = |state| state != EndpointState::Programmed;
    let waiting: Vec<String> = status
        .endpoints
        .iter()
        .filter(|endpoint| is_waiting(endpoint.state))
        .map(|endpoint| {
            let note = endpoint
                .note
                .as_ref()
                .map_or_else(String::new, |note| format!(": {note}"));
            format!("{}/{}{note}", endpoint.namespace, endpoint.pod)
        })
        .collect();
    if let Some(first) = waiting.first() {
        problem(
            format!(
                "pods whose policy is not in force: {} ({first})",
                waiting.len()
            ),
            LOOK,
        );
    }
    if let Some(first) = status.unenforced.first() {
        problem(
            format!(
                "pods that cannot be enforced: {} ({}: {})",
                status.unenforced.len(),
                first.pod,
                first.message
            ),
            "wire them with a plugin that makes a veth; pods of the node's network have none",
        );
    }
    let faults: Vec<&str> = status
        .findings
        .iter()
        .filter(|finding| finding.severity == "error")
        .map(|finding| finding.message.as_str())
        .collect();
    if let Some(first) = faults.first() {
        problem(
            format!("objects with faults: {} ({first})", faults.len()),
            "mend them: what cannot be read admits nothing; `picket status` names each",
        );
    }
    if let Some(first) = status.elsewhere.first() {
        findings.push(Finding::warning(
            Check::Agent,
            format!(
                "interfaces that another version's programs judge: {} ({}: {})",
                status.elsewhere.len(),
                first.interface,
                first.message
            ),
            "wait: an upgrade is under way; if it stays so, look at the agent's log",
        ));
    }
    if status.version != own_version {
        findings.push(Finding::warning(
            Check::Agent,
            format!("it is {}, and this program {own_version}", status.version),
            "run the agent's own: kubectl -n picket-system exec daemonset/picket -- picket doctor",
        ));
    }
    if findings.is_empty() {
        let isolated = status.endpoints.iter().filter(|endpoint| {
            endpoint
                .directions
                .iter()
                .any(|direction| direction.isolated)
        });
        findings.push(Finding::ok(
            Check::Agent,
            format!(
                "{} enforces: pods here {}, of which isolated {}",
                status.version,
                status.endpoints.len(),
                isolated.count()
            ),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;
    use crate::dto::{self, Elsewhere, Unenforced};

    fn status() -> Status {
        let json = serde_json::json!({
            "version": "0.1.0", "enforcing": true, "policies": 1, "pods": 2, "namespaces": 1,
            "endpoints": [{
                "namespace": "shop", "pod": "api-1", "workload": "Deployment/api", "addresses": [],
                "state": "programmed",
                "directions": [{
                    "direction": "ingress", "isolated": true, "passed": {"packets": 0, "bytes": 0},
                }],
            }],
            "findings": [], "maps": [], "eventsLost": 0, "deniedOverflow": 0,
        });
        serde_json::from_value(json).unwrap()
    }

    fn judged(status: Status) -> Vec<Finding> {
        Agent::Answers(Box::new(status)).judge(1, "0.1.0")
    }

    #[test]
    fn an_agent_that_is_well_says_how_many_pods_are_isolated() {
        let [finding] = judged(status()).try_into().unwrap();
        assert_eq!(finding.judgement, Judgement::Ok);
        assert_eq!(
            finding.found,
            "0.1.0 enforces: pods here 1, of which isolated 1"
        );
    }

    #[test]
    fn no_agent_is_well_before_installing_and_a_problem_where_one_was() {
        let absent = |pinned| Agent::Absent.judge(pinned, "0.1.0").remove(0).judgement;
        assert_eq!(absent(0), Judgement::Ok);
        assert!(matches!(absent(3), Judgement::Problem(_)));
        let silent = Agent::Silent("refused".to_owned())
            .judge(0, "0.1.0")
            .remove(0);
        assert!(
            matches!(silent.judgement, Judgement::Problem(_)),
            "{silent:?}"
        );
    }

    #[test]
    fn whatever_is_not_in_force_is_a_problem_and_what_passes_a_warning() {
        type Change = fn(&mut Status);
        let problems: [Change; 5] = [
            |status| status.error = Some("full".to_owned()),
            |status| status.enforcing = false,
            |status| status.endpoints[0].state = EndpointState::Failed,
            |status| {
                status.unenforced.push(Unenforced {
                    pod: "shop/vf-0".to_owned(),
                    message: "macvlan".to_owned(),
                });
            },
            |status| {
                status.findings.push(dto::Finding {
                    severity: "error".to_owned(),
                    message: "spec is wrong".to_owned(),
                });
            },
        ];
        for change in problems {
            let mut changed = status();
            change(&mut changed);
            let findings = judged(changed);
            assert!(
                matches!(findings[0].judgement, Judgement::Problem(_)),
                "{findings:?}"
            );
        }
        let warnings: [Change; 2] = [
            |status| status.version = "0.2.0".to_owned(),
            |status| {
                status.elsewhere.push(Elsewhere {
                    interface: "veth1".to_owned(),
                    layout: "3".to_owned(),
                    message: "busy".to_owned(),
                });
            },
        ];
        for change in warnings {
            let mut changed = status();
            change(&mut changed);
            let findings = judged(changed);
            assert!(
                matches!(findings[0].judgement, Judgement::Warning(_)),
                "{findings:?}"
            );
        }
    }
}
