//! The agent's loop on a real node: it finds pods by itself, attaches, follows what changes, and
//! leaves enforcement in place when it goes.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is the failure's report"
)]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use agent::dto::Status;
use agent_policy::model::Protocol;
use anyhow::bail;
use tests::lab::agent::{Agent, ask, log, picket};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::{Lab, wait_until};
use tests::probe::Servers;

const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080)];
/// How long a change may take on a machine that does other things, too.
const APPLIED_WITHIN: Duration = Duration::from_secs(30);

/// A lab with two pods that can talk while nothing forbids it.
struct Pair {
    lab: Lab,
    agent: Option<Agent>,
    _servers: Servers,
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Only pods labelled `app: {app}` reach `app: api`.
fn admits(app: &str) -> String {
    let spec = format!(
        "{{podSelector: {{matchLabels: {{app: api}}}}, \
         ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]}}]}}"
    );
    policy("shop", "api", &spec)
}

const WEB: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
const API: [&str; 2] = ["10.1.0.2", "fd00:1::2"];

impl Pair {
    fn new() -> Self {
        let mut lab = Lab::enter().unwrap();
        lab.add_pod("shop/web", &WEB.map(address)).unwrap();
        lab.add_pod("shop/api", &API.map(address)).unwrap();
        let servers = lab.serve("shop/api", PORTS).unwrap();
        lab.write_manifest("namespace.yaml", &namespace("shop", ""))
            .unwrap();
        lab.write_manifest("web.yaml", &pod("shop/web", "app: web", &WEB))
            .unwrap();
        lab.write_manifest("api.yaml", &pod("shop/api", "app: api", &API))
            .unwrap();
        let pair = Self {
            lab,
            agent: None,
            _servers: servers,
        };
        pair.wait("shop/web", "shop/api", true);
        pair
    }

    /// With a third pod, which the policy names nowhere.
    fn with_stranger() -> Self {
        let mut pair = Self::new();
        let other = ["10.1.0.3", "fd00:1::3"];
        pair.lab.add_pod("shop/other", &other.map(address)).unwrap();
        pair.lab
            .write_manifest("other.yaml", &pod("shop/other", "app: other", &other))
            .unwrap();
        pair.wait("shop/other", "shop/api", true);
        pair
    }

    fn start_agent(&mut self) {
        self.agent = Some(Agent::start(&self.lab.manifests()).unwrap());
    }

    /// Waits until a pod reaches another, in both families, or does not.
    fn wait(&self, from: &str, to: &str, expected: bool) {
        self.lab.wait_reaches(from, to, PORTS, expected).unwrap();
    }
}

/// Waits until the status says so of a pod's endpoint.
fn wait_for_note(pod: &str, note: &str) {
    wait_until(note, APPLIED_WITHIN, || {
        let status: Status = ask("/v1/status")?;
        let mut of_pod = status.endpoints.iter().filter(|each| each.pod == pod);
        if of_pod.any(|each| each.note.as_ref().is_some_and(|said| said.contains(note))) {
            return Ok(());
        }
        bail!("{:?}, the agent said:\n{}", status.endpoints, log())
    })
    .unwrap();
}

#[test]
fn pods_are_found_whether_their_object_or_their_interface_comes_first() {
    let mut pair = Pair::with_stranger();
    pair.start_agent();
    pair.lab
        .write_manifest("policy.yaml", &admits("web"))
        .unwrap();
    pair.wait("shop/other", "shop/api", false);
    // The object first.
    let first = ["10.1.0.5", "fd00:1::5"];
    pair.lab
        .write_manifest("first.yaml", &pod("shop/first", "app: api", &first))
        .unwrap();
    pair.lab.add_pod("shop/first", &first.map(address)).unwrap();
    let first = pair.lab.serve("shop/first", PORTS).unwrap();
    pair.wait("shop/other", "shop/first", false);
    pair.wait("shop/web", "shop/first", true);
    drop(first);
    // The interface first.
    let second = ["10.1.0.4", "fd00:1::4"];
    pair.lab
        .add_pod("shop/second", &second.map(address))
        .unwrap();
    let servers = pair.lab.serve("shop/second", PORTS).unwrap();
    // Closed for being nobody's, until its pod is known.
    pair.wait("shop/web", "shop/second", false);
    pair.lab
        .write_manifest("second.yaml", &pod("shop/second", "app: api", &second))
        .unwrap();
    pair.wait("shop/web", "shop/second", true);
    pair.wait("shop/other", "shop/second", false);
    drop(servers);
}

#[test]
fn a_pod_whose_object_goes_keeps_its_policy_until_its_interface_goes() {
    let mut pair = Pair::with_stranger();
    pair.lab
        .write_manifest("policy.yaml", &admits("web"))
        .unwrap();
    pair.start_agent();
    pair.wait("shop/other", "shop/api", false);
    pair.lab.remove_manifest("api.yaml").unwrap();
    wait_for_note("api", "its pod object is gone");
    pair.wait("shop/web", "shop/api", true);
    pair.wait("shop/other", "shop/api", false);
    // Policy is followed still.
    let closed = admits("nobody");
    pair.lab.write_manifest("policy.yaml", &closed).unwrap();
    pair.wait("shop/web", "shop/api", false);
    pair.lab
        .write_manifest("api.yaml", &pod("shop/api", "app: api", &API))
        .unwrap();
    pair.lab
        .write_manifest("policy.yaml", &admits("web"))
        .unwrap();
    pair.wait("shop/web", "shop/api", true);
    pair.lab.remove_manifest("api.yaml").unwrap();
    wait_for_note("api", "its pod object is gone");
    pair.lab.remove_pod("shop/api").unwrap();
    wait_until("the endpoint to go", APPLIED_WITHIN, || {
        let status: Status = ask("/v1/status")?;
        if status
            .endpoints
            .iter()
            .all(|each| !each.pod.contains("api"))
        {
            return Ok(());
        }
        bail!("{:?}, the agent said:\n{}", status.endpoints, log())
    })
    .unwrap();
}

#[test]
fn a_restart_that_sees_no_namespaces_leaves_running_pods_as_they_were() {
    let mut pair = Pair::with_stranger();
    pair.lab
        .write_manifest("policy.yaml", &admits("web"))
        .unwrap();
    pair.start_agent();
    pair.wait("shop/other", "shop/api", false);
    pair.agent.take().unwrap().kill().unwrap();
    let empty = "/run/lab/no-namespaces";
    std::fs::create_dir(empty).unwrap();
    let options = ["--netns", empty];
    pair.agent = Some(Agent::start_with(&pair.lab.manifests(), &options).unwrap());
    let status: Status = ask("/v1/status").unwrap();
    assert_eq!(status.endpoints.len(), 3, "{:?}", status.endpoints);
    pair.wait("shop/web", "shop/api", true);
    pair.wait("shop/other", "shop/api", false);
    // Followed still, not only left.
    let closed = admits("nobody");
    pair.lab.write_manifest("policy.yaml", &closed).unwrap();
    pair.wait("shop/web", "shop/api", false);
}

#[test]
fn enforcement_outlives_the_agent_and_is_taken_up_by_the_next() {
    let closed = admits("other");
    let mut pair = Pair::new();
    pair.lab.write_manifest("policy.yaml", &closed).unwrap();
    pair.start_agent();
    pair.wait("shop/web", "shop/api", false);
    pair.agent.take().unwrap().kill().unwrap();
    pair.wait("shop/web", "shop/api", false);
    // Known to nobody yet: what the dead agent wrote stays in force.
    pair.lab
        .write_manifest("policy.yaml", &admits("web"))
        .unwrap();
    pair.wait("shop/web", "shop/api", false);
    pair.start_agent();
    pair.wait("shop/web", "shop/api", true);
    pair.lab.write_manifest("policy.yaml", &closed).unwrap();
    pair.wait("shop/web", "shop/api", false);
    pair.agent.take().unwrap().stop().unwrap();
    pair.wait("shop/web", "shop/api", false);
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    let mut pair = Pair::new();
    pair.start_agent();
    pair.lab
        .write_manifest("policy.yaml", &admits("web"))
        .unwrap();
    pair.wait("shop/web", "shop/api", true);
    let second = Command::new("timeout")
        .arg("60")
        .arg(picket().unwrap())
        .args(["agent", "--socket", "/run/second.sock", "--manifests"])
        .arg(pair.lab.manifests())
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(2), "{said}");
    assert!(
        said.contains("/sys/fs/bpf/picket: another agent holds it") && said.contains("--pins"),
        "{said}"
    );
    let closed = admits("nobody");
    pair.lab.write_manifest("policy.yaml", &closed).unwrap();
    pair.wait("shop/web", "shop/api", false);
}

#[test]
fn a_pod_behind_an_interface_that_leads_elsewhere_is_reported_as_unenforced() {
    let mut pair = Pair::new();
    pair.start_agent();
    // Both ends in the pod: no packet of this address passes the node.
    for arguments in [
        "link add inner type veth peer name outer",
        "address add 10.1.0.9/32 dev inner",
    ] {
        let done = Command::new("ip")
            .args(["-n", "shop_web"])
            .args(arguments.split(' '))
            .status()
            .unwrap();
        assert!(done.success(), "ip {arguments}");
    }
    let manifest = pod("shop/inner", "app: web", &["10.1.0.9"]);
    pair.lab.write_manifest("inner.yaml", &manifest).unwrap();
    wait_until("the pod to be reported", APPLIED_WITHIN, || {
        let status: Status = ask("/v1/status")?;
        if status
            .unenforced
            .iter()
            .any(|each| each.pod.contains("inner"))
        {
            return Ok(());
        }
        bail!("{:?}, the agent said:\n{}", status.unenforced, log())
    })
    .unwrap();
}
