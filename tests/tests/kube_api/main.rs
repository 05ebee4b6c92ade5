//! The source that watches a Kubernetes API, against a real one: what it tells, what it keeps to
//! itself, and what it makes of servers that fail. `cargo xtask test api` runs these.

mod enforced;
mod faults;
mod kept;
mod numbers;
mod scale;
mod taint;
mod world;

use anyhow::Result;
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
