//! Sends that are larger than a packet: the kernel carries them through the programs whole, their
//! bytes in pages that are somebody else's, their checksums not made yet. What policy allows arrives
//! byte for byte, what it denies does not, and the counts are those of the interfaces.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "all of this is a test: whatever fails ends it"
)]

mod books;
mod sending;

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use agent::dto::Traffic;
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::MsgFlags;
use tests::lab::frames::Wire;
use tests::lab::namespace::Namespace;
use tests::lab::netlink::Netlink;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::offload::{Offload, switch};
use tests::lab::stage::Stage;
use tests::lab::{Lab, wait_until};

use books::{Books, ETHERNET, FROM_POD, TO_POD, mean};
use sending::{DATAGRAM, DATAGRAMS, WAYS, Way, allow_zero_copy, datagrams, send_datagrams, stream};

const CLIENT: &str = "shop/client";
const SERVER: &str = "shop/server";
const STRANGER: &str = "shop/stranger";
const PODS: [&str; 3] = [CLIENT, SERVER, STRANGER];
/// The node's own addresses.
const NODE: [&str; 2] = ["10.15.255.1", "fd15:ff::1"];

/// By TCP and UDP the client may reach the server and its node on this port and on no other.
const PORT: u16 = 8080;
const CLOSED: u16 = 8081;
/// What a link of these carries at a time.
const MTU: u64 = 1500;
const WITHIN: Duration = Duration::from_secs(20);
/// Nothing comes for so long: nothing will.
const SILENCE: Duration = Duration::from_millis(600);

/// Two isolated pods, one that nobody isolates, and the agent.
fn stage() -> Stage {
    let addresses = |last: u8| [format!("10.15.0.{last}"), format!("fd15::{last}")];
    let cluster = [
        namespace("shop", ""),
        pod(CLIENT, "app: client", &addresses(2)),
        pod(SERVER, "app: server", &addresses(3)),
        pod(STRANGER, "app: stranger", &addresses(4)),
    ]
    .join("---\n");
    let mut stage = Stage::open(&cluster).unwrap();
    for address in NODE {
        stage
            .lab
            .add_node_address(address.parse().unwrap())
            .unwrap();
    }
    stage.apply("policy.yaml", &policies(PORT)).unwrap();
    stage
}

/// The client may reach the server and the node, the server admits the client, on one port.
fn policies(port: u16) -> String {
    let ports = format!("ports: [{{port: {port}}}, {{port: {port}, protocol: UDP}}]");
    let of = |name: &str| format!("{{podSelector: {{matchLabels: {{app: {name}}}}}}}");
    let [v4, v6] = NODE;
    let isolated = |name: &str, rules: &str| {
        let selector = format!("podSelector: {{matchLabels: {{app: {name}}}}}");
        let types = "policyTypes: [Ingress, Egress]";
        policy("shop", name, &format!("{{{selector}, {types}, {rules}}}"))
    };
    [
        isolated(
            "client",
            &format!(
                "egress: [{{to: [{}, {{ipBlock: {{cidr: {v4}/32}}}}, {{ipBlock: {{cidr: \
                 \"{v6}/128\"}}}}], {ports}}}]",
                of("server")
            ),
        ),
        isolated(
            "server",
            &format!("ingress: [{{from: [{}], {ports}}}]", of("client")),
        ),
    ]
    .join("---\n")
}

/// A place that sends or is sent to.
#[derive(Clone, Copy)]
struct End<'a> {
    name: &'a str,
    namespace: &'a Namespace,
    address: IpAddr,
}

/// Who sends and who hears, in both families.
fn ends<'a>(lab: &'a Lab, from: &'a str, to: &'a str) -> Vec<[End<'a>; 2]> {
    let end = |name: &'a str, is_v4: bool| {
        let place = lab.places().get(name);
        let [v4, v6] = NODE.map(|address| address.parse().unwrap());
        let own = if is_v4 { v4 } else { v6 };
        End {
            name,
            namespace: place.map_or(lab.node(), |place| &place.namespace),
            address: place.map_or(own, |place| place.address(is_v4).unwrap()),
        }
    };
    [true, false]
        .map(|is_v4| [from, to].map(|name| end(name, is_v4)))
        .to_vec()
}

/// A connection; the sender's end comes first.
fn connected([from, to]: [End<'_>; 2]) -> Result<[TcpStream; 2]> {
    let listening = SocketAddr::new(to.address, PORT);
    let listener = to.namespace.enter(|| Ok(TcpListener::bind(listening)?))?;
    let sender = from
        .namespace
        .enter(|| Ok(TcpStream::connect_timeout(&listening, WITHIN)?))
        .with_context(|| format!("{} to {listening}", from.name))?;
    let (receiver, _) = listener.accept()?;
    for stream in [&sender, &receiver] {
        stream.set_read_timeout(Some(WITHIN))?;
        stream.set_write_timeout(Some(WITHIN))?;
    }
    Ok([sender, receiver])
}

/// Two sockets for datagrams, the sender's first.
fn sockets([from, to]: [End<'_>; 2], port: u16) -> Result<[UdpSocket; 2]> {
    let bind = |end: End<'_>, port: u16| {
        let own = SocketAddr::new(end.address, port);
        end.namespace.enter(|| Ok(UdpSocket::bind(own)?))
    };
    let (sender, receiver) = (bind(from, 0)?, bind(to, port)?);
    sender.connect(receiver.local_addr()?)?;
    receiver.set_read_timeout(Some(WITHIN))?;
    Ok([sender, receiver])
}

/// Streams in every way and datagrams from one place to another: all arrives, and the counts are
/// exact. What the pod at each end has counted on the content's way.
fn arrive(stage: &Stage, from: &str, to: &str) -> Result<Vec<Traffic>> {
    let mut counted = Vec::new();
    for ends in ends(&stage.lab, from, to) {
        let mut check = |send: &mut dyn FnMut() -> Result<()>| -> Result<()> {
            let books = Books::open(stage)?;
            send()?;
            let counts = books.balance(stage)?;
            for (end, place) in ends.iter().zip([FROM_POD, TO_POD]) {
                if let Some(counts) = counts.get(end.name) {
                    counted.push(counts.passed[place]);
                    ensure!(counts.dropped == <[Traffic; 2]>::default(), "{counts:?}");
                }
            }
            Ok(())
        };
        for way in WAYS {
            check(&mut || stream(way, &mut connected(ends)?))
                .with_context(|| format!("{way:?}, {} to {}", from, ends[1].address))?;
        }
        check(&mut || datagrams(&sockets(ends, PORT)?))
            .with_context(|| format!("datagrams, {} to {}", from, ends[1].address))?;
    }
    Ok(counted)
}

#[test]
fn large_sends_between_pods_arrive_whole_and_are_counted_to_the_byte() {
    let stage = stage();
    for counted in arrive(&stage, CLIENT, SERVER).unwrap() {
        assert!(mean(counted) > MTU, "packets were large: {counted:?}");
    }
}

#[test]
fn large_sends_between_a_pod_and_its_node_arrive_whole_and_are_counted_to_the_byte() {
    let stage = stage();
    for (from, to) in [("node", SERVER), (CLIENT, "node")] {
        for counted in arrive(&stage, from, to).unwrap() {
            assert!(
                mean(counted) > MTU,
                "{from}, packets were large: {counted:?}"
            );
        }
    }
}

#[test]
fn sends_whose_checksums_and_segments_the_socket_makes_arrive_as_well() {
    let stage = stage();
    for pod in PODS {
        let place = stage.lab.place(pod).unwrap();
        let off = |name: &str| switch(name, Offload::Checksums, false);
        place.namespace.enter(|| off("eth0")).unwrap();
        off(&format!("pod{}", place.veth)).unwrap();
    }
    for counted in arrive(&stage, CLIENT, SERVER).unwrap() {
        assert!(mean(counted) <= MTU, "packets were small: {counted:?}");
    }
}

#[test]
fn segments_that_the_node_puts_together_are_judged_and_counted_as_one_packet() {
    let stage = stage();
    let client = stage.lab.place(CLIENT).unwrap();
    for offload in [Offload::Segmentation, Offload::LateSegmentation] {
        let off = || switch("eth0", offload, false);
        client.namespace.enter(off).unwrap();
    }
    let near = format!("pod{}", client.veth);
    switch(&near, Offload::Reassembly, true).unwrap();
    for ends in ends(&stage.lab, CLIENT, SERVER) {
        let before = Books::open(&stage).unwrap();
        let mut connection = connected(ends).unwrap();
        stream(Way::Write, &mut connection).unwrap();
        // Of every segment but one of a packet's, the headers are gone: an address family's, and
        // TCP's with time stamps. A veth that does this counts without Ethernet's headers.
        let headers = if ends[0].address.is_ipv4() { 20 } else { 40 } + 32;
        let counts = wait_until("counts to be the interface's", WITHIN, || {
            let counts = before.since(&stage)?;
            let counts = *counts.get(CLIENT).context("the client's")?;
            let (passed, carried) = (counts.passed[FROM_POD], counts.carried[FROM_POD]);
            let joined = carried.packets.checked_sub(passed.packets);
            let bytes = passed.bytes + headers * joined.context("more packets than there were")?;
            ensure!(
                bytes == carried.bytes + ETHERNET * carried.packets,
                "{counts:?}"
            );
            Ok(counts)
        })
        .unwrap();
        assert!(mean(counts.carried[FROM_POD]) <= MTU, "{counts:?}");
        assert!(mean(counts.passed[FROM_POD]) > MTU, "{counts:?}");
    }
}

#[test]
fn packets_of_more_than_64_kib_arrive_whole_and_are_counted_to_the_byte() {
    const LARGEST: u32 = 180_000;
    let stage = stage();
    let mut node = Netlink::open().unwrap();
    for pod in [CLIENT, SERVER] {
        let place = stage.lab.place(pod).unwrap();
        node.set_largest(place.veth, LARGEST).unwrap();
        // Linux forwards IPv6 packets of this kind where their segments would fit with the header that
        // says how long the packet is (RFC 2675), which they will not have.
        node.set_mtu(place.veth, 2 * u32::try_from(MTU).unwrap())
            .unwrap();
        let inside = || Netlink::open()?.set_largest(2, LARGEST);
        place.namespace.enter(inside).unwrap();
    }
    for ends in ends(&stage.lab, CLIENT, SERVER) {
        let books = Books::open(&stage).unwrap();
        let mut wire = Wire::open(ends[1].namespace).unwrap();
        let mut connection = connected(ends).unwrap();
        // It grows as the connection does.
        let end = Instant::now() + WITHIN;
        let stated = usize::from(u16::MAX) + 14;
        let mut largest = 0;
        while largest <= stated && Instant::now() < end {
            stream(Way::Write, &mut connection).unwrap();
            let frames = wire.arrived().unwrap();
            largest = frames.iter().map(Vec::len).fold(largest, usize::max);
        }
        assert!(largest > stated, "{largest} bytes");
        drop(connection);
        books.balance(&stage).unwrap();
    }
}

#[test]
fn nothing_of_a_large_send_arrives_where_policy_denies_it() {
    let stage = stage();
    let node = "node";
    for (from, to, port) in [
        (CLIENT, SERVER, CLOSED),
        (CLIENT, node, CLOSED),
        (STRANGER, SERVER, PORT),
    ] {
        for ends in ends(&stage.lab, from, to) {
            let books = Books::open(&stage).unwrap();
            let [sender, receiver] = sockets(ends, port).unwrap();
            allow_zero_copy(&sender).unwrap();
            for (number, flags) in [0, libc::MSG_ZEROCOPY].into_iter().enumerate() {
                let flags = MsgFlags::from_bits_retain(flags);
                send_datagrams(&sender, number, flags).unwrap();
            }
            receiver.set_read_timeout(Some(SILENCE)).unwrap();
            let heard = receiver.recv(&mut [0; DATAGRAM]);
            assert!(heard.is_err(), "{from} to {to}: {heard:?}");
            let counts = books.balance(&stage).unwrap();
            let (pod, place) = if from == CLIENT {
                (CLIENT, FROM_POD)
            } else {
                (SERVER, TO_POD)
            };
            let headers = if ends[0].address.is_ipv4() { 28 } else { 48 };
            let expected = Traffic {
                packets: 2,
                bytes: 2 * (headers + (DATAGRAMS * DATAGRAM) as u64),
            };
            assert_eq!(counts[pod].dropped[place], expected, "{from} to {to}");
        }
    }
}

#[test]
fn a_connection_that_is_cut_lets_nothing_more_of_a_large_send_through() {
    let mut stage = stage();
    for family in 0..2 {
        for way in WAYS {
            stage.apply("policy.yaml", &policies(PORT)).unwrap();
            let mut connection = {
                let ends = ends(&stage.lab, CLIENT, SERVER)[family];
                connected(ends).unwrap()
            };
            stream(way, &mut connection).unwrap();
            stage.apply("policy.yaml", &policies(CLOSED)).unwrap();
            let books = Books::open(&stage).unwrap();
            let [sender, receiver] = &mut connection;
            sender.set_write_timeout(Some(SILENCE)).unwrap();
            receiver.set_read_timeout(Some(SILENCE)).unwrap();
            // Some of it may fit into the sender's own memory; nothing of it goes anywhere.
            drop(way.send(sender));
            let heard = receiver.read(&mut [0; 16]);
            assert!(heard.is_err(), "{way:?}: {heard:?}");
            let counts = books.since(&stage).unwrap()[CLIENT];
            let dropped = counts.dropped[FROM_POD];
            assert!(mean(dropped) > MTU, "{way:?}: {counts:?}");
            drop(connection);
        }
    }
}
