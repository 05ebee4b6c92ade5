//! The chained CNI plugin on real kubelets: where the runtime says nothing of its pods, each still
//! starts with its policy in force; and the plugin goes as it came.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use tests::deploy::with_variable;
use tests::lab::wait_until;

use super::deployment::{self, Changed};
use super::first_act::{address, ends, servers};
use super::host;
use super::namespace::{Namespace, PATIENCE};

const PODS: usize = 25;

/// The network of each node, byte for byte.
fn networks() -> Result<Vec<String>> {
    let kubelets = host::running("kubelet")?;
    ensure!(!kubelets.is_empty(), "no kubelet runs here");
    let networks = kubelets.into_iter().map(|kubelet| {
        let list = kubelet.path("/etc/cni/net.d/10-cluster.conflist");
        fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))
    });
    networks.collect()
}

fn all_have_it() -> Result<()> {
    for list in networks()? {
        ensure!(list.contains("picket-cni"), "{list}");
    }
    Ok(())
}

#[test]
fn pods_start_with_their_policy_by_the_plugin_alone_and_it_goes_as_it_came() -> Result<()> {
    let namespace = Namespace::alone("plugin")?;
    let [near, far] = namespace.two_nodes()?;
    let before = networks()?;
    // Nobody writes there.
    let no_results = with_variable("PICKET_CNI_RESULTS", "/nowhere");
    let changed = Changed::to(&["cni-plugin"], &[no_results])?;
    wait_until("the plugin on every node", PATIENCE, all_have_it)?;
    servers(&namespace, &near)?;
    let [server, open] = ["server", "open"].map(|role| address(&namespace, role));
    let (server, open) = (format!("{}:8080", server?), format!("{}:8080", open?));

    let friends = ends(&namespace, "friend", &near, &server, PODS)?;
    let far_friends = ends(&namespace, "friend", &far, &open, PODS)?;
    let strangers = ends(&namespace, "stranger", &near, &open, PODS)?;
    assert_eq!(friends, [PODS, 0], "[connected, not]");
    assert_eq!(far_friends, [PODS, 0], "[connected, not]");
    assert_eq!(strangers, [0, PODS], "[connected, not]");

    // The component left out: nobody takes the plugin away, and it still works.
    deployment::install()?;
    all_have_it()?;
    forget_ended(&namespace)?;
    let again = ends(&namespace, "friend", &near, &server, 1)?;
    assert_eq!(again, [1, 0], "[connected, not]");

    deployment::uninstall()?;
    assert_eq!(networks()?, before);
    // The runtime calls the plugin once more for pods that came with it.
    namespace.kubectl(&["delete", "pods", "--all", "--timeout=60s"])?;
    servers(&namespace, &near)?;
    let open = format!("{}:8080", address(&namespace, "open")?);
    let none = ends(&namespace, "stranger", &near, &open, 1)?;
    assert_eq!(none, [1, 0], "nothing is enforced: [connected, not]");
    drop(changed);
    forget_ended(&namespace)?;
    let enforced = ends(&namespace, "stranger", &near, &open, 1)?;
    assert_eq!(enforced, [0, 1], "[connected, not]");
    Ok(())
}

/// The pods that have ended go, so that others of their names can come.
fn forget_ended(namespace: &Namespace) -> Result<()> {
    let ended = ["delete", "pods", "-l", "on", "--grace-period=0", "--force"];
    namespace.kubectl(&ended).map(drop)
}
