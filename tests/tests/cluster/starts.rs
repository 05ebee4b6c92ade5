//! What an agent's end and start mean for pods that run: a new version, a crash, an API server that
//! does not answer, uninstalling and installing with connections open.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use tests::lab::wait_until;

use super::deployment;
use super::host::{self, Process, join};
use super::namespace::{Fate, Namespace, PATIENCE, kubectl};
use super::streams::{Attempts, Speaker, Stream};

/// What the servers of these tests admit, a port for each stream.
const FIRST_PORT: u16 = 9000;
const LAST_PORT: u16 = 9099;
/// What they do not.
const FORBIDDEN: u16 = 8080;
/// A crashed container may have to wait for its next start.
const RESTARTED_WITHIN: Duration = Duration::from_mins(3);
/// A segment that is lost is sent again sooner; a busy machine may hold up what is not.
const LONGEST_STALL: Duration = Duration::from_secs(5);

/// A pod, on whichever node.
#[derive(Clone, Debug)]
struct Pod {
    /// As its containers' environment has it.
    hostname: String,
    process: Process,
    address: SocketAddr,
}

/// Connections of all clients to all servers, and attempts at what is forbidden.
struct Traffic {
    streams: Vec<Stream>,
    attempts: Vec<Attempts>,
}

/// Servers and clients on every node; servers admit clients to some ports alone.
struct Scene {
    namespace: Namespace,
    ways: Vec<(String, String)>,
    clients: Vec<Pod>,
    servers: Vec<Pod>,
    next_port: u16,
}

impl Scene {
    fn set(test: &str) -> Result<Self> {
        let namespace = Namespace::alone(test)?;
        namespace.isolate_servers()?;
        namespace.policy(
            "admit",
            &json!([{
                "from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
                "ports": [{"port": FIRST_PORT, "endPort": LAST_PORT}],
            }]),
        )?;
        namespace.populate()?;
        let ways = namespace.ways()?;
        namespace.all_become(&ways, &Fate::TimedOut)?;
        let pods = |app: &str| -> Result<Vec<Pod>> {
            let pods = namespace.pods(app)?.into_iter();
            pods.map(|(name, addresses)| {
                let address = addresses.first().context("a pod without an address")?;
                let hostname = format!("HOSTNAME={name}");
                Ok(Pod {
                    process: host::one_with("agnhost", &hostname)?,
                    hostname,
                    address: format!("{address}:{FORBIDDEN}").parse()?,
                })
            })
            .collect()
        };
        Ok(Self {
            clients: pods("client")?,
            servers: pods("server")?,
            ways,
            namespace,
            next_port: FIRST_PORT,
        })
    }

    fn stream(&mut self, client: &Pod, server: &Pod) -> Result<Stream> {
        let port = self.next_port;
        self.next_port += 1;
        let at = SocketAddr::new(server.address.ip(), port);
        let speaks = if port.is_multiple_of(2) {
            Speaker::Server
        } else {
            Speaker::Client
        };
        Stream::open(client.process, server.process, at, speaks)
    }

    fn begin(&mut self) -> Result<Traffic> {
        let mut streams = Vec::new();
        for client in self.clients.clone() {
            for server in self.servers.clone() {
                streams.push(self.stream(&client, &server)?);
            }
        }
        Ok(Traffic {
            streams,
            attempts: self.attempt()?,
        })
    }

    fn attempt(&self) -> Result<Vec<Attempts>> {
        let clients = self.clients.iter();
        let ways = clients.flat_map(|client| self.servers.iter().map(move |to| (client, to)));
        ways.map(|(client, to)| Attempts::begin(client.process, to.address))
            .collect()
    }

    /// What is admitted now holds everywhere, so the agents act.
    fn admit_everything(&self) -> Result<()> {
        self.namespace.policy("admit", &json!([{}]))?;
        self.namespace.all_become(&self.ways, &Fate::Connected)
    }
}

impl Traffic {
    fn end(self, during: &str) -> Result<()> {
        end_attempts(self.attempts, during)?;
        end_streams(self.streams, during)
    }
}

fn end_streams(streams: Vec<Stream>, during: &str) -> Result<()> {
    let count = streams.len();
    let mut longest = Duration::ZERO;
    for stream in streams {
        let stall = stream
            .end()
            .with_context(|| format!("a stream broke: {during}"))?;
        longest = longest.max(stall);
    }
    eprintln!("{during}: {count} streams, at most {longest:?} without a byte");
    ensure!(
        longest < LONGEST_STALL,
        "{during}: a stream stood still for {longest:?}"
    );
    Ok(())
}

fn end_attempts(attempts: Vec<Attempts>, during: &str) -> Result<()> {
    let mut tries = 0;
    for attempt in attempts {
        tries += attempt.end().with_context(|| during.to_owned())?;
    }
    eprintln!("{during}: {tries} forbidden connections attempted, none made");
    Ok(())
}

/// Kills every agent as the out-of-memory killer would, and waits until others are ready.
fn replace_agents() -> Result<()> {
    let before = host::agents()?;
    ensure!(before.len() > 1, "an agent on every node: {before:?}");
    for agent in &before {
        agent.signal(Signal::SIGKILL)?;
    }
    let begun = Instant::now();
    wait_until("other agents to be ready", RESTARTED_WITHIN, || {
        let now = host::agents()?;
        ensure!(now.len() == before.len(), "{} agents run", now.len());
        for agent in now {
            ensure!(!before.contains(&agent), "it has not ended yet");
            join(agent.inside(deployment::is_ready)?)?;
        }
        Ok(())
    })?;
    eprintln!("agents are ready again after {:?}", begun.elapsed());
    Ok(())
}

/// An API server that does not answer, until the value goes.
struct Silence(Process);

impl Silence {
    fn begin() -> Result<Self> {
        let server = host::api_server()?;
        server.signal(Signal::SIGSTOP)?;
        Ok(Self(server))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        drop(self.0.signal(Signal::SIGCONT));
    }
}

#[test]
fn a_rollout_disturbs_no_stream_and_opens_nothing() -> Result<()> {
    let mut scene = Scene::set("rollout")?;
    let traffic = scene.begin()?;
    deployment::restart()?;
    traffic.end("a rollout")?;
    scene.admit_everything()
}

#[test]
fn a_killed_agent_leaves_everything_as_it_is_and_its_successor_goes_on() -> Result<()> {
    let mut scene = Scene::set("killed")?;
    let traffic = scene.begin()?;
    replace_agents()?;
    traffic.end("agents were killed")?;
    scene.admit_everything()
}

#[test]
fn an_agent_that_starts_while_the_api_is_silent_enforces_what_was_known() -> Result<()> {
    let mut scene = Scene::set("silence")?;
    let traffic = scene.begin()?;
    let silence = Silence::begin()?;
    replace_agents()?;
    // The kubelet makes a pod's sandbox anew without asking anybody, with another address.
    traffic.end("the API server was silent")?;
    // The kubelet makes a pod's sandbox anew without asking anybody, with another address.
    let client = scene.clients.first().context("a client")?.clone();
    let server = scene.servers.first().context("a server")?.clone();
    host::sandbox_of(server.process)?.signal(Signal::SIGKILL)?;
    let process = wait_until("the pod to be made anew", RESTARTED_WITHIN, || {
        let process = host::one_with("agnhost", &server.hostname)?;
        ensure!(process != server.process, "it has not ended yet");
        Ok(process)
    })?;
    let ip = process.address_towards(client.address)?.ip();
    let address = SocketAddr::new(ip, FORBIDDEN);
    let again = Pod {
        process,
        address,
        ..server
    };
    let attempts = Attempts::begin(client.process, address)?;
    let stream = scene.stream(&client, &again)?;
    end_attempts(vec![attempts], "a sandbox was made anew")?;
    end_streams(vec![stream], "a sandbox was made anew")?;
    drop(silence);
    wait_until("the API server to answer", PATIENCE, || {
        kubectl(&["get", "--raw", "/readyz"], "")
    })?;
    scene.namespace.policy("admit", &json!([{}]))?;
    wait_until("the agents to hear of it", PATIENCE, || {
        let reached = client.process.inside(move || {
            Ok(TcpStream::connect_timeout(
                &address,
                Duration::from_secs(1),
            )?)
        })?;
        join(reached)
    })
    .map(drop)
}

#[test]
fn uninstalling_and_installing_break_no_connection() -> Result<()> {
    let mut scene = Scene::set("install")?;
    let traffic = scene.begin()?;
    end_attempts(traffic.attempts, "before uninstalling")?;
    deployment::uninstall()?;
    scene.namespace.all_become(&scene.ways, &Fate::Connected)?;
    // Opened where nothing is enforced, allowed when something is.
    let mut streams = traffic.streams;
    let client = scene.clients.first().context("a client")?.clone();
    let server = scene.servers.last().context("a server")?.clone();
    streams.push(scene.stream(&client, &server)?);
    deployment::install()?;
    scene.namespace.all_become(&scene.ways, &Fate::TimedOut)?;
    let attempts = scene.attempt()?;
    end_attempts(attempts, "Picket was installed")?;
    end_streams(streams, "Picket was taken out and installed")
}
