//! Recorded cases: manifests in, reachability out, against verdicts from evaluators that share no
//! code with this one.
//!
//! The recordings are not part of the repository. `PICKET_CASES` names their folder; without it
//! `shared/cases` beside the checkout is taken, and if that is not there the tests say that they
//! judged nothing.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that reads recordings and says how many verdicts it judged"
)]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_policy::cluster::Cluster;
use agent_policy::evaluate::{Decision, Decisions, Packet, evaluate};
use agent_policy::manifest;
use agent_policy::model::{Change, ObjectName, PodUid, Protocol, Verdict};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Case {
    id: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    cluster: State,
    policies: Vec<Value>,
    #[serde(default, rename = "clusterNetworkPolicies")]
    cluster_network_policies: Vec<Value>,
    expected: Vec<Expected>,
}

#[derive(Deserialize)]
struct State {
    nodes: Option<Vec<StatedNode>>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pods: Vec<StatedPod>,
}

#[derive(Deserialize)]
struct StatedNode {
    name: String,
    ip: String,
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatedPod {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    ip: String,
    node: Option<String>,
    #[serde(default)]
    host_network: bool,
    containers: Vec<StatedPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatedPort {
    #[serde(default)]
    port_name: String,
    port: u16,
    protocol: String,
    declared: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Expected {
    from: String,
    to: String,
    port: u16,
    protocol: String,
    ingress: Option<String>,
    egress: Option<String>,
    combined: String,
    #[serde(default)]
    loopback: bool,
    ref_agrees: Option<bool>,
    #[serde(default)]
    ambiguous: bool,
}

impl Expected {
    fn is_to_be_judged(&self) -> bool {
        !self.loopback && self.ref_agrees != Some(false) && !self.ambiguous
    }

    fn packet(&self, pods: &[StatedPod]) -> Packet {
        let address = |end: &str| -> IpAddr {
            let pod = pods
                .iter()
                .find(|pod| format!("{}/{}", pod.namespace, pod.name) == end);
            let text = pod.map_or(end, |pod| &pod.ip);
            text.parse()
                .unwrap_or_else(|_| panic!("{end}: neither pod nor address"))
        };
        Packet {
            from: address(&self.from),
            to: address(&self.to),
            protocol: Protocol::from_name(&self.protocol).expect("a known protocol"),
            port: self.port,
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    verdicts_judged: usize,
    verdicts_not_to_be_judged: usize,
    steps_with_cluster_network_policies: usize,
    verdicts_of_those: usize,
}

#[test]
fn cyclonus_verdicts_are_met() {
    let tally = check("cyclonus-cases.jsonl.gz");
    assert!(tally.is_none_or(|tally| tally.verdicts_judged > 10_000));
}

#[test]
fn npguard_verdicts_are_met() {
    let tally = check("npguard-cases.jsonl.gz");
    assert!(tally.is_none_or(|tally| tally.verdicts_judged > 10_000));
}

#[test]
fn real_applications_verdicts_are_met() {
    let tally = check("realworld-cases.jsonl.gz");
    assert!(tally.is_none_or(|tally| tally.verdicts_judged > 1_000));
}

// Steps with ClusterNetworkPolicy in force are read and applied, but their verdicts wait for
// tiers: these two files have hardly any other.

#[test]
fn fuzz_sample_verdicts_without_tiers_are_met() {
    check("fuzz-sample-cases.jsonl.gz");
}

#[test]
fn cluster_network_policy_cases_are_read() {
    check("cnp-cases.jsonl.gz");
}

/// Judges every step of every case of a file twice: in a cluster made for it, and in one that
/// lives through the whole file and sees only what changes. `None` when the file is not here.
fn check(file: &str) -> Option<Tally> {
    let Some(path) = folder().map(|folder| folder.join(file)) else {
        println!("{file}: skipped, set PICKET_CASES to the folder of the recorded cases");
        return None;
    };
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let mut cases = 0;
    let mut long_lived = Cluster::new();
    for case in read(&path) {
        cases += 1;
        for (number, step) in (1..).zip(&case.steps) {
            let changes = changes(step);
            let mut fresh = Cluster::new();
            for change in changes.clone() {
                let _touched = fresh.apply(change);
            }
            become_like(&mut long_lived, &fresh, changes);
            judge(
                &format!("{} step {number}", case.id),
                step,
                [&fresh, &long_lived],
                &mut tally,
                &mut failures,
            );
        }
    }
    println!(
        "{file}: {cases} cases, {} verdicts judged, {} not to be judged; excepted: {} steps with \
         ClusterNetworkPolicy ({} verdicts)",
        tally.verdicts_judged,
        tally.verdicts_not_to_be_judged,
        tally.steps_with_cluster_network_policies,
        tally.verdicts_of_those
    );
    assert!(
        failures.is_empty(),
        "{} of {} verdicts differ, the first: {:#?}",
        failures.len(),
        tally.verdicts_judged,
        failures.get(..failures.len().min(10))
    );
    Some(tally)
}

fn judge(
    name: &str,
    step: &Step,
    clusters: [&Cluster; 2],
    tally: &mut Tally,
    failures: &mut Vec<String>,
) {
    let is_excepted = !step.cluster_network_policies.is_empty();
    tally.steps_with_cluster_network_policies += usize::from(is_excepted);
    for expected in &step.expected {
        if is_excepted {
            tally.verdicts_of_those += 1;
        } else if expected.is_to_be_judged() {
            tally.verdicts_judged += 1;
        } else {
            tally.verdicts_not_to_be_judged += 1;
            continue;
        }
        let packet = expected.packet(&step.cluster.pods);
        let [fresh, long_lived] = clusters.map(|cluster| evaluate(cluster, &packet));
        if fresh != long_lived {
            failures.push(format!(
                "{name}: {expected:?}: fresh {fresh:?}, live {long_lived:?}"
            ));
        }
        if !is_excepted && !is_met(expected, &fresh) {
            failures.push(format!("{name}: {expected:?}: {fresh:?}"));
        }
    }
}

fn is_met(expected: &Expected, found: &Decisions) -> bool {
    let is = |word: &str, verdict: Verdict| (word == "allowed") == (verdict == Verdict::Allow);
    let side = |word: &Option<String>, decision: &Decision| {
        word.as_ref()
            .is_none_or(|word| is(word, decision.verdict()))
    };
    is(&expected.combined, found.verdict())
        && side(&expected.ingress, &found.ingress)
        && side(&expected.egress, &found.egress)
}

/// The complete state of a step, from manifests as a user would write them.
fn changes(step: &Step) -> Vec<Change> {
    let mut changes = Vec::new();
    for node in step.cluster.nodes.iter().flatten() {
        let object: core::Node = typed(json!({
            "metadata": { "name": node.name, "labels": node.labels },
            "status": { "addresses": [{ "type": "InternalIP", "address": node.ip }] },
        }));
        changes.push(Change::Node(clean(manifest::node(&object)).unwrap()));
    }
    for (name, labels) in &step.cluster.namespaces {
        let object: core::Namespace =
            typed(json!({ "metadata": { "name": name, "labels": labels } }));
        changes.push(Change::Namespace(
            clean(manifest::namespace(&object)).unwrap(),
        ));
    }
    for pod in &step.cluster.pods {
        let ports: Vec<Value> = pod
            .containers
            .iter()
            .filter(|port| port.declared != Some(false))
            .map(|port| {
                let mut written = json!({ "containerPort": port.port, "protocol": port.protocol });
                if !port.port_name.is_empty() {
                    written["name"] = json!(port.port_name);
                }
                written
            })
            .collect();
        let object: core::Pod = typed(json!({
            "metadata": { "namespace": pod.namespace, "name": pod.name, "labels": pod.labels },
            "spec": {
                "nodeName": pod.node,
                "hostNetwork": pod.host_network,
                "containers": [{ "name": "c", "ports": ports }],
            },
            "status": { "phase": "Running", "podIPs": [{ "ip": pod.ip }] },
        }));
        let pod = clean(manifest::pod(&object)).unwrap();
        changes.push(Change::Pod(Box::new(pod)));
    }
    for document in &step.policies {
        let object: NetworkPolicy = typed(document.clone());
        let policy = clean(manifest::network_policy(&object));
        assert_eq!(
            policy,
            clean(manifest::network_policy_json(document)),
            "the typed object and the document mean the same"
        );
        changes.push(Change::Policy(Box::new(policy)));
    }
    changes
}

/// Applies the difference: what is not in the other state goes, everything else is put, which
/// changes nothing where nothing changed.
fn become_like(cluster: &mut Cluster, other: &Cluster, changes: Vec<Change>) {
    let mut gone = Vec::new();
    let pods: Vec<PodUid> = cluster.pods().map(|pod| pod.uid.clone()).collect();
    let is_gone = |uid: &PodUid| other.pod(uid).is_none();
    gone.extend(pods.into_iter().filter(is_gone).map(Change::PodGone));
    let policies: Vec<ObjectName> = cluster.policies().map(|it| it.name.clone()).collect();
    let is_gone = |name: &ObjectName| other.policy(name).is_none();
    gone.extend(policies.into_iter().filter(is_gone).map(Change::PolicyGone));
    let namespaces = cluster
        .namespaces()
        .filter(|it| other.namespace(&it.name).is_none());
    gone.extend(namespaces.map(|it| Change::NamespaceGone(Arc::clone(&it.name))));
    let nodes = cluster.nodes().filter(|it| other.node(&it.name).is_none());
    gone.extend(nodes.map(|it| Change::NodeGone(Arc::clone(&it.name))));
    for change in gone.into_iter().chain(changes) {
        let _touched = cluster.apply(change);
    }
}

fn clean<T>((object, findings): (T, Vec<agent_policy::model::Finding>)) -> T {
    assert!(findings.is_empty(), "valid objects: {findings:?}");
    object
}

fn typed<T: serde::de::DeserializeOwned>(document: Value) -> T {
    serde_json::from_value(document).expect("the recorded object has its type's form")
}

fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("PICKET_CASES") {
        let folder = PathBuf::from(folder);
        assert!(
            folder.is_dir(),
            "PICKET_CASES {}: no such folder",
            folder.display()
        );
        return Some(folder);
    }
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/cases");
    beside.is_dir().then_some(beside)
}

fn read(path: &Path) -> Vec<Case> {
    let packed = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
