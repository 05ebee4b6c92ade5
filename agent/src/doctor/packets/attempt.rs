//! The attempt itself: ground, wires, programs, policy, packets.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use agent_common::Direction;
use agent_common::maps::{MAPS, MapKind};
use agent_common::verdict::Reason;
use agent_policy::engine::{Engine, LocalEndpoint};
use agent_policy::manifest::network_policy_json;
use agent_policy::model::{Change, Labels, ObjectName, Pod as PodObject, PodUid};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use super::wires::{Pod, lay_out};
use super::{Attempt, Family, Loaded, Walk, ground};
use crate::dataplane::{Dataplane, Options};
use crate::endpoints::Netns;
use crate::reconcile::default_settings;

/// The port that policy allows, and one that it does not.
const ALLOWED: u16 = 8080;
const DENIED: u16 = 8081;
/// The maps are for two pods and one policy.
const ENTRIES: u32 = 1_024;
/// How long a packet may take that has to arrive, or to be counted.
const WITHIN: Duration = Duration::from_secs(3);
/// How long one look for it takes.
const LOOK: Duration = Duration::from_millis(20);

/// Tries it; the calling thread does not come back from where this goes.
pub(super) fn attempt() -> Attempt {
    let options = options();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ground = ground::enter().and_then(|()| Ok(runtime?));
    let families = if ground::has_ipv6() {
        &[Family::V4, Family::V6][..]
    } else {
        &[Family::V4]
    };
    let laid = ground.and_then(|runtime| {
        let pods = runtime.block_on(lay_out(families))?;
        Ok(pods)
    });
    let pods = match laid {
        Ok(pods) => pods,
        Err(error) => return Attempt::NoGround(format!("{error:#}")),
    };
    let mut dataplane = match Dataplane::open(&options) {
        Ok(dataplane) => dataplane,
        Err(error) => return Attempt::NotLoaded(format!("{:#}", anyhow::Error::from(error))),
    };
    let loaded = Loaded {
        method: dataplane.method(),
        hz: dataplane.hz(),
    };
    match walk(&mut dataplane, &pods, families) {
        Ok(walks) => Attempt::Done(loaded, walks),
        Err(error) => Attempt::Broken(loaded, format!("{error:#}")),
    }
}

/// Maps no larger than needed: what they take counts for whoever runs this.
fn options() -> Options {
    let mut options = Options::new(ground::PINS);
    let sized = MAPS.iter().filter(|spec| match spec.kind {
        MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie | MapKind::ArrayOfLruHash => true,
        MapKind::Array | MapKind::MappedArray | MapKind::PerCpuArray | MapKind::RingBuffer => false,
    });
    options.capacities = sized.map(|spec| (spec.name.to_owned(), ENTRIES)).collect();
    options
}

/// Sends packets without programs, then with them.
fn walk(dataplane: &mut Dataplane, pods: &[Netns; 2], families: &[Family]) -> Result<Vec<Walk>> {
    for family in families {
        for direction in Direction::ALL {
            for port in [ALLOWED, DENIED] {
                let path = Path::open(pods, *family, direction, port)?;
                ensure!(
                    path.arrives(WITHIN)?,
                    "{family} {direction}: nothing arrives, though no program is there"
                );
            }
        }
    }
    let slot = enforce(dataplane, families)?;
    let mut walks = Vec::new();
    for family in families {
        for direction in Direction::ALL {
            let before = counted(dataplane, slot, direction)?;
            // The denied one goes first: what passed would have come before the other.
            let denied = Path::open(pods, *family, direction, DENIED)?;
            denied.send()?;
            let allowed = Path::open(pods, *family, direction, ALLOWED)?;
            let allowed_arrived = allowed.arrives(WITHIN)?;
            let began = Instant::now();
            let mut denied_arrived = denied.has_arrived()?;
            let mut now = counted(dataplane, slot, direction)?;
            while now == before && !denied_arrived && began.elapsed() < WITHIN {
                denied_arrived = denied.has_arrived()?;
                now = counted(dataplane, slot, direction)?;
            }
            walks.push(Walk {
                family: *family,
                direction,
                allowed_arrived,
                denied_arrived,
                counted: now - before,
            });
        }
    }
    Ok(walks)
}

/// Puts policy on the server, by the engine and the dataplane of the agent; its slot.
fn enforce(dataplane: &mut Dataplane, families: &[Family]) -> Result<u32> {
    let mut engine = Engine::new(agent_policy::engine::Options::default());
    for pod in Pod::BOTH {
        let name = ObjectName::new("doctor", pod.name());
        let mut object = PodObject::new(PodUid(pod.name().into()), name);
        object.labels = Labels::from([("role".to_owned(), pod.name().to_owned())]);
        object.addresses = families.iter().map(|family| pod.address(*family)).collect();
        engine.apply(Change::Pod(Box::new(object)));
    }
    let peers = json!([{"podSelector": {"matchLabels": {"role": Pod::Client.name()}}}]);
    let ports = json!([{"protocol": "UDP", "port": ALLOWED}]);
    let (policy, findings) = network_policy_json(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "doctor", "name": "one-port"},
        "spec": {
            "podSelector": {"matchLabels": {"role": Pod::Server.name()}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}],
            "egress": [{"to": peers, "ports": ports}],
        },
    }));
    if let Some(finding) = findings.first() {
        bail!("the policy of the attempt: {finding}");
    }
    engine.apply(Change::Policy(Box::new(policy)));
    let ifindex = Pod::Server.ifindex();
    #[expect(clippy::cast_possible_truncation, reason = "stamps are low halves")]
    let attached = dataplane.tick()?.jiffies as u32;
    engine.attach(LocalEndpoint {
        uid: PodUid(Pod::Server.name().into()),
        ifindex,
        addresses: Vec::new(),
        attached,
        fails_open: false,
    });
    dataplane.put_settings(&default_settings(dataplane.hz()))?;
    let plan = engine
        .plan(Duration::ZERO)
        .context("compiling the policy of the attempt")?;
    let plan = plan.context("the policy of the attempt changes nothing")?;
    dataplane
        .apply(&plan.writes)
        .context("writing policy into the maps")?;
    dataplane.attach(ifindex, Pod::Server.name())?;
    engine.written(Duration::ZERO);
    let endpoints = engine.endpoints();
    let server = endpoints.first().context("the server is no endpoint")?;
    Ok(server.slot)
}

/// Packets that were denied for want of a rule.
fn counted(dataplane: &Dataplane, slot: u32, direction: Direction) -> Result<u64> {
    let dropped = dataplane.dropped(slot)?;
    let is_it = |row: &&crate::dataplane::Dropped| {
        row.direction == direction && row.reason == Reason::IsolatedNoRule
    };
    Ok(dropped
        .iter()
        .filter(is_it)
        .map(|row| row.traffic.packets)
        .sum())
}

/// A datagram's way from one pod to the other.
struct Path {
    from: UdpSocket,
    to: UdpSocket,
}

impl Path {
    fn open(pods: &[Netns; 2], family: Family, direction: Direction, port: u16) -> Result<Self> {
        let [server, client] = pods;
        let (from, to) = match direction {
            Direction::Ingress => ((Pod::Client, client), (Pod::Server, server)),
            Direction::Egress => ((Pod::Server, server), (Pod::Client, client)),
        };
        let bind = |(pod, netns): (Pod, &Netns), port| {
            let address = pod.address(family);
            let socket = netns.within(|| UdpSocket::bind((address, port)));
            socket.with_context(|| format!("a socket at {address}"))
        };
        let path = Self {
            from: bind(from, 0)?,
            to: bind(to, port)?,
        };
        path.from.connect(path.to.local_addr()?)?;
        path.to.set_read_timeout(Some(LOOK))?;
        Ok(path)
    }

    fn send(&self) -> Result<()> {
        self.from.send(&[0]).context("sending a datagram")?;
        Ok(())
    }

    /// Sends until one arrives: the first may find no carrier yet.
    fn arrives(&self, within: Duration) -> Result<bool> {
        let began = Instant::now();
        while began.elapsed() < within {
            self.send()?;
            if self.has_arrived()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn has_arrived(&self) -> Result<bool> {
        match self.to.recv(&mut [0]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("receiving a datagram"),
        }
    }
}
