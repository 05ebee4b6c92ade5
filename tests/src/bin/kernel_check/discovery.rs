//! Neighbour discovery that the node would route: the kernel's own look-up of routes tells it from
//! what stays on the pod's link, and has changed from release to release.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context as _, Result};
use tests::lab::frames::{Wire, between};
use tests::lab::stage::Stage;
use tests::packets::Frame;

use crate::traffic::FRIEND;

/// Beyond the node's router, though the prefix is the pods'.
const FAR: Ipv6Addr = Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 9);
/// RFC 4861 §4.3: a neighbour solicitation, which no router has touched.
const SOLICITATION: u8 = 135;
const UNROUTED: u8 = 255;
const ICMPV6: u8 = 58;
const UDP: u8 = 17;
/// The discard service's (RFC 863).
const PORT: u16 = 9;

/// Lays out what is beyond the node.
pub(crate) fn prepare(stage: &mut Stage) -> Result<()> {
    stage.lab.add_external(FAR.into())
}

/// Whether a question of the friend's about a neighbour leaves the node.
pub(crate) fn leaves_the_node(stage: &Stage) -> Result<bool> {
    let friend = stage.lab.place(FRIEND)?;
    let own = friend.address(false).context("an IPv6 address")?;
    let far = IpAddr::V6(FAR);
    let mut question = Frame::icmp(own, far, SOLICITATION, 0, 0).with_hop_limit(UNROUTED);
    question.payload.extend(FAR.octets());
    let last = Frame::udp((own, PORT), (far, PORT));
    let mut router = Wire::open(stage.lab.router()?)?;
    let sender = Wire::open(&friend.namespace)?;
    let send = |frame: &Frame| {
        let bytes = frame.bytes();
        sender.send(&between(friend.mac(), friend.near_mac(), &bytes))
    };
    // The node knows where the router is: nothing has to wait for that.
    send(&last)?;
    router.until(|frame| is(frame, UDP))?;
    send(&question)?;
    send(&last)?;
    let arrived = router.until(|frame| is(frame, UDP))?;
    Ok(arrived.iter().any(|frame| is(frame, ICMPV6)))
}

/// An IPv6 packet to the far address, of this protocol.
fn is(frame: &[u8], protocol: u8) -> bool {
    frame.get(20) == Some(&protocol) && frame.get(38..54) == Some(FAR.octets().as_slice())
}
