//! A lab of three pods with an agent: who reaches whom, and what the agent says about it.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test's own module: a panic is the failure's report"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use agent::dto::Status;
use agent_policy::model::Protocol;
use anyhow::bail;
use tests::lab::agent::{Agent, ask, log};
use tests::lab::{Lab, objects, wait_until};
use tests::probe::Servers;

/// The port `shop/api` listens on.
pub const PORT: u16 = 8080;
const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, PORT)];
/// How long a change may take on a machine that does other things, too.
pub const WITHIN: Duration = Duration::from_secs(20);

/// Only `app: web` reaches `shop/api`, which reaches nobody.
pub fn usual_policy() -> String {
    policy("{from: [{podSelector: {matchLabels: {app: web}}}]}")
}

/// See the module.
pub struct Shop {
    pub lab: Lab,
    _servers: Servers,
}

impl Shop {
    /// `shop/web`, `shop/api` and `shop/other`, under [`usual_policy`].
    pub fn new() -> Self {
        let mut lab = Lab::enter().unwrap();
        for (name, last) in [("web", 1), ("api", 2), ("other", 3)] {
            lab.add_pod(&format!("shop/{name}"), &[address(last)])
                .unwrap();
            lab.write_manifest(&format!("{name}.yaml"), &pod(name, last))
                .unwrap();
        }
        lab.write_manifest("namespace.yaml", &objects::namespace("shop", ""))
            .unwrap();
        lab.write_manifest("policy.yaml", &usual_policy()).unwrap();
        let servers = lab.serve("shop/api", PORTS).unwrap();
        Self {
            lab,
            _servers: servers,
        }
    }

    /// An agent that enforces what is there.
    pub fn agent(&self, options: &[&str]) -> Agent {
        Agent::start_with(&self.lab.manifests(), options).unwrap()
    }

    /// True when a connection is made.
    pub fn reaches(&self, from: &str, to: &str) -> bool {
        self.lab.reaches(from, to, PORTS).unwrap()
    }

    /// Waits until a connection is made, or is not.
    pub fn wait(&self, from: &str, to: &str, expected: bool) {
        self.lab.wait_reaches(from, to, PORTS, expected).unwrap();
    }

    /// Sends one datagram to each port.
    pub fn datagrams(&self, from: &str, to: &str, ports: impl Iterator<Item = u16>) {
        let place = self.lab.place(from).unwrap();
        let socket = place
            .namespace
            .enter(|| Ok(UdpSocket::bind((place.addresses[0], 0))?))
            .unwrap();
        let to = self.lab.place(to).unwrap().addresses[0];
        for port in ports {
            // What an earlier one was told must not keep this one back.
            let told = socket.send_to(b"hello", SocketAddr::new(to, port));
            if told.is_err() {
                socket.send_to(b"hello", SocketAddr::new(to, port)).unwrap();
            }
        }
    }
}

/// A pod's address.
pub fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, last])
}

/// A pod of the shop; its label `app` is its name.
pub fn pod(name: &str, last: u8) -> String {
    objects::pod(
        &format!("shop/{name}"),
        &format!("app: {name}"),
        &[address(last)],
    )
}

/// The policy on `shop/api`: rules in, nothing out.
pub fn policy(rules: &str) -> String {
    let spec = format!(
        "{{podSelector: {{matchLabels: {{app: api}}}}, policyTypes: [Ingress, Egress], ingress: [{rules}]}}"
    );
    objects::policy("shop", "api", &spec)
}

/// The value of a series, as `/metrics` says it now.
pub fn metric(series: &str) -> f64 {
    tests::lab::agent::metric(series).unwrap()
}

/// What the status says is wrong.
pub fn error() -> Option<String> {
    ask::<Status>("/v1/status").unwrap().error
}

/// Waits until the status, the log and a metric say what is wrong, and that a setting mends it.
pub fn wait_for_error(kind: &str, words: &[&str]) {
    wait_until(&format!("an error with {words:?}"), WITHIN, || {
        let error = error().unwrap_or_default();
        if words.iter().all(|word| error.contains(word)) {
            return Ok(());
        }
        bail!("status says {error:?}; the agent said:\n{}", log())
    })
    .unwrap();
    let log = log();
    assert!(words.iter().all(|word| log.contains(word)), "{log}");
    let series = format!("picket_policy_apply_failures_total{{reason=\"{kind}\"}}");
    assert!(metric(&series) >= 1.0);
}

/// Waits until nothing is wrong.
pub fn wait_for_no_error() {
    wait_until("nothing to be wrong", WITHIN, || match error() {
        None => Ok(()),
        Some(error) => bail!("{error}; the agent said:\n{}", log()),
    })
    .unwrap();
}
