//! Chains of the kernel's packet filter, by netlink (`NFNL_SUBSYS_NFTABLES`): those of nft and of
//! the iptables that is built on it.

use std::io;
use std::time::Duration;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETCHAIN`, `NFT_MSG_NEWCHAIN` of linux/netfilter.
const GET_CHAIN: u16 = 10 << 8 | 4;
const NEW_CHAIN: u16 = 10 << 8 | 3;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Lengths of `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const FAMILY: usize = 4;
/// Both: a request that asks for everything.
const LENGTH: u32 = 20;
const BUFFER: usize = 64 << 10;
/// How long the kernel may take to answer: a doctor who waits for ever is none.
const WITHIN: Duration = Duration::from_secs(2);

/// Every chain of this network namespace as (table, chain).
pub(super) fn chains() -> io::Result<Vec<(String, String)>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(WITHIN))?;
    let mut request = LENGTH.to_ne_bytes().to_vec();
    request.extend(GET_CHAIN.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.resize(HEADER + FAMILY, 0);
    socket.send(&request, 0)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let size = socket.recv(&mut &mut buffer[..], 0)?;
        if take(buffer.get(..size).unwrap_or_default(), &mut found)? {
            return Ok(found);
        }
    }
}

/// Takes the chains out of one datagram; true when there are no more.
fn take(mut bytes: &[u8], found: &mut Vec<(String, String)>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(payload) = bytes.get(HEADER..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = word(payload, 0).unwrap_or(0).cast_signed();
                return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
            }
            NEW_CHAIN => {
                let attributes = payload.get(FAMILY..).unwrap_or_default();
                let text = |wanted| attribute(attributes, wanted);
                found.extend(text(NFTA_CHAIN_TABLE).zip(text(NFTA_CHAIN_NAME)));
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The text of the first attribute of a kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<String> {
    loop {
        let length = usize::from(half(bytes, 0)?);
        let payload = bytes.get(4..length)?;
        if half(bytes, 2)? == wanted {
            let end = payload.iter().position(|byte| *byte == 0);
            let text = payload.get(..end.unwrap_or(payload.len()))?;
            return String::from_utf8(text.to_vec()).ok();
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn chains_are_taken_with_their_tables_and_cut_bytes_are_no_chain() {
        let mut payload = vec![2, 0, 0, 0];
        for (kind, text) in [(NFTA_CHAIN_TABLE, b"nat\0"), (NFTA_CHAIN_NAME, b"abc\0")] {
            payload.extend(8_u16.to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(text);
        }
        let bytes = message(NEW_CHAIN, &payload);
        let mut found = Vec::new();
        assert!(!take(&bytes, &mut found).unwrap());
        assert_eq!(found, [("nat".to_owned(), "abc".to_owned())]);
        for end in 6..bytes.len() {
            let mut none = Vec::new();
            assert!(take(&bytes[..end], &mut none).is_err(), "cut at {end}");
            assert!(none.is_empty());
        }
        assert!(take(&message(NLMSG_DONE, &[0; 4]), &mut found).unwrap());
        let refused = message(NLMSG_ERROR, &(-1_i32).to_ne_bytes());
        assert_eq!(
            take(&refused, &mut found).unwrap_err().raw_os_error(),
            Some(1)
        );
    }
}
