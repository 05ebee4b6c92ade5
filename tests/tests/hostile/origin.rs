//! Who sent it: what the node itself sends is never lost, and nothing that a pod sends passes for it,
//! whatever the node's forwarding makes of it (`skb->ingress_ifindex` 0 is what tells the node's own).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::{AddressFamily, SocketType};
use tests::lab::agent::{Agent, metric};
use tests::lab::frames::{Wire, between};
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::packets::{Frame, protocol};

pub(crate) const VICTIM: &str = "shop/victim";
pub(crate) const ATTACKER: &str = "shop/attacker";
const BYSTANDER: &str = "shop/bystander";
const VICTIM_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 14, 0, 2));
const VICTIM_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd14, 0, 0, 0, 0, 0, 0, 2));
const ATTACKER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 14, 0, 3));
const ATTACKER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd14, 0, 0, 0, 0, 0, 0, 3));
const BYSTANDER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 14, 0, 4));
const BYSTANDER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd14, 0, 0, 0, 0, 0, 0, 4));

/// Addresses of attacker and victim, of one family.
pub(crate) const PAIRS: [(IpAddr, IpAddr); 2] =
    [(ATTACKER_V4, VICTIM_V4), (ATTACKER_V6, VICTIM_V6)];

/// The only port, of UDP, that anybody may reach the victim on: what shows that all before has come.
pub(crate) const LAST: u16 = 9;
/// One that nobody may.
pub(crate) const CLOSED: u16 = 7_777;
pub(crate) const OWN_PORT: u16 = 40_000;
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// Two pods and a bystander; the victim is isolated, and may only talk to a closed port itself.
pub(crate) fn cluster() -> String {
    let of = |name: &str, v4: IpAddr, v6: IpAddr| {
        pod(&format!("shop/{name}"), &format!("app: {name}"), &[v4, v6])
    };
    let spec = format!(
        "{{podSelector: {{matchLabels: {{app: victim}}}}, policyTypes: [Ingress, Egress], \
         ingress: [{{ports: [{{port: {LAST}, protocol: UDP}}]}}], \
         egress: [{{to: [{{podSelector: {{matchLabels: {{app: attacker}}}}}}], \
         ports: [{{port: {CLOSED}}}]}}]}}"
    );
    [
        namespace("shop", ""),
        of("victim", VICTIM_V4, VICTIM_V6),
        of("attacker", ATTACKER_V4, ATTACKER_V6),
        of("bystander", BYSTANDER_V4, BYSTANDER_V6),
        policy("shop", "victim", &spec),
    ]
    .join("---\n")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// True for an IP packet with this source.
pub(crate) fn is_from(frame: &[u8], source: IpAddr) -> bool {
    let (ethertype, place) = if source.is_ipv4() {
        ([0x08, 0x00], 26)
    } else {
        ([0x86, 0xdd], 22)
    };
    let source = octets(source);
    frame.get(12..14) == Some(&ethertype) && frame.get(place..place + source.len()) == Some(&source)
}

/// True for a plain datagram from a source to a port.
pub(crate) fn is_to(frame: &[u8], source: IpAddr, port: u16) -> bool {
    let (protocol, transport) = if source.is_ipv4() { (23, 34) } else { (20, 54) };
    is_from(frame, source)
        && frame.get(protocol) == Some(&protocol::UDP)
        && frame.get(transport + 2..transport + 4) == Some(&port.to_be_bytes())
}

#[test]
fn a_refusal_that_the_node_sends_in_a_pods_name_opens_nothing_for_that_pod() -> Result<()> {
    for (from, to) in PAIRS {
        let stage = Stage::open(&cluster())?;
        let family = if from.is_ipv4() { "ip" } else { "ip6" };
        stage.lab.nft(&format!(
            "add table inet refuse\n\
             add chain inet refuse forward {{ type filter hook forward priority 0; }}\n\
             add rule inet refuse forward {family} daddr {from} tcp dport {CLOSED} \
             reject with tcp reset\n"
        ))?;
        let (attacker, victim) = (stage.lab.place(ATTACKER)?, stage.lab.place(VICTIM)?);
        let own = SocketAddr::from((to, OWN_PORT));
        let refused = victim.namespace.enter(|| {
            let family = if from.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
            rustix::net::bind(&socket, &own)?;
            Ok(rustix::net::connect(
                &socket,
                &SocketAddr::from((from, CLOSED)),
            ))
        })?;
        ensure!(
            refused == Err(rustix::io::Errno::CONNREFUSED),
            "the node's word arrives: {refused:?}"
        );
        // The pod that the refusal was in the name of opens a connection from that very port.
        let sender = Wire::open(&attacker.namespace)?;
        let mut receiver = Wire::open(&victim.namespace)?;
        for port in [OWN_PORT, LAST] {
            let frame = Frame::tcp((from, CLOSED), (to, port), 2).bytes();
            sender.send(&between(attacker.mac(), attacker.near_mac(), &frame))?;
        }
        let last = Frame::udp((from, OWN_PORT), (to, LAST)).bytes();
        sender.send(&between(attacker.mac(), attacker.near_mac(), &last))?;
        let arrived = receiver.until(|frame| is_to(frame, from, LAST))?;
        let theirs = arrived.iter().filter(|frame| is_from(frame, from)).count();
        ensure!(theirs == 0, "{theirs} segments arrived");
    }
    Ok(())
}

/// A bridge with an agent; with `filters` as `br_netfilter` makes it.
fn bridged(filters: bool) -> Result<Stage> {
    let mut stage = Stage::without_agent(&cluster())?;
    stage.lab.track_connections()?;
    stage.lab.bridge(&[VICTIM, ATTACKER, BYSTANDER], filters)?;
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    Ok(stage)
}

#[test]
fn the_node_reaches_its_pods_on_a_bridge_that_has_forgotten_where_they_are() -> Result<()> {
    for filters in [false, true] {
        let stage = bridged(filters)?;
        let victim = stage.lab.place(VICTIM)?;
        let mut bystander = Wire::open(&stage.lab.place(BYSTANDER)?.namespace)?;
        let not_mine = "picket_kernel_events_total{kind=\"not_mine\"}";
        let flooded_before = metric(not_mine)?;
        for (_, to) in PAIRS {
            let listening = SocketAddr::from((to, 8_080));
            let listener = victim
                .namespace
                .enter(|| Ok(TcpListener::bind(listening)?))?;
            for round in 0..20 {
                stage.lab.age_bridge()?;
                let probe = TcpStream::connect_timeout(&listening, HEARD_WITHIN);
                let probe = probe.with_context(|| format!("{to}, round {round}"))?;
                let (accepted, _) = listener.accept()?;
                drop((probe, accepted));
            }
        }
        ensure!(
            metric(not_mine)? > flooded_before,
            "the bridge sent the probes to everybody, or this shows nothing"
        );
        for (from, to) in PAIRS {
            let theirs = |frame: &Vec<u8>| is_from(frame, to) || is_from(frame, from);
            let seen = bystander.arrived()?;
            let leaked = seen.iter().filter(|frame| theirs(frame)).count();
            ensure!(leaked == 0, "{leaked} packets of others at the bystander");
        }
    }
    Ok(())
}

#[test]
fn what_a_bridge_floods_or_clones_is_still_the_pods_that_sent_it() -> Result<()> {
    for filters in [false, true] {
        let stage = bridged(filters)?;
        let (attacker, victim) = (stage.lab.place(ATTACKER)?, stage.lab.place(VICTIM)?);
        let sender = Wire::open(&attacker.namespace)?;
        let mut receiver = Wire::open(&victim.namespace)?;
        for (from, to) in PAIRS {
            let nobody = [2, 0x70, 0xff, 0xff, 0xff, 0xff];
            let everybody = [0xff; 6];
            for mac in [victim.mac(), nobody, everybody] {
                for aged in [false, true] {
                    if aged {
                        stage.lab.age_bridge()?;
                    }
                    for frame in [
                        Frame::udp((from, OWN_PORT), (to, CLOSED)).bytes(),
                        Frame::tcp((from, OWN_PORT), (to, LAST), 2).bytes(),
                        Frame::tcp((from, OWN_PORT), (to, LAST), 16).bytes(),
                        Frame::echo_request(from, to, 7).bytes(),
                    ] {
                        sender.send(&between(attacker.mac(), mac, &frame))?;
                    }
                }
                let last = Frame::udp((from, OWN_PORT), (to, LAST)).bytes();
                sender.send(&between(attacker.mac(), victim.mac(), &last))?;
                let arrived = receiver.until(|frame| is_to(frame, from, LAST))?;
                let theirs = arrived.iter().filter(|frame| is_from(frame, from)).count();
                ensure!(theirs == 0, "to {mac:x?}: {theirs} packets arrived");
            }
        }
    }
    Ok(())
}
