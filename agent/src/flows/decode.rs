//! A record's bytes to a judgement: who, which way, why. Names come later, in [`super::join`].

use std::net::IpAddr;

use agent_common::event::FlowEvent;
use agent_common::{Direction, Reason, RuleId, Verdict};
use agent_policy::model::Protocol;
use zerocopy::FromBytes as _;

/// Why the kernel decided as it did, as far as this version knows its words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// A reason of the list.
    Known(Reason),
    /// A number of a later version.
    Unknown(u8),
}

impl Cause {
    /// The cause behind a number.
    pub fn from_number(number: u8) -> Self {
        Reason::from_number(number).map_or(Self::Unknown(number), Self::Known)
    }

    /// What it means for the packet; what is not known reads as deny.
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Known(reason) => reason.verdict(),
            Self::Unknown(_) => Verdict::Deny,
        }
    }

    /// The word in JSON and text.
    pub fn label(self) -> String {
        match self {
            Self::Known(reason) => reason.as_label().to_owned(),
            Self::Unknown(number) => format!("unknown-{number}"),
        }
    }
}

/// One event, in the words of the model.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Observation {
    /// Direction of the judgement: ingress when the peer opened the flow.
    pub direction: Direction,
    /// Why.
    pub cause: Cause,
    /// The pod's address.
    pub local: IpAddr,
    /// The other side's address, as the packet shows it.
    pub peer: IpAddr,
    /// Port the flow came from, for protocols with ports.
    pub from_port: Option<u16>,
    /// Port the flow was opened to, for protocols with ports.
    pub port: Option<u16>,
    /// Protocol.
    pub protocol: Protocol,
    /// The endpoint's slot.
    pub slot: u32,
    /// Interface of the local pod that really sent it; 0 when the peer is who its address says.
    pub via: u32,
    /// Deciding rule.
    pub rule: RuleId,
    /// Revision it was judged under.
    pub revision: u32,
    /// Packets it stands for.
    pub packets: u32,
}

/// Reads a record. `None` when it is too short to be one.
pub fn decode(bytes: &[u8]) -> Option<Observation> {
    // A later version may append fields.
    let (event, _later) = FlowEvent::read_from_prefix(bytes).ok()?;
    let direction = Direction::from_index(event.direction);
    let protocol = Protocol(event.protocol);
    let (from_port, port) = match direction {
        Direction::Ingress => (event.peer_port, event.local_port),
        Direction::Egress => (event.local_port, event.peer_port),
    };
    let has_ports = protocol.has_ports();
    Some(Observation {
        direction,
        cause: Cause::from_number(event.reason),
        local: event.local.into(),
        peer: event.peer.into(),
        from_port: has_ports.then_some(from_port),
        port: has_ports.then_some(port),
        protocol,
        slot: event.slot,
        via: event.via,
        rule: RuleId(event.rule),
        revision: event.revision,
        packets: event.packets,
    })
}

#[cfg(test)]
mod tests {
    use agent_common::Address;
    use zerocopy::IntoBytes as _;

    use super::*;

    fn event(direction: Direction, reason: u8) -> FlowEvent {
        FlowEvent {
            local: Address::from_v4([10, 0, 0, 1]),
            peer: Address::from_v4([10, 0, 0, 2]),
            local_port: 8080,
            peer_port: 40_000,
            slot: 3,
            rule: 7,
            revision: 9,
            packets: 2,
            protocol: 6,
            direction: direction.index(),
            reason,
            ..FlowEvent::default()
        }
    }

    #[test]
    fn ports_are_seen_from_who_opened_the_flow() {
        let ingress = decode(event(Direction::Ingress, 1).as_bytes()).unwrap();
        assert_eq!(
            (ingress.from_port, ingress.port),
            (Some(40_000), Some(8080))
        );
        let egress = decode(event(Direction::Egress, 1).as_bytes()).unwrap();
        assert_eq!((egress.from_port, egress.port), (Some(8080), Some(40_000)));
        let icmp = FlowEvent {
            protocol: 1,
            ..event(Direction::Ingress, 1)
        };
        assert_eq!(decode(icmp.as_bytes()).unwrap().port, None);
    }

    #[test]
    fn a_reason_of_a_later_version_reads_as_deny() {
        let odd = decode(event(Direction::Ingress, 200).as_bytes()).unwrap();
        assert_eq!(odd.cause.verdict(), Verdict::Deny);
        assert_eq!(odd.cause.label(), "unknown-200");
    }

    #[test]
    fn every_known_reason_keeps_its_verdict_and_word() {
        for reason in Reason::ALL {
            let read = decode(event(Direction::Egress, reason.number()).as_bytes()).unwrap();
            assert_eq!(read.cause.verdict(), reason.verdict());
            assert_eq!(read.cause.label(), reason.as_label());
        }
    }

    #[test]
    fn short_records_are_none_and_longer_ones_are_read() {
        let whole = event(Direction::Ingress, 32);
        let bytes = whole.as_bytes();
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]), None);
        }
        let longer = [bytes, &[1, 2, 3]].concat();
        assert_eq!(decode(&longer), decode(bytes));
    }
}
