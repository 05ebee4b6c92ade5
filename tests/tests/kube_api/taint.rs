//! The startup taint: gone from the agent's own node when that is ready, whenever it is there, and
//! from no other; with the rights that `deploy/` grants and no more.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::source::OwnNode;
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tests::api_server::ApiServer;
use tokio::sync::watch;

use super::server;
use super::world::{Admin, Listener};

const KEY: &str = "picket.dev/agent-not-ready";

fn ours(effect: &str) -> Value {
    json!({"key": KEY, "effect": effect})
}

fn another(key: &str) -> Value {
    json!({"key": key, "value": "x", "effect": "NoSchedule"})
}

/// The nodes of a server.
struct Nodes(Api<Node>);

impl Nodes {
    fn of(admin: &Admin) -> Self {
        Self(Api::all(admin.client.clone()))
    }

    async fn register(&self, name: &str, taints: &[Value]) -> Result<()> {
        let node = json!({"metadata": {"name": name}, "spec": {"taints": taints}});
        let node = serde_json::from_value(node)?;
        let created = self.0.create(&PostParams::default(), &node).await;
        created
            .map(drop)
            .with_context(|| format!("creating node {name}"))
    }

    async fn taint(&self, name: &str, taints: &[Value]) -> Result<()> {
        let spec = json!({"spec": {"taints": taints}});
        let patch = Patch::Merge(spec);
        let patched = self.0.patch(name, &PatchParams::default(), &patch).await;
        patched
            .map(drop)
            .with_context(|| format!("tainting node {name}"))
    }

    /// Keys of the taints of a node, the API server's own left out.
    async fn taints(&self, name: &str) -> Result<Vec<String>> {
        let node = self.0.get(name).await?;
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let keys = taints.into_iter().map(|taint| taint.key);
        Ok(keys
            .filter(|key| !key.starts_with("node.kubernetes.io/"))
            .collect())
    }

    /// They stay, for longer than a removal would take to come.
    async fn keeps_taints(&self, name: &str, expected: &[&str]) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            let taints = self.taints(name).await?;
            ensure!(taints == expected, "{name} has {taints:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn until_taints(&self, name: &str, expected: &[&str]) -> Result<()> {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let taints = self.taints(name).await?;
            if taints == expected {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{name} has {taints:?}, not {expected:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// An agent's source on a node, and what says that the node is ready.
async fn agent_on(node: &str, kubeconfig: &Path) -> Result<(Listener, watch::Sender<bool>)> {
    let (ready, is_ready) = watch::channel(false);
    let name = node.to_owned();
    let own_node = Some(OwnNode { name, is_ready });
    let mut listener = Listener::open_on(kubeconfig, own_node).await?;
    listener
        .until("a whole list", |seen| seen.is_complete)
        .await?;
    Ok((listener, ready))
}

fn kubectl(server: &ApiServer, arguments: &[&str]) -> Result<String> {
    let output = server
        .kubectl()?
        .args(arguments)
        .output()
        .context("running kubectl")?;
    ensure!(
        output.status.success(),
        "kubectl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("reading what kubectl prints")
}

/// Applies a part of `deploy/`.
fn apply(server: &ApiServer, part: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(part);
    let path = path.to_str().context("a path that is no text")?;
    kubectl(server, &["apply", "-f", path]).map(drop)
}

fn grant(server: &ApiServer) -> Result<()> {
    for file in ["access.yaml", "policy.yaml"] {
        apply(
            server,
            &format!("kustomize/components/startup-taint/{file}"),
        )?;
    }
    Ok(())
}

/// A kubeconfig with the token that an agent's pod on a node has.
fn agents_kubeconfig(server: &ApiServer, node: &str) -> Result<PathBuf> {
    let uid = kubectl(
        server,
        &["get", "node", node, "-o", "jsonpath={.metadata.uid}"],
    )?;
    let token = kubectl(
        server,
        &[
            "create",
            "token",
            "picket",
            "--namespace=picket-system",
            "--bound-object-kind=Node",
            &format!("--bound-object-name={node}"),
            &format!("--bound-object-uid={uid}"),
        ],
    )?;
    server.kubeconfig_with_token(node, token.trim())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_when_the_node_is_ready_and_again_when_it_comes_back_and_nothing_else_goes()
-> Result<()> {
    let (server, admin) = server().await?;
    let nodes = Nodes::of(&admin);
    let first = another("example.com/first");
    let all = [ours("NoExecute"), first.clone(), ours("NoSchedule")];
    nodes.register("n1", &all).await?;
    nodes.register("n2", &all).await?;
    let (mut listener, ready) = agent_on("n1", &server.kubeconfig()?).await?;

    let not_ready_yet = nodes.keeps_taints("n1", &[KEY, "example.com/first", KEY]);
    not_ready_yet.await?;
    ready.send_replace(true);
    nodes.until_taints("n1", &["example.com/first"]).await?;

    // Registered anew, while policy cannot be put in force, and then it can.
    ready.send_replace(false);
    let last = [another("example.com/last"), ours("NoExecute")];
    nodes.taint("n1", &last).await?;
    nodes.keeps_taints("n1", &["example.com/last", KEY]).await?;
    ready.send_replace(true);
    nodes.until_taints("n1", &["example.com/last"]).await?;
    assert_eq!(
        nodes.taints("n2").await?,
        [KEY, "example.com/first", KEY],
        "another agent's"
    );
    listener.catch_up(&admin).await?;
    assert!(listener.findings.is_empty(), "{:?}", listener.findings);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_changes_at_the_same_moment_is_not_undone() -> Result<()> {
    let (server, admin) = server().await?;
    let nodes = Nodes::of(&admin);
    nodes.register("n1", &[]).await?;
    let (_listener, ready) = agent_on("n1", &server.kubeconfig()?).await?;
    ready.send_replace(true);
    for round in 0..20 {
        let (one, other) = (format!("a/{round}"), format!("b/{round}"));
        nodes
            .taint("n1", &[ours("NoExecute"), another(&one)])
            .await?;
        // The entries that were seen have moved, or are about to go.
        let moved = [another(&other), another(&one), ours("NoExecute")];
        nodes.taint("n1", &moved).await?;
        nodes.until_taints("n1", &[&other, &one]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_may_not_remove_it_says_so_until_it_may() -> Result<()> {
    let (server, admin) = server().await?;
    apply(&server, "picket.yaml")?;
    let nodes = Nodes::of(&admin);
    nodes.register("n1", &[]).await?;
    let kubeconfig = agents_kubeconfig(&server, "n1")?;
    let (mut listener, ready) = agent_on("n1", &kubeconfig).await?;
    ready.send_replace(true);
    listener.catch_up(&admin).await?;
    assert!(
        listener.findings.is_empty(),
        "without the taint no right is wanted: {:?}",
        listener.findings
    );

    nodes.taint("n1", &[ours("NoExecute")]).await?;
    let parts = [
        "node n1",
        "spec.taints",
        KEY,
        "cannot patch resource \"nodes\"",
        "apply deploy/kustomize/components/startup-taint",
        "until then no pod starts here",
    ];
    listener
        .until("the refusal to be said", |seen| seen.has_finding(&parts))
        .await?;
    grant(&server)?;
    nodes.until_taints("n1", &[]).await?;
    listener
        .until("it to be mended", |seen| seen.findings.is_empty())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_of_deploy_admits_that_and_no_other_change_of_a_node() -> Result<()> {
    let (server, admin) = server().await?;
    apply(&server, "picket.yaml")?;
    grant(&server)?;
    let nodes = Nodes::of(&admin);
    let all = [ours("NoExecute"), another("example.com/first")];
    for name in ["n1", "n2"] {
        nodes.register(name, &[]).await?;
        // The server has given it a taint of its own, which nobody here may take away.
        nodes.taint(name, &all).await?;
    }
    let file = Kubeconfig::read_from(agents_kubeconfig(&server, "n1")?)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let agents: Api<Node> = Api::all(Client::try_from(config)?);
    let attempt = async |node: &str, change: Value| {
        let patch = Patch::Merge(change);
        let done = agents.patch(node, &PatchParams::default(), &patch).await;
        done.map(drop).map_err(|error| error.to_string())
    };
    let taints = |taints: &[Value]| json!({"spec": {"taints": taints}});
    let first = another("example.com/first");
    for (node, change, complaint) in [
        (
            "n2",
            taints(std::slice::from_ref(&first)),
            "runs on, and no other",
        ),
        ("n1", taints(&[ours("NoExecute")]), "and no other"),
        ("n1", taints(&[]), "and no other"),
        (
            "n1",
            taints(&[another("example.com/more"), first.clone()]),
            "and no other",
        ),
        (
            "n1",
            json!({"metadata": {"labels": {"role": "x"}}}),
            "nothing of a node but its taints",
        ),
        (
            "n1",
            json!({"metadata": {"annotations": {"note": "x"}}}),
            "nothing of a node but its taints",
        ),
        (
            "n1",
            json!({"spec": {"unschedulable": true}}),
            "nothing of a node but its taints",
        ),
        (
            "n1",
            json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}),
            "nothing of a node but its taints",
        ),
    ] {
        // The policy is in force some moments after it was written, and was not asked about before.
        let mut refused = attempt(node, change.clone()).await;
        for _try in 0..50 {
            if refused.is_err() {
                break;
            }
            nodes.taint("n1", &all).await?;
            nodes.taint("n2", &all).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            refused = attempt(node, change.clone()).await;
        }
        let refused = refused
            .err()
            .with_context(|| format!("{change} was admitted"))?;
        ensure!(refused.contains(complaint), "{change}: {refused}");
    }
    attempt("n1", taints(&[first]))
        .await
        .map_err(anyhow::Error::msg)?;
    assert_eq!(nodes.taints("n1").await?, ["example.com/first"]);
    Ok(())
}
