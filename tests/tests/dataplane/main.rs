//! The dataplane on real interfaces: what it attaches, keeps, takes up again and removes. Needs
//! root; every test works in a network namespace and a pin directory of its own.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail like tests"
)]

mod audit;
mod layouts;
mod node;

use std::net::IpAddr;
use std::path::Path;

use agent::dataplane::{ApplyCause, Dataplane, DataplaneError, Method, Options, uninstall};
use agent_common::maps::{
    ALLOW, Config, EndpointWord, FIRST_RULE_ROW, IdKind, NAME_RULE, NameKey, PeerEntry,
    PortFunction, Prefix, Settings, Traffic, VerdictKey, rule_id,
};
use agent_policy::plan::Write;
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use node::Node;
use tests::lab::pins::pinned;

/// One endpoint with a policy that knows one class.
fn plan(ifindex: u32, slot: u32, row: u32, revision: u32) -> Vec<Write> {
    let pod: IpAddr = "10.9.0.2".parse().unwrap();
    let peer: IpAddr = "10.9.0.3".parse().unwrap();
    let function = PortFunction {
        verdict: ALLOW,
        rule: 7,
        ..PortFunction::default()
    };
    let config = Config {
        ifindex,
        slot,
        addresses: [pod.into(), agent_common::Address::UNSPECIFIED],
        sets: [1, 1],
        audit_sets: [1, 1],
        flags: agent_common::maps::config_flags::PROGRAMMED,
        ..Config::default()
    };
    vec![
        Write::ReserveIds(IdKind::Set, 2),
        Write::PutName(
            NameKey {
                kind: NAME_RULE,
                id: 7,
            },
            "web/allow-api/ingress/0".to_owned(),
        ),
        Write::PutVerdict(VerdictKey { set: 1, class: 0 }, PortFunction::default()),
        Write::PutVerdict(VerdictKey { set: 1, class: 5 }, function),
        Write::PutPeer(peer, PeerEntry { class: 5, flags: 0 }),
        Write::PutPrefix(
            Prefix {
                address: "10.8.0.0".parse::<IpAddr>().unwrap().into(),
                length: 112,
            },
            PeerEntry { class: 5, flags: 0 },
        ),
        Write::StampPeers {
            bucket: 4095,
            revision,
        },
        Write::OpenSlot(slot),
        Write::PutConfig(row, Box::new(config)),
        Write::Flip {
            ifindex,
            word: EndpointWord {
                config_row: row,
                revision,
            },
        },
    ]
}

#[test]
fn what_a_plan_wrote_is_read_back_whole_by_the_next_agent() {
    let mut node = Node::new();
    let (ifindex, _) = node.pod("a");
    let writes = plan(ifindex, 3, 17, 9);
    let mut wanted = agent_policy::tables::Tables::default();
    for write in &writes {
        wanted.apply(write);
    }
    {
        let mut dataplane = node.open();
        assert_eq!(dataplane.apply(&writes).unwrap(), writes.len());
        assert_eq!(
            dataplane.apply(&writes).unwrap(),
            writes.len(),
            "idempotent"
        );
    }
    let dataplane = node.open();
    wanted.settings = dataplane.settings().unwrap();
    assert_ne!(wanted.settings.hz, 0, "the tick was measured");
    assert_eq!(dataplane.present().unwrap(), wanted);
    assert_eq!(dataplane.first_ids().unwrap()[IdKind::Set as usize], 2);
}

#[test]
fn deletes_undo_what_puts_did() {
    let mut node = Node::new();
    let (ifindex, _) = node.pod("a");
    let mut dataplane = node.open();
    let before = dataplane.present().unwrap();
    dataplane.apply(&plan(ifindex, 3, 17, 9)).unwrap();
    let undo = [
        Write::Unpublish { ifindex },
        Write::CloseSlot(3),
        Write::DeletePeer("10.9.0.3".parse().unwrap()),
        Write::DeletePrefix(Prefix {
            address: "10.8.0.0".parse::<IpAddr>().unwrap().into(),
            length: 112,
        }),
        Write::DeleteVerdict(VerdictKey { set: 1, class: 5 }),
        Write::DeleteVerdict(VerdictKey { set: 1, class: 0 }),
        Write::DeleteName(NameKey {
            kind: NAME_RULE,
            id: 7,
        }),
    ];
    for _twice in 0..2 {
        dataplane.apply(&undo).unwrap();
    }
    let after = dataplane.present().unwrap();
    assert_eq!(after.endpoints, before.endpoints);
    assert_eq!(after.slots, before.slots);
    assert_eq!(after.peers, before.peers);
    assert_eq!(after.prefixes, before.prefixes);
    assert_eq!(after.verdicts, before.verdicts);
    assert_eq!(after.names, before.names);
    assert_eq!(
        after.ids[IdKind::Set as usize],
        2,
        "ids are never given back"
    );
}

#[test]
fn long_runs_are_written_and_deleted_whole() {
    let node = Node::new();
    let mut options = node.options();
    options.capacities = vec![("PEERS_EXACT".to_owned(), 4096)];
    let mut dataplane = Dataplane::open(&options).unwrap();
    let address = |n: u16| {
        let [high, low] = n.to_be_bytes();
        IpAddr::from([10, 0, high, low])
    };
    let put = |n: u16, class| Write::PutPeer(address(n), PeerEntry { class, flags: 0 });
    for class in [1, 2] {
        let run: Vec<_> = (0..3000).map(|n| put(n, class)).collect();
        assert_eq!(dataplane.apply(&run).unwrap(), run.len());
        let peers = dataplane.present().unwrap().peers;
        assert_eq!(peers.len(), run.len());
        assert!(peers.values().all(|entry| entry.class == class));
    }
    // Some are gone already, and none may keep the rest.
    let some: Vec<_> = [0, 1, 1500, 2998]
        .map(|n| Write::DeletePeer(address(n)))
        .into();
    dataplane.apply(&some).unwrap();
    let all: Vec<_> = (0..3001).map(|n| Write::DeletePeer(address(n))).collect();
    assert_eq!(dataplane.apply(&all).unwrap(), all.len());
    assert_eq!(dataplane.present().unwrap().peers.len(), 0);
}

#[test]
fn long_runs_of_prefixes_are_written_whole_too() {
    let node = Node::new();
    let mut options = node.options();
    options.capacities = vec![("PEERS_CIDR".to_owned(), 16_384)];
    let mut dataplane = Dataplane::open(&options).unwrap();
    // More than one walk's call brings.
    let run: Vec<_> = (0..10_000_u16)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            let prefix = Prefix {
                address: IpAddr::from([198, high, low, 0]).into(),
                length: 120,
            };
            Write::PutPrefix(prefix, PeerEntry { class: 1, flags: 0 })
        })
        .collect();
    assert_eq!(dataplane.apply(&run).unwrap(), run.len());
    let prefixes = dataplane.present().unwrap().prefixes;
    assert_eq!(prefixes[&120].len(), run.len());
}

#[test]
fn interfaces_whose_indices_collide_are_both_published() {
    let node = Node::new();
    let mut dataplane = node.open();
    let (one, other) = (10, 10 + agent_common::maps::ENDPOINT_ROWS);
    dataplane.apply(&plan(one, 3, 17, 9)).unwrap();
    dataplane.apply(&plan(other, 4, 18, 10)).unwrap();
    let endpoints = dataplane.present().unwrap().endpoints;
    assert_eq!(endpoints[&one].config_row, 17);
    assert_eq!(endpoints[&other].config_row, 18);
    // The one that has the place goes; the other stays where it is and can still be flipped.
    dataplane
        .apply(&[Write::Unpublish { ifindex: one }])
        .unwrap();
    dataplane.apply(&plan(other, 4, 19, 11)).unwrap();
    let endpoints = dataplane.present().unwrap().endpoints;
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[&other].config_row, 19);
    // Out of its place it goes, too.
    dataplane
        .apply(&[Write::Unpublish { ifindex: other }])
        .unwrap();
    assert_eq!(dataplane.present().unwrap().endpoints.len(), 0);
}

#[test]
fn a_full_map_is_a_typed_error_and_what_was_there_stays() {
    let node = Node::new();
    let mut options = node.options();
    options.capacities = vec![("PEERS_EXACT".to_owned(), 4), ("PEERS_CIDR".to_owned(), 2)];
    let mut dataplane = Dataplane::open(&options).unwrap();
    let put = |last: u8| {
        let address = IpAddr::from([10, 0, 0, last]);
        Write::PutPeer(address, PeerEntry { class: 1, flags: 0 })
    };
    let many: Vec<_> = (0..6).map(put).collect();
    let error = dataplane.apply(&many).unwrap_err();
    assert_eq!((error.at, error.map), (4, "PEERS_EXACT"));
    assert!(
        matches!(error.cause, ApplyCause::Full { capacity: 4 }),
        "{error:?}"
    );
    assert_eq!(dataplane.present().unwrap().peers.len(), 4);

    let prefix = |length| {
        let prefix = Prefix {
            address: "10.0.0.0".parse::<IpAddr>().unwrap().into(),
            length,
        };
        Write::PutPrefix(prefix, PeerEntry { class: 1, flags: 0 })
    };
    let error = dataplane
        .apply(&[prefix(112), prefix(116), prefix(120)])
        .unwrap_err();
    assert_eq!((error.at, error.map), (2, "PEERS_CIDR"));
    assert!(
        matches!(error.cause, ApplyCause::Full { capacity: 2 }),
        "{error:?}"
    );

    // Replacing works in a full map, and so does going on after room was made.
    dataplane.apply(&[put(0)]).unwrap();
    dataplane
        .apply(&[Write::DeletePeer(IpAddr::from([10, 0, 0, 0])), put(5)])
        .unwrap();
}

#[test]
fn a_slot_that_is_opened_again_remembers_nothing() {
    let mut node = Node::new();
    let (ifindex, _) = node.pod("a");
    let mut dataplane = node.open();
    dataplane.apply(&plan(ifindex, 3, 17, 9)).unwrap();
    dataplane.attach(ifindex, "pod-a").unwrap();
    node.knock("a");
    node.send("a", "192.0.2.1");
    let is_denied = |dataplane: &Dataplane| {
        let rows = dataplane.denied().unwrap();
        rows.iter().any(|(key, _)| key.slot == 3)
    };
    assert!(is_denied(&dataplane), "a refusal was written down");
    let counted = |dataplane: &Dataplane| {
        let passed: u64 = dataplane
            .passed(3)
            .unwrap()
            .iter()
            .map(|one| one.packets)
            .sum();
        let dropped: u64 = dataplane
            .dropped(3)
            .unwrap()
            .iter()
            .map(|one| one.traffic.packets)
            .sum();
        passed + dropped
    };
    assert_ne!(counted(&dataplane), 0, "the pod's packets were counted");
    dataplane.detach(ifindex).unwrap();
    dataplane
        .apply(&[Write::CloseSlot(3), Write::OpenSlot(3)])
        .unwrap();
    assert_eq!(dataplane.passed(3).unwrap(), [Traffic::default(); 2]);
    assert_eq!(dataplane.dropped(3).unwrap(), []);
    assert_eq!(dataplane.connections(3).unwrap(), []);
    assert!(!is_denied(&dataplane));
}

#[test]
fn a_rules_row_starts_at_zero_whoever_had_it_before() {
    let node = Node::new();
    let mut dataplane = node.open();
    let pin = pinned("RULE_HITS");
    let data = MapData::from_pin(pin).unwrap();
    let mut hits = PerCpuArray::<_, [u64; 2]>::try_from(Map::PerCpuArray(data)).unwrap();
    let count = || PerCpuValues::try_from(vec![[7, 9]; nr_cpus().unwrap()]).unwrap();
    for row in [FIRST_RULE_ROW, FIRST_RULE_ROW + 1] {
        hits.set(row, count(), 0).unwrap();
    }
    let opened = Write::OpenRule(rule_id(FIRST_RULE_ROW, 5));
    assert_eq!(dataplane.apply(&[opened]).unwrap(), 1);
    let of = |row| hits.get(&row, 0).unwrap().to_vec();
    assert!(of(FIRST_RULE_ROW).iter().all(|cpu| *cpu == [0, 0]));
    assert!(of(FIRST_RULE_ROW + 1).iter().all(|cpu| *cpu == [7, 9]));
}

#[test]
fn programs_stay_in_force_when_the_agent_goes_and_are_replaced_by_the_next() {
    for method in node::methods() {
        let mut node = Node::new();
        let (ifindex, name) = node.pod("a");
        let options = Options {
            method: Some(method),
            ..node.options()
        };
        {
            let mut dataplane = Dataplane::open(&options).unwrap();
            assert_eq!(dataplane.taken_up(), []);
            dataplane.attach(ifindex, &name).unwrap();
            dataplane.attach(ifindex, &name).unwrap();
        }
        // Nobody holds a descriptor now, as after SIGKILL; with no policy everything is dropped.
        assert!(!node.knock("a"), "{method:?}: closed without an agent");
        let mut dataplane = Dataplane::open(&options).unwrap();
        let [attached] = dataplane.taken_up() else {
            panic!("{method:?}: {:?}", dataplane.taken_up());
        };
        assert_eq!((attached.ifindex, attached.method), (ifindex, method));
        assert!(attached.is_whole());
        assert!(!node.knock("a"), "{method:?}: still closed");
        dataplane.detach(ifindex).unwrap();
        dataplane.detach(ifindex).unwrap();
        assert!(node.knock("a"), "{method:?}: open when detached");
        assert_eq!(dataplane.attached().unwrap(), []);
    }
}

#[test]
fn links_of_interfaces_that_are_gone_are_reaped() {
    let mut node = Node::new();
    let (ifindex, name) = node.pod("a");
    let mut dataplane = node.open();
    dataplane.attach(ifindex, &name).unwrap();
    node.ip(&["link", "del", &name]);
    let pinned = || std::fs::read_dir(pinned("links")).unwrap().count();
    if dataplane.method() == Method::Tcx {
        assert_eq!(pinned(), 2, "dead, and still pinned");
    }
    assert_eq!(dataplane.attached().unwrap(), []);
    assert_eq!(pinned(), 0, "reaped by looking");
    dataplane.detach(ifindex).unwrap();
}

#[test]
fn uninstall_leaves_what_is_others_and_nothing_of_ours() {
    for method in node::methods() {
        let mut node = Node::new();
        let (ifindex, name) = node.pod("a");
        let (other_index, other) = node.pod("b");
        let (shared_index, shared) = node.pod("c");
        node.tc(&["qdisc", "add", "dev", &other, "clsact"]);
        node.foreign_filter(&other);
        let foreign = node.foreign(&name);
        {
            let mut dataplane = Dataplane::open(&Options {
                method: Some(method),
                ..node.options()
            })
            .unwrap();
            dataplane.attach(ifindex, &name).unwrap();
            dataplane.attach(other_index, &other).unwrap();
            dataplane.attach(shared_index, &shared).unwrap();
            if method == Method::Clsact {
                // In a qdisc that is ours.
                node.foreign_filter(&shared);
            }
            assert!(matches!(
                uninstall(node.pins()),
                Err(DataplaneError::Held { .. })
            ));
        }
        let done = uninstall(node.pins()).unwrap();
        assert_eq!((done.interfaces, done.versions), (3, 1), "{method:?}");
        assert!(!node.pins().exists());
        assert!(node.knock("a"), "{method:?}");
        let filters = node.tc(&["filter", "show", "dev", &other, "ingress"]);
        assert!(filters.contains("bare"), "{method:?}: {filters}");
        assert!(!filters.contains("from_pod"), "{method:?}: {filters}");
        if method == Method::Clsact {
            let filters = node.tc(&["filter", "show", "dev", &shared, "ingress"]);
            assert!(
                filters.contains("bare"),
                "what is not empty stays: {filters}"
            );
        }
        let qdiscs = node.tc(&["qdisc", "show", "dev", &name]);
        assert!(
            !qdiscs.contains("clsact"),
            "{method:?}: ours went: {qdiscs}"
        );
        let is_shown = foreign.is_none_or(|program| program.is_shown().unwrap());
        assert!(is_shown, "{method:?}");
        assert_eq!(
            uninstall(node.pins()).unwrap().versions,
            0,
            "twice is no error"
        );
    }
}

#[test]
fn an_ingress_qdisc_is_reported_where_filters_are_all_there_is() {
    let mut node = Node::new();
    let (ifindex, name) = node.pod("a");
    node.tc(&["qdisc", "add", "dev", &name, "ingress"]);
    let mut dataplane = Dataplane::open(&Options {
        method: Some(Method::Clsact),
        ..node.options()
    })
    .unwrap();
    let error = dataplane.attach(ifindex, &name).unwrap_err();
    assert!(
        matches!(error, DataplaneError::IngressQdisc { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains(&name), "{error}");
    assert!(
        node.tc(&["qdisc", "show", "dev", &name])
            .contains("ingress")
    );
}

#[test]
fn a_second_agent_and_another_layout_are_refused() {
    let node = Node::new();
    let first = node.open();
    assert!(matches!(
        Dataplane::open(&node.options()),
        Err(DataplaneError::Held { .. })
    ));
    drop(first);
    let verdicts = pinned("VERDICTS");
    std::fs::remove_file(&verdicts).unwrap();
    std::fs::rename(pinned("NAMES"), &verdicts).unwrap();
    let error = Dataplane::open(&node.options()).unwrap_err();
    assert!(
        matches!(
            error,
            DataplaneError::Layout {
                map: "VERDICTS",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(matches!(
        Dataplane::open(&Options::new(Path::new("/tmp/nowhere"))),
        Err(DataplaneError::NoBpfFs { .. })
    ));
}

#[test]
fn a_pinned_capacity_stays_and_is_reported() {
    let node = Node::new();
    drop(node.open());
    let mut options = node.options();
    options.capacities = vec![("SERVICES".to_owned(), 99)];
    let dataplane = Dataplane::open(&options).unwrap();
    let [kept] = dataplane.kept_capacities() else {
        panic!("{:?}", dataplane.kept_capacities());
    };
    assert_eq!(
        (kept.map, kept.pinned, kept.wanted),
        ("SERVICES", 65_536, 99)
    );
}

#[test]
fn settings_carry_the_measured_tick_and_the_clock_agrees_with_the_wall() {
    let node = Node::new();
    let mut dataplane = node.open();
    let settings = Settings {
        budget_rate: 5,
        ..Settings::default()
    };
    dataplane.put_settings(&settings).unwrap();
    assert_eq!(dataplane.settings().unwrap().budget_rate, 5);
    assert_eq!(dataplane.settings().unwrap().hz, dataplane.hz());
    let first = dataplane.tick().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_millis(300);
    while std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    let last = dataplane.tick().unwrap();
    let wall = last.at.duration_since(first.at).unwrap();
    let ticked = first
        .wall(last.jiffies)
        .unwrap()
        .duration_since(first.at)
        .unwrap();
    let difference = wall.abs_diff(ticked);
    assert!(
        difference.as_millis() < 20,
        "{wall:?} by the wall, {ticked:?} by the tick"
    );
}
