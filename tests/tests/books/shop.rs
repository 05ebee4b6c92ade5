//! A lab of three pods with an agent: who reaches whom, and what the agent says about it.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's own module: a panic is the failure's report"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use agent::dto::Status;
use agent_policy::model::Protocol;
use anyhow::bail;
use tests::lab::agent::{Agent, ask, get, log};
use tests::lab::{Lab, wait_until};
use tests::probe::{self, Patience, Probe, Server, Servers};

/// The port `shop/api` listens on.
pub const PORT: u16 = 8080;
/// How long a change may take on a machine that does other things, too.
pub const WITHIN: Duration = Duration::from_secs(20);

/// Only `app: web` reaches `shop/api`, which reaches nobody.
pub const POLICY: &str = "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: api}
spec:
  podSelector: {matchLabels: {app: api}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
";

/// See the module.
pub struct Shop {
    pub lab: Lab,
    _servers: Servers,
}

impl Shop {
    /// `shop/web`, `shop/api` and `shop/other`, under [`POLICY`].
    pub fn new() -> Self {
        let mut lab = Lab::enter().unwrap();
        for (name, last) in [("web", 1), ("api", 2), ("other", 3)] {
            lab.add_pod(&format!("shop/{name}"), &[address(last)])
                .unwrap();
            lab.write_manifest(&format!("{name}.yaml"), &pod("shop", name, last))
                .unwrap();
        }
        lab.write_manifest("namespace.yaml", &namespace("shop"))
            .unwrap();
        lab.write_manifest("policy.yaml", POLICY).unwrap();
        let api = lab.place("shop/api").unwrap();
        let servers = Servers::start(&[Server {
            namespace: &api.namespace,
            address: address(2),
            protocol: Protocol::TCP,
            port: PORT,
        }])
        .unwrap();
        Self {
            lab,
            _servers: servers,
        }
    }

    /// An agent that enforces what is there.
    pub fn agent(&self, options: &[&str]) -> Agent {
        let options: Vec<_> = options.iter().map(Into::into).collect();
        let mut agent = Agent::spawn(&self.lab.manifests(), &options).unwrap();
        agent.wait_ready().unwrap();
        agent
    }

    /// The same on a node so full that it takes long.
    pub fn agent_within(&self, options: &[&str], within: Duration) -> Agent {
        let options: Vec<_> = options.iter().map(Into::into).collect();
        let agent = Agent::spawn(&self.lab.manifests(), &options).unwrap();
        let ready = wait_until("the agent to be ready", within, || get("/readyz"));
        ready.unwrap_or_else(|error| panic!("{error:#}; the agent said:\n{}", log()));
        agent
    }

    /// True when a connection is made.
    pub fn reaches(&self, from: &str, to: &str) -> bool {
        let (from, to) = (self.lab.place(from).unwrap(), self.lab.place(to).unwrap());
        let probe = Probe {
            namespace: &from.namespace,
            source: from.addresses[0],
            destination: to.addresses[0],
            protocol: Protocol::TCP,
            port: PORT,
        };
        // A refusal by an unused port is an answer, too.
        probe::run(&[probe], Patience::SHORT).unwrap()[0].is_reached()
    }

    /// Waits until a connection is made, or is not.
    pub fn wait(&self, from: &str, to: &str, expected: bool) {
        let what = format!("{from} to {to}: {expected}");
        wait_until(&what, WITHIN, || {
            if self.reaches(from, to) == expected {
                return Ok(());
            }
            bail!("not so; the agent said:\n{}", log())
        })
        .unwrap();
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

/// A pod's manifest; its label `app` is its name.
pub fn pod(namespace: &str, name: &str, last: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}, uid: \
         {namespace}-{name}, labels: {{app: {name}}}}}\nspec: {{containers: [{{name: c, image: \
         none}}]}}\nstatus: {{podIP: {0}, podIPs: [{{ip: {0}}}]}}\n",
        address(last)
    )
}

/// A namespace's manifest.
pub fn namespace(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

/// The value of a series, as `/metrics` says it now.
pub fn metric(series: &str) -> f64 {
    let text = String::from_utf8(get("/metrics").unwrap()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    let value = line.unwrap_or_else(|| panic!("{series} is missing in\n{text}"));
    value.trim().parse().unwrap()
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
