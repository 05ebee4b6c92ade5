//! From policies and a claim to a lab, what is measured in it, and what the matrix says of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use agent_policy::matrix::{Port, Question};
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, bail};
use tests::lab::manifests;
use tests::lab::measure::{self, Row, Word};
use tests::lab::stage::Stage;
use tests::probe::{self, Outcome, Patience, Probe, Server, Servers};

/// Two namespaces of teams and one of nobody; a port named http that is not the same everywhere;
/// a hostNetwork pod. The lab is one node, whatever nodes they name.
const CLUSTER: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: red}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: blue}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: c}}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: a, name: web, labels: {app: web}}
  spec: {nodeName: one, containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}
  status: {podIPs: [{ip: 10.1.1.1}, {ip: 'fd00:1:1::1'}]}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: a, name: db, labels: {app: db, tier: back}}
  spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 81}]}]}
  status: {podIPs: [{ip: 10.1.1.2}, {ip: 'fd00:1:1::2'}]}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: b, name: web, labels: {app: web}}
  spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 80, protocol: UDP}]}]}
  status: {podIPs: [{ip: 10.1.2.1}, {ip: 'fd00:1:2::1'}]}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: c, name: one}
  spec: {containers: [{name: c, image: i}]}
  status: {podIPs: [{ip: 10.1.3.1}, {ip: 'fd00:1:3::1'}]}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: c, name: host, labels: {app: web}}
  spec: {hostNetwork: true, nodeName: another, containers: [{name: c, image: i}]}
  status: {podIPs: [{ip: 192.0.2.1}, {ip: '2001:db8::1'}]}
";
/// Addresses beyond the router.
const OUTSIDE: [&str; 2] = ["198.51.100.7", "2001:db8:1::7"];
/// What every place serves, and ICMP, which the node's kernel does.
const PORTS: [(Protocol, u16); 5] = [
    (Protocol::TCP, 80),
    (Protocol::TCP, 81),
    (Protocol::UDP, 80),
    (Protocol::SCTP, 80),
    (Protocol::ICMP, 0),
];
/// Long enough for an answer that comes at all: a denial that turns out to be slowness fails the
/// claims that expect the answer.
const PATIENCE: Patience = Patience {
    total: Duration::from_millis(700),
    retry: Duration::from_millis(200),
};

/// Applies the policies and measures everything. A flow is `from -> to PORT FAMILY`, for example
/// `a/web -> a/db TCP/80 v4`; `*` in a pattern stands for anything, and a pattern may end early.
/// What `denied` matches is denied unless `allowed` matches it too; all else is allowed.
pub(crate) fn check(policies: &[String], denied: &[&str], allowed: &[&str]) {
    try_check(policies, denied, allowed).expect("what is measured is what is claimed");
}

fn try_check(policies: &[String], denied: &[&str], allowed: &[&str]) -> Result<()> {
    let mut stage = Stage::open(CLUSTER)?;
    let outside: Vec<IpAddr> = OUTSIDE
        .iter()
        .map(|ip| ip.parse())
        .collect::<Result<_, _>>()?;
    for address in &outside {
        stage.lab.add_external(*address)?;
    }
    let _servers = serve(&stage)?;
    stage.apply("policies.yaml", &policies.join("---\n"))?;

    let mut measured = reachability(&stage, PATIENCE, |_| true)?;
    let expected = |flow: &str| {
        let is_any = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, flow));
        !is_any(denied) || is_any(allowed)
    };
    // Silence may be slowness on a busy machine: asked again with patience.
    let again = |flow: &str| measured.get(flow) == Some(&false) && expected(flow);
    let patient = reachability(&stage, Patience::USUAL, again)?;
    measured.extend(patient);
    let wrong: Vec<String> = measured
        .iter()
        .filter(|(flow, reached)| expected(flow) != **reached)
        .map(|(flow, reached)| format!("{flow}: {}", if *reached { "reached" } else { "denied" }))
        .collect();
    if !wrong.is_empty() {
        bail!(
            "{} of {} flows:\n{}",
            wrong.len(),
            measured.len(),
            wrong.join("\n")
        );
    }

    let ports = PORTS.iter().filter(|(protocol, _)| protocol.has_ports());
    let ports = ports
        .map(|&(protocol, number)| Port { protocol, number })
        .collect();
    let cluster = manifests::read(&stage.lab.manifests())?.cluster;
    let judged = measure::judged(
        &cluster,
        &Question {
            ports,
            endpoints: outside,
        },
    )?;
    for row in judged.rows {
        let Some(found) = family_of(&stage, &row).and_then(|name| measured.get(&name)) else {
            continue;
        };
        if (row.verdict == Word::Allow) != *found {
            bail!(
                "picket matrix says {:?} of {row}, measured: {found}",
                row.verdict
            );
        }
    }
    Ok(())
}

/// The measured flow that a row of the matrix speaks of.
fn family_of(stage: &Stage, row: &Row) -> Option<String> {
    let (from, to) = (
        stage.lab.place(&row.from).ok()?,
        stage.lab.place(&row.to).ok()?,
    );
    let (_, address) = from.pair_with(to)?;
    let family = if address.is_ipv4() { "v4" } else { "v6" };
    Some(format!(
        "{} -> {} {}/{} {family}",
        row.from, row.to, row.protocol, row.port
    ))
}

fn serve(stage: &Stage) -> Result<Servers> {
    let mut servers = Vec::new();
    for place in stage.lab.places().values() {
        for &address in &place.addresses {
            for (protocol, port) in PORTS {
                if protocol.has_ports() {
                    servers.push(Server {
                        namespace: &place.namespace,
                        address,
                        protocol,
                        port,
                    });
                }
            }
        }
    }
    Servers::start(&servers)
}

/// Which flows are reached, by name.
fn reachability(
    stage: &Stage,
    patience: Patience,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, bool>> {
    let places = || {
        stage
            .lab
            .places()
            .iter()
            .filter(|(name, _)| !name.starts_with("sentinel"))
    };
    let mut probes = BTreeMap::new();
    for (from, source) in places() {
        for (to, destination) in places().filter(|(to, _)| *to != from) {
            for (family, v4) in [("v4", true), ("v6", false)] {
                let Some((a, b)) = source.address(v4).zip(destination.address(v4)) else {
                    continue;
                };
                for (protocol, port) in PORTS {
                    let port_name = match protocol {
                        Protocol::ICMP => "ICMP".to_owned(),
                        _ => format!("{protocol}/{port}"),
                    };
                    let name = format!("{from} -> {to} {port_name} {family}");
                    if wanted(&name) {
                        let namespace = &source.namespace;
                        let probe = Probe {
                            namespace,
                            source: a,
                            destination: b,
                            protocol,
                            port,
                        };
                        probes.insert(name, probe);
                    }
                }
            }
        }
    }
    let (names, probes): (Vec<String>, Vec<Probe<'_>>) = probes.into_iter().unzip();
    let outcomes = probe::run(&probes, patience)?;
    let mut reached = BTreeMap::new();
    for (name, outcome) in names.into_iter().zip(outcomes) {
        if let Outcome::Failed(kind) = outcome {
            bail!("{name}: {kind}: denied packets vanish, so this is no verdict");
        }
        reached.insert(name, outcome.is_reached());
    }
    Ok(reached)
}

/// Word by word; `*` stands for one word, or within a word for anything.
fn matches(pattern: &str, flow: &str) -> bool {
    let mut words = flow.split(' ');
    pattern.split(' ').all(|wanted| {
        words
            .next()
            .is_some_and(|word| match wanted.split_once('*') {
                Some((head, tail)) => word.starts_with(head) && word.ends_with(tail),
                None => word == wanted,
            })
    })
}

#[test]
fn patterns_match_word_by_word() {
    let flow = "a/web -> a/db TCP/80 v4";
    assert!(matches("a/* -> * TCP/80", flow));
    assert!(matches("* -> a/db", flow));
    assert!(!matches("a/* -> b/*", flow));
    assert!(!matches("a/web -> a/db TCP/8 v4", flow));
    assert!(!matches("a/web -> a/db TCP/80 v6", flow));
}

#[test]
fn every_flow_that_is_measured_has_a_place() -> Result<()> {
    let stage = Stage::without_agent(CLUSTER)?;
    let _servers = serve(&stage)?;
    let flows = reachability(&stage, Patience::USUAL, |_| true)?;
    let unreached: Vec<&String> = flows
        .iter()
        .filter(|(_, reached)| !**reached)
        .map(|(flow, _)| flow)
        .collect();
    assert_eq!(unreached, Vec::<&String>::new(), "without an agent");
    flows
        .get("a/web -> a/db SCTP/80 v6")
        .context("named as the claims name them")?;
    Ok(())
}
