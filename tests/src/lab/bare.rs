//! Interfaces without pods, for packets that are only test-run: no real one ever passes them.

use std::os::fd::AsFd as _;

use anyhow::Result;

use super::namespace::Namespace;
use super::netlink::{Netlink, VethEnd};

/// Makes an interface with each index in the calling thread's namespace. They last as long as the
/// namespace that comes back, where their other ends are.
pub fn interfaces(indices: impl IntoIterator<Item = u32>) -> Result<Namespace> {
    let others = Namespace::create()?;
    let mut netlink = Netlink::open()?;
    for index in indices {
        let [name, peer] = ["h", "p"].map(|side| format!("{side}{index}"));
        let end = |name, index, last| VethEnd {
            name,
            index,
            mac: [2, 0, 0, 0, 0, last],
        };
        // Indices are counted in each namespace by itself.
        netlink.add_veth(end(&name, index, 1), end(&peer, index, 2), others.as_fd())?;
    }
    Ok(others)
}
