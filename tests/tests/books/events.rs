//! More events than the ring has room for: what is lost is counted and said, and no count is lost.

#![expect(
    clippy::unwrap_used,
    reason = "a test's own module: a panic is the failure's report"
)]

use std::fs;
use std::net::Ipv4Addr;

use agent::dto::Status;
use agent_common::event::FlowEvent;
use agent_common::maps::MAPS;
use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::lab::agent::{ask, run_picket};
use tests::lab::wait_until;

use super::shop::{Shop, WITHIN, metric};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
/// Refusals of as many ports: more than the ring holds events.
const REFUSALS: u16 = 60_000;

/// Events that fit the ring: each has a header of 8 bytes.
fn room() -> f64 {
    let ring = MAPS.iter().find(|map| map.name == "EVENTS").unwrap();
    let event = u32::try_from(size_of::<FlowEvent>()).unwrap() + 8;
    f64::from(ring.capacity / event)
}

/// Every thread is stopped: none takes events any more.
fn stands_still(pid: u32) -> Result<()> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        // Behind the name, which may have spaces and brackets of its own.
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        ensure!(state == Some('T'), "a thread runs: {stat}");
    }
    Ok(())
}

#[test]
fn events_that_find_no_room_are_counted_as_lost_and_no_count_is() {
    let mut shop = Shop::new();
    // Nobody's budget: no pod sends it.
    shop.lab.add_external(OUTSIDE.into()).unwrap();
    let agent = shop.agent(&["--map-capacity", "DENIED=131072"]);
    let refused =
        r#"picket_verdicts_total{direction="ingress",verdict="deny",reason="isolated-no-rule"}"#;
    let lost = r#"picket_events_lost_total{stage="ringbuf"}"#;
    let before = metric(refused);
    assert!(metric(lost) < 1.0);

    let process = Pid::from_raw(agent.pid().cast_signed());
    kill(process, Signal::SIGSTOP).unwrap();
    wait_until("the agent to stand still", WITHIN, || {
        stands_still(agent.pid())
    })
    .unwrap();
    shop.datagrams(&OUTSIDE.to_string(), "shop/api", 1..=REFUSALS);
    kill(process, Signal::SIGCONT).unwrap();

    let sent = f64::from(REFUSALS);
    wait_until("the losses to be said", WITHIN, || {
        let (lost, refused) = (metric(lost), metric(refused) - before);
        ensure!(refused >= sent, "{refused} refusals of {sent} were counted");
        ensure!(
            lost >= sent - room() && lost < sent,
            "{lost} events lost of {sent}, with room for {}",
            room()
        );
        Ok(())
    })
    .unwrap();
    let status: Status = ask("/v1/status").unwrap();
    let rows = status.maps.iter().find(|map| map.name == "denied").unwrap();
    assert!(
        rows.entries >= Some(REFUSALS.into()),
        "each is named, its event lost or not: {rows:?}"
    );
    let said = String::from_utf8(run_picket(&["flows"]).unwrap().stderr).unwrap();
    assert!(
        said.contains("events lost") && !said.contains("no events lost"),
        "{said}"
    );
    assert!(
        shop.reaches("shop/web", "shop/api"),
        "and nothing is disturbed"
    );
}
