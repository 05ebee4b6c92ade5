//! Bytes of a manifest file, read as the agent reads them, compiled, and held against the
//! specification: whatever they are, nothing panics, what is said of them is bounded, and the
//! maps' content judges packets as [`evaluate`] does.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::source::directory::{Loaded, load_bytes};
use agent_common::Address;
use agent_common::judge::{PolicyTables as _, judge, peer_of};
use agent_policy::cluster::Cluster;
use agent_policy::engine::{Engine, LocalEndpoint, Options};
use agent_policy::evaluate;
use agent_policy::model::{Direction, Peer, Peers, Phase, Pod, PortMatch, Ports, Protocol};
use agent_policy::plan::Refused;
use agent_policy::tables::Tables;

/// Local pods; more would be slow and no different.
const LOCALS: usize = 4;
/// Peers and ports that are tried; more would be slow and no different.
const TRIED: usize = 24;
/// What the agent may say of a file of a few kilobytes.
const SAID_BYTES: usize = 1 << 20;
const FIRST_IFINDEX: u32 = 10;
const NOW: Duration = Duration::from_secs(100);

/// The claim of this target.
pub fn run(bytes: &[u8]) {
    for file in ["a.yaml", "a.json"] {
        let loaded = load_bytes(Path::new(file), bytes);
        check_words(&loaded);
        check_judgements(loaded);
    }
}

/// What is said is for people: bounded, and nothing a terminal would obey.
fn check_words(loaded: &Loaded) {
    let said: Vec<String> = loaded.findings.iter().map(ToString::to_string).collect();
    let bytes: usize = said.iter().map(String::len).sum();
    assert!(bytes <= SAID_BYTES, "{bytes} bytes are said of it");
    for line in said {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

fn check_judgements(loaded: Loaded) {
    let mut engine = Engine::new(Options::default());
    for change in loaded.changes {
        // What an object touches matters to a running agent only.
        drop(engine.apply(change));
    }
    let locals = locals(engine.cluster());
    for (ifindex, pod) in (FIRST_IFINDEX..).zip(&locals) {
        engine.attach(LocalEndpoint {
            uid: pod.uid.clone(),
            ifindex,
            addresses: Vec::new(),
            attached: 7,
            fails_open: false,
        });
    }
    let mut tables = Tables::default();
    // What does not fit is refused whole: nothing to judge.
    if settle(&mut engine, &mut tables).is_err() {
        return;
    }
    for (ifindex, pod) in (FIRST_IFINDEX..).zip(&locals) {
        check_pod(&engine, &tables, ifindex, pod);
    }
    assert_eq!(
        tables.default_rows_missed.get(),
        0,
        "a set has no default row"
    );
}

fn settle(engine: &mut Engine, tables: &mut Tables) -> Result<(), Refused> {
    if let Some(plan) = engine.plan(NOW)? {
        tables.apply_all(&plan.writes);
        engine.written(NOW);
    }
    assert_eq!(
        engine.plan(NOW),
        Ok(None),
        "settled, yet there is more to do"
    );
    Ok(())
}

fn locals(cluster: &Cluster) -> Vec<Arc<Pod>> {
    let can_be_local = |pod: &&Arc<Pod>| pod.phase != Phase::Completed && !pod.host_network;
    let mut pods: Vec<Arc<Pod>> = cluster.pods().filter(can_be_local).cloned().collect();
    pods.sort_by(|a, b| a.uid.cmp(&b.uid));
    pods.truncate(LOCALS);
    pods
}

fn check_pod(engine: &Engine, tables: &Tables, ifindex: u32, pod: &Pod) {
    let cluster = engine.cluster();
    let (config, _) = tables
        .endpoint(ifindex)
        .expect("a pod that is known is published");
    let ports = ports(cluster);
    for peer in peers(cluster) {
        // Its own packets are never judged by policy.
        if pod.addresses.contains(&peer) {
            continue;
        }
        let class = peer_of(tables, &Address::from(peer)).class;
        for direction in Direction::ALL {
            let set = config.sets.get(direction as usize).copied();
            for (protocol, port) in &ports {
                let judged = judge(tables, set.unwrap_or_default(), class, protocol.0, *port);
                let meant = evaluate::judge(cluster, pod, direction, peer, *protocol, *port);
                assert_eq!(
                    (judged.reason.verdict(), engine.rule_ref(judged.rule)),
                    (meant.verdict(), meant.rule.as_ref()),
                    "{} {direction} {peer} {protocol} {port}",
                    pod.name
                );
            }
        }
    }
}

/// Both sides of every edge of what the objects name, as far as there is time.
fn peers(cluster: &Cluster) -> BTreeSet<IpAddr> {
    let pods = cluster.pods().flat_map(|pod| pod.addresses.clone());
    let blocks = rules(cluster).flat_map(|rule| match &rule.peers {
        Peers::All => Vec::new(),
        Peers::Any(peers) => peers.iter().flat_map(edges_of_peer).collect(),
    });
    let others = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("an address"));
    others
        .into_iter()
        .chain(pods.take(TRIED))
        .chain(blocks.take(TRIED))
        .collect()
}

fn edges_of_peer(peer: &Peer) -> Vec<IpAddr> {
    match peer {
        Peer::Pods { .. } => Vec::new(),
        Peer::Block { cidr, except } => [cidr]
            .into_iter()
            .chain(except)
            .flat_map(|range| [range.network(), range.broadcast()])
            .collect(),
    }
}

fn ports(cluster: &Cluster) -> BTreeSet<(Protocol, u16)> {
    let declared = cluster
        .pods()
        .flat_map(|pod| pod.ports.iter().map(|port| (port.protocol, port.port)));
    let ranges = rules(cluster).flat_map(|rule| match &rule.ports {
        Ports::All => Vec::new(),
        Ports::Any(ports) => ports.iter().flat_map(edges_of_port).collect(),
    });
    let others = [
        (Protocol::ICMP, 0),
        (Protocol::TCP, 80),
        (Protocol::UDP, 53),
    ];
    others
        .into_iter()
        .chain(declared.take(TRIED))
        .chain(ranges.take(TRIED))
        .collect()
}

fn edges_of_port(port: &PortMatch) -> Vec<(Protocol, u16)> {
    match port {
        PortMatch::Protocol(protocol) => vec![(*protocol, 1)],
        PortMatch::Named { protocol, .. } => vec![(*protocol, 8080)],
        PortMatch::Range {
            protocol,
            first,
            last,
        } => {
            let outside = [first.checked_sub(1), last.checked_add(1)];
            [Some(*first), Some(*last)]
                .into_iter()
                .chain(outside)
                .flatten()
                .map(|port| (*protocol, port))
                .collect()
        }
    }
}

fn rules(cluster: &Cluster) -> impl Iterator<Item = &agent_policy::model::Rule> {
    let policies = cluster.policies();
    policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress))
}
