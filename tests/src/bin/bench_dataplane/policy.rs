//! What the endpoint under test is given: policy of any size, and peers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::maps::{
    ALLOW, Config, EndpointWord, FUNCTION_LONG, PeerEntry, PortFunction, PortInterval, PortKey,
    PortVerdict, VerdictKey, config_flags,
};
use agent_policy::plan::Write;

/// The endpoint's interface.
pub(crate) const IFINDEX: u32 = 11;
/// Port that flows are opened to; so are the next ones, when 65 536 flows are not enough.
pub(crate) const PORT: u16 = 443;
const LAST_PORT: u16 = 511;
const EGRESS_SET: u32 = 1;
const FRIEND_CLASS: u32 = 1;

/// Of one family: the pod, a peer it may talk to, one it may not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) pod: IpAddr,
    pub(crate) friend: IpAddr,
    pub(crate) stranger: IpAddr,
}

/// IPv4, IPv6.
pub(crate) const FAMILIES: [Addresses; 2] = [
    Addresses {
        pod: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)),
        friend: IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1)),
        stranger: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    },
    Addresses {
        pod: IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2)),
        friend: IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1)),
        stranger: IpAddr::V6(Ipv6Addr::new(0xfd00, 3, 0, 0, 0, 0, 0, 1)),
    },
];

/// An endpoint whose egress set has as many rows as there are rules, every tenth a long function,
/// and as many known peers.
pub(crate) fn policy(rules: u32, peers: u32) -> Vec<Write> {
    let allowed = PortFunction {
        count: 1,
        intervals: [
            PortInterval {
                protocol: 6,
                verdict: ALLOW,
                first: PORT,
                last: LAST_PORT,
                rule: 1,
                ..PortInterval::default()
            },
            PortInterval::default(),
            PortInterval::default(),
        ],
        ..PortFunction::default()
    };
    let row = |class, function| {
        Write::PutVerdict(
            VerdictKey {
                set: EGRESS_SET,
                class,
            },
            function,
        )
    };
    let mut writes = vec![row(0, PortFunction::default()), row(FRIEND_CLASS, allowed)];
    for class in 2..=rules {
        let mut function = allowed;
        if class % 10 == 0 {
            function.kind = FUNCTION_LONG;
            function.function = class;
            let [high, low] = PORT.to_be_bytes();
            let key = PortKey {
                length: 56,
                function_be: class.to_be_bytes(),
                protocol: 6,
                port_be: [high, low],
                reserved: 0,
            };
            let verdict = PortVerdict {
                verdict: ALLOW,
                rule: 1,
                ..PortVerdict::default()
            };
            writes.push(Write::PutPort(key, verdict));
        }
        writes.push(row(class, function));
    }
    // Half of them of each family.
    for n in 0..peers.max(2) {
        let friend = match FAMILIES[n as usize % 2].friend {
            IpAddr::V4(v4) => IpAddr::from((u32::from(v4) + n / 2).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((u128::from(v6) + u128::from(n / 2)).to_be_bytes()),
        };
        let class = if n < 2 { FRIEND_CLASS } else { 1 + n % rules };
        writes.push(Write::PutPeer(friend, PeerEntry { class, flags: 0 }));
    }
    let config = Config {
        ifindex: IFINDEX,
        slot: 1,
        addresses: FAMILIES.map(|family| family.pod.into()),
        sets: [0, EGRESS_SET],
        audit_sets: [0, EGRESS_SET],
        flags: config_flags::PROGRAMMED,
        ..Config::default()
    };
    let word = EndpointWord {
        config_row: 1,
        revision: 1,
    };
    writes.extend([
        Write::OpenSlot(1),
        Write::PutConfig(1, Box::new(config)),
        Write::Flip {
            ifindex: IFINDEX,
            word,
        },
    ]);
    writes
}
