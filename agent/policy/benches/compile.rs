//! What one event costs, from the change to the finished plan, in clusters of several sizes: one
//! pod added, one pod's label changed, one policy added. 110 pods are local. What is compiled is
//! printed first.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use agent_policy::engine::{Engine, LocalEndpoint, Options};
use agent_policy::model::{
    Change, ContainerPort, Labels, Namespace, NamespaceScope, ObjectName, Peer, Peers, Pod, PodUid,
    Policy, PortMatch, Ports, Protocol, Rule,
};
use agent_policy::selector::{Operator, Requirement, Selector};
use divan::Bencher;

const LOCAL: usize = 110;
const APPS: usize = 20;
const SIZES: [Size; 3] = [
    Size {
        pods: 1_000,
        policies: 100,
    },
    Size {
        pods: 10_000,
        policies: 1_000,
    },
    Size {
        pods: 100_000,
        policies: 10_000,
    },
];

#[derive(Clone, Copy)]
struct Size {
    pods: usize,
    policies: usize,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pods, {} policies", self.pods, self.policies)
    }
}

impl Size {
    const fn namespaces(self) -> usize {
        self.pods / 100
    }
}

fn labels(of: &[(&str, String)]) -> Labels {
    let owned = of
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()));
    owned.collect()
}

fn is(key: &str, value: String) -> Selector {
    Selector::new(vec![Requirement {
        key: key.to_owned(),
        operator: Operator::In(vec![value]),
    }])
}

fn namespace(number: usize) -> Change {
    let name: Arc<str> = format!("ns-{number}").into();
    Change::Namespace(Namespace {
        labels: labels(&[
            ("kubernetes.io/metadata.name", name.to_string()),
            ("team", format!("team-{}", number % 10)),
        ]),
        name,
        annotations: Labels::new(),
    })
}

fn pod(number: usize, app: usize, size: Size) -> Pod {
    let [_, b, c, d] = u32::try_from(number).unwrap_or_default().to_be_bytes();
    Pod {
        labels: labels(&[
            ("app", format!("app-{app}")),
            ("tier", format!("tier-{}", number % 3)),
            ("pod-template-hash", format!("{:x}", number / 5)),
        ]),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, b, c, d))],
        ports: Arc::from([ContainerPort {
            name: "http".to_owned(),
            protocol: Protocol::TCP,
            port: if number.is_multiple_of(4) { 80 } else { 8080 },
        }]),
        created: 1,
        ..Pod::new(
            PodUid(format!("uid-{number}").into()),
            ObjectName::new(
                format!("ns-{}", number % size.namespaces()),
                format!("pod-{number}"),
            ),
        )
    }
}

fn tcp(port: u16) -> PortMatch {
    PortMatch::Range {
        protocol: Protocol::TCP,
        first: port,
        last: port,
    }
}

fn app_of(namespaces: NamespaceScope, app: usize) -> Peer {
    Peer::Pods {
        namespaces,
        pods: is("app", format!("app-{app}")),
    }
}

/// What applications have: some callers, a team, DNS, a database, a few ranges.
fn policy(number: usize, name: &str, size: Size) -> Policy {
    let app = number / size.namespaces();
    let team = is("team", format!("team-{}", number % 10));
    let numbered = |ports: Vec<PortMatch>| Ports::Any(ports);
    let ingress = vec![
        Rule {
            peers: Peers::Any(vec![
                app_of(NamespaceScope::Own, (app + 1) % APPS),
                app_of(NamespaceScope::Own, (app + 2) % APPS),
            ]),
            ports: numbered(vec![PortMatch::Named {
                protocol: Protocol::TCP,
                name: "http".to_owned(),
            }]),
        },
        Rule {
            peers: Peers::Any(vec![app_of(
                NamespaceScope::Selected(team),
                (app + 3) % APPS,
            )]),
            ports: numbered(vec![tcp(9090), tcp(9091)]),
        },
    ];
    let egress = vec![
        Rule {
            peers: Peers::Any(vec![app_of(
                NamespaceScope::Selected(is("kubernetes.io/metadata.name", "ns-0".to_owned())),
                0,
            )]),
            ports: numbered(vec![tcp(53)]),
        },
        Rule {
            peers: Peers::Any(vec![app_of(NamespaceScope::Own, (app + 4) % APPS)]),
            ports: numbered(vec![PortMatch::Named {
                protocol: Protocol::TCP,
                name: "http".to_owned(),
            }]),
        },
        Rule {
            peers: Peers::Any(vec![Peer::Block {
                cidr: "0.0.0.0/0".parse().expect("a range"),
                except: vec![
                    "10.0.0.0/8".parse().expect("a range"),
                    format!("192.168.{}.0/24", number % 200)
                        .parse()
                        .expect("a range"),
                ],
            }]),
            ports: numbered(vec![tcp(443)]),
        },
    ];
    Policy {
        name: ObjectName::new(format!("ns-{}", number % size.namespaces()), name),
        pods: is("app", format!("app-{}", app % APPS)),
        isolates_ingress: true,
        isolates_egress: true,
        ingress,
        egress,
        annotations: Labels::new(),
    }
}

/// An engine that is settled, and a clock.
struct Node {
    engine: Engine,
    now: Duration,
    size: Size,
    next: usize,
}

impl Node {
    fn new(size: Size) -> Self {
        let mut engine = Engine::new(Options::default());
        let namespaces = (0..size.namespaces()).map(namespace);
        // Each namespace has every app.
        let app = |number: usize| (number / size.namespaces()) % APPS;
        let pods =
            (0..size.pods).map(|number| Change::Pod(Box::new(pod(number, app(number), size))));
        let policies = (0..size.policies).map(|number| {
            let name = format!("policy-{number}");
            Change::Policy(Box::new(policy(number, &name, size)))
        });
        for change in namespaces.chain(pods).chain(policies) {
            black_box(engine.apply(change));
        }
        for number in 0..LOCAL {
            engine.attach(LocalEndpoint {
                // Spread over namespaces and apps.
                uid: PodUid(format!("uid-{}", number * (size.pods / LOCAL)).into()),
                ifindex: u32::try_from(number).unwrap_or_default() + 2,
                addresses: Vec::new(),
                attached: 0,
                fails_open: false,
            });
        }
        let mut node = Self {
            engine,
            now: Duration::from_secs(10),
            size,
            next: size.pods,
        };
        node.plan();
        node.rest();
        node
    }

    fn plan(&mut self) -> usize {
        let plan = self.engine.plan(self.now).expect("within the limits");
        self.engine.written(self.now);
        plan.map_or(0, |plan| plan.writes.len())
    }

    /// What an earlier event left is cleared away outside the measurement.
    fn rest(&mut self) {
        self.now += Duration::from_secs(3);
        self.plan();
    }

    fn happen(&mut self, change: Change) -> usize {
        black_box(self.engine.apply(change));
        self.plan()
    }
}

/// Measures events in the cluster of this size; `prepare` makes each event outside the
/// measurement.
fn events(bencher: Bencher<'_, '_>, size: Size, mut prepare: impl FnMut(&mut Node) -> Change) {
    let node = RefCell::new(NODES.take(size));
    bencher
        .with_inputs(|| {
            let mut node = node.borrow_mut();
            node.rest();
            prepare(&mut node)
        })
        .bench_local_values(|change| node.borrow_mut().happen(change));
    NODES.give_back(node.into_inner());
}

/// Clusters are made once: the largest takes seconds.
struct Nodes(std::sync::Mutex<BTreeMap<usize, Node>>);

static NODES: Nodes = Nodes(std::sync::Mutex::new(BTreeMap::new()));

impl Nodes {
    fn take(&self, size: Size) -> Node {
        let known = self.0.lock().expect("one thread").remove(&size.pods);
        known.unwrap_or_else(|| Node::new(size))
    }

    fn give_back(&self, node: Node) {
        self.0
            .lock()
            .expect("one thread")
            .insert(node.size.pods, node);
    }
}

#[divan::bench(args = SIZES, sample_count = 200, sample_size = 1)]
fn one_pod_added(bencher: Bencher<'_, '_>, size: Size) {
    events(bencher, size, |node| {
        node.next += 1;
        let pod = pod(node.next, node.next % APPS, node.size);
        Change::Pod(Box::new(pod))
    });
}

#[divan::bench(args = SIZES, sample_count = 200, sample_size = 1)]
fn one_label_changed(bencher: Bencher<'_, '_>, size: Size) {
    let mut turn = 0;
    events(bencher, size, |node| {
        turn += 1;
        // A pod of a namespace that has a local pod.
        let number = node.size.namespaces() * 3;
        Change::Pod(Box::new(pod(number, turn % APPS, node.size)))
    });
}

#[divan::bench(args = SIZES, sample_count = 50, sample_size = 1)]
fn one_policy_added(bencher: Bencher<'_, '_>, size: Size) {
    events(bencher, size, |node| {
        // It selects a local pod.
        let added = policy(0, "added", node.size);
        node.happen(Change::PolicyGone(added.name.clone()));
        node.rest();
        Change::Policy(Box::new(added))
    });
}

#[expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark's figures are its output, and it takes the time"
)]
fn main() {
    for size in SIZES {
        let began = std::time::Instant::now();
        let node = Node::new(size);
        let took = began.elapsed();
        println!(
            "{size}: from nothing in {took:?}; {:?}",
            node.engine.counts()
        );
        NODES.give_back(node);
    }
    divan::main();
}
