//! The lab itself, without an agent: what it says is measured must be true before it may judge.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_policy::model::Protocol;
use tests::lab::measure::{self, Row, Word};
use tests::lab::namespace::sysctl;
use tests::lab::{Kind, Lab};
use tests::probe::{self, Outcome, Patience, Probe, Server, Servers};

const PORT: u16 = 8080;

fn addresses(of: &[&str]) -> Vec<IpAddr> {
    of.iter()
        .map(|text| text.parse().expect("an address"))
        .collect()
}

fn row(from: &str, to: &str, protocol: &str) -> Row {
    let [ingress, egress, verdict] = [Word::Allow; 3];
    let (from, to, protocol) = (from.to_owned(), to.to_owned(), protocol.to_owned());
    Row {
        from,
        to,
        protocol,
        port: PORT,
        ingress,
        egress,
        verdict,
    }
}

#[test]
fn without_an_agent_every_place_reaches_every_other_over_every_protocol() {
    let mut lab = Lab::enter().unwrap();
    for pod in 1..=4_u8 {
        let both = addresses(&[&format!("10.1.0.{pod}"), &format!("fd00:1::{pod}")]);
        lab.add_pod(&format!("default/pod-{pod}"), &both).unwrap();
    }
    lab.add_host_pod(
        "kube-system/proxy",
        &addresses(&["192.0.2.1", "2001:db8::1"]),
    )
    .unwrap();
    lab.add_external("198.51.100.7".parse().unwrap()).unwrap();
    lab.add_external("2001:db8:1::7".parse().unwrap()).unwrap();
    let mut servers = Vec::new();
    for place in lab.places().values() {
        for &address in &place.addresses {
            for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                let namespace = &place.namespace;
                servers.push(Server {
                    namespace,
                    address,
                    protocol,
                    port: PORT,
                });
            }
        }
    }
    let _servers = Servers::start(&servers).unwrap();

    let mut probes = BTreeMap::new();
    for (from, source) in lab.places() {
        for (to, destination) in lab.places().iter().filter(|(to, _)| *to != from) {
            for v4 in [true, false] {
                let (Some(from_ip), Some(to_ip)) = (source.address(v4), destination.address(v4))
                else {
                    continue;
                };
                for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP] {
                    let probe = Probe {
                        namespace: &source.namespace,
                        source: from_ip,
                        destination: to_ip,
                        protocol,
                        port: PORT,
                    };
                    probes.insert(
                        format!("{from} {from_ip} -> {to} {to_ip} {protocol}"),
                        probe,
                    );
                }
            }
        }
    }
    let (names, probes): (Vec<String>, Vec<Probe<'_>>) = probes.into_iter().unzip();
    let outcomes = probe::run(&probes, Patience::USUAL).unwrap();
    let unanswered: Vec<_> = names
        .iter()
        .zip(&outcomes)
        .filter(|(_, o)| **o != Outcome::Answered)
        .collect();
    assert_eq!(unanswered, [], "of {} probes", probes.len());
    assert_eq!(
        probes.len(),
        240,
        "6 places a family, 30 pairs, 4 protocols, 2 families"
    );
}

#[test]
fn each_side_of_a_refused_connection_is_measured_by_itself() {
    let mut lab = Lab::enter().unwrap();
    lab.add_pod("a/free", &addresses(&["10.1.0.1"])).unwrap();
    lab.add_pod("a/mute", &addresses(&["10.1.0.2"])).unwrap();
    // What an egress policy that allows nothing does, without any policy: the node forwards
    // nothing that comes from this pod.
    let veth = lab.place("a/mute").unwrap().veth;
    lab.node()
        .enter(|| sysctl(&format!("ipv4/conf/pod{veth}/forwarding"), "0"))
        .unwrap();
    let rows: Vec<Row> = ["TCP", "UDP"]
        .iter()
        .flat_map(|protocol| {
            [
                row("a/free", "a/mute", protocol),
                row("a/mute", "a/free", protocol),
            ]
        })
        .collect();
    let _servers = measure::serve(&lab, &rows).unwrap();

    let measured = measure::measure(&mut lab, &rows).unwrap();

    for row in measured {
        // No answer comes from a mute pod, but the question is let out and in.
        let egress = if row.from == "a/mute" {
            Word::Deny
        } else {
            Word::Allow
        };
        let expected = Row {
            egress,
            ingress: Word::Allow,
            verdict: Word::Deny,
            ..row.clone()
        };
        assert_eq!(row, expected);
    }
}

#[test]
fn pods_removed_from_the_lab_free_their_name_and_address() {
    let mut lab = Lab::enter().unwrap();
    for round in 0..3 {
        lab.add_pod("a/pod", &addresses(&["10.1.0.1"])).unwrap();
        assert_eq!(lab.place("a/pod").unwrap().kind, Kind::Pod, "round {round}");
        lab.remove_pod("a/pod").unwrap();
    }
    assert!(lab.places().is_empty());
}

#[test]
fn nothing_of_a_lab_is_visible_on_the_machine() {
    let inside = std::thread::spawn(|| {
        let mut lab = Lab::enter().unwrap();
        lab.add_pod("a/pod", &addresses(&["10.1.0.1"])).unwrap();
        lab.write_manifest("x.yaml", "").unwrap();
        (
            std::fs::read_dir("/run/netns").unwrap().count(),
            std::fs::read_dir("/sys/class/net").unwrap().count(),
            std::path::Path::new("/run/lab/x.yaml").exists(),
        )
    });
    let seen = inside.join().unwrap();
    assert_eq!(
        seen,
        (1, 2, false),
        "one namespace, lo and one veth, the manifest in its place"
    );
    assert!(
        !std::path::Path::new("/run/lab").exists(),
        "the machine's /run is another"
    );
    assert!(!std::path::Path::new("/run/netns/a_pod").exists());
}
