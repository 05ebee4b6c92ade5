//! Programs of another layout version: found by the maps they read, left alone, replaced one by one.
//! A directory of pins under another version's name is all that another version is here.

use std::fs;

use agent::dataplane::{Attached, Dataplane, Known, Layout, Method, Options, uninstall};
use agent_common::conntrack::State;
use agent_common::maps::{Connection, FlowKey, Settings, settings_flags};
use agent_policy::plan::Write;
use tests::lab::pins::pinned;

use crate::node::{self, Node};

/// Opens a dataplane whose programs let everything pass; those of [`left`] let nothing pass.
fn open(options: &Options) -> Dataplane {
    let mut dataplane = Dataplane::open(options).unwrap();
    let settings = Settings {
        flags: settings_flags::UNKNOWN_OPEN,
        ..Settings::default()
    };
    dataplane.put_settings(&settings).unwrap();
    dataplane
}

/// A node with programs of another version on two pods' interfaces.
fn left(method: Method) -> (Node, Options, [(u32, String); 2]) {
    let mut node = Node::new();
    let pods = [node.pod("a"), node.pod("b")];
    let options = Options {
        method: Some(method),
        ..node.options()
    };
    {
        let mut dataplane = Dataplane::open(&options).unwrap();
        for (ifindex, name) in &pods {
            dataplane.attach(*ifindex, name).unwrap();
        }
    }
    fs::rename(pinned(""), node.pins().join("v9")).unwrap();
    (node, options, pods)
}

fn layouts(found: &[Attached]) -> Vec<(u32, bool, Layout)> {
    found
        .iter()
        .map(|one| (one.ifindex, one.is_whole(), one.layout))
        .collect()
}

#[test]
fn another_layouts_programs_decide_until_each_is_replaced() {
    for method in node::methods() {
        let (node, options, pods) = left(method);
        let [(a, name_a), (b, name_b)] = &pods;
        let mut dataplane = open(&options);
        assert_eq!(dataplane.taken_up(), []);
        let theirs = Layout::Version(9);
        let elsewhere = [(*a, true, theirs), (*b, true, theirs)];
        assert_eq!(layouts(dataplane.elsewhere()), elsewhere, "{method:?}");
        assert!(!node.knock("a") && !node.knock("b"), "{method:?}: theirs");
        dataplane.attach(*a, name_a).unwrap();
        assert!(node.knock("a") && !node.knock("b"), "{method:?}: a is ours");
        dataplane.leave_other_layouts().unwrap();
        assert!(node.pins().join("v9").exists(), "{method:?}: b is theirs");
        drop(dataplane);

        let mut dataplane = open(&options);
        assert_eq!(layouts(dataplane.taken_up()), [(*a, true, Layout::Own)]);
        assert_eq!(layouts(dataplane.elsewhere()), [(*b, true, theirs)]);
        dataplane.attach(*b, name_b).unwrap();
        assert!(node.knock("b"), "{method:?}: both are ours");
        dataplane.leave_other_layouts().unwrap();
        assert!(!node.pins().join("v9").exists(), "{method:?}: nothing left");
        let ours = [(*a, true, Layout::Own), (*b, true, Layout::Own)];
        assert_eq!(layouts(&dataplane.attached().unwrap()), ours, "{method:?}");
        drop(dataplane);
        uninstall(node.pins()).unwrap();
        let qdiscs = node.tc(&["qdisc", "show", "dev", name_a]);
        assert!(!qdiscs.contains("clsact"), "{method:?}: {qdiscs}");
    }
}

#[test]
fn a_link_whose_pin_was_moved_and_whose_program_was_not_is_still_the_others() {
    if !node::methods().contains(&Method::Tcx) {
        return;
    }
    let (node, options, [(a, name), _]) = left(Method::Tcx);
    drop(open(&options));
    let link = format!("links/{a}-from_pod");
    fs::rename(node.pins().join("v9").join(&link), pinned(&link)).unwrap();
    let mut dataplane = open(&options);
    assert_eq!(dataplane.taken_up(), []);
    let of_a = dataplane.elsewhere().first();
    assert_eq!(
        of_a.map(|one| (one.ifindex, one.is_whole())),
        Some((a, true))
    );
    dataplane.attach(a, &name).unwrap();
    let all = dataplane.attached().unwrap();
    let of_a: Vec<_> = all.iter().filter(|one| one.ifindex == a).collect();
    assert!(of_a.len() == 1 && of_a[0].is_whole() && of_a[0].layout == Layout::Own);
}

#[test]
fn programs_whose_pins_somebody_removed_decide_until_they_are_replaced() {
    let (node, options, [(a, name), _]) = left(Method::Clsact);
    let theirs = node.pins().join("v9");
    for entry in fs::read_dir(&theirs).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            fs::remove_file(path).unwrap();
        }
    }
    let mut dataplane = open(&options);
    let of_a = dataplane.elsewhere().first().unwrap();
    assert_eq!((of_a.ifindex, of_a.layout), (a, Layout::Unpinned));
    assert!(!node.knock("a"), "theirs");
    dataplane.attach(a, &name).unwrap();
    assert!(node.knock("a"), "ours");
}

#[test]
fn uninstall_removes_what_any_version_left() {
    for method in node::methods() {
        let (node, _, [(_, name), _]) = left(method);
        fs::create_dir(node.pins().join("v7")).unwrap();
        let done = uninstall(node.pins()).unwrap();
        assert_eq!((done.interfaces, done.versions), (2, 2), "{method:?}");
        assert!(!node.pins().exists(), "{method:?}");
        assert!(node.knock("a") && node.knock("b"), "{method:?}");
        let qdiscs = node.tc(&["qdisc", "show", "dev", &name]);
        assert!(!qdiscs.contains("clsact"), "{method:?}: {qdiscs}");
    }
}

#[test]
fn what_is_adopted_replaces_what_is_old_and_nothing_that_packets_wrote_since() {
    let node = Node::new();
    let mut dataplane = node.open();
    dataplane.apply(&[Write::OpenSlot(3)]).unwrap();
    let key = FlowKey {
        local_port: 80,
        protocol: 17,
        slot: 3,
        ..FlowKey::default()
    };
    let seen = |last_seen| Connection {
        last_seen,
        state: State::Established.number(),
        ..Connection::default()
    };
    for (stamp, known, count, kept) in [
        (1, Known::Stays, 1, 1),
        (2, Known::Stays, 0, 1),
        (3, Known::IsReplaced, 1, 3),
    ] {
        assert_eq!(
            dataplane.adopt(&[(key, seen(stamp))], known).unwrap(),
            count
        );
        let connections = dataplane.connections(3).unwrap();
        assert_eq!(connections, [(key, seen(kept))], "{stamp}");
    }
}
