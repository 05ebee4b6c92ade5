//! Who reaches whom, between all nodes, by address and Service; and what the node itself does.

use anyhow::{Result, ensure};
use serde_json::json;
use tests::lab::wait_until;

use super::namespace::{Fate, Namespace, PATIENCE};

/// How often a refused connection is tried again: it must never succeed.
const TRIES: usize = 2;

#[test]
fn without_policy_all_pods_reach_all_pods_and_services() -> Result<()> {
    let namespace = Namespace::new("open")?;
    namespace.populate()?;
    namespace.all_become(&namespace.ways()?, &Fate::Connected)
}

#[test]
fn a_policy_holds_between_all_nodes_until_it_goes() -> Result<()> {
    let namespace = Namespace::new("policy")?;
    namespace.populate()?;
    let ways = namespace.ways()?;
    namespace.all_become(&ways, &Fate::Connected)?;
    namespace.isolate_servers()?;
    namespace.all_become(&ways, &Fate::TimedOut)?;
    for _ in 0..TRIES {
        for (client, to) in &ways {
            assert_eq!(
                namespace.connect(client, to),
                Fate::TimedOut,
                "{client} to {to}"
            );
        }
    }
    let from_clients = json!([{
        "from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
        "ports": [{"port": 8080}],
    }]);
    namespace.policy("admit", &from_clients)?;
    namespace.all_become(&ways, &Fate::Connected)?;
    namespace.kubectl(&["delete", "networkpolicy", "admit"])?;
    namespace.all_become(&ways, &Fate::TimedOut)?;
    namespace.kubectl(&["delete", "networkpolicy", "isolate"])?;
    namespace.all_become(&ways, &Fate::Connected)
}

#[test]
fn isolated_pods_stay_ready_and_answer_exec_and_logs() -> Result<()> {
    let namespace = Namespace::new("node")?;
    namespace.isolate_servers()?;
    // Their first probe comes when the policy is in force: no probe, no readiness.
    namespace.populate()?;
    let ways = namespace.ways()?;
    namespace.all_become(&ways, &Fate::TimedOut)?;
    for (server, _) in namespace.pods("server")? {
        let said = namespace.kubectl(&["exec", &server, "--", "hostname"])?;
        assert_eq!(said.trim(), server);
        let probes = || -> Result<usize> {
            let log = namespace.kubectl(&["logs", &server])?;
            Ok(log.matches("GET /healthz").count())
        };
        let before = probes()?;
        wait_until("further probes", PATIENCE, || {
            let now = probes()?;
            ensure!(now > before + 2, "{now} after {before}");
            Ok(())
        })?;
        let ready = [
            "get",
            "pod",
            &server,
            "-o",
            "jsonpath={.status.containerStatuses[0].ready}",
        ];
        assert_eq!(namespace.kubectl(&ready)?, "true", "{server}");
    }
    Ok(())
}
