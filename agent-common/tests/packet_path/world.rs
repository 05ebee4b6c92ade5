//! A node for tests: a pod under policy, a second local pod, a peer elsewhere.

use std::collections::HashMap;
use std::net::IpAddr;

use agent_common::Address;
use agent_common::classify::{Arrival, Hook, Outcome};
use agent_common::conntrack::Timeout;
use agent_common::judge::PolicyTables;
use agent_common::maps::{
    ALLOW, Config, PeerEntry, PortFunction, PortInterval, PortVerdict, Service, ServiceKey,
    Settings, VerdictKey, config_flags, peer_bucket, settings_flags,
};

use crate::machine::Machine;
use crate::packets::Frame;

/// Ticks a second.
pub const HZ: u32 = 250;
/// The pod under policy: its interface and slot.
pub const POD: (u32, u32) = (7, 1);
/// Another pod of the node.
pub const NEIGHBOUR: (u32, u32) = (8, 2);
/// The uplink's interface.
pub const UPLINK: u32 = 2;
/// The policy sets of the pod, and one that allows nothing.
pub const INGRESS_SET: u32 = 11;
/// See [`INGRESS_SET`].
pub const EGRESS_SET: u32 = 12;
/// See [`INGRESS_SET`].
pub const CLOSED_SET: u32 = 13;
/// Peer class of whom the rules admit.
pub const FRIEND: u32 = 5;
/// The rule that admits port 80 to the pod.
pub const INGRESS_RULE: u32 = 101;
/// The rule that admits the pod to port 443.
pub const EGRESS_RULE: u32 = 102;

/// The addresses everyone has, by family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The pod under policy.
    pub pod: IpAddr,
    /// The other pod of the node.
    pub neighbour: IpAddr,
    /// A peer elsewhere that rules admit.
    pub friend: IpAddr,
    /// One that no rule mentions.
    pub stranger: IpAddr,
    /// The node, as pods see it.
    pub node: IpAddr,
    /// A group.
    pub group: IpAddr,
}

/// Both families.
pub fn families() -> [Family; 2] {
    let family = |[pod, neighbour, friend, stranger, node, group]: [&str; 6]| Family {
        pod: pod.parse().unwrap(),
        neighbour: neighbour.parse().unwrap(),
        friend: friend.parse().unwrap(),
        stranger: stranger.parse().unwrap(),
        node: node.parse().unwrap(),
        group: group.parse().unwrap(),
    };
    [
        family([
            "10.1.0.2",
            "10.1.0.3",
            "10.2.0.9",
            "10.9.9.9",
            "10.1.0.1",
            "239.1.2.3",
        ]),
        family([
            "fd00:1::2",
            "fd00:1::3",
            "fd00:2::9",
            "fd00:9::9",
            "fd00:1::1",
            "ff15::1:3",
        ]),
    ]
}

/// What user space would have written.
#[derive(Debug, Default)]
pub struct Rows {
    /// Endpoints by interface, with their revision.
    pub endpoints: HashMap<u32, (Config, u32)>,
    /// `PEER_REVISION`.
    pub peer_revisions: HashMap<u16, u32>,
    /// `PEERS_EXACT`.
    pub peers: HashMap<Address, PeerEntry>,
    /// VERDICTS.
    pub verdicts: HashMap<VerdictKey, PortFunction>,
    /// SETTINGS.
    pub settings: Settings,
}

impl PolicyTables for Rows {
    fn endpoint(&self, ifindex: u32) -> Option<(&Config, u32)> {
        let (config, revision) = self.endpoints.get(&ifindex)?;
        Some((config, *revision))
    }

    fn peer_revision(&self, bucket: u16) -> u32 {
        self.peer_revisions.get(&bucket).copied().unwrap_or(1)
    }

    fn peer_exact(&self, address: &Address) -> Option<PeerEntry> {
        self.peers.get(address).copied()
    }

    fn peer_prefix(&self, _: &Address) -> Option<PeerEntry> {
        None
    }

    fn verdict(&self, key: &VerdictKey) -> Option<&PortFunction> {
        self.verdicts.get(key)
    }

    fn port(&self, _: u32, _: u8, _: u16) -> Option<PortVerdict> {
        None
    }

    fn service(&self, _: &ServiceKey) -> Option<&Service> {
        None
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn default_row_missing(&self) {}
}

/// The node: a machine and how packets come to it.
pub type Node = Machine<Rows>;

/// A node whose pod is isolated in both directions: friends may come to port 80 and be gone to on
/// port 443, by TCP, UDP and SCTP, and may ping it.
pub fn node() -> Node {
    let mut rows = Rows {
        settings: Settings {
            hz: HZ,
            flags: settings_flags::REPORT_ALLOWED,
            report_interval: 10 * HZ,
            mid_stream_grace: 60 * HZ,
            timeouts: Timeout::defaults(HZ),
            budget_rate: 1_000,
            budget_burst: 1_000,
            ..Settings::default()
        },
        ..Rows::default()
    };
    for family in families() {
        let class = |class| PeerEntry { class, flags: 0 };
        rows.peers.insert(family.friend.into(), class(FRIEND));
        rows.peers.insert(family.neighbour.into(), class(FRIEND));
    }
    for (set, port, rule) in [
        (INGRESS_SET, 80, INGRESS_RULE),
        (EGRESS_SET, 443, EGRESS_RULE),
    ] {
        rows.verdicts
            .insert(VerdictKey { set, class: FRIEND }, function(port, rule));
    }
    for set in [INGRESS_SET, EGRESS_SET, CLOSED_SET] {
        rows.verdicts
            .insert(VerdictKey { set, class: 0 }, PortFunction::default());
    }
    let [v4, v6] = families();
    rows.endpoints.insert(
        POD.0,
        (
            Config {
                sets: [INGRESS_SET, EGRESS_SET],
                audit_sets: [INGRESS_SET, EGRESS_SET],
                ..config(POD, [v4.pod, v6.pod])
            },
            1,
        ),
    );
    rows.endpoints.insert(
        NEIGHBOUR.0,
        (config(NEIGHBOUR, [v4.neighbour, v6.neighbour]), 1),
    );
    Machine::new(rows)
}

/// A programmed endpoint without isolation.
pub fn config((ifindex, slot): (u32, u32), [first, second]: [IpAddr; 2]) -> Config {
    Config {
        ifindex,
        slot,
        addresses: [first.into(), second.into()],
        flags: config_flags::PROGRAMMED,
        ..Config::default()
    }
}

/// One port of TCP, UDP and SCTP.
pub fn function(port: u16, rule: u32) -> PortFunction {
    let interval = |protocol| PortInterval {
        protocol,
        verdict: ALLOW,
        rank: 1,
        first: port,
        last: port,
        rule,
    };
    PortFunction {
        count: 3,
        intervals: [6, 17, 132].map(interval),
        ..PortFunction::default()
    }
}

/// Changes the row of the pod under policy.
pub fn change_pod(node: &mut Node, change: impl FnOnce(&mut Config, &mut u32)) {
    let (config, revision) = node.policy.endpoints.get_mut(&POD.0).unwrap();
    change(config, revision);
}

/// A policy change: the pod gets these sets and a new revision.
pub fn change_policy(node: &mut Node, sets: [u32; 2]) {
    change_pod(node, |config, revision| {
        config.sets = sets;
        config.audit_sets = sets;
        *revision += 1;
    });
}

/// A peer gets another class, and its bucket a new revision.
pub fn relabel(node: &mut Node, peer: IpAddr, class: u32) {
    let address = Address::from(peer);
    node.policy
        .peers
        .insert(address, PeerEntry { class, flags: 0 });
    *node
        .policy
        .peer_revisions
        .entry(peer_bucket(address))
        .or_insert(1) += 1;
}

/// Sends what the pod sends.
pub fn from_pod(node: &Node, frame: &Frame) -> Outcome {
    from_pod_bytes(node, &frame.bytes())
}

/// See [`from_pod`].
pub fn from_pod_bytes(node: &Node, frame: &[u8]) -> Outcome {
    let at = Arrival {
        hook: Hook::FromPod,
        ifindex: POD.0,
        ingress_ifindex: POD.0,
    };
    node.classify(at, frame)
}

/// Brings a packet to the pod that entered the node at `ingress_ifindex`.
pub fn to_pod(node: &Node, ingress_ifindex: u32, frame: &Frame) -> Outcome {
    to_pod_bytes(node, ingress_ifindex, &frame.bytes())
}

/// See [`to_pod`].
pub fn to_pod_bytes(node: &Node, ingress_ifindex: u32, frame: &[u8]) -> Outcome {
    let at = Arrival {
        hook: Hook::ToPod,
        ifindex: POD.0,
        ingress_ifindex,
    };
    node.classify(at, frame)
}
