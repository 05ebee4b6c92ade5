//! Fragments that the node puts together and cuts again: in Linux some forget where they came in, and so
//! look like the node's own. They are judged as what they show.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::{Agent, metric};
use tests::lab::frames::{Wire, between};
use tests::lab::stage::Stage;
use tests::packets::{Frame, protocol};

use crate::origin::{ATTACKER, CLOSED, LAST, OWN_PORT, PAIRS, VICTIM, cluster, is_from, is_to};

#[test]
fn fragments_that_the_node_cuts_again_are_not_the_nodes() -> Result<()> {
    for pair in PAIRS {
        let mut stage = Stage::without_agent(&cluster())?;
        // What puts fragments together on a node: any rule about connections.
        stage.lab.track_connections()?;
        is_kept_out(&mut stage, |port| cut_again(pair, port), pair)
            .with_context(|| format!("from {}", pair.0))?;
    }
    Ok(())
}

#[test]
fn datagrams_that_an_overlays_headroom_makes_the_node_cut_again_are_not_the_nodes() -> Result<()> {
    for pair in PAIRS {
        let mut stage = Stage::without_agent(&cluster())?;
        stage.lab.track_connections()?;
        stage.lab.bridge(&[VICTIM], false)?;
        // Room for the tunnel's headers is more than fragments from a veth have.
        stage.lab.overlay(77)?;
        let (from, to) = pair;
        let plain = |port| {
            let (first, second) = (
                Frame::udp((from, port), (to, CLOSED)),
                Frame::new(from, to, protocol::UDP, vec![b'y'; 1_200]),
            );
            let mut first = first.with_fragment(0, true);
            first.payload.resize(1_200, b'x');
            vec![first.bytes(), second.with_fragment(150, false).bytes()]
        };
        is_kept_out(&mut stage, plain, pair).with_context(|| format!("from {from}"))?;
    }
    Ok(())
}

/// Two fragments of equal length. The first has a hop-by-hop header that the second has not, so a
/// node that puts them together and cuts the packet again cannot use the same cuts, and makes
/// fragments of its own: in Linux (`net/ipv6/ip6_output.c`, `ip6_frag_next`) those forget the interface
/// that the packet came in by.
fn cut_again((from, to): (IpAddr, IpAddr), port: u16) -> Vec<Vec<u8>> {
    const FIRST: usize = 1_400;
    let mut first = Frame::udp((from, port), (to, CLOSED));
    first.payload.resize(FIRST, b'x');
    let mut second = Frame::new(from, to, protocol::UDP, vec![b'y'; FIRST + 8]);
    if from.is_ipv6() {
        // PadN (RFC 8200 §4.2).
        first = first.with_extension(0, vec![1, 4, 0, 0, 0, 0]);
    } else {
        // No operation (RFC 791 §3.1).
        first.options = vec![1; 8];
    }
    let offset = u16::try_from(FIRST / 8).unwrap();
    second = second.with_fragment(offset, false);
    vec![first.with_fragment(0, true).bytes(), second.bytes()]
}

/// Sends it from the attacker's interface to the node; the frames with the attacker's address that
/// reach the victim.
fn reached(
    stage: &Stage,
    attack: &[Vec<u8>],
    (from, to): (IpAddr, IpAddr),
) -> Result<Vec<Vec<u8>>> {
    let (attacker, victim) = (stage.lab.place(ATTACKER)?, stage.lab.place(VICTIM)?);
    let last = Frame::udp((from, OWN_PORT), (to, LAST)).bytes();
    let sender = Wire::open(&attacker.namespace)?;
    let mut receiver = Wire::open(&victim.namespace)?;
    // The node knows where the victim is: nothing has to wait for that.
    for frame in [&last, &last] {
        sender.send(&between(attacker.mac(), attacker.near_mac(), frame))?;
        receiver.until(|frame| is_to(frame, from, LAST))?;
    }
    for frame in attack {
        sender.send(&between(attacker.mac(), attacker.near_mac(), frame))?;
    }
    sender.send(&between(attacker.mac(), attacker.near_mac(), &last))?;
    let arrived = receiver.until(|frame| is_to(frame, from, LAST))?;
    Ok(arrived
        .into_iter()
        .filter(|frame| is_from(frame, from))
        .collect())
}

/// Packets to pods that were refused, whatever the reason.
fn refused() -> Result<f64> {
    let reasons = ["isolated-no-rule", "fragment", "malformed"];
    reasons.iter().try_fold(0.0, |sum, reason| {
        let series = format!(
            "picket_verdicts_total{{direction=\"ingress\",verdict=\"deny\",reason=\"{reason}\"}}"
        );
        Ok(sum + metric(&series).unwrap_or_default())
    })
}

/// The attack reaches a victim without an agent, and not one with an agent, where it is counted. From
/// another port then: the agent takes over what the node knows of the flow, its sender too.
fn is_kept_out(
    stage: &mut Stage,
    attack: impl Fn(u16) -> Vec<Vec<u8>>,
    pair: (IpAddr, IpAddr),
) -> Result<()> {
    let free = reached(stage, &attack(OWN_PORT), pair)?;
    ensure!(
        free.len() > 1,
        "{} packets reach a victim that nobody protects",
        free.len()
    );
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    let before = refused()?;
    let kept_out = reached(stage, &attack(OWN_PORT + 1), pair)?;
    ensure!(kept_out.is_empty(), "{} packets arrived", kept_out.len());
    // Where its first fragment is refused, the node may make no others.
    let counted = refused()? - before;
    ensure!(counted > 0.5, "{counted} packets are counted");
    Ok(())
}
