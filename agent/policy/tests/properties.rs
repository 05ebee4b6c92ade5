//! What compiled tables and plans promise, against the specification, in small random worlds.
//! `PROPTEST_CASES` sets how many.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops where its assumptions do"
)]

// The host's maps and the frames of agent-common's own tests.
#[expect(
    dead_code,
    unreachable_pub,
    clippy::disallowed_types,
    reason = "its modules are also those of a library"
)]
#[path = "../../../tests/src/machine.rs"]
mod machine;
#[path = "properties/node.rs"]
mod node;
#[expect(
    dead_code,
    unreachable_pub,
    reason = "its modules are also those of a library"
)]
#[path = "../../../tests/src/packets.rs"]
mod packets;
#[path = "properties/slots.rs"]
mod slots;
#[path = "properties/wire.rs"]
mod wire;
#[path = "properties/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use agent_common::maps::{EndpointWord, peer_bucket};
use agent_policy::engine::Options;
use agent_policy::model::Change;
use agent_policy::plan::{Refused, Write};
use agent_policy::tables::Tables;
use proptest::prelude::*;
use proptest::sample::Index;

use node::{Frontends, Node, Packet, Verdicts, sizes, verdicts};
use world::{Event, history, namespace, pod_of, policy};

fn config(cases: u32) -> ProptestConfig {
    // What proptest itself takes from PROPTEST_CASES, unless it is only its own default.
    let standard = ProptestConfig::default();
    ProptestConfig {
        cases: if standard.cases == 256 {
            cases
        } else {
            standard.cases
        },
        ..standard
    }
}

/// Carries a plan out, looking at the tables after each write; the verdicts at the end.
fn watched(
    tables: &mut Tables,
    writes: &[Write],
    mut look: impl FnMut(usize, &Tables, &Verdicts) -> Result<(), TestCaseError>,
) -> Result<Verdicts, TestCaseError> {
    let mut now = verdicts(tables);
    for (place, write) in writes.iter().enumerate() {
        tables.apply(write);
        now = verdicts(tables);
        look(place, tables, &now)?;
    }
    Ok(now)
}

/// Addresses behind which there is something else in one of the states than in another: what is
/// behind a Service may change before all else in a plan does, as if it had done so on its own.
fn replaced(states: &[Frontends]) -> BTreeSet<IpAddr> {
    let pairs = states.windows(2);
    let differing = pairs.flat_map(|pair| {
        let each = pair[0].iter();
        each.filter(|(address, behind)| pair[1].get(*address) != Some(behind))
    });
    differing.map(|(address, _)| *address).collect()
}

/// Each packet has its old or its new verdict, but those to `replaced`. An endpoint that is not
/// published has none.
fn check_old_or_new(
    old: &Verdicts,
    new: &Verdicts,
    now: &Verdicts,
    replaced: &BTreeSet<IpAddr>,
    at: impl Fn() -> String,
) -> Result<(), TestCaseError> {
    for (packet, verdict) in now {
        if replaced.contains(&packet.peer) {
            continue;
        }
        let allowed = [old.get(packet), new.get(packet)];
        prop_assert!(
            allowed.contains(&Some(verdict)),
            "{packet:?} is {verdict:?}, was {:?}, will be {:?}, {}",
            allowed[0],
            allowed[1],
            at()
        );
    }
    for packet in old.keys() {
        prop_assert!(
            now.contains_key(packet) || !new.contains_key(packet),
            "{packet:?} is not judged although it was and will be, {}",
            at()
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn compiled_tables_judge_as_the_specification(history in history(4)) {
        let mut node = Node::new(Options::default());
        for batch in history {
            node.happen(&batch);
            node.settle()?;
            node.check_against_specification()?;
        }
    }

    #[test]
    fn packets_over_compiled_tables_meet_the_specification(history in history(3)) {
        let mut node = Node::new(Options::default());
        for batch in history {
            node.happen(&batch);
            node.settle()?;
            node.check_packets()?;
        }
    }

    #[test]
    fn after_every_write_each_packet_has_its_old_or_its_new_verdict(history in history(4)) {
        let mut node = Node::new(Options::default());
        for batch in history {
            let before = node.frontends();
            node.happen(&batch);
            let replaced = replaced(&[before, node.frontends()]);
            let old = verdicts(&node.tables);
            let Some(plan) = node.engine.plan(node.now).unwrap() else { continue };
            let mut after = node.tables.clone();
            after.apply_all(&plan.writes);
            let new = verdicts(&after);
            watched(&mut node.tables, &plan.writes, |place, _, now| {
                check_old_or_new(&old, &new, now, &replaced, || {
                    format!("after write {place} of {:#?}", plan.writes)
                })
            })?;
            node.engine.written(node.now);
            node.check_against_specification()?;
        }
    }

    /// A connection remembers both revisions at the moment it was judged. Whenever that was, it
    /// is judged again if its verdict is another now. A Service proxy takes no connection elsewhere
    /// when there is something else behind the Service.
    #[test]
    fn no_connection_outlives_its_verdict(history in history(4)) {
        let mut node = Node::new(Options::default());
        for batch in history {
            let before = node.frontends();
            node.happen(&batch);
            let replaced = replaced(&[before, node.frontends()]);
            let Some(plan) = node.engine.plan(node.now).unwrap() else { continue };
            let mut judged = vec![(verdicts(&node.tables), node::stamps(&node.tables))];
            let end = watched(&mut node.tables, &plan.writes, |_, tables, now| {
                judged.push((now.clone(), node::stamps(tables)));
                Ok(())
            })?;
            let stamps = node::stamps(&node.tables);
            for (place, (then, stamped)) in judged.iter().enumerate() {
                for (packet, verdict) in then {
                    if replaced.contains(&packet.peer) {
                        continue;
                    }
                    let Some(last) = end.get(packet) else { continue };
                    if last.is_allowed == verdict.is_allowed {
                        continue;
                    }
                    let key = (packet.ifindex, packet.peer);
                    prop_assert_ne!(
                        stamped.get(&key), stamps.get(&key),
                        "{:?} judged after write {} of {:#?} is never judged again",
                        packet, place, &plan.writes
                    );
                }
            }
            node.engine.written(node.now);
        }
    }

    #[test]
    fn revisions_rest_when_no_verdict_changes(history in history(5)) {
        let mut node = Node::new(Options::default());
        for batch in history {
            let owners = node.owners();
            let published = node.published();
            let old = verdicts(&node.tables);
            let before = node::stamps(&node.tables);
            let behind = node.frontends();
            node.happen(&batch);
            let replaced = replaced(&[behind, node.frontends()]);
            node.settle()?;
            let new = verdicts(&node.tables);
            let after = node::stamps(&node.tables);
            let differs = |packet: &Packet| {
                old.get(packet).map(|verdict| verdict.is_allowed)
                    != new.get(packet).map(|verdict| verdict.is_allowed)
            };
            let changed: BTreeSet<(u32, _)> = new
                .keys()
                .filter(|packet| differs(packet))
                .map(|packet| (packet.ifindex, packet.peer))
                .collect();
            for (ifindex, uid) in &published {
                if node.published().get(ifindex) != Some(uid) {
                    continue;
                }
                let is_changed = changed.iter().any(|(changed, _)| changed == ifindex);
                for peer in world::addresses() {
                    let key = (*ifindex, peer);
                    if !is_changed {
                        prop_assert_eq!(before[&key].0, after[&key].0, "endpoint {}", ifindex);
                    }
                    let is_judged_anew = replaced.contains(&peer)
                        || changed.iter().any(|(_, changed)| *changed == peer)
                        || owners.get(&peer) != node.owners().get(&peer);
                    if !is_judged_anew {
                        prop_assert_eq!(before[&key].1, after[&key].1, "bucket of {}", peer);
                    }
                }
            }
        }
    }

    #[test]
    fn any_order_of_events_ends_in_the_same_tables(
        pods in (0..world::PODS).map(|pod| pod_of(Just(pod))).collect::<Vec<_>>(),
        others in (namespace(), policy(), policy(), policy(), policy()),
        detours in proptest::collection::vec(world::event(), 0..6),
        order in proptest::collection::vec(any::<Index>(), 24),
        pauses in proptest::collection::vec(any::<bool>(), 24),
    ) {
        let mut last: BTreeMap<String, Change> = BTreeMap::new();
        let (a, b, c, d, e) = others;
        for change in pods.into_iter().chain([a, b, c, d, e]) {
            last.insert(object(&change), change);
        }
        let mut events: Vec<Event> = last.into_values().map(Event::Change).collect();
        events.extend((0..world::LOCAL).map(Event::Attach));

        let mut straight = Node::new(Options::default());
        straight.happen(&events);
        straight.settle()?;
        straight.settle_down()?;

        // Another order, in several plans, after a past that leaves no trace.
        let mut shuffled = Node::new(Options::default());
        shuffled.happen(&detours);
        shuffled.settle()?;
        shuffled.forget_everything();
        for (index, pause) in order.iter().zip(pauses) {
            if events.is_empty() {
                break;
            }
            let event = events.remove(index.index(events.len()));
            shuffled.happen(&[event]);
            if pause {
                shuffled.settle()?;
            }
        }
        shuffled.happen(&events);
        shuffled.settle()?;
        shuffled.settle_down()?;

        shuffled.check_against_specification()?;
        prop_assert_eq!(allowed(&straight.tables), allowed(&shuffled.tables));
        prop_assert_eq!(straight.engine.counts(), shuffled.engine.counts());
        prop_assert_eq!(sizes(&straight.tables), sizes(&shuffled.tables));
    }

    /// An agent dies after any write of a plan; the world moves on; the next one takes over.
    #[test]
    fn a_restart_is_old_or_new_and_keeps_slots(
        history in history(3), moved_on in history(1), cut in any::<Index>(),
    ) {
        let mut node = Node::new(Options::default());
        let (last, before) = history.split_last().unwrap();
        for batch in before {
            node.happen(batch);
            node.settle()?;
        }
        let mut behind = vec![node.frontends()];
        node.happen(last);
        behind.push(node.frontends());
        if let Some(plan) = node.engine.plan(node.now).unwrap() {
            let writes = &plan.writes[..cut.index(plan.writes.len() + 1)];
            node.tables.apply_all(writes);
        }
        let mut next = node.restarted();
        next.happen(&moved_on[1]);
        behind.push(next.frontends());
        let replaced = replaced(&behind);
        let old = verdicts(&next.tables);
        let mut slots = next.slots();
        let own = |tables: &Tables, ifindex: u32| {
            tables.configs[&tables.endpoints[&ifindex].config_row].addresses
        };
        let left = next.tables.clone();
        for event in &moved_on[1] {
            if let Event::Detach(pod) = event {
                slots.remove(&node::ifindex(*pod));
            }
        }
        let plan = next.engine.plan(next.now).unwrap();
        let writes = plan.map(|plan| plan.writes.clone()).unwrap_or_default();
        let mut after = next.tables.clone();
        after.apply_all(&writes);
        let new = verdicts(&after);
        watched(&mut next.tables, &writes, |place, _, now| {
            check_old_or_new(&old, &new, now, &replaced, || {
                format!("after write {place} of {writes:#?}")
            })
        })?;
        next.engine.written(next.now);
        next.check_against_specification()?;
        for (ifindex, (uid, slot)) in next.slots() {
            if let Some((uid_before, slot_before)) = slots.get(&ifindex) {
                let has_moved = || own(&next.tables, ifindex) != own(&left, ifindex);
                prop_assert!(uid != *uid_before || slot == *slot_before || has_moved());
            }
        }
        next.settle_down()?;
        next.check_against_specification()?;
        // A node that comes later does not know pods that are gone already.
        if next.knows_every_pod() {
            let scratch = next.fresh()?;
            prop_assert_eq!(sizes(&scratch.tables), sizes(&next.tables), "something is left");
        }
    }

    #[test]
    fn a_refused_plan_changes_nothing_and_limits_hold(
        history in history(6), rows in 4_usize..60, classes in 1_usize..12, peers in 2_usize..9,
        prefixes in 1_usize..9,
    ) {
        let options = Options { rows, classes, peers, prefixes, ..Options::default() };
        let mut node = Node::new(options);
        for batch in history {
            node.happen(&batch);
            let mut planned = node.engine.plan(node.now);
            while let Ok(Some(plan)) = &planned
                && plan.is_clearing
            {
                let before = verdicts(&node.tables);
                node.tables.apply_all(&plan.writes);
                prop_assert_eq!(verdicts(&node.tables), before, "clearing judges nobody");
                node.engine.written(node.now);
                planned = node.engine.plan(node.now);
            }
            match planned {
                Err(_) => {
                    let again = node.engine.plan(node.now);
                    prop_assert!(again.is_err(), "nothing changed, yet it is planned");
                }
                Ok(None) => {}
                Ok(Some(plan)) => {
                    for write in &plan.writes {
                        node.tables.apply(write);
                        prop_assert!(node.tables.verdicts.len() <= rows);
                        prop_assert!(node.tables.peers.len() <= peers);
                        prop_assert!(node.tables.prefix_rows().count() <= prefixes);
                    }
                    node.engine.written(node.now);
                    node.check_against_specification()?;
                }
            }
            // Rows that rest count against the limit: give them time.
            node.now += Duration::from_secs(3);
        }
    }

    /// Lists stay the same atoms when they change, also the one of a set in force; what did not fit
    /// must not stay wanted by that.
    #[test]
    fn a_list_that_did_not_fit_stands_in_nobodys_way(
        history in history(6), prefixes in 1_usize..7,
    ) {
        let mut node = Node::new(Options { prefixes, ..Options::default() });
        for batch in history {
            node.happen(&batch);
            let _done_or_refused = node.settle_in_steps();
            prop_assert!(node.tables.prefix_rows().count() <= prefixes);
        }
        node.forget_policies();
        prop_assert_eq!(node.settle_in_steps(), Ok(()));
        node.check_against_specification()?;
        node.settle_down()?;
        prop_assert_eq!(node.tables.prefix_rows().count(), 0);
    }
}

fn object(change: &Change) -> String {
    match change {
        Change::Pod(pod) => format!("pod {}", pod.uid.0),
        Change::Namespace(namespace) => format!("namespace {}", namespace.name),
        Change::Policy(policy) => format!("policy {}", policy.name),
        Change::PodGone(_)
        | Change::NamespaceGone(_)
        | Change::Node(_)
        | Change::NodeGone(_)
        | Change::Service(_)
        | Change::ServiceGone(_)
        | Change::EndpointSlice(_)
        | Change::EndpointSliceGone(_)
        | Change::PolicyGone(_) => format!("{change:?}"),
    }
}

fn allowed(tables: &Tables) -> BTreeMap<Packet, bool> {
    let verdicts = verdicts(tables);
    let packet = |(packet, verdict): (Packet, node::Verdicted)| {
        (Packet { slot: 0, ..packet }, verdict.is_allowed)
    };
    verdicts.into_iter().map(packet).collect()
}

#[test]
fn rows_rest_before_they_go() {
    let mut node = Node::new(Options::default());
    node.happen(&node::isolating_then_open()[0]);
    node.settle().unwrap();
    node.happen(&node::isolating_then_open()[1]);
    let plan = node.engine.plan(node.now).unwrap().unwrap();
    node.tables.apply_all(&plan.writes);
    node.engine.written(node.now);
    let rows = node.tables.verdicts.len();
    assert!(rows > 0, "packets under way may still read them");
    let due = node.engine.next_deadline().unwrap();
    assert_eq!(due, node.now + Options::default().grace);
    assert_eq!(
        node.engine
            .plan(due.saturating_sub(Duration::from_millis(1)))
            .unwrap(),
        None
    );
    let plan = node.engine.plan(due).unwrap().unwrap();
    node.tables.apply_all(&plan.writes);
    assert_eq!(node.tables.verdicts.len(), 0);
    assert_eq!(node.engine.next_deadline(), None);
}

/// What a packet under way has loaded may be a row that nothing shows any more.
#[test]
fn a_row_of_configs_rests_before_it_is_used_again() {
    let mut node = Node::new(Options::default());
    let [closed, open] = node::isolating_then_open();
    node.happen(&closed);
    node.settle().unwrap();
    let mut used = BTreeSet::from([0]);
    let mut changes = open.iter().chain(closed.iter()).cycle();
    let refused = loop {
        node.happen(std::slice::from_ref(changes.next().unwrap()));
        match node.engine.plan(node.now) {
            Ok(None) => {}
            Ok(Some(plan)) => {
                for write in &plan.writes {
                    if let Write::PutConfig(row, _) = write {
                        assert!(used.insert(*row), "row {row} has not rested");
                    }
                }
                node.tables.apply_all(&plan.writes);
                node.engine.written(node.now);
            }
            Err(refused) => break refused,
        }
    };
    let Refused::ConfigRows {
        retry_at, free: 0, ..
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!(retry_at, Some(node.now + Options::default().grace));
    node.now = retry_at.unwrap();
    node.settle().unwrap();
}

#[test]
fn an_address_that_another_pod_takes_over_is_judged_again_although_its_class_stays() {
    let mut node = Node::new(Options::default());
    let ([before, takes_over], address) = node::taken_over();
    node.happen(&before);
    node.settle().unwrap();
    node.happen(&takes_over);
    let plan = node.engine.plan(node.now).unwrap().unwrap();
    let stamped = plan.writes.iter().any(|write| {
        matches!(write, Write::StampPeers { bucket, .. } if *bucket == peer_bucket(address.into()))
    });
    assert!(stamped, "{plan:?}");
    assert_eq!(plan.summary.peers_moved, 0, "its class stays: {plan:?}");
}

#[test]
fn a_list_that_changes_moves_only_what_it_gained_or_lost() {
    let mut node = Node::new(Options::default());
    node.happen(&node::admitting_ranges());
    node.settle().unwrap();
    let shown = |write: &Write| {
        let kinds = [
            (matches!(write, Write::PutPrefix(..)), "put"),
            (matches!(write, Write::DeletePrefix(_)), "delete"),
            (matches!(write, Write::Flip { .. }), "flip"),
        ];
        let kind = kinds.iter().find(|(is_it, _)| *is_it);
        kind.map_or("other", |(_, kind)| kind)
    };
    for (ranges, expected) in [
        (&["203.0.113.0/24"][..], &["put", "flip"][..]),
        (&["203.0.113.0/24", "192.0.2.0/25"], &["put"]),
        (&[], &["delete", "delete", "flip"]),
    ] {
        // Nothing that rests is in the way.
        node.settle_down().unwrap();
        let before = node.tables.endpoints.clone();
        node.happen(&[node::with_ranges(ranges)]);
        let plan = node.engine.plan(node.now).unwrap();
        let writes = plan.map(|plan| plan.writes.clone()).unwrap_or_default();
        assert_eq!(writes.iter().map(shown).collect::<Vec<_>>(), expected);
        node.tables.apply_all(&writes);
        node.engine.written(node.now);
        node.check_against_specification().unwrap();
        for (ifindex, word) in &node.tables.endpoints {
            let row = before[ifindex].config_row;
            assert_eq!(word.config_row, row, "only its revision is new");
        }
    }
}

/// Places of endpoints; the first is nobody's.
const PLACES: usize = agent_common::maps::SLOTS as usize - 1;

#[test]
fn more_changes_at_once_than_rows_of_configs_are_refused_whole_until_rows_have_rested() {
    let mut node = Node::new(Options::default());
    let [closed, open] = node::isolating_many_then_open(PLACES);
    node.happen(&closed);
    node.settle_in_steps().unwrap();
    let policy = &closed[PLACES..=PLACES];
    // Four rows for each place, less the first: the fourth change finds three.
    for change in [&open[..], policy, &open[..]] {
        node.happen(change);
        node.settle_in_steps().unwrap();
    }
    node.happen(policy);
    let before = node.tables.clone();
    let refused = node.settle_in_steps().unwrap_err();
    let Refused::ConfigRows {
        wanted: PLACES,
        free: 3,
        retry_at: Some(retry_at),
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!(node.tables, before, "not some of them");
    node.now = retry_at;
    node.settle_in_steps().unwrap();
    let isolated = |word: &EndpointWord| node.tables.configs[&word.config_row].sets[0] != 0;
    assert!(node.tables.endpoints.values().all(isolated));
    assert_eq!(node.tables.endpoints.len(), PLACES);
}
