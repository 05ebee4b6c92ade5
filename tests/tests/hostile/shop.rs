//! The cluster of these tests: a client and a server, both isolated, that may talk on some ports; one
//! that may talk to the server whatever the protocol; one that nobody isolates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::Reason;
use tests::lab::frames::switch::{Fate, Switch};
use tests::lab::objects::{namespace, pod, policy};

pub(crate) const CLIENT: &str = "shop/client";
pub(crate) const SERVER: &str = "shop/server";
pub(crate) const TRUSTED: &str = "shop/trusted";
pub(crate) const FREE: &str = "shop/free";

/// The port that the client may reach the server on, by TCP, UDP and SCTP.
pub(crate) const PORT: u16 = 80;
/// One that it may not.
pub(crate) const CLOSED: u16 = 81;
/// The client's.
pub(crate) const OWN_PORT: u16 = 40_000;

/// Passed both programs by rules.
pub(crate) const ARRIVES: Fate = Fate::Arrives(Reason::Rule, Reason::Rule);
pub(crate) const MALFORMED: Fate = Fate::DroppedFrom(Reason::Malformed);
pub(crate) const NO_RULE: Fate = Fate::DroppedFrom(Reason::IsolatedNoRule);
pub(crate) const SPOOFED: Fate = Fate::DroppedFrom(Reason::SpoofedSource);

/// Everybody's address of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) client: IpAddr,
    pub(crate) server: IpAddr,
    pub(crate) trusted: IpAddr,
    pub(crate) free: IpAddr,
}

pub(crate) const V4: Family = {
    const fn v4(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 13, 0, last))
    }
    Family {
        client: v4(2),
        server: v4(3),
        trusted: v4(4),
        free: v4(5),
    }
};
pub(crate) const V6: Family = {
    const fn v6(last: u16) -> IpAddr {
        IpAddr::V6(Ipv6Addr::new(0xfd13, 0, 0, 0, 0, 0, 0, last))
    }
    Family {
        client: v6(2),
        server: v6(3),
        trusted: v6(4),
        free: v6(5),
    }
};
pub(crate) const FAMILIES: [Family; 2] = [V4, V6];

/// Its manifests.
pub(crate) fn cluster() -> String {
    let ports = "ports: [{port: 80}, {port: 80, protocol: UDP}, {port: 80, protocol: SCTP}]";
    let of = |name: &str| format!("{{podSelector: {{matchLabels: {{app: {name}}}}}}}");
    let all = |name: &str, addresses: [IpAddr; 2]| {
        pod(&format!("shop/{name}"), &format!("app: {name}"), &addresses)
    };
    [
        namespace("shop", ""),
        all("client", [V4.client, V6.client]),
        all("server", [V4.server, V6.server]),
        all("trusted", [V4.trusted, V6.trusted]),
        all("free", [V4.free, V6.free]),
        policy(
            "shop",
            "client",
            &format!(
                "{{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Ingress, Egress], \
                 egress: [{{to: [{}], {ports}}}]}}",
                of("server")
            ),
        ),
        policy(
            "shop",
            "server",
            &format!(
                "{{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress, Egress], \
                 ingress: [{{from: [{}], {ports}}}, {{from: [{}]}}]}}",
                of("client"),
                of("trusted")
            ),
        ),
    ]
    .join("---\n")
}

pub(crate) fn open() -> Switch {
    Switch::open(&cluster()).unwrap()
}
