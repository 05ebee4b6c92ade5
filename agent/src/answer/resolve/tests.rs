//! Who references mean, and what is offered for those that mean nobody.

use agent_policy::model::{Change, Labels, Node, PodUid};

use super::*;

fn pod(namespace: &str, name: &str, workload: &str, address: Option<&str>) -> Pod {
    Pod {
        labels: Labels::from([
            ("app".to_owned(), "api".to_owned()),
            ("pod".to_owned(), name.to_owned()),
        ]),
        addresses: address
            .map(|address| address.parse().unwrap())
            .into_iter()
            .collect(),
        workload: workload.into(),
        ..Pod::new(
            PodUid(format!("{namespace}/{name}").into()),
            ObjectName::new(namespace, name),
        )
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    for pod in [
        pod("shop", "api-1", "Deployment/api", Some("10.0.0.1")),
        pod("shop", "api-2", "Deployment/api", Some("10.0.0.2")),
        pod("shop", "db-0", "StatefulSet/db", Some("10.0.0.3")),
        pod("shop", "db-report", "Job/db", Some("10.0.0.4")),
        pod("shop", "late", "Pod/late", None),
    ] {
        cluster.apply(Change::Pod(Box::new(pod)));
    }
    cluster
}

fn names(text: &str) -> Result<Vec<String>, ResolveError> {
    let resolved = resolve(&cluster(), &text.parse().unwrap(), "shop")?;
    Ok(resolved
        .ends
        .iter()
        .map(|end| match end {
            End::Pod(pod) => pod.name.to_string(),
            End::Address(address) => address.to_string(),
        })
        .collect())
}

#[test]
fn references_mean_pods_workloads_and_addresses() {
    assert_eq!(names("shop/api-1").unwrap(), ["shop/api-1"]);
    assert_eq!(names("api-1").unwrap(), ["shop/api-1"]);
    assert_eq!(names("pod/api-1").unwrap(), ["shop/api-1"]);
    assert_eq!(
        names("shop/deploy/api").unwrap(),
        ["shop/api-1", "shop/api-2"]
    );
    assert_eq!(
        names("shop/api").unwrap(),
        ["shop/api-1", "shop/api-2"],
        "the only workload called so"
    );
    assert_eq!(
        names("10.0.0.3").unwrap(),
        ["shop/db-0"],
        "a pod's address is the pod"
    );
    assert_eq!(names("192.0.2.1").unwrap(), ["192.0.2.1"]);
}

#[test]
fn a_workload_shows_only_labels_that_all_its_pods_have() {
    let resolved = resolve(&cluster(), &"shop/deploy/api".parse().unwrap(), "x").unwrap();
    assert_eq!(
        resolved.party.labels,
        BTreeMap::from([("app".to_owned(), "api".to_owned())])
    );
}

#[test]
fn unknown_names_come_with_the_nearest_there_are() {
    assert_eq!(
        names("shop/deploy/apj").unwrap_err().to_string(),
        "deployment shop/apj: there is none; nearest: shop/deploy/api, shop/job/db, shop/sts/db"
    );
    assert_eq!(
        names("shp/api-1").unwrap_err().to_string(),
        "pod or workload shp/api-1: there is none; nearest: shop/api-1, shop/api-2, shop/deploy/api"
    );
}

#[test]
fn what_is_not_unique_or_not_reachable_is_said() {
    assert_eq!(
        names("shop/db").unwrap_err().to_string(),
        "shop/db: there are several; write one of shop/job/db, shop/sts/db"
    );
    assert!(
        names("shop/late")
            .unwrap_err()
            .to_string()
            .contains("status.podIP")
    );
}

#[test]
fn a_node_is_its_own_addresses() {
    let mut cluster = cluster();
    cluster.apply(Change::Node(Node {
        name: "node-a".into(),
        labels: Labels::new(),
        addresses: vec!["192.0.2.7".parse().unwrap(), "192.0.2.8".parse().unwrap()],
        pod_cidrs: Vec::new(),
    }));
    let resolved = resolve(&cluster, &"node:node-a".parse().unwrap(), "shop").unwrap();
    assert_eq!(
        resolved.ends,
        [End::Address("192.0.2.7".parse().unwrap())],
        "the first of a family"
    );
    assert_eq!(resolved.party.to_string(), "node:node-a");
    assert_eq!(
        resolve(&cluster, &"node:node-b".parse().unwrap(), "shop")
            .unwrap_err()
            .to_string(),
        "node node-b: there is none with an address; there are node-a"
    );
}
