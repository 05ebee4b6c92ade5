//! Pods that come and go leave nothing behind: no map entry, pin, link or descriptor, and no memory
//! of the agent's.
#![expect(clippy::print_stdout, reason = "the run prints what it saw")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use agent::dto::Status;
use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::ask;
use tests::lab::objects::{self, namespace, policy};
use tests::lab::pins::PINS;
use tests::lab::stage::Stage;
use tests::lab::wait_until;
use tests::memory::Memory;
use tests::runs::is_thorough;

const SERVER: (&str, u16) = ("10.7.0.1", 8080);
/// Pods that come and go together.
const AT_ONCE: usize = 6;
/// Forgotten with time, or by those that come later: how full they are is no leak.
const FORGETFUL: [&str; 2] = ["denied", "pending"];
/// Descriptors of answers that are still being closed.
const CLOSING: usize = 4;
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
/// What memory may grow by after the first pods: in the thorough run less than a KiB kept for each
/// pod would take, and everything that is bounded in number is full by then.
const GROWTH: u64 = 6 << 20;

/// Pods that come and go in all; the thorough run has 10 000.
fn cycles() -> usize {
    if is_thorough() { 10_000 } else { 300 }
}

/// Pods that come and go before memory is looked at: whatever is made once is made by them, and the
/// latest flows and refusals are as many as are kept.
fn first_cycles() -> usize {
    if is_thorough() { 3_000 } else { 60 }
}

fn cluster() -> String {
    let server = pod("server", "role: server", SERVER.0);
    [namespace("shop", ""), server].join("---\n")
}

/// All of one workload, as in a cluster: what is counted for each workload stays one row.
fn pod(name: &str, labels: &str, address: &str) -> String {
    let owner = "{apiVersion: apps/v1, kind: StatefulSet, name: churn, controller: true, uid: u}";
    objects::pod(&format!("shop/{name}"), labels, &[address]).replacen(
        "metadata: {",
        &format!("metadata: {{ownerReferences: [{owner}], "),
        1,
    )
}

/// What the agent and the kernel hold.
#[derive(Debug, Eq, PartialEq)]
struct Held {
    maps: BTreeMap<String, u64>,
    pins: usize,
    descriptors: usize,
}

/// Waits until only the pods that stay are endpoints, and looks.
fn held(stage: &Stage, endpoints: usize) -> Result<Held> {
    let status: Status = wait_until("the pods to be gone", SETTLED_WITHIN, || {
        let status: Status = ask("/v1/status")?;
        ensure!(
            status.endpoints.len() == endpoints,
            "{:?}",
            status.endpoints
        );
        ensure!(status.unclaimed.is_empty(), "{:?}", status.unclaimed);
        Ok(status)
    })?;
    let maps = status
        .maps
        .into_iter()
        .filter(|map| !FORGETFUL.contains(&map.name.as_str()))
        .filter_map(|map| Some((map.name, map.entries?)))
        .collect();
    let agent = stage.agent.as_ref().context("the agent")?;
    Ok(Held {
        maps,
        pins: files(Path::new(PINS))?,
        descriptors: std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count(),
    })
}

/// Files below a directory.
fn files(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() {
            files(&entry.path())?
        } else {
            1
        };
    }
    Ok(count)
}

/// Memory of the agent's process that is its own, in bytes.
fn memory(stage: &Stage) -> Result<u64> {
    own_memory(stage.agent.as_ref().context("the agent")?.pid())
}

/// Some pods come, talk to the server, allowed and not, and go.
fn come_and_go(stage: &mut Stage, round: usize) -> Result<()> {
    let names: Vec<String> = (0..AT_ONCE)
        .map(|place| format!("churn-{round}-{place}"))
        .collect();
    let mut manifests = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let address = format!("10.7.{}.{}", 1 + round % 200, 2 + place);
        let role = if place % 2 == 0 { "client" } else { "stranger" };
        manifests.push(pod(name, &format!("role: {role}"), &address));
        stage
            .lab
            .add_pod(&format!("shop/{name}"), &[address.parse::<IpAddr>()?])?;
    }
    stage.apply("churn.yaml", &manifests.join("---\n"))?;
    for name in &names {
        let place = stage.lab.place(&format!("shop/{name}"))?;
        place.namespace.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"hello", SERVER)?;
            socket.send_to(b"hello", (SERVER.0, SERVER.1 + 1))?;
            Ok(())
        })?;
    }
    for name in &names {
        stage.lab.remove_pod(&format!("shop/{name}"))?;
    }
    stage.remove("churn.yaml")
}

#[test]
fn pods_that_come_and_go_leave_nothing_behind() -> Result<()> {
    let mut stage = Stage::open(&cluster())?;
    let spec = "{podSelector: {matchLabels: {role: server}}, \
                ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: 8080, protocol: UDP}]}]}";
    stage.apply("policy.yaml", &policy("shop", "server", spec))?;
    let endpoints = ask::<Status>("/v1/status")?.endpoints.len();
    let first_rounds = first_cycles() / AT_ONCE;
    for round in 0..first_rounds {
        come_and_go(&mut stage, round)?;
    }
    let (before, memory_before) = (held(&stage, endpoints)?, memory(&stage)?);

    let rounds = cycles() / AT_ONCE;
    for round in first_rounds..rounds {
        come_and_go(&mut stage, round)?;
    }

    // Rows rest for a moment before they are deleted.
    wait_until("everything to be as before", SETTLED_WITHIN, || {
        let after = held(&stage, endpoints)?;
        let is_left = |(map, entries): (&String, &u64)| before.maps.get(map) < Some(entries);
        ensure!(
            !after.maps.iter().any(is_left),
            "{before:?}, then {after:?}"
        );
        ensure!(after.pins == before.pins, "{before:?}, then {after:?}");
        ensure!(
            after.descriptors <= before.descriptors + CLOSING,
            "{before:?}, then {after:?}"
        );
        Ok(())
    })?;
    let memory_after = memory(&stage)?;
    println!(
        "after {} of {} pods: {} KiB of memory before, {} KiB after",
        first_rounds * AT_ONCE,
        rounds * AT_ONCE,
        memory_before >> 10,
        memory_after >> 10
    );
    ensure!(memory_after < memory_before + GROWTH, "the agent grew");
    Ok(())
}

/// Memory of a process that is its own, in bytes.
fn own_memory(pid: u32) -> Result<u64> {
    Ok(Memory::of(pid)?.anonymous << 10)
}

/// Says to the test below that it is the process to be looked at.
const CHILD: &str = "PICKET_TEST_FREES";
const THREADS: usize = 8;
/// What each thread has for a moment.
const EACH: usize = 12 << 20;

/// In a process of its own, whose only work it is.
#[test]
fn what_threads_have_freed_is_not_kept() -> Result<()> {
    if std::env::var_os(CHILD).is_some() {
        return free_much();
    }
    let output = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "what_threads_have_freed_is_not_kept",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}");
    Ok(())
}

fn free_much() -> Result<()> {
    agent::memory::give_back();
    let before = own_memory(std::process::id())?;
    // From a block as large as this on, malloc would keep what is smaller.
    drop(black_box(vec![1_u8; 2 * EACH]));
    let all_have_some = Barrier::new(THREADS + 1);
    let all_have_freed = Barrier::new(THREADS + 1);
    let kept = std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let some = black_box(vec![1_u8; EACH]);
                all_have_some.wait();
                drop(some);
                all_have_freed.wait();
                all_have_some.wait();
            });
        }
        all_have_some.wait();
        all_have_freed.wait();
        let kept = own_memory(std::process::id());
        all_have_some.wait();
        kept
    })?;
    println!("{} KiB before, {} KiB after", before >> 10, kept >> 10);
    ensure!(kept < before + EACH as u64, "freed memory is kept");
    Ok(())
}
