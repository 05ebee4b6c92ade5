//! The agent takes more memory than it may and the kernel ends it: what is enforced stays, and the
//! next one goes on from there.

use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt as _;

use agent_policy::model::Protocol;
use anyhow::Result;
use tests::lab::agent::Agent;
use tests::lab::cgroup::MemoryCgroup;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;

const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080)];
/// Less than the objects that come take.
const LIMIT: u64 = 4 << 20;
const MANY: u32 = 12_000;

fn cluster() -> String {
    let pod = |name: &str, labels, number| {
        pod(
            &format!("shop/{name}"),
            labels,
            &[Ipv4Addr::new(10, 17, 0, number)],
        )
    };
    [
        namespace("shop", ""),
        pod("server", "role: server", 1),
        pod("friend", "role: friend", 2),
        pod("stranger", "role: stranger", 3),
        policy(
            "shop",
            "server",
            "{podSelector: {matchLabels: {role: server}}, \
              ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}",
        ),
    ]
    .join("---\n")
}

#[test]
fn an_agent_that_the_kernel_ends_for_its_memory_changes_nothing() -> Result<()> {
    let mut stage = Stage::without_agent(&cluster())?;
    let _server = stage.lab.serve("shop/server", PORTS)?;
    let reach = |stage: &Stage| -> Result<[bool; 2]> {
        let reaches = |from| stage.lab.reaches(from, "shop/server", PORTS);
        Ok([reaches("shop/friend")?, reaches("shop/stranger")?])
    };
    let agent = Agent::start(&stage.lab.manifests())?;
    assert_eq!(reach(&stage)?, [true, false], "[friend, stranger]");

    let cgroup = MemoryCgroup::make()?;
    cgroup.take(agent.pid())?;
    cgroup.limit(LIMIT)?;
    let many = (0..MANY).map(|number| {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + number);
        pod(&format!("shop/p{number}"), "role: friend", &[address])
    });
    let many: Vec<String> = many.collect();
    stage.lab.write_manifest("many.yaml", &many.join("---\n"))?;
    let ended = agent.wait_end()?;
    assert_eq!(ended.signal(), Some(libc::SIGKILL), "{ended}");
    assert!(cgroup.kills()? > 0, "somebody else has killed it");
    assert_eq!(reach(&stage)?, [true, false], "[friend, stranger]");

    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    assert_eq!(reach(&stage)?, [true, false], "[friend, stranger]");
    stage.apply(
        "other.yaml",
        &policy(
            "shop",
            "stranger",
            "{podSelector: {matchLabels: {role: server}}, \
              ingress: [{from: [{podSelector: {matchLabels: {role: stranger}}}]}]}",
        ),
    )?;
    assert_eq!(reach(&stage)?, [true, true], "[friend, stranger]");
    Ok(())
}
