//! A lab with the agent at work, for tests: manifests change, and the test goes on once the
//! kernel has them.

use std::collections::BTreeMap;
use std::time::Duration;

use ::agent::dto::{Endpoint, EndpointState, Status};
use anyhow::{Context as _, Result, bail, ensure};

use super::agent::{self, Agent, ask};
use super::objects::policy;
use super::{Lab, manifests, wait_until};

/// How long a change may take on a machine that does other things, too. How fast it is, is
/// measured elsewhere.
const APPLIED_WITHIN: Duration = Duration::from_secs(30);
/// The pod whose policy tells that a change has arrived.
const SENTINEL: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: sentinel}
---
apiVersion: v1
kind: Pod
metadata: {namespace: sentinel, name: sentinel}
spec: {containers: [{name: sentinel, image: none}]}
status: {podIP: 10.255.255.254}
";

/// A lab, its agent and what it enforces.
#[derive(Debug)]
pub struct Stage {
    /// The lab.
    pub lab: Lab,
    /// The agent; `None` while a test has none.
    pub agent: Option<Agent>,
    round: u32,
    /// The latest policy on the sentinel in each file.
    marks: BTreeMap<String, String>,
}

impl Stage {
    /// Lays a cluster out and starts the agent on it.
    pub fn open(cluster: &str) -> Result<Self> {
        let mut stage = Self::without_agent(cluster)?;
        stage.agent = Some(Agent::start(&stage.lab.manifests())?);
        Ok(stage)
    }

    /// Lays a cluster out.
    pub fn without_agent(cluster: &str) -> Result<Self> {
        let mut lab = Lab::enter()?;
        lab.write_manifest("sentinel.yaml", SENTINEL)?;
        lab.write_manifest("cluster.yaml", cluster)?;
        let found = manifests::read(&lab.manifests())?;
        if !found.remarks.is_empty() {
            bail!("the cluster of this test: {}", found.remarks.join("\n"));
        }
        lab.lay_out(&found, &[])?;
        Ok(Self {
            lab,
            agent: None,
            round: 0,
            marks: BTreeMap::new(),
        })
    }

    /// Writes a manifest and waits until it is in force.
    pub fn apply(&mut self, file: &str, content: &str) -> Result<()> {
        let mark = self.next_mark();
        self.marks
            .insert(file.to_owned(), format!("sentinel/round-{}", self.round));
        // In one file, so that the agent reads both in one piece.
        self.lab
            .write_manifest(file, &format!("{content}\n---\n{mark}"))?;
        self.applied()
    }

    /// Removes a manifest that [`apply`](Self::apply) wrote and waits until that is in force: the
    /// policy on the sentinel that came with it has gone, too.
    pub fn remove(&mut self, file: &str) -> Result<()> {
        let mark = self
            .marks
            .remove(file)
            .with_context(|| format!("{file} was never applied"))?;
        self.lab.remove_manifest(file)?;
        self.settle()?;
        wait_until("the removal to be in force", APPLIED_WITHIN, || {
            let status: Status = ask("/v1/status")?;
            let sentinel = endpoint(&status, "sentinel/sentinel")?;
            let mut isolating = sentinel
                .directions
                .iter()
                .flat_map(|each| &each.isolated_by);
            if isolating.any(|policy| *policy == mark) {
                bail!("{mark} is still in force");
            }
            Ok(())
        })
    }

    /// Waits until a pod that has come is an endpoint with its policy in force.
    pub fn programmed(&self, pod: &str) -> Result<()> {
        wait_until("the pod to be programmed", APPLIED_WITHIN, || {
            let status: Status = ask("/v1/status")?;
            let state = endpoint(&status, pod)?.state;
            ensure!(state == EndpointState::Programmed, "{pod} is {state:?}");
            Ok(())
        })
        .with_context(|| format!("the agent said:\n{}", agent::log()))
    }

    /// Waits until everything written so far is in force.
    pub fn settle(&mut self) -> Result<()> {
        let mark = self.next_mark();
        self.lab.write_manifest("mark.yaml", &mark)?;
        self.applied()
    }

    fn next_mark(&mut self) -> String {
        self.round += 1;
        policy(
            "sentinel",
            &format!("round-{}", self.round),
            "{podSelector: {}}",
        )
    }

    fn applied(&self) -> Result<()> {
        let mark = format!("sentinel/round-{}", self.round);
        wait_until("the change to be in force", APPLIED_WITHIN, || {
            let status: Status = ask("/v1/status")?;
            if let Some(endpoint) = status
                .endpoints
                .iter()
                .find(|endpoint| endpoint.state != EndpointState::Programmed)
            {
                bail!(
                    "{}/{} is {:?}",
                    endpoint.namespace,
                    endpoint.pod,
                    endpoint.state
                );
            }
            let sentinel = endpoint(&status, "sentinel/sentinel")?;
            let mut isolating = sentinel
                .directions
                .iter()
                .flat_map(|direction| &direction.isolated_by);
            if !isolating.any(|policy| *policy == mark) {
                bail!("{mark} does not isolate {sentinel:?}");
            }
            Ok(())
        })
        .with_context(|| format!("the agent said:\n{}", agent::log()))
    }
}

/// What the agent says of a pod of this node.
pub fn endpoint<'a>(status: &'a Status, pod: &str) -> Result<&'a Endpoint> {
    status
        .endpoints
        .iter()
        .find(|endpoint| pod == format!("{}/{}", endpoint.namespace, endpoint.pod))
        .with_context(|| format!("the agent knows no endpoint {pod}"))
}
