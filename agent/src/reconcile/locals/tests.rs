//! Interfaces and pods joined in every order, step by step.

use std::time::Instant;

use agent_policy::model::Change;

use super::*;

fn pod(name: &str, address: &str, node: &str) -> Pod {
    Pod {
        addresses: vec![address.parse().unwrap()],
        node: node.into(),
        workload: name.into(),
        ..Pod::new(PodUid(name.into()), ObjectName::new("shop", name))
    }
}

/// Both sides of the join, and what it said so far.
struct Join {
    cluster: Cluster,
    locals: Locals,
    /// What the runtime says of interfaces.
    sandboxes: BTreeMap<u32, Sandbox>,
    /// Namespaces that interfaces lead to, where they are not their own.
    netns: BTreeMap<u32, &'static str>,
}

impl Join {
    fn new(node: Option<&str>) -> Self {
        Self {
            cluster: Cluster::new(),
            locals: Locals::new(node.map(str::to_owned)),
            sandboxes: BTreeMap::new(),
            netns: BTreeMap::new(),
        }
    }

    /// From the next look on, the runtime says that an interface was made for the pod `name`.
    fn made_for(&mut self, index: u32, name: &str, uid: &str, address: &str) {
        let sandbox = Sandbox {
            uid: PodUid(uid.into()),
            pod: ObjectName::new("shop", name),
            addresses: vec![address.parse().unwrap()],
        };
        self.sandboxes.insert(index, sandbox);
    }

    fn change(&mut self, change: Change) -> Vec<String> {
        let touched = self.cluster.apply(change);
        self.locals.touch(&touched, &self.cluster);
        self.decide()
    }

    fn add(&mut self, pod: Pod) -> Vec<String> {
        self.change(Change::Pod(Box::new(pod)))
    }

    fn remove(&mut self, name: &str) -> Vec<String> {
        self.change(Change::PodGone(PodUid(name.into())))
    }

    fn see(&mut self, interfaces: &[(u32, &[&str])]) -> Vec<String> {
        self.see_vanish(interfaces, &[])
    }

    /// Nothing is seen inside namespaces, while these links are there.
    fn see_only_links(&mut self, links: &[u32]) -> Vec<String> {
        let links = links
            .iter()
            .map(|index| (IfIndex(*index), format!("veth{index}")));
        self.locals.sight(Sighting {
            interfaces: BTreeMap::new(),
            links: links.collect(),
            vanished: BTreeSet::new(),
            unreachable: Vec::new(),
            noticed: Instant::now(),
        });
        self.decide()
    }

    fn see_vanish(&mut self, interfaces: &[(u32, &[&str])], gone: &[u32]) -> Vec<String> {
        self.sight(interfaces, gone);
        self.decide()
    }

    fn sight(&mut self, interfaces: &[(u32, &[&str])], gone: &[u32]) {
        let interface = |(index, addresses): &(u32, &[&str])| Interface {
            ifindex: IfIndex(*index),
            name: format!("veth{index}"),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            inside: format!("eth{index}"),
            netns: self.netns.get(index).map_or_else(
                || format!("/run/netns/of-{index}").into(),
                |netns| format!("/run/netns/{netns}").into(),
            ),
            sandbox: self.sandboxes.get(index).cloned(),
        };
        let interfaces: Vec<Interface> = interfaces.iter().map(interface).collect();
        let links = interfaces.iter();
        self.locals.sight(Sighting {
            links: links
                .map(|each| (each.ifindex, each.name.clone()))
                .collect(),
            interfaces: interfaces
                .into_iter()
                .map(|each| (each.ifindex, each))
                .collect(),
            vanished: gone.iter().map(|index| IfIndex(*index)).collect(),
            unreachable: Vec::new(),
            noticed: Instant::now(),
        });
    }

    fn decide(&mut self) -> Vec<String> {
        let words = |decision| match decision {
            Decision::Enforce {
                interface,
                uid,
                is_new,
                ..
            } => {
                let new = if is_new { " new" } else { "" };
                format!("{} is {}{new}", interface.ifindex, uid.0)
            }
            Decision::Enclose(interface) => format!("{} enclosed", interface.ifindex),
            Decision::Orphan(ifindex) => format!("{ifindex} orphaned"),
            Decision::Remove(ifindex) => format!("{ifindex} removed"),
        };
        self.locals
            .decide(&self.cluster)
            .into_iter()
            .map(words)
            .collect()
    }
}

#[test]
fn pod_and_interface_meet_whichever_comes_first() {
    let mut join = Join::new(None);
    assert!(join.see(&[(7, &["10.0.0.1"])]).is_empty());
    assert_eq!(join.add(pod("a", "10.0.0.1", "")), ["7 is a"]);
    assert!(join.add(pod("b", "10.0.0.2", "")).is_empty());
    assert_eq!(
        join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"])]),
        ["8 is b new"]
    );
    assert!(
        join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"])])
            .is_empty()
    );
}

#[test]
fn interfaces_of_the_first_look_are_not_new_and_unknown_ones_are_left_alone() {
    let mut join = Join::new(None);
    join.add(pod("a", "10.0.0.1", ""));
    assert_eq!(
        join.see(&[(7, &["10.0.0.1"]), (9, &["10.9.9.9"])]),
        ["7 is a"]
    );
}

#[test]
fn an_interface_that_comes_is_enclosed_until_its_pod_is_known() {
    let mut join = Join::new(None);
    assert!(join.see(&[(7, &["10.0.0.1"])]).is_empty());
    // Closed as soon as there is a link, before it has addresses.
    let seven: (u32, &[&str]) = (7, &["10.0.0.1"]);
    assert_eq!(join.see(&[seven, (8, &[])]), ["8 enclosed"]);
    assert!(join.see(&[seven, (8, &["10.0.0.2"])]).is_empty(), "once");
    let unclaimed: Vec<(u32, bool)> = join
        .locals
        .unclaimed()
        .iter()
        .map(|each| (each.interface.ifindex.0, each.is_enclosed))
        .collect();
    assert_eq!(unclaimed, [(7, false), (8, true)]);
    assert_eq!(join.add(pod("b", "10.0.0.2", "")), ["8 is b new"]);
    assert_eq!(join.add(pod("a", "10.0.0.1", "")), ["7 is a"]);
    assert!(join.locals.unclaimed().is_empty());
    // Never known, and gone.
    let both: &[(u32, &[&str])] = &[seven, (8, &["10.0.0.2"])];
    let third: &[(u32, &[&str])] = &[seven, (8, &["10.0.0.2"]), (9, &["10.0.0.3"])];
    assert_eq!(join.see(third), ["9 enclosed"]);
    assert_eq!(join.see(both), ["9 removed"]);
}

#[test]
fn only_pods_of_the_named_node_are_local_and_host_network_pods_never() {
    let mut join = Join::new(Some("n1"));
    join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"]), (9, &["10.0.0.3"])]);
    assert!(join.add(pod("a", "10.0.0.1", "n2")).is_empty());
    assert_eq!(join.add(pod("b", "10.0.0.2", "n1")), ["8 is b"]);
    let mut host = pod("c", "10.0.0.3", "n1");
    host.host_network = true;
    assert!(join.add(host).is_empty());
    assert_eq!(join.add(pod("b", "10.0.0.2", "n2")), ["8 orphaned"]);
}

#[test]
fn a_replaced_interface_takes_the_pod_over() {
    let mut join = Join::new(None);
    join.add(pod("a", "10.0.0.1", ""));
    join.see(&[(7, &["10.0.0.1"])]);
    assert_eq!(join.see(&[(8, &["10.0.0.1"])]), ["7 removed", "8 is a new"]);
    // The same index again, between two looks.
    assert_eq!(
        join.see_vanish(&[(8, &["10.0.0.1"])], &[8]),
        ["8 removed", "8 is a new"]
    );
}

#[test]
fn an_interface_whose_pod_object_went_is_orphaned_until_it_goes() {
    let mut join = Join::new(None);
    join.add(pod("a", "10.0.0.1", ""));
    join.see(&[(7, &["10.0.0.1"])]);
    assert_eq!(join.remove("a"), ["7 orphaned"]);
    assert!(join.see(&[(7, &["10.0.0.1"])]).is_empty());
    assert_eq!(join.see(&[]), ["7 removed"]);
}

#[test]
fn an_address_given_to_another_pod_goes_with_the_interface() {
    let mut join = Join::new(None);
    join.add(pod("a", "10.0.0.1", ""));
    join.see(&[(7, &["10.0.0.1"])]);
    join.remove("a");
    assert_eq!(join.add(pod("b", "10.0.0.1", "")), ["7 is b"]);
}

#[test]
fn a_terminating_pod_keeps_its_interface_and_a_completed_one_only_while_nobody_else_has_it() {
    let mut join = Join::new(None);
    join.add(pod("a", "10.0.0.1", ""));
    join.see(&[(7, &["10.0.0.1"])]);
    let mut ending = pod("a", "10.0.0.1", "");
    ending.phase = Phase::Terminating;
    assert_eq!(join.add(ending), ["7 is a"]);
    let mut newer = pod("b", "10.0.0.1", "");
    newer.created = 5;
    assert_eq!(join.add(newer), ["7 is a"]);
    let mut ended = pod("a", "10.0.0.1", "");
    ended.phase = Phase::Completed;
    assert_eq!(join.add(ended), ["7 is b"]);
}

#[test]
fn an_address_that_a_pod_puts_on_its_interface_does_not_make_it_another() {
    let mut join = Join::new(None);
    join.add(pod("victim", "10.0.0.1", ""));
    join.add(pod("thief", "10.0.0.2", ""));
    join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"])]);
    let both: &[&str] = &["10.0.0.1", "10.0.0.2"];
    assert_eq!(join.see(&[(7, &["10.0.0.1"]), (8, both)]), ["8 is thief"]);
    assert_eq!(
        join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.1"])]),
        ["8 is thief"]
    );
    // Nor at first sight, while the victim's own interface is there.
    let mut join = Join::new(None);
    join.add(pod("victim", "10.0.0.1", ""));
    join.add(pod("thief", "10.0.0.2", ""));
    assert_eq!(
        join.see(&[(7, &["10.0.0.1"]), (8, both)]),
        ["7 is victim", "8 is thief"]
    );
}

#[test]
fn what_an_earlier_agent_left_is_taken_up_orphaned_or_removed() {
    let mut join = Join::new(None);
    join.add(pod("a", "10.0.0.1", ""));
    for (index, uid) in [(7, "a"), (8, "gone"), (9, "b")] {
        join.locals.take_up(IfIndex(index), PodUid(uid.into()));
    }
    assert_eq!(
        join.see(&[(7, &["10.0.0.1"]), (8, &["10.0.0.2"])]),
        ["9 removed", "7 is a", "8 orphaned"]
    );
}

#[test]
fn what_an_earlier_agent_left_is_kept_while_its_link_is_there_whatever_is_seen() {
    let mut join = Join::new(None);
    join.add(pod("a", "10.0.0.1", ""));
    for (index, uid) in [(7, "a"), (8, "gone"), (9, "b")] {
        join.locals.take_up(IfIndex(index), PodUid(uid.into()));
    }
    assert_eq!(
        join.see_only_links(&[1, 7, 8]),
        ["9 removed", "7 is a", "8 orphaned"]
    );
    // Seen after all: it is not new, so nothing is closed.
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["8 removed", "7 is a"]);
    assert!(join.see_only_links(&[1, 7]).is_empty());
    assert_eq!(join.see_only_links(&[1]), ["7 removed"]);
}

#[test]
fn what_an_earlier_agent_enclosed_stays_so_until_its_pod_is_known_or_it_goes() {
    let mut join = Join::new(None);
    for index in [7, 8] {
        join.locals.take_up_enclosed(IfIndex(index));
    }
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["8 removed"]);
    let unclaimed = join.locals.unclaimed();
    assert!(unclaimed.iter().all(|each| each.is_enclosed) && unclaimed.len() == 1);
    assert_eq!(join.add(pod("a", "10.0.0.1", "")), ["7 is a"]);
}

#[test]
fn an_orphans_object_that_comes_back_finds_its_interface_by_identity() {
    let mut join = Join::new(None);
    join.locals.take_up(IfIndex(7), PodUid("a".into()));
    assert_eq!(join.see_only_links(&[7]), ["7 orphaned"]);
    assert_eq!(join.add(pod("a", "10.0.0.1", "")), ["7 is a"]);
}

#[test]
fn a_pod_that_is_reachable_by_macvlan_only_is_reported() {
    let mut join = Join::new(None);
    join.add(pod("a", "10.0.0.1", ""));
    let place = Unreachable {
        netns: "/run/netns/x".into(),
        interface: "net1".to_owned(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        why: "a macvlan interface".to_owned(),
    };
    join.locals.sight(Sighting {
        interfaces: BTreeMap::new(),
        links: BTreeMap::new(),
        vanished: BTreeSet::new(),
        unreachable: vec![place],
        noticed: Instant::now(),
    });
    let unenforced = join.locals.unenforced(&join.cluster);
    let pods: Vec<String> = unenforced.iter().map(|each| each.pod.to_string()).collect();
    assert_eq!(pods, ["shop/a"]);
}

#[test]
fn what_another_layout_judges_is_no_newcomer_whenever_a_namespace_shows_it() {
    let mut join = Join::new(None);
    join.locals.know(IfIndex(7));
    assert!(join.see_only_links(&[7]).is_empty());
    assert!(join.see(&[(7, &["10.0.0.1"])]).is_empty(), "not enclosed");
    assert_eq!(join.add(pod("a", "10.0.0.1", "")), ["7 is a"]);
    // Another interface by its index is one.
    let mut join = Join::new(None);
    join.locals.know(IfIndex(7));
    assert!(join.see_only_links(&[7]).is_empty());
    assert!(join.see_only_links(&[]).is_empty());
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 enclosed"]);
}

#[test]
fn what_the_runtime_says_counts_and_addresses_do_not() {
    let mut join = Join::new(None);
    join.add(pod("u-a", "10.0.0.1", ""));
    join.add(pod("u-b", "10.0.0.2", ""));
    join.see(&[]);
    join.made_for(7, "b", "u-b", "10.0.0.2");
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 is u-b new"]);
    // Before its object states an address, and before the interface has one.
    let mut unaddressed = pod("u-c", "10.0.0.3", "");
    unaddressed.addresses.clear();
    join.add(unaddressed);
    join.made_for(8, "c", "u-c", "10.0.0.3");
    let seven: (u32, &[&str]) = (7, &["10.0.0.1"]);
    assert_eq!(join.see(&[seven, (8, &[])]), ["8 is u-c new"]);
}

#[test]
fn an_interface_waits_for_the_object_of_the_pod_that_it_was_made_for_and_for_no_other() {
    let mut join = Join::new(None);
    // The address was another's before, and that one's object still states it.
    join.add(pod("u-old", "10.0.0.1", ""));
    join.see(&[]);
    join.made_for(7, "a", "u-a", "10.0.0.1");
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 enclosed"]);
    let mut unaddressed = pod("u-a", "10.0.0.1", "");
    unaddressed.addresses.clear();
    assert_eq!(join.add(unaddressed), ["7 is u-a new"]);
    assert_eq!(join.remove("u-a"), ["7 orphaned"], "not the old one's");
}

#[test]
fn an_interface_that_seemed_to_be_anothers_is_enclosed_until_its_own_pod_is_known() {
    let mut join = Join::new(None);
    join.add(pod("u-old", "10.0.0.1", ""));
    join.see(&[]);
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 is u-old new"]);
    join.made_for(7, "a", "u-a", "10.0.0.1");
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 enclosed"]);
    assert_eq!(join.add(pod("u-a", "10.0.0.1", "")), ["7 is u-a"]);
}

#[test]
fn a_static_pods_interface_that_seemed_to_be_anothers_is_enclosed_until_its_mirror_is_known() {
    let mut join = Join::new(None);
    join.see(&[]);
    join.add(pod("old", "10.0.0.1", ""));
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 is old new"]);
    // The kubelet's own word for a static pod has no dashes.
    join.made_for(7, "static", "0123abcd", "10.0.0.1");
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 enclosed"]);
    join.remove("old");
    assert_eq!(
        join.add(pod("static", "10.0.0.1", "")),
        ["7 is static"],
        "its mirror has its name"
    );
    join.remove("static");
    assert_eq!(join.see(&[]), ["7 removed"]);
}

#[test]
fn interfaces_that_come_before_objects_are_known_are_enclosed_once() {
    let mut join = Join::new(None);
    let sight = |join: &mut Join, interfaces: &[(u32, &[&str])]| {
        // Nothing is decided yet.
        join.sight(interfaces, &[]);
        let enclosed = join.locals.enclose_newcomers();
        enclosed
            .iter()
            .map(|each| each.ifindex.0)
            .collect::<Vec<_>>()
    };
    let old: (u32, &[&str]) = (5, &["10.0.0.5"]);
    assert!(sight(&mut join, &[old]).is_empty(), "it was there before");
    assert_eq!(sight(&mut join, &[old, (7, &["10.0.0.7"])]), [7]);
    assert!(
        sight(&mut join, &[old, (7, &["10.0.0.7"])]).is_empty(),
        "it is enclosed"
    );
    assert_eq!(join.decide(), [""; 0], "its pod is not known");
    assert_eq!(join.add(pod("new", "10.0.0.7", "")), ["7 is new new"]);
}

#[test]
fn an_interface_with_a_pods_address_gives_way_to_the_one_made_for_the_pod() {
    let mut join = Join::new(None);
    join.add(pod("u-a", "10.0.0.1", ""));
    join.see(&[]);
    assert_eq!(join.see(&[(6, &["10.0.0.1"])]), ["6 is u-a new"]);
    join.made_for(7, "a", "u-a", "10.0.0.1");
    let both: &[(u32, &[&str])] = &[(6, &["10.0.0.1"]), (7, &["10.0.0.1"])];
    assert_eq!(join.see(both), ["6 enclosed", "7 is u-a new"]);
    assert!(join.see(both).is_empty());
    // Two that were made for it: the first one keeps it until it goes.
    join.made_for(8, "a", "u-a", "10.0.0.9");
    let all: &[(u32, &[&str])] = &[both[0], both[1], (8, &["10.0.0.9"])];
    assert_eq!(join.see(all), ["8 enclosed"]);
    let rest: &[(u32, &[&str])] = &[both[0], (8, &["10.0.0.9"])];
    assert_eq!(join.see(rest), ["7 removed", "8 is u-a new"]);
}

#[test]
fn a_pod_made_anew_under_its_name_is_another_and_a_completed_one_keeps_its_interface() {
    let mut join = Join::new(None);
    join.see(&[]);
    let named = |uid: &str, address: &str| Pod {
        name: ObjectName::new("shop", "web-0"),
        ..pod(uid, address, "")
    };
    join.add(named("u-1", "10.0.0.1"));
    join.made_for(7, "web-0", "u-1", "10.0.0.1");
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 is u-1 new"]);
    let mut ended = named("u-1", "10.0.0.1");
    ended.phase = Phase::Completed;
    assert_eq!(join.add(ended), ["7 is u-1"]);
    assert_eq!(join.remove("u-1"), ["7 orphaned"]);
    assert!(join.add(named("u-2", "10.0.0.1")).is_empty(), "not its own");
    join.made_for(8, "web-0", "u-2", "10.0.0.1");
    let both: &[(u32, &[&str])] = &[(7, &["10.0.0.1"]), (8, &["10.0.0.1"])];
    assert_eq!(join.see(both), ["8 is u-2 new"]);
}

#[test]
fn a_pod_whose_object_cannot_state_the_uid_is_found_by_name_and_address() {
    let mut join = Join::new(None);
    join.see(&[]);
    let digest = "0123456789abcdef0123456789abcdef";
    join.made_for(7, "proxy-n1", digest, "10.0.0.1");
    join.add(pod("u-other", "10.0.0.1", ""));
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 enclosed"]);
    join.remove("u-other");
    let mirror = Pod {
        name: ObjectName::new("shop", "proxy-n1"),
        ..pod("u-mirror", "10.0.0.1", "")
    };
    assert_eq!(join.add(mirror), ["7 is u-mirror new"]);
    assert_eq!(join.remove("u-mirror"), ["7 orphaned"]);
    // So is one of a manifest that states no UID; one that states another is another.
    let mut join = Join::new(None);
    join.see(&[]);
    join.made_for(7, "web-0", "u-1", "10.0.0.1");
    let named = |uid: &str| Pod {
        name: ObjectName::new("shop", "web-0"),
        ..pod(uid, "10.0.0.1", "")
    };
    join.add(named("u-2"));
    assert_eq!(join.see(&[(7, &["10.0.0.1"])]), ["7 enclosed"]);
    join.remove("u-2");
    assert_eq!(join.add(named("shop/web-0")), ["7 is shop/web-0 new"]);
    assert_eq!(join.remove("shop/web-0"), ["7 orphaned"]);
}

#[test]
fn a_pods_further_interfaces_are_reported_and_left_alone() {
    let mut join = Join::new(None);
    join.add(pod("u-a", "10.0.0.1", ""));
    join.see(&[]);
    join.netns = [(7, "a"), (8, "a")].into();
    let both: &[(u32, &[&str])] = &[(7, &["10.0.0.1"]), (8, &["10.1.0.1"])];
    // Which of them is which, the runtime says once both are there.
    assert_eq!(join.see(both), ["7 is u-a new", "8 enclosed"]);
    join.made_for(7, "a", "u-a", "10.0.0.1");
    assert_eq!(join.see(both), ["7 is u-a", "8 removed"]);
    assert!(join.locals.unclaimed().is_empty());
    let unenforced = join.locals.unenforced(&join.cluster);
    let places: Vec<&str> = unenforced
        .iter()
        .map(|each| each.place.interface.as_str())
        .collect();
    assert_eq!(places, ["eth8"]);
    // One that comes later is never closed; when the first goes, it is not the pod's.
    join.netns.insert(9, "a");
    assert!(join.see(&[both[0], both[1], (9, &[])]).is_empty());
    assert_eq!(join.see(&[both[1]]), ["7 removed"]);
}

#[test]
fn an_interface_that_passed_for_a_pods_first_is_left_alone_when_the_runtime_names_another() {
    let mut join = Join::new(None);
    join.add(pod("u-a", "10.0.0.1", ""));
    join.see(&[]);
    join.netns = [(7, "a"), (8, "a")].into();
    let both: &[(u32, &[&str])] = &[(7, &["10.1.0.1"]), (8, &["10.0.0.1"])];
    assert_eq!(join.see(both), ["7 enclosed", "8 is u-a new"]);
    join.made_for(7, "a", "u-a", "10.0.0.1");
    assert_eq!(join.see(both), ["8 enclosed", "7 is u-a new", "8 removed"]);
}
