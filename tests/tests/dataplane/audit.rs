//! Audited sets on real packets, written as the engine will once policies can be audited: a change
//! of the audited set alone is met by open flows, which go on and are reported; its promotion
//! cuts what it forbids, and nothing else does.

use std::net::UdpSocket;
use std::time::Duration;

use agent::dataplane::{Dataplane, Events};
use agent::flows::decode::{Cause, decode};
use agent_common::Reason;
use agent_common::conntrack::Timeout;
use agent_common::maps::{Config, EndpointWord, PortFunction, Settings, VerdictKey};
use agent_policy::plan::Write;
use agent_policy::tables::Tables;

use super::node::Node;
use super::plan;

/// The set in force of `plan`, one that admits nobody, and one that admits the same as the first.
const OPEN: u32 = 1;
const CLOSED: u32 = 2;
const OPEN_TOO: u32 = 3;
const SLOT: u32 = 3;
/// The first row and revision.
const ROW: u32 = 17;
/// How long what must arrive may take on a machine that does other things, too.
const WITHIN: Duration = Duration::from_secs(10);
/// After this long, what must not arrive counts as cut.
const SILENCE: Duration = Duration::from_millis(300);

/// A pod with policy, its friend, and a flow between them.
struct World {
    dataplane: Dataplane,
    events: Events,
    ifindex: u32,
    config: Config,
    /// Latest row and revision.
    latest: u32,
    friend: UdpSocket,
    pod: UdpSocket,
    _node: Node,
}

impl World {
    fn new() -> Self {
        let mut node = Node::new();
        let (ifindex, interface) = node.pod("pod");
        // Its address is the one that `plan` lets in.
        node.pod("friend");
        let mut dataplane = node.open();
        let mut writes = plan(ifindex, SLOT, ROW, ROW);
        let mut tables = Tables::default();
        tables.apply_all(&writes);
        let (config, class) = (tables.configs[&ROW], 5);
        let open = tables.verdicts[&VerdictKey { set: OPEN, class }];
        for set in [CLOSED, OPEN_TOO] {
            let nobody = VerdictKey { set, class: 0 };
            writes.insert(0, Write::PutVerdict(nobody, PortFunction::default()));
        }
        let same = VerdictKey {
            set: OPEN_TOO,
            class,
        };
        writes.insert(0, Write::PutVerdict(same, open));
        dataplane.apply(&writes).unwrap();
        let settings = Settings {
            hz: dataplane.hz(),
            timeouts: Timeout::defaults(dataplane.hz()),
            budget_rate: 1000,
            budget_burst: 1000,
            ..Settings::default()
        };
        dataplane.put_settings(&settings).unwrap();
        dataplane.attach(ifindex, &interface).unwrap();
        let events = dataplane.events().unwrap();
        let friend = node.socket("friend", 0);
        let pod = node.socket("pod", 4000);
        pod.set_read_timeout(Some(WITHIN)).unwrap();
        friend.connect(pod.local_addr().unwrap()).unwrap();
        friend.send(b"?").unwrap();
        let (_, peer) = pod.recv_from(&mut [0]).unwrap();
        pod.connect(peer).unwrap();
        Self {
            dataplane,
            events,
            ifindex,
            config,
            latest: ROW,
            friend,
            pod,
            _node: node,
        }
    }

    /// Puts sets in force and under audit, as one flip.
    fn revise(&mut self, sets: u32, audit_sets: u32) {
        self.latest += 1;
        let config = Config {
            sets: [sets; 2],
            audit_sets: [audit_sets; 2],
            ..self.config
        };
        let word = EndpointWord {
            config_row: self.latest,
            revision: self.latest,
        };
        let flip = Write::Flip {
            ifindex: self.ifindex,
            word,
        };
        let writes = [Write::PutConfig(self.latest, Box::new(config)), flip];
        self.dataplane.apply(&writes).unwrap();
        self.reported();
    }

    /// Whether the open flow goes on, from its opener and from the pod.
    fn goes_on(&self) -> [bool; 2] {
        self.heard(WITHIN)
    }

    /// The same where it should not.
    fn is_cut(&self) -> bool {
        self.heard(SILENCE) == [false; 2]
    }

    fn heard(&self, within: Duration) -> [bool; 2] {
        [(&self.friend, &self.pod), (&self.pod, &self.friend)].map(|(from, to)| {
            to.set_read_timeout(Some(within)).unwrap();
            from.send(b"!").unwrap();
            to.recv(&mut [0]).is_ok()
        })
    }

    /// What the kernel has reported of it.
    fn reported(&mut self) -> Vec<Cause> {
        let records = self.events.take();
        let told = records.iter().map(|record| decode(record).unwrap());
        told.filter(|told| told.slot == SLOT)
            .map(|told| told.cause)
            .collect()
    }
}

const BOTH: [bool; 2] = [true; 2];

#[test]
fn an_open_flow_meets_an_audited_set_goes_on_and_is_cut_by_its_promotion() {
    let mut world = World::new();
    assert_eq!(world.goes_on(), BOTH);

    world.revise(OPEN, CLOSED);
    assert_eq!(world.goes_on(), BOTH, "audit cuts nothing");
    assert_eq!(world.reported(), [Cause::Known(Reason::WouldDeny)]);
    assert_eq!(world.goes_on(), BOTH);
    assert_eq!(world.reported(), [], "judged once");

    world.revise(CLOSED, CLOSED);
    assert!(world.is_cut(), "promoted");
}

#[test]
fn a_set_that_would_allow_opens_nothing_until_it_is_in_force() {
    let mut world = World::new();
    world.revise(CLOSED, OPEN);
    assert!(world.is_cut(), "what is audited allows nothing");
    let reported = world.reported();
    assert!(
        reported.contains(&Cause::Known(Reason::WouldAllow)),
        "{reported:?}"
    );
    world.revise(OPEN, OPEN);
    assert_eq!(world.goes_on(), BOTH);
}

#[test]
fn an_audited_set_that_judges_alike_is_no_difference() {
    let mut world = World::new();
    world.revise(OPEN, OPEN_TOO);
    assert_eq!(world.goes_on(), BOTH);
    assert_eq!(world.reported(), []);
    world.revise(OPEN_TOO, OPEN_TOO);
    assert_eq!(world.goes_on(), BOTH, "promoted, and nobody notices");
}
