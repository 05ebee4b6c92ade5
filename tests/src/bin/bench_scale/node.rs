//! A node without an agent: the engine, the maps, and objects to give it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use agent::dataplane::{Dataplane, Options};
use agent_policy::engine::{Engine, LocalEndpoint};
use agent_policy::model::{
    Change, Labels, Namespace, NamespaceScope, ObjectName, Peer, Peers, Pod, PodUid, Policy, Ports,
    Rule,
};
use agent_policy::selector::{Operator, Requirement, Selector};
use anyhow::Result;
use ipnet::{IpNet, Ipv4Net};
use tests::cpu::thread_time;

/// The interface of the node's own pod.
pub(crate) const IFINDEX: u32 = 11;

/// What a plan cost: this thread's CPU time, as on a machine that does nothing else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    pub(crate) writes: usize,
    /// Taking the change in and planning.
    pub(crate) planning: Duration,
    /// Writing, with reading back.
    pub(crate) writing: Duration,
}

impl Took {
    pub(crate) fn all(&self) -> Duration {
        self.planning + self.writing
    }
}

/// A node with one pod of its own; others are elsewhere.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) engine: Engine,
    dataplane: Dataplane,
    began: Instant,
}

impl Node {
    pub(crate) fn new(pins: &str, pods: u32) -> Result<Self> {
        let mut node = Self {
            engine: Engine::new(agent_policy::engine::Options::default()),
            dataplane: Dataplane::open(&Options::new(pins))?,
            began: Instant::now(),
        };
        let local = pod(0);
        let uid = local.uid.clone();
        let namespace = Change::Namespace(Namespace {
            name: "shop".into(),
            labels: Labels::new(),
            annotations: Labels::new(),
        });
        node.settle([namespace, Change::Pod(Box::new(local))])?;
        node.engine.attach(LocalEndpoint {
            uid,
            ifindex: IFINDEX,
            addresses: Vec::new(),
            attached: 0,
            fails_open: false,
        });
        node.settle((1..=pods).map(|n| Change::Pod(Box::new(pod(n)))))?;
        Ok(node)
    }

    /// Takes changes in, plans, and carries the plan out.
    pub(crate) fn settle(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<Took> {
        let changes: Vec<Change> = changes.into_iter().collect();
        let begun = thread_time();
        for change in changes {
            // What it touches, the plan knows.
            drop(self.engine.apply(change));
        }
        let plan = self.engine.plan(self.began.elapsed())?;
        let planning = thread_time().saturating_sub(begun);
        // The agent writes what the plan lends it; here the clock of writing begins after a copy.
        let writes = plan.map(|plan| plan.writes.clone()).unwrap_or_default();
        let planned = thread_time();
        self.dataplane.apply(&writes)?;
        let writing = thread_time().saturating_sub(planned);
        self.engine.written(self.began.elapsed());
        Ok(Took {
            writes: writes.len(),
            planning,
            writing,
        })
    }
}

pub(crate) fn pod(n: u32) -> Pod {
    let role = if n == 0 { "server" } else { "client" };
    Pod {
        labels: [("role".to_owned(), role.to_owned())].into(),
        addresses: vec![IpAddr::V4(address(Ipv4Addr::new(10, 0, 0, 1), n))],
        ..Pod::new(
            PodUid(format!("uid-{n}").into()),
            ObjectName::new("shop", format!("pod-{n}")),
        )
    }
}

/// A rule for the node's own pod that names every pod elsewhere.
pub(crate) fn naming_all() -> Change {
    admitting(vec![Peer::Pods {
        namespaces: NamespaceScope::Own,
        pods: with_role("client"),
    }])
}

/// A rule for the node's own pod that names so many ranges of sixteen addresses.
pub(crate) fn naming_ranges(count: u32) -> Change {
    let ranges = (0..count).map(|n| {
        let first = address(Ipv4Addr::new(100, 64, 0, 0), n * 16);
        Peer::Block {
            cidr: IpNet::V4(Ipv4Net::new_assert(first, 28)),
            except: Vec::new(),
        }
    });
    admitting(ranges.collect())
}

pub(crate) fn no_rule() -> Change {
    Change::PolicyGone(ObjectName::new("shop", "p"))
}

fn admitting(peers: Vec<Peer>) -> Change {
    Change::Policy(Box::new(Policy {
        name: ObjectName::new("shop", "p"),
        pods: with_role("server"),
        isolates_ingress: true,
        isolates_egress: false,
        ingress: vec![Rule {
            peers: Peers::Any(peers),
            ports: Ports::All,
        }],
        egress: Vec::new(),
        annotations: Labels::new(),
    }))
}

fn address(first: Ipv4Addr, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first) + n)
}

fn with_role(role: &str) -> Selector {
    Selector::new(vec![Requirement {
        key: "role".to_owned(),
        operator: Operator::In(vec![role.to_owned()]),
    }])
}
