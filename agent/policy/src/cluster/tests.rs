//! Claims about the ground state: who owns an address, what a change touches.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::{ContainerPort, Labels, Protocol};
use crate::random;

fn pod(name: &str, address: &str) -> Pod {
    Pod {
        labels: Labels::from([("app".to_owned(), name.to_owned())]),
        addresses: vec![address.parse().unwrap()],
        ..Pod::new(PodUid(Arc::from(name)), ObjectName::new("shop", name))
    }
}

fn put(cluster: &mut Cluster, pod: &Pod) -> Touched {
    cluster.apply(Change::Pod(Box::new(pod.clone())))
}

fn owner(cluster: &Cluster, address: &str) -> Option<String> {
    let owner = cluster.owner_of(address.parse().unwrap())?;
    Some(owner.uid.0.to_string())
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn touched_pod(name: &str, touched_addresses: &[&str]) -> Touched {
    Touched {
        pods: BTreeSet::from([PodUid(Arc::from(name))]),
        addresses: addresses(touched_addresses),
        ..Touched::default()
    }
}

#[test]
fn an_address_belongs_to_the_newest_pod_by_creation_then_uid() {
    let mut cluster = Cluster::new();
    let (mut old, mut new) = (pod("b", "10.0.0.1"), pod("a", "10.0.0.1"));
    new.created = 1;
    put(&mut cluster, &new);
    assert_eq!(
        put(&mut cluster, &old),
        touched_pod("b", &[]),
        "the owner stays"
    );
    assert_eq!(owner(&cluster, "10.0.0.1").unwrap(), "a");
    old.created = 1;
    assert_eq!(put(&mut cluster, &old), touched_pod("b", &["10.0.0.1"]));
    assert_eq!(owner(&cluster, "10.0.0.1").unwrap(), "b");
    let touched = cluster.apply(Change::PodGone(old.uid));
    assert_eq!(touched, touched_pod("b", &["10.0.0.1"]));
    assert_eq!(owner(&cluster, "10.0.0.1").unwrap(), "a");
}

#[test]
fn a_completed_pods_address_is_forgotten_and_a_terminating_one_keeps_it() {
    let mut cluster = Cluster::new();
    let mut job = pod("job", "10.0.0.1");
    put(&mut cluster, &job);
    job.phase = Phase::Terminating;
    assert_eq!(put(&mut cluster, &job), touched_pod("job", &[]));
    assert_eq!(owner(&cluster, "10.0.0.1").unwrap(), "job");
    job.phase = Phase::Completed;
    assert_eq!(put(&mut cluster, &job), touched_pod("job", &["10.0.0.1"]));
    assert_eq!(owner(&cluster, "10.0.0.1"), None);
}

#[test]
fn a_host_network_pod_owns_nothing_and_is_never_selected() {
    let mut cluster = Cluster::new();
    let mut agent = pod("agent", "192.0.2.1");
    agent.host_network = true;
    assert_eq!(put(&mut cluster, &agent), touched_pod("agent", &[]));
    assert_eq!(owner(&cluster, "192.0.2.1"), None);
    let selected = cluster.pods_selected(&NamespaceScope::Own, "shop", &Selector::EVERYTHING);
    assert!(selected.is_empty());
    assert_eq!(cluster.pods_in("shop").count(), 1);
}

#[test]
fn a_change_touches_an_address_only_where_its_owner_looks_different() {
    let mut cluster = Cluster::new();
    let mut web = pod("web", "10.0.0.1");
    assert_eq!(put(&mut cluster, &web), touched_pod("web", &["10.0.0.1"]));
    assert!(put(&mut cluster, &web).is_empty(), "nothing changed");
    web.node = "node-1".into();
    assert_eq!(put(&mut cluster, &web), touched_pod("web", &[]));
    web.labels.insert("tier".to_owned(), "edge".to_owned());
    assert_eq!(put(&mut cluster, &web), touched_pod("web", &["10.0.0.1"]));
    web.ports = Arc::from([ContainerPort {
        name: "http".to_owned(),
        protocol: Protocol::TCP,
        port: 80,
    }]);
    assert_eq!(put(&mut cluster, &web), touched_pod("web", &["10.0.0.1"]));
    web.addresses = vec!["10.0.0.2".parse().unwrap()];
    let moved = touched_pod("web", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(put(&mut cluster, &web), moved);
}

#[test]
fn a_namespace_that_was_not_seen_has_its_name_as_label_and_nothing_else() {
    let mut cluster = Cluster::new();
    put(&mut cluster, &pod("web", "10.0.0.1"));
    let implied = cluster.namespace("shop").unwrap().clone();
    let name = ("kubernetes.io/metadata.name".to_owned(), "shop".to_owned());
    assert_eq!(implied.labels, Labels::from([name]));
    let mut seen = implied.clone();
    assert!(cluster.apply(Change::Namespace(implied)).is_empty());
    seen.labels.insert("team".to_owned(), "a".to_owned());
    let expected = Touched {
        namespaces: BTreeSet::from([Arc::from("shop")]),
        ..Touched::default()
    };
    assert_eq!(cluster.apply(Change::Namespace(seen)), expected);
    assert_eq!(
        cluster.apply(Change::NamespaceGone(Arc::from("shop"))),
        expected
    );
    assert!(
        cluster
            .apply(Change::NamespaceGone(Arc::from("shop")))
            .is_empty()
    );
    assert!(cluster.namespace("shop").is_some(), "a pod is still there");
    let _touched = cluster.apply(Change::PodGone(PodUid(Arc::from("web"))));
    assert!(cluster.namespace("shop").is_none());
}

#[test]
fn of_two_pods_with_one_name_the_newest_is_meant() {
    let mut cluster = Cluster::new();
    let old = pod("db-0", "10.0.0.1");
    let mut new = pod("db-0", "10.0.0.2");
    new.uid = PodUid(Arc::from("new"));
    new.created = 1;
    put(&mut cluster, &new);
    put(&mut cluster, &old);
    assert_eq!(cluster.pod_named(&old.name).unwrap().uid, new.uid);
    let _touched = cluster.apply(Change::PodGone(new.uid));
    assert_eq!(cluster.pod_named(&old.name).unwrap().uid, old.uid);
}

fn apply_all(changes: Vec<Change>) -> Cluster {
    let mut cluster = Cluster::new();
    for change in changes {
        let _touched = cluster.apply(change);
    }
    cluster
}

proptest! {
    #[test]
    fn the_index_selects_what_looking_at_every_pod_selects(
        cluster in random::cluster(),
        scope in prop_oneof![
            Just(NamespaceScope::Own),
            random::selector().prop_map(NamespaceScope::Selected),
        ],
        selector in random::selector(),
    ) {
        let is_in_scope = |pod: &Pod| match &scope {
            NamespaceScope::Own => &*pod.name.namespace == "red",
            NamespaceScope::Selected(namespaces) => {
                namespaces.selects(&cluster.namespace(&pod.name.namespace).unwrap().labels)
            }
        };
        let mut expected: Vec<&PodUid> = cluster
            .pods()
            .filter(|pod| !pod.host_network && pod.phase != Phase::Completed)
            .filter(|pod| is_in_scope(pod) && selector.selects(&pod.labels))
            .map(|pod| &pod.uid)
            .collect();
        let mut found: Vec<&PodUid> = cluster
            .pods_selected(&scope, "red", &selector)
            .into_iter()
            .map(|pod| &pod.uid)
            .collect();
        expected.sort_unstable();
        found.sort_unstable();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_selector_index_finds_every_selector_that_selects_and_each_once(
        selectors in vec(random::selector(), 0..12),
        labels in random::labels(),
        gone in vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut index = labels::SelectorIndex::default();
        for (id, selector) in selectors.iter().enumerate() {
            index.insert(&id, selector);
        }
        let mut gone_ids = BTreeSet::new();
        for place in gone.iter().filter(|_| !selectors.is_empty()) {
            let id = place.index(selectors.len());
            index.remove(&id, &selectors[id]);
            gone_ids.insert(id);
        }
        let candidates: Vec<usize> = index.candidates(&labels).copied().collect();
        let distinct: BTreeSet<usize> = candidates.iter().copied().collect();
        prop_assert_eq!(candidates.len(), distinct.len());
        for (id, selector) in selectors.iter().enumerate() {
            if gone_ids.contains(&id) {
                prop_assert!(!distinct.contains(&id));
            } else if selector.selects(&labels) {
                prop_assert!(distinct.contains(&id));
            }
        }
    }

    #[test]
    fn what_comes_and_goes_leaves_nothing_behind(changes in vec(random::change(), 0..40)) {
        let mut cluster = apply_all(changes);
        let pods: Vec<PodUid> = cluster.pods().map(|pod| pod.uid.clone()).collect();
        let policies: Vec<ObjectName> = cluster.policies().map(|it| it.name.clone()).collect();
        let namespaces: Vec<Arc<str>> =
            cluster.namespaces().map(|it| Arc::clone(&it.name)).collect();
        let nodes: Vec<Arc<str>> = cluster.nodes().map(|it| Arc::clone(&it.name)).collect();
        let gone = namespaces
            .into_iter()
            .map(Change::NamespaceGone)
            .chain(policies.into_iter().map(Change::PolicyGone))
            .chain(pods.into_iter().map(Change::PodGone))
            .chain(nodes.into_iter().map(Change::NodeGone));
        for change in gone {
            let _touched = cluster.apply(change);
        }
        cluster.slots.clear();
        cluster.free.clear();
        cluster.shared.sweep();
        prop_assert_eq!(format!("{cluster:?}"), format!("{:?}", Cluster::new()));
    }

    #[test]
    fn a_change_that_was_applied_touches_nothing_again(
        changes in vec(random::change(), 0..30),
        last in random::change(),
    ) {
        let mut cluster = apply_all(changes);
        let _touched = cluster.apply(last.clone());
        prop_assert!(cluster.apply(last).is_empty());
    }

    #[test]
    fn exactly_the_addresses_that_look_different_are_touched(
        changes in vec(random::change(), 0..30),
        last in random::change(),
        all in vec(random::address(), 30),
    ) {
        let before = apply_all(changes);
        let mut after = before.clone();
        let touched = after.apply(last);
        let face = |cluster: &Cluster, address: IpAddr| {
            let owner = cluster.owner_of(address)?;
            Some((
                owner.uid.clone(),
                owner.name.clone(),
                owner.labels.clone(),
                Arc::clone(&owner.ports),
            ))
        };
        for address in all {
            prop_assert_eq!(
                touched.addresses.contains(&address),
                face(&before, address) != face(&after, address)
            );
        }
    }

    #[test]
    fn the_owner_is_the_newest_of_those_that_may_own(
        cluster in random::cluster(),
        address in random::address(),
    ) {
        let expected = cluster
            .pods()
            .filter(|pod| pod.addresses.contains(&address))
            .filter(|pod| !pod.host_network && pod.phase != Phase::Completed)
            .max_by_key(|pod| (pod.created, &pod.uid));
        prop_assert_eq!(cluster.owner_of(address), expected);
    }
}
