//! The source that watches a Kubernetes API, against a real one: what it tells, what it keeps to
//! itself, and what it makes of servers that fail. `cargo xtask test api` runs these.

mod enforced;
mod faults;
mod kept;
mod numbers;
mod scale;
mod taint;
mod world;

use std::net::IpAddr;

use agent_policy::model::Protocol;
use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tests::api_server::ApiServer;

use world::{Admin, Listener};

/// A server with namespace `shop`, and its administrator.
async fn server() -> Result<(ApiServer, Admin)> {
    let server = ApiServer::start()?;
    let admin = Admin {
        client: server.client().await?,
    };
    admin.namespace("shop").await?;
    Ok((server, admin))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_word_is_a_whole_list_of_every_kind() -> Result<()> {
    let (server, admin) = server().await?;
    admin.pod("web", "web", "10.0.0.1").await?;
    admin.pod("api", "api", "10.0.0.2").await?;
    admin.admit("allow", "web").await?;
    let listener = Listener::complete(&server.kubeconfig()?).await?;
    assert_eq!(listener.batches_told, 1);
    let mut told = listener.told.clone();
    told.sort();
    told.retain(|told| !told.contains("kube-") && told != "namespace default");
    assert_eq!(
        told,
        [
            "namespace shop",
            "policy shop/allow",
            "shop/api api",
            "shop/web web"
        ]
    );
    assert!(listener.findings.is_empty(), "{:?}", listener.findings);
    let pods: Vec<_> = listener.cluster.pods().collect();
    for pod in pods {
        assert_eq!(pod.addresses.len(), 1, "{pod:?}");
        assert_eq!(pod.ports.len(), 1, "{pod:?}");
        assert!(!pod.uid.0.contains('/'), "the API's own uid: {pod:?}");
        assert!(pod.created > 0, "{pod:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_behind_a_service_is_known_and_what_comes_and_goes_there() -> Result<()> {
    let (server, admin) = server().await?;
    let services = Api::<Service>::namespaced(admin.client.clone(), "shop");
    let service = json!({"metadata": {"name": "web"},
        "spec": {"ports": [{"port": 80, "targetPort": 8080}]}});
    let service = serde_json::from_value(service)?;
    let made = services.create(&PostParams::default(), &service).await?;
    let address = made.spec.and_then(|spec| spec.cluster_ip);
    let address: IpAddr = address.context("an address of its own")?.parse()?;
    let slices = Api::<EndpointSlice>::namespaced(admin.client.clone(), "shop");
    let slice = |backends: &[&str]| {
        let endpoints: Vec<_> = backends
            .iter()
            .map(|ip| json!({"addresses": [ip]}))
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        }))
    };
    let first: EndpointSlice = slice(&["10.0.0.1"])?;
    slices.create(&PostParams::default(), &first).await?;
    let mut listener = Listener::complete(&server.kubeconfig()?).await?;
    let behind = |listener: &Listener| -> Option<Vec<String>> {
        let backends = listener.cluster.backends(address, Protocol::TCP, 80)?;
        let backends = backends.into_iter();
        Some(backends.map(|(ip, port)| format!("{ip}:{port}")).collect())
    };
    assert_eq!(behind(&listener), Some(vec!["10.0.0.1:8080".to_owned()]));
    let more: EndpointSlice = slice(&["10.0.0.1", "10.0.0.2"])?;
    let put = PatchParams::apply("test").force();
    slices.patch("web-x", &put, &Patch::Apply(&more)).await?;
    listener
        .until("two behind it", |seen| {
            behind(seen).is_some_and(|behind| behind.len() == 2)
        })
        .await?;
    slices.delete("web-x", &DeleteParams::default()).await?;
    listener
        .until("nobody behind it", |seen| {
            behind(seen).is_some_and(|behind| behind.is_empty())
        })
        .await?;
    services.delete("web", &DeleteParams::default()).await?;
    listener
        .until("no Service", |seen| behind(seen).is_none())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_is_told_and_nothing_else() -> Result<()> {
    let (server, admin) = server().await?;
    admin.pod("web", "web", "10.0.0.1").await?;
    let mut listener = Listener::complete(&server.kubeconfig()?).await?;
    listener.take_told();

    admin.relabel("web", "api").await?;
    listener.catch_up(&admin).await?;
    assert_eq!(listener.take_told(), ["shop/web api"]);

    // The kubelet's heartbeats of a pod say nothing that policy looks at.
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    admin.status("web", ready).await?;
    listener.catch_up(&admin).await?;
    assert!(listener.take_told().is_empty());

    admin.admit("allow", "web").await?;
    listener
        .until("the policy", |seen| seen.told.len() == 1)
        .await?;
    admin.admit("allow", "api").await?;
    listener
        .until("its change", |seen| seen.told.len() == 2)
        .await?;
    admin.delete_policy("allow").await?;
    listener
        .until("its end", |seen| seen.told.len() == 3)
        .await?;
    assert_eq!(
        listener.take_told(),
        [
            "policy shop/allow",
            "policy shop/allow",
            "policy shop/allow gone"
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_ends_or_is_made_anew_is_not_what_it_was() -> Result<()> {
    let (server, admin) = server().await?;
    admin.pod("web", "web", "10.0.0.1").await?;
    admin.pod("job", "job", "10.0.0.2").await?;
    let mut listener = Listener::complete(&server.kubeconfig()?).await?;
    let address = |text: &str| text.parse().map_err(anyhow::Error::from);
    let owner = |listener: &Listener, text: &str| -> Result<Option<String>> {
        let owner = listener.cluster.owner_of(address(text)?);
        Ok(owner.map(|pod| pod.name.to_string()))
    };
    assert_eq!(owner(&listener, "10.0.0.2")?, Some("shop/job".to_owned()));
    listener.take_told();

    admin
        .status("job", json!({"status": {"phase": "Succeeded"}}))
        .await?;
    listener.catch_up(&admin).await?;
    assert_eq!(owner(&listener, "10.0.0.2")?, None, "it has completed");

    admin.delete_pod("web").await?;
    admin.pod("web", "web", "10.0.0.3").await?;
    listener.catch_up(&admin).await?;
    assert_eq!(owner(&listener, "10.0.0.1")?, None);
    assert_eq!(owner(&listener, "10.0.0.3")?, Some("shop/web".to_owned()));
    assert!(listener.take_told().contains(&"shop/web gone".to_owned()));

    admin.delete_pod("web").await?;
    listener.catch_up(&admin).await?;
    assert_eq!(
        listener.told.last().map(String::as_str),
        Some("shop/web gone")
    );
    assert_eq!(listener.app("web"), None);
    Ok(())
}
