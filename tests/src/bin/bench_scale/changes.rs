//! The whole agent at work: from a manifest's write to the maps; one peer more or less among ten
//! thousand; connections that are older than it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agent_common::maps::ENDPOINT_ROWS;
use anyhow::{Result, ensure};
use aya::maps::{Array, Map, MapData};
use tests::bench::{Goal, lowest_decile, median};
use tests::cpu::{needed, process_time};
use tests::lab::agent::Agent;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::pins::pinned;
use tests::lab::stage::Stage;
use tests::lab::tracked::{Adopted, answered_flows};

use crate::{Sizes, ms};

/// What the middle one of a policy's changes may take, from the file to the maps.
const CHANGE_WITHIN_MS: f64 = 100.0;
/// What one peer's change may cost the agent.
const ONE_WITHIN_MS: f64 = 1.0;
/// What adopting may take.
const ADOPTED_WITHIN_MS: f64 = 2_000.0;
/// How long to wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Address of the server pod, by family.
const SERVER: [&str; 2] = ["10.3.0.1", "fd03::1"];
const CLIENT: [&str; 2] = ["10.3.0.2", "fd03::2"];
const PORT: u16 = 8080;

fn cluster() -> String {
    [
        namespace("shop", ""),
        pod("shop/server", "role: server", &SERVER),
        pod("shop/client", "role: client", &CLIENT),
    ]
    .join("---\n")
}

/// From the write of a file to the word that every packet's judgement begins with.
pub(crate) fn of_a_policy(sizes: &Sizes) -> Result<Vec<Goal>> {
    let mut stage = Stage::open(&cluster())?;
    stage.settle()?;
    let place = stage.lab.place("shop/server")?.veth & (ENDPOINT_ROWS - 1);
    let words: Array<MapData, u64> =
        Map::Array(MapData::from_pin(pinned("ENDPOINTS"))?).try_into()?;
    let mut took = Vec::new();
    for change in 0..sizes.changes {
        let before = words.get(&place, 0)?;
        let port = 1000 + change;
        let spec = format!("{{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}");
        let began = Instant::now();
        stage
            .lab
            .write_manifest("policy.yaml", &policy("shop", "p", &spec))?;
        wait(&format!("change {change}"), || {
            Ok(words.get(&place, 0)? != before)
        })?;
        took.push(ms(began.elapsed()));
    }
    let median = median(took);
    Ok(vec![Goal {
        what: "a policy's change, from the file's write to the maps, the middle one".to_owned(),
        figure: median,
        at_most: CHANGE_WITHIN_MS,
        unit: "ms",
    }])
}

/// What the agent's process spends on one peer that comes or goes.
pub(crate) fn of_a_peer(sizes: &Sizes) -> Result<Vec<Goal>> {
    let mut stage = Stage::without_agent(&cluster())?;
    let many: Vec<String> = (0..sizes.entries)
        .map(|n| pod(&format!("shop/p{n}"), "role: client", &[peer(n)]))
        .collect();
    stage.lab.write_manifest("many.yaml", &many.join("---\n"))?;
    let spec = "{podSelector: {matchLabels: {role: server}}, \
                ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]}";
    stage
        .lab
        .write_manifest("policy.yaml", &policy("shop", "p", spec))?;
    let agent = stage
        .agent
        .insert(Agent::start(&stage.lab.manifests())?)
        .pid();
    let one = peer(sizes.entries);
    let std::net::IpAddr::V4(v4) = one else {
        anyhow::bail!("{one}: not IPv4");
    };
    let key = v4.to_ipv6_mapped().octets();
    let peers: aya::maps::HashMap<MapData, [u8; 16], u64> =
        Map::HashMap(MapData::from_pin(pinned("PEERS_EXACT"))?).try_into()?;
    let mut took = Vec::new();
    for change in 0..sizes.changes {
        let comes = change % 2 == 0;
        let before = at_rest(agent, sizes)?;
        if comes {
            let object = pod("shop/one", "role: client", &[one]);
            stage.lab.write_manifest("one.yaml", &object)?;
        } else {
            stage.lab.remove_manifest("one.yaml")?;
        }
        // Its class; without one it has no entry, or one that says so until the next compaction.
        wait(&format!("peer {change}"), || {
            Ok(peers.get(&key, 0).is_ok_and(|entry| entry != 0) == comes)
        })?;
        took.push(ms(at_rest(agent, sizes)?.saturating_sub(before)));
    }
    Ok(vec![Goal {
        what: format!(
            "CPU of the agent's process, all of it, for one peer among {}",
            sizes.entries
        ),
        figure: lowest_decile(took),
        at_most: ONE_WITHIN_MS,
        unit: "ms",
    }])
}

/// A process's CPU time once it has not moved for a while. That is shorter than the 25 ms between
/// two looks of the agent at the kernel's records: longer, and it would never be found at rest.
fn at_rest(pid: u32, sizes: &Sizes) -> Result<Duration> {
    const STILL: Duration = Duration::from_millis(15);
    let time = || needed(process_time(pid), sizes.is_smoke);
    let began = Instant::now();
    let mut last = time()?;
    while began.elapsed() < PATIENCE {
        std::thread::park_timeout(STILL);
        let now = time()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    anyhow::bail!("process {pid} does not come to rest");
}

/// Connections that the kernel has tracked before the agent came.
pub(crate) fn adoption(sizes: &Sizes) -> Result<Vec<Goal>> {
    let mut stage = Stage::without_agent(&cluster())?;
    stage.lab.track_connections()?;
    let (client, server) = (
        &stage.lab.place("shop/client")?.namespace,
        &stage.lab.place("shop/server")?.namespace,
    );
    let flows = sizes.connections;
    for (own, address) in CLIENT.into_iter().zip(SERVER) {
        let to = SocketAddr::new(address.parse()?, PORT);
        answered_flows(server, to, client, own.parse()?, flows / 2)?;
    }
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    let adopted = Adopted::read()?;
    // Each is known at its client and at its server.
    ensure!(
        adopted.entries == 2 * flows,
        "of {flows} connections: {adopted:?}"
    );
    Ok(vec![Goal {
        what: format!("adopting {flows} connections from nf_conntrack"),
        figure: ms(adopted.took),
        at_most: ADOPTED_WITHIN_MS,
        unit: "ms",
    }])
}

/// Waits without a pause, because what comes is being timed.
fn wait(what: &str, mut is_there: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_there()? {
        ensure!(began.elapsed() < PATIENCE, "{what} never came");
        std::thread::yield_now();
    }
    Ok(())
}

fn peer(n: u32) -> std::net::IpAddr {
    let first = u32::from(std::net::Ipv4Addr::new(10, 128, 0, 1));
    std::net::IpAddr::V4(std::net::Ipv4Addr::from(first + n))
}
