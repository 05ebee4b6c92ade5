//! The books on a real node: nothing that was counted is lost, nothing that is refused stays
//! unnamed, and what does not fit is refused whole and said.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test's own helpers: a panic is the failure's report"
)]

mod brim;
mod events;
mod limits;
mod memory;
mod shop;

use std::time::Duration;

use agent::dto::{DenialList, Status};
use anyhow::bail;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto,
    socket_with, sockopt,
};
use shop::{PORT, Shop, WITHIN, address, metric};
use std::net::SocketAddr;
use tests::lab::agent::{ask, log};
use tests::lab::{objects, wait_until};

/// Sends a bare ACK from `shop/api`'s port to `shop/web`; true when it arrives.
fn scans(shop: &Shop, to: u16) -> bool {
    let raw = |place: &str| {
        let place = shop.lab.place(place).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let socket = || {
            let kind = (AddressFamily::INET, SocketType::RAW);
            Ok(socket_with(kind.0, kind.1, flags, Some(ipproto::TCP))?)
        };
        place.namespace.enter(socket).unwrap()
    };
    let (sender, receiver) = (raw("shop/api"), raw("shop/web"));
    let patience = Some(Duration::from_millis(300));
    sockopt::set_socket_timeout(&receiver, sockopt::Timeout::Recv, patience).unwrap();
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&PORT.to_be_bytes());
    segment[2..4].copy_from_slice(&to.to_be_bytes());
    segment[12..14].copy_from_slice(&[5 << 4, 16]);
    sendto(
        &sender,
        &segment,
        SendFlags::empty(),
        &SocketAddr::new(address(1), 0),
    )
    .unwrap();
    let mut buffer = [0; 256];
    while let Ok((_, length)) = recv(&receiver, &mut buffer[..], RecvFlags::empty()) {
        // Behind an IPv4 header without options.
        if buffer[..length].get(20..24) == Some(&segment[..4]) {
            return true;
        }
    }
    false
}

#[test]
fn a_pod_takes_up_old_connections_within_the_grace_and_not_after() {
    let shop = Shop::new();
    let agent = shop.agent(&["--mid-stream-grace", "1h"]);
    let waits_to_pass = |first: u16| {
        let mut port = first;
        wait_until("a segment to pass", WITHIN, || {
            port += 1;
            if scans(&shop, port) {
                return Ok(());
            }
            bail!("none did; the agent said:\n{}", log())
        })
        .unwrap();
    };
    waits_to_pass(40_000);
    agent.kill().unwrap();
    let refused =
        r#"picket_verdicts_total{direction="egress",verdict="deny",reason="isolated-no-rule"}"#;
    let agent = shop.agent(&["--mid-stream-grace", "10ms"]);
    let mut port = 41_000;
    wait_until("the grace to be over", WITHIN, || {
        port += 1;
        if !scans(&shop, port) && metric(refused) > 0.0 {
            return Ok(());
        }
        bail!("a segment passed; the agent said:\n{}", log())
    })
    .unwrap();
    shop.wait("shop/web", "shop/api", true);
    agent.kill().unwrap();
    // The default has no end.
    let _agent = shop.agent(&[]);
    waits_to_pass(42_000);
}

#[test]
fn what_a_pod_counted_is_in_the_totals_when_its_slot_is_another_pods() {
    let mut shop = Shop::new();
    let db = |shop: &mut Shop, name: &str| {
        shop.lab
            .add_pod(&format!("data/{name}"), &[address(9)])
            .unwrap();
        shop.lab
            .write_manifest(
                "db.yaml",
                &objects::pod(&format!("data/{name}"), "", &[address(9)]),
            )
            .unwrap();
    };
    let slot_of = |pod: &str| {
        wait_until(&format!("{pod} to be enforced"), WITHIN, || {
            let status: Status = ask("/v1/status")?;
            let found = status.endpoints.into_iter().find(|each| each.pod == pod);
            match found.and_then(|found| found.revision.and(found.slot)) {
                Some(slot) => Ok(slot),
                None => bail!("the agent said:\n{}", log()),
            }
        })
        .unwrap()
    };
    shop.lab
        .write_manifest("data.yaml", &objects::namespace("data", ""))
        .unwrap();
    shop.lab.add_pod("data/stays", &[address(8)]).unwrap();
    shop.lab
        .write_manifest("stays.yaml", &objects::pod("data/stays", "", &[address(8)]))
        .unwrap();
    db(&mut shop, "first");
    let agent = shop.agent(&[]);
    let series =
        r#"picket_namespace_verdicts_total{namespace="data",direction="ingress",verdict="allow"}"#;
    let slot = slot_of("first");
    shop.datagrams("shop/web", "data/first", 5_000..5_001);
    let before = metric(series);
    // Counted after the last look; then the pod goes, and the agent is killed.
    shop.datagrams("shop/web", "data/first", 5_000..5_300);
    shop.lab.remove_pod("data/first").unwrap();
    shop.lab.remove_manifest("db.yaml").unwrap();
    wait_until("the pod to go", WITHIN, || {
        let status: Status = ask("/v1/status")?;
        if status.endpoints.iter().all(|each| each.pod != "first") {
            return Ok(());
        }
        bail!("the agent said:\n{}", log())
    })
    .unwrap();
    agent.kill().unwrap();
    let _agent = shop.agent(&[]);
    db(&mut shop, "second");
    assert_eq!(slot_of("second"), slot, "the slot was to be used again");
    let after = metric(series);
    assert!(after >= before + 300.0, "{before}, then {after}");
}

#[test]
fn refusals_are_named_again_after_there_was_no_room_for_them() {
    let shop = Shop::new();
    let _agent = shop.agent(&["--map-capacity", "DENIED=64"]);
    let refused =
        r#"picket_verdicts_total{direction="ingress",verdict="deny",reason="isolated-no-rule"}"#;
    let before = metric(refused);
    shop.datagrams("shop/other", "shop/api", 1_000..1_300);
    let counted = metric(refused) - before;
    assert!(counted >= 300.0, "every refusal is counted: {counted}");
    let overflow = metric(r#"picket_kernel_events_total{kind="denied_overflow"}"#);
    assert!(overflow >= 200.0, "{overflow} found no row");
    let mut port = 2_000;
    wait_until("a new refusal to be named", WITHIN, || {
        port += 1;
        shop.datagrams("shop/other", "shop/api", port..=port);
        let list: DenialList = ask("/v1/why?to=shop/api")?;
        if list.items.iter().any(|denial| denial.port == Some(port)) {
            return Ok(());
        }
        bail!("{port} is not among {:?}", list.items.len())
    })
    .unwrap();
    let pairs = metric(
        r#"picket_denied_connections_total{direction="ingress",reason="isolated-no-rule",namespace="shop",workload="Pod/api",peer_namespace="shop",peer_workload="Pod/other"}"#,
    );
    assert!(pairs >= 64.0, "rows that went are counted still: {pairs}");
}
