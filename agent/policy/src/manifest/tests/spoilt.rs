//! Policies that are written out and read again, as they were meant or spoilt in one place.

use k8s_openapi::serde_json;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::*;
use crate::evaluate::evaluate;
use crate::model::{Change, Direction, Peer, Peers, Ports, Verdict};
use crate::{random, written};

/// A policy that can be written: no empty lists, canonical exceptions, some direction.
fn writable() -> impl Strategy<Value = Policy> {
    random::policy().prop_map(|mut policy| {
        policy.isolates_ingress |= !policy.isolates_egress;
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress) {
            match &mut rule.peers {
                Peers::Any(peers) if peers.is_empty() => rule.peers = Peers::All,
                Peers::Any(peers) => {
                    for peer in peers {
                        if let Peer::Block { except, .. } = peer {
                            except.sort_unstable();
                            except.dedup();
                        }
                    }
                }
                Peers::All => {}
            }
            if rule.ports == Ports::Any(Vec::new()) {
                rule.ports = Ports::All;
            }
        }
        policy
    })
}

/// Every value below a place, as JSON pointers.
fn places(value: &Value, place: &str, found: &mut Vec<String>) {
    found.push(place.to_owned());
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                places(value, &format!("{place}/{key}"), found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                places(value, &format!("{place}/{index}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Values that are right nowhere in a policy.
const JUNK: [&str; 5] = ["{\"no\": 1}", "-1", "\"-bad-\"", "[[]]", "true"];

/// Puts junk at a place, or misspells one of the fields there.
fn spoil(document: &mut Value, at: Index, junk: Index, misspells: bool) {
    let mut found = Vec::new();
    places(&document["spec"], "/spec", &mut found);
    let place = at.get(&found);
    let value = document.pointer_mut(place).unwrap();
    if let Value::Object(fields) = value
        && misspells
        && !fields.is_empty()
    {
        let key = fields.keys().nth(junk.index(fields.len())).unwrap().clone();
        let value = fields.remove(&key).unwrap();
        fields.insert(format!("{key}s-"), value);
    } else {
        *value = serde_json::from_str(junk.get::<&str>(&JUNK)).unwrap();
    }
}

proptest! {
    #[test]
    fn a_written_policy_is_read_as_it_was_meant(policy in writable()) {
        let document = written::document(&policy);
        prop_assert_eq!(network_policy_json(&document), (policy.clone(), vec![]));
        let typed = serde_json::from_value(document).unwrap();
        prop_assert_eq!(network_policy(&typed), (policy, vec![]));
    }

    #[test]
    fn what_is_spoilt_is_found_and_never_widens_access(
        cluster in random::cluster(),
        policy in writable(),
        at in any::<Index>(),
        junk in any::<Index>(),
        misspells in any::<bool>(),
        packets in proptest::collection::vec(random::packet(), 30),
    ) {
        let mut document = written::document(&policy);
        spoil(&mut document, at, junk, misspells);
        let (spoilt, findings) = network_policy_json(&document);
        let is_found = findings.iter().any(|finding| finding.severity == Severity::Error);
        prop_assert!(is_found, "{document}");
        prop_assert_eq!(&spoilt.name, &policy.name);
        for direction in Direction::ALL {
            prop_assert!(spoilt.isolates(direction) || !policy.isolates(direction));
        }
        let with = |policy: Policy| {
            let mut cluster = cluster.clone();
            let _touched = cluster.apply(Change::Policy(Box::new(policy)));
            cluster
        };
        let (meant, spoilt) = (with(policy), with(spoilt));
        for packet in &packets {
            if evaluate(&spoilt, packet).verdict() == Verdict::Allow {
                prop_assert_eq!(evaluate(&meant, packet).verdict(), Verdict::Allow, "{}", document);
            }
        }
    }
}
