//! The real agent on a real API server: what is written there is on real packets.

use std::net::IpAddr;
use std::time::Duration;

use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, ensure};
use tests::api_server::ApiServer;
use tests::lab::agent::{self, Agent, run_picket};
use tests::lab::{Lab, wait_until};
use tokio::runtime::Runtime;

use super::world::Admin;

pub(crate) const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080)];
/// How long a change may take on a machine that does other things, too.
pub(crate) const WITHIN: Duration = Duration::from_mins(1);

pub(crate) fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 15, 0, number])
}

/// Waits until exactly these of web and other reach the api.
pub(crate) fn wait_reach(lab: &Lab, expected: (bool, bool)) -> Result<()> {
    wait_until("the change to be on packets", WITHIN, || {
        let reaches = |from| lab.reaches(from, "shop/api", PORTS);
        let reach = (reaches("shop/web")?, reaches("shop/other")?);
        ensure!(reach == expected, "(web, other) reach the api: {reach:?}");
        Ok(())
    })
    .with_context(|| format!("the agent said:\n{}", agent::log()))
}

/// Pods api, web and other in a lab, known to an API server; nothing is enforced yet.
pub(crate) struct Scene {
    pub(crate) admin: Admin,
    pub(crate) runtime: Runtime,
    pub(crate) server: ApiServer,
    pub(crate) lab: Lab,
}

impl Scene {
    pub(crate) fn set() -> Result<Self> {
        let mut lab = Lab::enter()?;
        let server = ApiServer::start()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let admin = Admin {
            client: runtime.block_on(server.client())?,
        };
        runtime.block_on(admin.namespace("shop"))?;
        for (number, name) in (1_u8..).zip(["api", "web", "other"]) {
            lab.add_pod(&format!("shop/{name}"), &[address(number)])?;
            runtime.block_on(admin.pod(name, name, &address(number).to_string()))?;
        }
        Ok(Self {
            admin,
            runtime,
            server,
            lab,
        })
    }
}

#[test]
fn what_the_api_says_is_on_packets_and_stays_there_while_it_is_silent() -> Result<()> {
    let Scene {
        admin,
        runtime,
        mut server,
        lab,
    } = Scene::set()?;
    let agent = Agent::start_on_api(&server.kubeconfig()?)?;
    let _api = lab.serve("shop/api", PORTS)?;
    wait_reach(&lab, (true, true))?;

    runtime.block_on(admin.admit("allow", "web"))?;
    wait_reach(&lab, (true, false))?;
    runtime.block_on(admin.relabel("other", "web"))?;
    wait_reach(&lab, (true, true))?;
    runtime.block_on(admin.relabel("web", "nobody"))?;
    wait_reach(&lab, (false, true))?;

    server.kill_server();
    wait_until("the outage to be said", WITHIN, || {
        let status = run_picket(&["status"])?;
        let text = String::from_utf8_lossy(&status.stdout);
        ensure!(text.contains("does not answer since"), "{text}");
        ensure!(
            status.status.code() == Some(1),
            "ended with {}",
            status.status
        );
        Ok(())
    })?;
    wait_reach(&lab, (false, true))?;
    server.start_server()?;
    runtime.block_on(admin.delete_policy("allow"))?;
    wait_reach(&lab, (true, true))?;
    agent.stop()
}
