//! Servers that die, forget, refuse, repeat themselves or answer half.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use tests::api_front::{Fault, Front, Times};
use tests::api_server::ApiServer;

use super::server;
use super::world::{Admin, Listener};

/// A server, a front before it, and somebody who has heard the first whole list through it.
async fn fronted(pods: &[(&str, &str, &str)]) -> Result<(ApiServer, Admin, Front, Listener)> {
    let (server, admin) = server().await?;
    for (name, app, address) in pods {
        admin.pod(name, app, address).await?;
    }
    let front = Front::start(admin.client.clone()).await?;
    let mut listener = Listener::complete(&server.kubeconfig_at("admin", front.url())?).await?;
    // Then its watch of pods is there, too.
    listener.catch_up(&admin).await?;
    listener.take_told();
    Ok((server, admin, front, listener))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_the_difference_is_told_and_nothing_else() -> Result<()> {
    let (mut server, admin, front, mut listener) = fronted(&[
        ("stays", "a", "10.0.0.1"),
        ("goes", "a", "10.0.0.2"),
        ("changes", "a", "10.0.0.3"),
        ("anew", "a", "10.0.0.4"),
    ])
    .await?;
    admin.admit("allow", "a").await?;
    listener
        .until("the policy", |seen| seen.told.len() == 1)
        .await?;
    listener.take_told();

    front.set("/api", Fault::Refuse(503), Times::Always);
    server.kill_server();
    front.cut();
    listener
        .until("the outage to be said", |seen| {
            seen.has_finding(&["kubernetes api", "503", "since 20", "what was known stays"])
        })
        .await?;
    server.start_server()?;
    admin.delete_pod("goes").await?;
    admin.relabel("changes", "b").await?;
    admin.delete_pod("anew").await?;
    admin.pod("anew", "a", "10.0.0.4").await?;
    admin.pod("new", "a", "10.0.0.5").await?;
    assert!(listener.told.is_empty(), "{:?}", listener.told);
    front.take_requests();
    front.clear();
    listener
        .until("the new pod", |seen| seen.app("new").is_some())
        .await?;
    listener.catch_up(&admin).await?;
    assert_eq!(
        listener.take_told(),
        [
            "shop/anew a",
            "shop/anew gone",
            "shop/changes b",
            "shop/goes gone",
            "shop/new a"
        ]
    );
    listener
        .until("all to be well", |seen| seen.findings.is_empty())
        .await?;
    let requests = front.take_requests();
    for kind in [
        "pods",
        "namespaces",
        "nodes",
        "networkpolicies",
        "services",
        "endpointslices",
    ] {
        let lists = requests
            .iter()
            .filter(|path| path.contains(&format!("/{kind}?")) && !path.contains("watch=true"));
        assert!(lists.count() <= 1, "{kind}: {requests:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_server_is_said_once_with_its_time_and_what_is_known_stays() -> Result<()> {
    let (mut server, admin) = server().await?;
    admin.pod("web", "web", "10.0.0.1").await?;
    let mut listener = Listener::complete(&server.kubeconfig()?).await?;
    listener.take_told();
    server.kill_server();
    listener
        .until("the outage to be said", |seen| {
            seen.has_finding(&["127.0.0.1", "does not answer since 20"])
        })
        .await?;
    let said = listener.findings.clone();
    assert_eq!(said.len(), 1, "one server, one word: {said:?}");
    server.start_server()?;
    listener
        .until("all to be well", |seen| {
            assert!(seen.findings.is_empty() || seen.findings == said);
            seen.findings.is_empty()
        })
        .await?;
    listener.catch_up(&admin).await?;
    assert!(listener.told.is_empty(), "{:?}", listener.told);
    assert_eq!(listener.app("web").as_deref(), Some("web"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_forgotten_is_listed_again_and_nothing_is_told() -> Result<()> {
    let (_server, admin, front, mut listener) = fronted(&[("web", "web", "10.0.0.1")]).await?;
    front.take_requests();
    front.set("pods?watch", Fault::Refuse(410), Times::Once);
    // Nor can it list from memory as far back, nor keep its pages.
    front.set("pods?limit=500", Fault::Refuse(504), Times::Once);
    front.set(
        "pods?limit=500&resourceVersion=",
        Fault::Refuse(410),
        Times::Once,
    );
    front.cut();
    listener.catch_up(&admin).await?;
    assert!(listener.told.is_empty(), "{:?}", listener.told);
    assert_eq!(listener.app("web").as_deref(), Some("web"));
    let requests = front.take_requests();
    let lists = requests
        .iter()
        .filter(|path| path.contains("/pods") && !path.contains("watch=true"));
    let lists: Vec<&String> = lists.collect();
    assert_eq!(lists.len(), 3, "{requests:?}");
    listener
        .until("all to be well", |seen| seen.findings.is_empty())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_list_a_kind_is_told_so_and_not_complete_until_he_may() -> Result<()> {
    let (server, admin) = server().await?;
    admin.admit("allow", "web").await?;
    let core = ["namespaces", "nodes", "pods", "services"];
    may(&admin, "half", "", &core).await?;
    may(&admin, "slices", "discovery.k8s.io", &["endpointslices"]).await?;
    let mut listener = Listener::open(&server.kubeconfig_of("picket")?).await?;
    let parts = [
        "networkpolicies forbidden since 20",
        "grant list and watch of networkpolicies",
        "nothing is put in force before",
    ];
    listener
        .until("the refusal to be said", |seen| seen.has_finding(&parts))
        .await?;
    assert!(!listener.is_complete && listener.told.is_empty());
    may(
        &admin,
        "other-half",
        "networking.k8s.io",
        &["networkpolicies"],
    )
    .await?;
    listener
        .until("a whole list", |seen| seen.is_complete)
        .await?;
    assert!(listener.told.contains(&"policy shop/allow".to_owned()));
    listener
        .until("all to be well", |seen| seen.findings.is_empty())
        .await
}

/// Lets user `picket` read kinds.
async fn may(admin: &Admin, role: &str, group: &str, kinds: &[&str]) -> Result<()> {
    let of = |value: Value| serde_json::from_value(value).context("an object of this test");
    let rules = json!({"metadata": {"name": role}, "rules": [
        {"apiGroups": [group], "resources": kinds, "verbs": ["list", "watch"]}]});
    let roles = Api::<ClusterRole>::all(admin.client.clone());
    roles.create(&PostParams::default(), &of(rules)?).await?;
    let binding = json!({"metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "picket"}]});
    let binding = serde_json::from_value(binding).context("an object of this test")?;
    let bindings = Api::<ClusterRoleBinding>::all(admin.client.clone());
    bindings.create(&PostParams::default(), &binding).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_no_longer_read_keeps_what_was_known() -> Result<()> {
    let (_server, admin, front, mut listener) = fronted(&[("web", "web", "10.0.0.1")]).await?;
    front.set("/pods", Fault::Refuse(403), Times::Always);
    front.cut();
    listener
        .until("the refusal to be said", |seen| {
            seen.has_finding(&["pods forbidden since 20", "what was known stays in force"])
        })
        .await?;
    assert!(listener.told.is_empty(), "{:?}", listener.told);
    front.clear();
    listener.catch_up(&admin).await?;
    assert!(listener.told.is_empty(), "{:?}", listener.told);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_is_not_served_is_empty_unless_every_server_has_it() -> Result<()> {
    let (server, admin) = server().await?;
    let front = Front::start(admin.client.clone()).await?;
    let kubeconfig = server.kubeconfig_at("admin", front.url())?;
    front.set("/networkpolicies", Fault::Refuse(404), Times::Always);
    let listener = Listener::complete(&kubeconfig).await?;
    assert!(listener.findings.is_empty(), "{:?}", listener.findings);

    front.set("/pods", Fault::Refuse(404), Times::Always);
    let mut listener = Listener::open(&kubeconfig).await?;
    listener
        .until("the answer to be doubted", |seen| {
            seen.has_finding(&["pods not served since 20"])
        })
        .await?;
    assert!(!listener.is_complete);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_vanishes_with_objects_known_keeps_them() -> Result<()> {
    let (_server, admin, front, mut listener) = fronted(&[]).await?;
    admin.admit("allow", "web").await?;
    listener
        .until("the policy", |seen| seen.told.len() == 1)
        .await?;
    listener.take_told();
    front.set("/networkpolicies", Fault::Refuse(404), Times::Always);
    front.cut();
    listener
        .until("the answer to be doubted", |seen| {
            seen.has_finding(&["networkpolicies not served since 20"])
        })
        .await?;
    assert!(listener.told.is_empty(), "{:?}", listener.told);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_twice_or_late_never_bring_a_state_back() -> Result<()> {
    for fault in [Fault::Repeat, Fault::Swap] {
        let (_server, admin, front, mut listener) = fronted(&[
            ("web", "0", "10.0.0.1"),
            ("gone", "0", "10.0.0.2"),
            ("other", "0", "10.0.0.3"),
        ])
        .await?;
        front.set("watch=true", fault, Times::Always);
        front.cut();
        admin.relabel("gone", "1").await?;
        admin.delete_pod("gone").await?;
        for round in 1..=9 {
            // Two in a row: a pair that comes the wrong way round is of one pod.
            admin.relabel("web", &format!("{round}a")).await?;
            admin.relabel("web", &format!("{round}b")).await?;
            admin.relabel("other", &round.to_string()).await?;
        }
        listener
            .until("the last change", |seen| {
                seen.app("web").as_deref() == Some("9b") && seen.app("gone").is_none()
            })
            .await?;
        // Two, lest a swapped one be held back.
        front.clear();
        listener.catch_up(&admin).await?;
        let told = std::mem::take(&mut listener.told);
        let web: Vec<&String> = told
            .iter()
            .filter(|told| told.starts_with("shop/web"))
            .collect();
        assert!(web.is_sorted(), "{fault:?}: back in time: {told:?}");
        let after = told.iter().skip_while(|told| *told != "shop/gone gone");
        assert!(
            !after
                .into_iter()
                .any(|told| told.starts_with("shop/gone ") && told != "shop/gone gone"),
            "{fault:?}: what had gone came back: {told:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_list_is_none() -> Result<()> {
    let (server, admin, front, mut listener) = fronted(&[
        ("one", "a", "10.0.0.1"),
        ("two", "a", "10.0.0.2"),
        ("three", "a", "10.0.0.3"),
    ])
    .await?;
    // Enough for the first pod, not for all.
    front.set("pods?limit", Fault::CutAfter(2500), Times::Always);
    front.set("pods?watch", Fault::Refuse(410), Times::Once);
    front.cut();
    listener
        .until("the fault to be said", |seen| {
            seen.has_finding(&["does not answer since"])
        })
        .await?;
    assert!(listener.told.is_empty(), "{:?}", listener.told);
    let mut second = Listener::open(&server.kubeconfig_at("admin", front.url())?).await?;
    second
        .until("the fault to be said", |seen| {
            seen.has_finding(&["does not answer since", "nothing is put in force before"])
        })
        .await?;
    assert!(!second.is_complete);
    front.clear();
    second
        .until("a whole list", |seen| seen.is_complete)
        .await?;
    assert!(second.app("three").is_some());
    listener.catch_up(&admin).await?;
    assert!(listener.told.is_empty(), "{:?}", listener.told);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_is_waited_for() -> Result<()> {
    let (server, admin) = server().await?;
    admin.pod("web", "web", "10.0.0.1").await?;
    let front = Front::start(admin.client.clone()).await?;
    front.set(
        "/api",
        Fault::Slow(Duration::from_millis(700)),
        Times::Always,
    );
    let mut listener = Listener::complete(&server.kubeconfig_at("admin", front.url())?).await?;
    assert_eq!(listener.batches_told, 1, "one first word");
    admin.relabel("web", "api").await?;
    listener
        .until("the change", |seen| {
            seen.app("web").as_deref() == Some("api")
        })
        .await?;
    assert!(listener.findings.is_empty(), "{:?}", listener.findings);
    Ok(())
}
