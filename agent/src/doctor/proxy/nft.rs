//! Chains of the kernel's packet filter (`NFNL_SUBSYS_NFTABLES`): those of nft and of the iptables
//! that is built on it.

use std::io;
use std::time::Duration;

use netlink_packet_netfilter::nftables::{ChainAttribute, ChainMessage, NfTablesMessage};
use netlink_packet_netfilter::{NetfilterMessageInner, NetfilterProtoFamily};

use crate::netfilter::dump;

/// How long the kernel may take to answer: a doctor who waits for ever is none.
const WITHIN: Duration = Duration::from_secs(2);

/// Every chain of this network namespace as (table, chain).
pub(super) fn chains() -> io::Result<Vec<(String, String)>> {
    let everything = NfTablesMessage::GetChain(ChainMessage {
        attributes: Vec::new(),
    });
    let mut found = Vec::new();
    let any = NetfilterProtoFamily::Unspec;
    dump(any, everything, Some(WITHIN), |message| {
        if let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) = message {
            found.extend(names(chain.attributes));
        }
    })?;
    Ok(found)
}

fn names(attributes: Vec<ChainAttribute>) -> Option<(String, String)> {
    let (mut table, mut chain) = (None, None);
    for attribute in attributes {
        if let ChainAttribute::Table(name) = attribute {
            table = Some(name);
        } else if let ChainAttribute::Name(name) = attribute {
            chain = Some(name);
        }
    }
    table.zip(chain)
}
