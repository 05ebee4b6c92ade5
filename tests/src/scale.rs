//! What a large cluster asks of an agent: the real agent on a real API server with many pods. How
//! soon it enforces after its start, how soon a change is in the maps, what it keeps of memory,
//! also after others have come and gone for a while.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use agent_common::Address;
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::runtime::Runtime;

use crate::api_server::ApiServer;
use crate::crowd::Crowd;
use crate::lab::Lab;
use crate::lab::agent::{self, Agent};
use crate::lab::cgroup::MemoryCgroup;
use crate::lab::pins::pinned;
use crate::memory::Memory;

/// How long a change may take that something waits for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a map: it is what a figure may be too large by.
const LOOKS: Duration = Duration::from_micros(100);
/// An agent that has started rests a while before its memory is looked at.
const REST: Duration = Duration::from_secs(3);

/// A cluster, its API server, and the node of the lab.
pub struct Scene {
    // The server's end needs nothing of the others; the lab goes last.
    server: ApiServer,
    client: Client,
    runtime: Runtime,
    lab: Lab,
    crowd: Crowd,
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scene")
            .field("crowd", &self.crowd)
            .finish_non_exhaustive()
    }
}

/// How soon a change was in the maps, in ms.
#[derive(Clone, Copy, Debug)]
pub struct Reaction {
    /// After a watch of the test's own told of it; 0 when the agent was sooner.
    pub since_event: f64,
    /// After the API server was asked for it.
    pub since_request: f64,
}

/// An agent at work in a scene.
#[derive(Debug)]
pub struct Run {
    agent: Agent,
    cgroup: MemoryCgroup,
    /// From the start of its process until all of this node's pods were enforced.
    pub enforced: Duration,
}

impl Scene {
    /// An empty cluster in which a crowd has its namespaces, on a node of its own.
    ///
    /// To be called on a thread of its own, which ends with it.
    pub fn set(crowd: &Crowd) -> Result<Self> {
        let lab = Lab::enter()?;
        let server = ApiServer::start()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("starting the test's own runtime")?;
        let client = runtime.block_on(server.client())?;
        runtime.block_on(crowd.prepare(&client))?;
        Ok(Self {
            server,
            client,
            runtime,
            lab,
            crowd: crowd.none(),
        })
    }

    /// What is not there yet of a crowd comes: its objects, and this node's pods.
    pub fn grow(&mut self, crowd: &Crowd) -> Result<()> {
        for pod in self.crowd.locals..crowd.locals {
            let (namespace, name) = crowd.name(pod);
            self.lab
                .add_pod(&format!("{namespace}/{name}"), &[Crowd::address(pod)])?;
        }
        self.runtime
            .block_on(crowd.outgrow(&self.crowd, &self.client))?;
        self.crowd = *crowd;
        Ok(())
    }

    /// Starts the agent and waits until it enforces.
    pub fn start(&self) -> Result<Run> {
        let kubeconfig = self.server.kubeconfig()?;
        let cgroup = MemoryCgroup::make()?;
        let began = Instant::now();
        let mut agent = Agent::spawn_on_api(&kubeconfig)?;
        cgroup.take(agent.pid())?;
        agent.wait_ready()?;
        let enforced = began.elapsed();
        let status: ::agent::dto::Status = agent::ask("/v1/status")?;
        let programmed = status.endpoints.iter();
        let programmed =
            programmed.filter(|each| each.state == ::agent::dto::EndpointState::Programmed);
        let programmed = programmed.count();
        ensure!(
            programmed == self.crowd.locals,
            "{programmed} endpoints of {} pods: {}",
            self.crowd.locals,
            agent::log()
        );
        Ok(Run {
            agent,
            cgroup,
            enforced,
        })
    }

    /// How soon a changed label is in the maps, each time. The pods are other nodes'; policies admit
    /// them to this node's when they have the label.
    pub fn changes(&self, changes: usize) -> Result<Vec<Reaction>> {
        let peers: HashMap<MapData, [u8; 16], u64> =
            Map::HashMap(MapData::from_pin(pinned("PEERS_EXACT"))?).try_into()?;
        let pods = self.crowd.locals..self.crowd.pods;
        let mut took = Vec::new();
        for change in 0..changes {
            let pod = pods.start + change / 2 % pods.len();
            let heard = self.listen(pod)?;
            let key = Address::from(Crowd::address(pod)).0;
            let before = peers.get(&key, 0).ok();
            let (crowd, client) = (self.crowd, self.client.clone());
            let is_friend = change.is_multiple_of(2);
            let began = Instant::now();
            let asked = self
                .runtime
                .spawn(async move { crowd.befriend(&client, pod, is_friend).await });
            while peers.get(&key, 0).ok() == before {
                if began.elapsed() > PATIENCE {
                    self.runtime.block_on(asked)??;
                    bail!("change {change} of pod {pod} never came: {}", agent::log());
                }
                std::thread::park_timeout(LOOKS);
            }
            let written = Instant::now();
            let heard = heard
                .recv_timeout(PATIENCE)
                .context("waiting for the watch")?;
            let ms = |from| written.saturating_duration_since(from).as_secs_f64() * 1e3;
            took.push(Reaction {
                since_event: ms(heard),
                since_request: ms(began),
            });
            self.runtime.block_on(asked)??;
        }
        Ok(took)
    }

    /// When a watch of its own tells of the next event of a pod.
    fn listen(&self, pod: usize) -> Result<Receiver<Instant>> {
        let (namespace, name) = self.crowd.name(pod);
        let api = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        let (tell, heard) = channel();
        let events = self.runtime.block_on(async {
            // A list's version is of now; an object's own may be older than the server remembers.
            let alone = format!("metadata.name={name}");
            let now = api.list(&ListParams::default().fields(&alone)).await?;
            let version = now.metadata.resource_version.unwrap_or_default();
            let params = WatchParams::default().fields(&alone);
            anyhow::Ok(api.watch(&params, &version).await?.boxed())
        })?;
        self.runtime.spawn(async move {
            let mut events = events;
            while let Ok(Some(event)) = events.try_next().await {
                if matches!(event, WatchEvent::Modified(_)) {
                    let _gone = tell.send(Instant::now());
                    return;
                }
            }
        });
        Ok(heard)
    }

    /// Pods of other nodes come, go and change, and policies with them, for so long; `look` is
    /// called now and then. Returns how many changes were made.
    pub fn churn(&self, how_long: Duration, mut look: impl FnMut(Duration)) -> Result<usize> {
        /// Changes of one round.
        const ROUND: usize = 40;
        const LOOK_EVERY: Duration = Duration::from_secs(10);
        let (began, mut looked) = (Instant::now(), Instant::now());
        let (crowd, client) = (self.crowd, self.client.clone());
        let others = crowd.pods - crowd.locals;
        let mut changes = 0;
        while began.elapsed() < how_long {
            let next = Instant::now() + Duration::from_secs(1);
            self.runtime.block_on(async {
                for each in changes..changes + ROUND {
                    let pod = crowd.locals + each / 4 * 7 % others;
                    match each % 4 {
                        0 => crowd.go(&client, pod).await?,
                        1 => crowd.come(&client, pod).await?,
                        2 => crowd.befriend(&client, pod, true).await?,
                        _ => crowd.vary(&client, each % crowd.policies, each).await?,
                    }
                }
                anyhow::Ok(())
            })?;
            changes += ROUND;
            if looked.elapsed() > LOOK_EVERY {
                looked = Instant::now();
                look(began.elapsed());
            }
            std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
        }
        Ok(changes)
    }
}

impl Run {
    /// What its process has once it has come to rest.
    pub fn memory_at_rest(&self) -> Result<Memory> {
        std::thread::park_timeout(REST);
        self.memory()
    }

    /// What its process has now.
    pub fn memory(&self) -> Result<Memory> {
        Memory::of(self.agent.pid())
    }

    /// What its cgroup is charged with: the maps, too. In bytes.
    pub fn charged(&self) -> Result<u64> {
        self.cgroup.bytes()
    }

    /// Ends it; what it enforces stays.
    pub fn stop(self) -> Result<()> {
        self.agent.stop()
    }
}
