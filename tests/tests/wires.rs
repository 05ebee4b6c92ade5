//! The lab itself, without an agent: everything reaches everything, and nothing else does.

use std::net::IpAddr;

use agent_policy::model::Protocol;
use tests::lab::Lab;
use tests::probe::{self, Outcome, Patience, Probe, Server, Servers};

#[test]
fn without_an_agent_every_place_reaches_every_other_over_every_protocol() {
    let mut lab = Lab::enter().unwrap();
    for pod in 1..=4_u8 {
        let addresses: [IpAddr; 2] = [
            format!("10.1.0.{pod}").parse().unwrap(),
            format!("fd00:1::{pod}").parse().unwrap(),
        ];
        lab.add_pod(&format!("default/pod-{pod}"), &addresses)
            .unwrap();
    }
    lab.add_host_pod(
        "kube-system/proxy",
        &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
    )
    .unwrap();
    lab.add_external("198.51.100.7".parse().unwrap()).unwrap();
    lab.add_external("2001:db8:1::7".parse().unwrap()).unwrap();
    let mut servers = Vec::new();
    let protocols = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
    for place in lab.places().values() {
        for address in &place.addresses {
            for protocol in protocols {
                servers.push(Server {
                    namespace: &place.namespace,
                    address: *address,
                    protocol,
                    port: 8080,
                });
            }
        }
    }
    let _servers = Servers::start(&servers).unwrap();
    let mut probes = Vec::new();
    let mut names = Vec::new();
    for (from, source) in lab.places() {
        for (to, destination) in lab.places() {
            for v4 in [true, false] {
                let (Some(a), Some(b)) = (source.address(v4), destination.address(v4)) else {
                    continue;
                };
                if from == to {
                    continue;
                }
                for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP] {
                    probes.push(Probe {
                        namespace: &source.namespace,
                        source: a,
                        destination: b,
                        protocol,
                        port: 8080,
                    });
                    names.push(format!("{from} {a} -> {to} {b} {protocol}"));
                }
            }
        }
    }
    let outcomes = probe::run(&probes, Patience::USUAL).unwrap();
    let missing: Vec<_> = names
        .iter()
        .zip(&outcomes)
        .filter(|(_, o)| **o != Outcome::Answered)
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
