//! Who has which place in per-slot maps, and when it takes another.

use agent_policy::engine::{Options, Progress};
use agent_policy::model::Change;

use crate::PLACES;
use crate::node::{self, Node};
use crate::world::Event;

#[test]
fn who_finds_no_slot_is_said_to_and_is_published_when_one_is_free() {
    let mut node = Node::new(Options::default());
    let [all, _] = node::isolating_many_then_open(PLACES + 1);
    node.happen(&all);
    node.settle_in_steps().unwrap();
    let late = node::ifindex(PLACES);
    let progress = |node: &Node| {
        let all = node.engine.endpoints().into_iter();
        let mut late = all.filter(|each| each.ifindex == late);
        late.next().map(|each| each.progress)
    };
    assert_eq!(progress(&node), Some(Progress::NoSlot));
    assert_eq!(node.tables.endpoints.len(), PLACES);
    assert!(!node.tables.endpoints.contains_key(&late));
    assert_eq!(
        node.engine.next_deadline(),
        None,
        "nothing to be done about it"
    );
    let gone = node::ifindex(7);
    let slot = node.published()[&gone];
    node.happen(&[Event::Detach(7)]);
    node.settle_in_steps().unwrap();
    assert_eq!(progress(&node), Some(Progress::Published));
    assert_eq!(node.published()[&late], slot);
    assert!(
        node.tables.slots.contains(&slot),
        "closed for the one before, open for the next"
    );
}

#[test]
fn who_exchanges_an_address_begins_anew_and_who_gets_one_of_another_family_does_not() {
    let mut node = Node::new(Options::default());
    let mut slot_with = |addresses: &[&str]| {
        let mut pod = node::plain_pod(0);
        pod.addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        node.happen(&[Event::Change(Change::Pod(Box::new(pod))), Event::Attach(0)]);
        node.settle_in_steps().unwrap();
        let published = node.published();
        assert_eq!(node.tables.slots.len(), 1, "the one before is closed");
        published[&node::ifindex(0)]
    };
    let first = slot_with(&["10.0.0.1"]);
    assert_eq!(slot_with(&["10.0.0.1", "fd00::1"]), first);
    assert_eq!(slot_with(&["fd00::1", "10.0.0.1"]), first);
    let second = slot_with(&["fd00::1", "10.0.0.2"]);
    assert_ne!(second, first, "flows of 10.0.0.1 are not of 10.0.0.2");
    let third = slot_with(&["fd00::1"]);
    assert_ne!(third, second, "nor of nobody");
    let nobody = slot_with(&[]);
    assert_ne!(nobody, third);
    let third = slot_with(&["fd00::1"]);
    assert_ne!(third, nobody, "nothing was nobody's");
    assert_eq!(slot_with(&["fd00::1", "10.0.0.2"]), third);
    assert_ne!(slot_with(&["10.0.0.2", "10.0.0.3"]), third);
}
