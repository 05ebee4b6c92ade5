//! Asks the kernel's packet filter and connection tracking what they hold, by netlink.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's messages are the kernel's, and grow with it"
)]

use std::io;
use std::time::Duration;

use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// The kernel fills a dump's messages up to 32 KiB.
const BUFFER: usize = 64 << 10;

/// Gives `take` everything of this network namespace that a request asks for.
///
/// # Errors
/// The kernel does not have it, we may not ask, or no part of the answer comes for as long as
/// `within`; without it, that is waited for.
pub(crate) fn dump(
    family: NetfilterProtoFamily,
    request: impl Into<NetfilterMessageInner>,
    within: Option<Duration>,
    mut take: impl FnMut(NetfilterMessageInner),
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, within)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), request);
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut buffer = vec![0; BUFFER];
    loop {
        let size = socket.recv(&mut &mut buffer[..], 0)?;
        if each(buffer.get(..size).unwrap_or_default(), &mut take)? {
            return Ok(());
        }
    }
}

/// Gives `take` the messages of one datagram; true when there are no more to come.
fn each(mut bytes: &[u8], take: &mut impl FnMut(NetfilterMessageInner)) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(message) => take(message.inner),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NLMSG_ERROR` and `NLMSG_DONE`; `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_NEWCHAIN`.
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    const NEW_CHAIN: u16 = 10 << 8 | 3;
    /// Length of `struct nlmsghdr`.
    const HEADER: usize = 16;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn messages_are_given_until_the_last_and_cut_ones_are_an_error() {
        let chain = message(NEW_CHAIN, &[2, 0, 0, 0]);
        let taken = |bytes: &[u8]| {
            let mut count = 0;
            each(bytes, &mut |_| count += 1).map(|is_done| (count, is_done))
        };
        let two = [chain.clone(), chain.clone()].concat();
        assert_eq!(taken(&two).unwrap(), (2, false));
        let done = message(DONE, &[0; 4]);
        assert_eq!(taken(&[two, done].concat()).unwrap(), (2, true));
        for end in 1..chain.len() {
            assert!(taken(&chain[..end]).is_err(), "cut at {end}");
        }
        let mut refused = (-1_i32).to_ne_bytes().to_vec();
        refused.resize(4 + HEADER, 0);
        let refused = taken(&message(ERROR, &refused)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(1));
    }
}
