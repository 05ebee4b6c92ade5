//! Datagrams larger than a link, between real sockets: each is wholly there or not at all, and every
//! piece that is dropped has its reason. With `nf_conntrack` on the node puts them together and cuts
//! them anew on the way; without it, pieces stay as they were.

#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test: whatever fails ends it"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::lab::agent::{Agent, metric};
use tests::lab::namespace::Namespace;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::lab::wait_until;

const ALLOWED: u16 = 8080;
const DENIED: u16 = 8081;
/// Bytes of a datagram that fills six packets of 1 500 bytes in either family.
const LARGE: usize = 8_000;
const PACKETS: f64 = 6.0;
const WITHIN: Duration = Duration::from_secs(5);
/// Nothing comes for so long: nothing will.
const SILENCE: Duration = Duration::from_millis(600);

/// Two pods that may talk by UDP on port 8080 and in no other way.
fn stage(is_tracking: bool) -> Stage {
    let cluster = [
        namespace("shop", ""),
        pod("shop/client", "app: client", &["10.3.0.2", "fd00:3::2"]),
        pod("shop/server", "app: server", &["10.3.0.3", "fd00:3::3"]),
    ]
    .join("---\n");
    let mut stage = Stage::without_agent(&cluster).unwrap();
    if is_tracking {
        stage.lab.track_connections().unwrap();
    }
    stage.agent = Some(Agent::start(&stage.lab.manifests()).unwrap());
    let rule = |word: &str, app: &str| {
        format!(
            "[{{{word}: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}],
              ports: [{{port: 8080, protocol: UDP}}]}}]"
        )
    };
    let spec = format!(
        "{{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: {}, egress: {}}}",
        rule("from", "client"),
        rule("to", "server")
    );
    let large = policy("shop", "large", &spec);
    stage.apply("policy.yaml", &large).unwrap();
    stage
}

/// The namespaces and addresses of client and server, family by family.
fn pairs(stage: &Stage) -> [[(&Namespace, IpAddr); 2]; 2] {
    [true, false].map(|is_v4| {
        ["shop/client", "shop/server"].map(|name| {
            let place = stage.lab.place(name).unwrap();
            (&place.namespace, place.address(is_v4).unwrap())
        })
    })
}

fn socket((namespace, address): (&Namespace, IpAddr), port: u16) -> Result<UdpSocket> {
    let socket = namespace.enter(|| Ok(UdpSocket::bind((address, port))?))?;
    socket.set_read_timeout(Some(WITHIN))?;
    Ok(socket)
}

/// Sends a large datagram from the client to the server; true when all of it arrives.
fn arrives(client: &UdpSocket, server: &UdpSocket, to: SocketAddr) -> Result<bool> {
    client.send_to(&[7; LARGE], to)?;
    let mut got = vec![0; LARGE + 1];
    Ok(match server.recv_from(&mut got) {
        Ok((length, _)) => {
            ensure!(length == LARGE, "{length} bytes of {LARGE}");
            true
        }
        Err(_) => false,
    })
}

#[test]
fn large_datagrams_pass_both_ways_where_policy_allows_them() {
    for is_tracking in [false, true] {
        let stage = stage(is_tracking);
        for [client, server] in pairs(&stage) {
            let to = SocketAddr::new(server.1, ALLOWED);
            let (near, far) = (socket(client, 0).unwrap(), socket(server, ALLOWED).unwrap());
            for _ in 0..20 {
                let is_there = arrives(&near, &far, to).unwrap();
                assert!(is_there, "{to}, tracking: {is_tracking}");
                let back = near.local_addr().unwrap();
                let is_there = arrives(&far, &near, back).unwrap();
                assert!(is_there, "answer of {to}, tracking: {is_tracking}");
            }
        }
    }
}

/// Packets from pods that were dropped, by reason.
fn dropped(reason: &str) -> f64 {
    let series = format!(
        "picket_verdicts_total{{direction=\"egress\",verdict=\"deny\",reason=\"{reason}\"}}"
    );
    metric(&series).unwrap()
}

#[test]
fn no_piece_of_a_large_datagram_passes_where_policy_denies_it() {
    let stage = stage(false);
    for [client, server] in pairs(&stage) {
        let to = SocketAddr::new(server.1, DENIED);
        let (near, far) = (socket(client, 0).unwrap(), socket(server, DENIED).unwrap());
        far.set_read_timeout(Some(SILENCE)).unwrap();
        let before = [dropped("isolated-no-rule"), dropped("fragment")];
        assert!(!arrives(&near, &far, to).unwrap(), "{to}");
        wait_until("all of it to be counted", WITHIN, || {
            let [refused, rest] = [dropped("isolated-no-rule"), dropped("fragment")];
            let counted = [refused - before[0], rest - before[1]];
            ensure!(counted == [1.0, PACKETS - 1.0], "{counted:?}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_change_cuts_large_datagrams_too() {
    let mut stage = stage(false);
    let sockets = pairs(&stage).map(|[client, server]| {
        let (near, far) = (socket(client, 0).unwrap(), socket(server, ALLOWED).unwrap());
        let to = far.local_addr().unwrap();
        assert!(arrives(&near, &far, to).unwrap(), "{to}");
        far.set_read_timeout(Some(SILENCE)).unwrap();
        (near, far)
    });
    let nothing = "{podSelector: {}, policyTypes: [Ingress, Egress]}";
    let nothing = policy("shop", "large", nothing);
    stage.apply("policy.yaml", &nothing).unwrap();
    for (near, far) in sockets {
        let to = far.local_addr().unwrap();
        assert!(!arrives(&near, &far, to).unwrap(), "{to}");
    }
}
