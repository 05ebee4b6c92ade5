//! One pod more than a node has slots for: it takes the posture, that is said, and it is taken up
//! when a slot is free.

#![expect(
    clippy::unwrap_used,
    reason = "a test's own module: a panic is the failure's report"
)]

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use agent::dto::{Endpoint, EndpointState, Status};
use agent_common::maps::SLOTS;
use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::{ask, log};
use tests::lab::namespace::Namespace;
use tests::lab::netlink::{Netlink, VethEnd};
use tests::lab::{objects, wait_until};

use super::shop::{Shop, address, metric, pod};

/// Pods beside the three of the shop, so that every slot is taken.
const CROWD: u32 = SLOTS - 1 - 3;
/// First interface of theirs, on the node's side and on the other; away from the lab's own.
const NEAR: u32 = 10_000;
const FAR: u32 = 20_000;
/// How long a node full of pods may take.
const SLOW: Duration = Duration::from_mins(2);

fn address_in_crowd(index: u32) -> IpAddr {
    let [.., high, low] = index.to_be_bytes();
    IpAddr::from([10, 2, high, low])
}

/// As many pods as fill the node. One network namespace does for all of them.
fn crowd(shop: &Shop) -> Namespace {
    let there = Namespace::create().unwrap();
    let mut near = Netlink::open().unwrap();
    let mut far = there.enter(Netlink::open).unwrap();
    let mut manifests = vec![objects::namespace("crowd", "")];
    for index in 0..CROWD {
        let name = format!("crowd{index}");
        let end = |name, first, kind| {
            let [.., high, low] = index.to_be_bytes();
            let mac = [2, 0x71, kind, 0, high, low];
            let index = first + index;
            VethEnd { name, index, mac }
        };
        near.add_veth(end(&name, NEAR, 0), end(&name, FAR, 1), there.as_fd())
            .unwrap();
        let address = address_in_crowd(index);
        far.add_address(FAR + index, address, 32).unwrap();
        manifests.push(objects::pod(&format!("crowd/{name}"), "", &[address]));
    }
    there.publish("crowd").unwrap();
    shop.lab
        .write_manifest("crowd.yaml", &manifests.join("---\n"))
        .unwrap();
    there
}

fn wait_for_late(what: &str, is_so: impl Fn(&Endpoint) -> bool) {
    wait_until(
        &format!("the late pod to be {what}"),
        SLOW,
        || -> Result<()> {
            let status: Status = ask("/v1/status")?;
            let programmed = |each: &&Endpoint| each.state == EndpointState::Programmed;
            let count = status.endpoints.iter().filter(programmed).count();
            let late = status.endpoints.iter().find(|each| each.pod == "late");
            let late = late.with_context(|| format!("{count} programmed, it is not seen"))?;
            ensure!(is_so(late), "{count} programmed, and {late:?}");
            ensure!(count == SLOTS as usize - 1, "{count} programmed");
            Ok(())
        },
    )
    .unwrap();
}

/// Waits until every slot is taken.
fn wait_for_the_crowd() {
    wait_until("the node to be full", SLOW, || -> Result<()> {
        let status: Status = ask("/v1/status")?;
        let programmed = |each: &&Endpoint| each.state == EndpointState::Programmed;
        let count = status.endpoints.iter().filter(programmed).count();
        ensure!(count == SLOTS as usize - 1, "{count} programmed");
        Ok(())
    })
    .unwrap();
}

fn finds_no_slot(late: &Endpoint) -> bool {
    let note = late.note.as_deref().unwrap_or_default();
    late.state == EndpointState::Failed && late.slot.is_none() && note.contains("1023 slots")
}

#[test]
fn a_pod_that_finds_no_slot_takes_the_posture_and_is_taken_up_when_one_is_free() {
    let mut shop = Shop::new();
    let _crowd = crowd(&shop);
    let options = |posture| ["--posture", posture, "--map-capacity", "CONNTRACK=64"];
    let agent = shop.agent(&options("open"));
    wait_for_the_crowd();
    shop.lab.add_pod("shop/late", &[address(4)]).unwrap();
    shop.lab
        .write_manifest("late.yaml", &pod("late", 4))
        .unwrap();
    wait_for_late("said to have no slot", finds_no_slot);
    shop.wait("shop/other", "shop/late", true);
    let said = log();
    assert!(said.contains("every slot is taken"), "{said}");
    agent.kill().unwrap();

    let _agent = shop.agent(&options("closed"));
    wait_for_late(
        "said to have no slot, by the next agent, too",
        finds_no_slot,
    );
    shop.wait("shop/other", "shop/late", false);
    let failed = || metric(r#"picket_endpoints{state="failed"}"#);
    assert!((failed() - 1.0).abs() < 0.1, "{}", failed());
    assert!(shop.reaches("shop/web", "shop/api"), "others are as before");
    assert!(!shop.reaches("shop/other", "shop/api"));

    Netlink::open().unwrap().delete_link(NEAR + 500).unwrap();
    wait_for_late("programmed", |late| {
        late.state == EndpointState::Programmed && late.slot.is_some()
    });
    shop.wait("shop/other", "shop/late", true);
    assert!(failed() < 0.1, "{}", failed());
}
