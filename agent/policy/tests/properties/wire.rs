//! The whole way of a packet over compiled tables, from bytes to outcome, against the
//! specification.

use std::net::IpAddr;

use agent_common::classify::{Arrival, Hook, Outcome};
use agent_common::conntrack::Timeout;
use agent_common::judge::PolicyTables as _;
use agent_common::maps::Settings;
use agent_policy::evaluate;
use agent_policy::model::{Protocol, Reason, Verdict};
use agent_policy::tables::Tables;
use proptest::prelude::*;

use super::machine::Machine;
use super::node::Node;
use super::packets::Frame;
use super::world;

const TICKS_A_SECOND: u32 = 100;
/// No pod's: the packet comes from outside the node.
const UPLINK: u32 = 1;
const EPHEMERAL: u16 = 40_000;
const SYN: u8 = 2;
const INIT: u8 = 1;

/// The first packet of a flow, as its originator sends it.
fn opening(from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> Frame {
    match Protocol(protocol) {
        Protocol::TCP => Frame::tcp((from, EPHEMERAL), (to, port), SYN),
        Protocol::UDP => Frame::udp((from, EPHEMERAL), (to, port)),
        Protocol::SCTP => Frame::sctp((from, EPHEMERAL), (to, port), INIT),
        _ => Frame::echo_request(from, to, EPHEMERAL),
    }
}

fn machine(tables: &Tables) -> Machine<Tables> {
    let mut tables = tables.clone();
    tables.settings = Settings {
        hz: TICKS_A_SECOND,
        timeouts: Timeout::defaults(TICKS_A_SECOND),
        budget_rate: u32::MAX,
        budget_burst: u32::MAX,
        ..Settings::default()
    };
    Machine::new(tables)
}

impl Node {
    /// A first packet in either direction, between each endpoint and each address, has the outcome
    /// that the specification says, for the same reason.
    pub(crate) fn check_packets(&self) -> Result<(), TestCaseError> {
        let machine = machine(&self.tables);
        for (ifindex, pod) in &self.identities {
            let Some((config, _)) = self.tables.endpoint(*ifindex) else {
                continue;
            };
            let own: Vec<IpAddr> = config.addresses.iter().map(|own| (*own).into()).collect();
            for peer in world::addresses() {
                let Some(local) = pod
                    .addresses
                    .iter()
                    .find(|local| local.is_ipv4() == peer.is_ipv4() && own.contains(local))
                else {
                    continue;
                };
                for (protocol, port) in world::protocols_and_ports() {
                    if self.has_too_many_kinds(peer, protocol, port) {
                        continue;
                    }
                    let protocol = if protocol == 1 && peer.is_ipv6() {
                        58
                    } else {
                        protocol
                    };
                    for (hook, from, to) in
                        [(Hook::FromPod, *local, peer), (Hook::ToPod, peer, *local)]
                    {
                        let frame = opening(from, to, protocol, port);
                        // Only what came in at the pod itself is the pod's own, whatever its address.
                        let ingress_ifindex = if pod.addresses.contains(&peer) {
                            *ifindex
                        } else {
                            UPLINK
                        };
                        let at = Arrival {
                            hook,
                            ifindex: *ifindex,
                            ingress_ifindex,
                        };
                        let outcome = machine.classify(at, &frame.bytes());
                        let wanted = evaluate::judge(
                            self.engine.cluster(),
                            pod,
                            hook.direction(),
                            peer,
                            Protocol(protocol),
                            port,
                        );
                        prop_assert_eq!(
                            outcome,
                            expected(wanted.reason),
                            "{} of {:?}: {:?}",
                            hook.direction(),
                            &pod.name,
                            frame
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

fn expected(reason: Reason) -> Outcome {
    if reason.verdict() == Verdict::Deny {
        Outcome::Drop(reason)
    } else {
        Outcome::Pass(reason)
    }
}
