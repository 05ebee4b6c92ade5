//! Just enough rtnetlink to lay out hundreds of pods in a second: links, addresses, routes and
//! rules, one acknowledged request each.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

/// Attribute types of `linux/if_link.h`, `if_addr.h`, `rtnetlink.h` and `fib_rules.h`.
mod attribute {
    pub(super) const LINK_MAC: u16 = 1;
    pub(super) const LINK_NAME: u16 = 3;
    pub(super) const LINK_MTU: u16 = 4;
    pub(super) const LINK_INFO: u16 = 18;
    pub(super) const LINK_NAMESPACE: u16 = 28;
    pub(super) const LINK_LARGEST: u16 = 41;
    pub(super) const LINK_LARGEST_V4: u16 = 63;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const VETH_PEER: u16 = 1;
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const ADDRESS_LOCAL: u16 = 2;
    pub(super) const ADDRESS_FLAGS: u16 = 8;
    pub(super) const NEIGHBOUR_ADDRESS: u16 = 1;
    pub(super) const NEIGHBOUR_MAC: u16 = 2;
    pub(super) const ROUTE_DESTINATION: u16 = 1;
    pub(super) const ROUTE_LINK: u16 = 4;
    pub(super) const ROUTE_GATEWAY: u16 = 5;
    pub(super) const ROUTE_SOURCE: u16 = 7;
    pub(super) const ROUTE_TABLE: u16 = 15;
    pub(super) const RULE_IIF: u16 = 3;
    pub(super) const RULE_PRIORITY: u16 = 6;
    pub(super) const RULE_TABLE: u16 = 15;
    pub(super) const RULE_SOURCE_PORTS: u16 = 23;
}

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `RTNH_F_ONLINK`: the gateway needs no route of its own.
const ON_LINK: u32 = 4;
/// The main routing table.
pub const MAIN_TABLE: u32 = 254;

/// A MAC address.
pub type Mac = [u8; 6];

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Interface index. The two ends must differ: the kernel reports the carrier of links whose
    /// own and peer index are equal up to a second late.
    pub index: u32,
    /// Hardware address.
    pub mac: Mac,
}

/// A route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Destination and prefix length.
    pub to: (IpAddr, u8),
    /// Next hop; directly on the link when absent.
    pub via: Option<IpAddr>,
    /// Outgoing interface.
    pub link: u32,
    /// Source address the kernel prefers.
    pub source: Option<IpAddr>,
    /// Routing table.
    pub table: u32,
}

/// A policy routing rule; what is absent matches everything.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// Lower is asked first.
    pub priority: u32,
    /// Incoming interface.
    pub iif: Option<&'a str>,
    /// Source ports, first and last.
    pub source_ports: Option<(u16, u16)>,
    /// Where to look on a match.
    pub table: u32,
}

/// A netlink socket; acts on the namespace it was opened in.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .context("opening a netlink socket")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("binding a netlink socket")?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Makes a veth pair: `here` in this namespace, `there` in another.
    pub fn add_veth(
        &mut self,
        here: VethEnd<'_>,
        there: VethEnd<'_>,
        namespace: BorrowedFd<'_>,
    ) -> Result<()> {
        use attribute as a;
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        message.link(here.index, false);
        message.end(here);
        message.nest(a::LINK_INFO, |message| {
            message.attribute(a::INFO_KIND, b"veth");
            message.nest(a::INFO_DATA, |message| {
                message.nest(a::VETH_PEER, |message| {
                    message.link(there.index, false);
                    message.end(there);
                    message.word(a::LINK_NAMESPACE, namespace.as_raw_fd().unsigned_abs());
                });
            });
        });
        self.ask(message)
            .with_context(|| format!("adding veth {}", here.name))
    }

    /// Removes a link, and with it the other end of a veth pair.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut message = Message::new(libc::RTM_DELLINK, 0);
        message.link(index, false);
        self.ask(message)
            .with_context(|| format!("deleting link {index}"))
    }

    /// Sets a link up.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link(index, true);
        self.ask(message)
            .with_context(|| format!("setting link {index} up"))
    }

    /// Sets how large the packets are that a link takes, in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.bytes(&[0; 4]);
        message.bytes(&index.to_ne_bytes());
        message.bytes(&[0; 8]);
        message.word(attribute::LINK_MTU, mtu);
        self.ask(message)
            .with_context(|| format!("setting the MTU of link {index} to {mtu}"))
    }

    /// Sets how large the packets are that sockets leave to a link to cut, in bytes.
    pub fn set_largest(&mut self, index: u32, bytes: u32) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.bytes(&[0; 4]);
        message.bytes(&index.to_ne_bytes());
        message.bytes(&[0; 8]);
        message.word(attribute::LINK_LARGEST, bytes);
        message.word(attribute::LINK_LARGEST_V4, bytes);
        self.ask(message)
            .with_context(|| format!("letting link {index} cut {bytes} bytes"))
    }

    /// True once the link carries packets. A link is up before that: the kernel attaches its queue
    /// when it has noticed the carrier, and drops what is sent earlier.
    pub fn is_running(&mut self, index: u32) -> Result<bool> {
        let mut message = Message::new(libc::RTM_GETLINK, 0);
        message.link(index, false);
        let answer = self
            .answer_to(message)
            .with_context(|| format!("asking for link {index}"))?;
        // struct ifinfomsg: the flags follow family, type and index.
        let flags = answer
            .get(HEADER + 8..HEADER + 12)
            .and_then(|flags| flags.try_into().ok());
        let flags = flags
            .map(u32::from_ne_bytes)
            .context("the kernel's answer is too short")?;
        // The acknowledgement follows in a message of its own.
        self.receive()?;
        Ok(flags & libc::IFF_RUNNING.cast_unsigned() != 0)
    }

    /// Adds an address, usable at once (no duplicate address detection).
    pub fn add_address(&mut self, link: u32, address: IpAddr, bits: u8) -> Result<()> {
        use attribute as a;
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        message.bytes(&[family(address), bits, 0, 0]);
        message.bytes(&link.to_ne_bytes());
        message.attribute(a::ADDRESS, &octets(address));
        message.attribute(a::ADDRESS_LOCAL, &octets(address));
        message.word(a::ADDRESS_FLAGS, libc::IFA_F_NODAD);
        self.ask(message)
            .with_context(|| format!("adding address {address}/{bits} to link {link}"))
    }

    /// Says for good who has an address on a link, so that no packet waits for an answer.
    pub fn add_neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> Result<()> {
        use attribute as a;
        const NUD_PERMANENT: [u8; 2] = 0x80_u16.to_ne_bytes();
        let mut message =
            Message::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
        // struct ndmsg
        message.bytes(&[family(address), 0, 0, 0]);
        message.bytes(&link.to_ne_bytes());
        message.bytes(&NUD_PERMANENT);
        message.bytes(&[0, 0]);
        message.attribute(a::NEIGHBOUR_ADDRESS, &octets(address));
        message.attribute(a::NEIGHBOUR_MAC, &mac);
        self.ask(message)
            .with_context(|| format!("adding neighbour {address} to link {link}"))
    }

    /// Adds a route.
    pub fn add_route(&mut self, route: Route) -> Result<()> {
        self.route(
            libc::RTM_NEWROUTE,
            libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            route,
        )
        .with_context(|| format!("adding route to {}/{}", route.to.0, route.to.1))
    }

    fn route(&mut self, kind: u16, flags: i32, route: Route) -> Result<()> {
        use attribute as a;
        let (to, bits) = route.to;
        let scope = if route.via.is_some() {
            libc::RT_SCOPE_UNIVERSE
        } else {
            libc::RT_SCOPE_LINK
        };
        let mut message = Message::new(kind, flags);
        // struct rtmsg: the table is an attribute, so its byte here stays 0.
        message.bytes(&[
            family(to),
            bits,
            0,
            0,
            0,
            libc::RTPROT_STATIC,
            scope,
            libc::RTN_UNICAST,
        ]);
        let flags = if route.via.is_some() { ON_LINK } else { 0 };
        message.bytes(&flags.to_ne_bytes());
        if bits > 0 {
            message.attribute(a::ROUTE_DESTINATION, &octets(to));
        }
        message.word(a::ROUTE_LINK, route.link);
        message.word(a::ROUTE_TABLE, route.table);
        if let Some(via) = route.via {
            message.attribute(a::ROUTE_GATEWAY, &octets(via));
        }
        if let Some(source) = route.source {
            message.attribute(a::ROUTE_SOURCE, &octets(source));
        }
        self.ask(message)
    }

    /// Adds a rule for both families.
    pub fn add_rule(&mut self, rule: Rule<'_>) -> Result<()> {
        use attribute as a;
        const TO_TABLE: u8 = 1;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).expect("address families are small");
            let mut message =
                Message::new(libc::RTM_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
            message.bytes(&[family, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0]);
            message.word(a::RULE_PRIORITY, rule.priority);
            message.word(a::RULE_TABLE, rule.table);
            if let Some(iif) = rule.iif {
                message.text(a::RULE_IIF, iif);
            }
            if let Some((first, last)) = rule.source_ports {
                let mut range = first.to_ne_bytes().to_vec();
                range.extend(last.to_ne_bytes());
                message.attribute(a::RULE_SOURCE_PORTS, &range);
            }
            self.ask(message)
                .with_context(|| format!("adding routing rule {rule:?}"))?;
        }
        Ok(())
    }

    /// Sends one request and waits for the kernel's acknowledgement.
    fn ask(&mut self, message: Message) -> Result<()> {
        self.answer_to(message).map(drop)
    }

    fn answer_to(&mut self, message: Message) -> Result<Vec<u8>> {
        self.sequence += 1;
        let request = message.finish(self.sequence);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty()).context("asking the kernel")?;
        self.receive()
    }

    /// One message of the kernel's answer; an error when it is one.
    fn receive(&mut self) -> Result<Vec<u8>> {
        let mut answer = vec![0; 8192];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())
            .context("reading the kernel's answer")?;
        answer.truncate(length);
        let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
        if kind.map(u16::from_ne_bytes).map(i32::from) != Some(libc::NLMSG_ERROR) {
            return Ok(answer);
        }
        let code = answer
            .get(HEADER..HEADER + 4)
            .and_then(|code| code.try_into().ok());
        match code
            .map(i32::from_ne_bytes)
            .context("the kernel's answer is too short")?
        {
            0 => Ok(answer),
            code => Err(io::Error::from_raw_os_error(-code).into()),
        }
    }
}

/// A request under construction.
struct Message {
    buffer: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let flags = u16::try_from(flags).expect("netlink flags have 16 bits");
        let mut buffer = vec![0; 4];
        buffer.extend(kind.to_ne_bytes());
        buffer.extend(flags.to_ne_bytes());
        buffer.resize(HEADER, 0);
        Self { buffer }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// struct ifinfomsg.
    fn link(&mut self, index: u32, up: bool) {
        let flags = u32::from(up);
        self.bytes(&[0; 4]);
        self.bytes(&index.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
    }

    fn end(&mut self, end: VethEnd<'_>) {
        self.text(attribute::LINK_NAME, end.name);
        self.attribute(attribute::LINK_MAC, &end.mac);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("attributes are short");
        self.bytes(&length.to_ne_bytes());
        self.bytes(&kind.to_ne_bytes());
        self.bytes(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    fn word(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self { buffer: Vec::new() };
        fill(&mut inner);
        self.attribute(kind, &inner.buffer);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.buffer.len())
            .expect("requests are short")
            .to_ne_bytes();
        for (place, byte) in self.buffer.iter_mut().zip(length) {
            *place = byte;
        }
        for (place, byte) in self.buffer.iter_mut().skip(8).zip(sequence.to_ne_bytes()) {
            *place = byte;
        }
        self.buffer
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    u8::try_from(family).expect("address families are small")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
