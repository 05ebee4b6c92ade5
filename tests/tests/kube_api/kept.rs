//! An agent that starts while the API is silent: what the one before it was told is on disk.

use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::{Agent, STATE, run_picket};
use tests::lab::wait_until;

use super::enforced::{PORTS, Scene, WITHIN, address, wait_reach};
use super::world::Listener;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_known_is_known_again_and_then_what_changed() -> Result<()> {
    let (mut server, admin) = super::server().await?;
    for (number, name) in ["stays", "changes", "goes"].into_iter().enumerate() {
        admin.pod(name, "a", &format!("10.0.0.{number}")).await?;
    }
    admin.admit("allow", "a").await?;
    let mut listener = Listener::complete(&server.kubeconfig()?).await?;
    // What came after the first word is kept as well.
    admin.relabel("changes", "b").await?;
    listener.catch_up(&admin).await?;
    drop(listener);
    server.kill_server();

    let mut listener = Listener::complete(&server.kubeconfig()?).await?;
    let known = |listener: &Listener| ["stays", "changes", "goes"].map(|name| listener.app(name));
    let some = |app: &str| Some(app.to_owned());
    assert_eq!(known(&listener), [some("a"), some("b"), some("a")]);
    assert!(listener.told.contains(&"policy shop/allow".to_owned()));
    assert!(
        listener.has_finding(&["what is in force is what the server had said until 20"]),
        "{:?}",
        listener.findings
    );
    listener.take_told();

    server.start_server()?;
    admin.relabel("changes", "c").await?;
    admin.delete_pod("goes").await?;
    listener.catch_up(&admin).await?;
    let mut told = listener.take_told();
    // A pod may be seen on its way out.
    told.retain(|told| told != "shop/goes a");
    assert_eq!(told, ["shop/changes c", "shop/goes gone"]);
    listener
        .until("all to be well", |seen| seen.findings.is_empty())
        .await?;
    assert_eq!(known(&listener), [some("a"), some("c"), None]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_answers_is_asked_and_not_the_disk() -> Result<()> {
    let (server, admin) = super::server().await?;
    admin.pod("web", "a", "10.0.0.1").await?;
    drop(Listener::complete(&server.kubeconfig()?).await?);
    admin.relabel("web", "b").await?;
    let listener = Listener::complete(&server.kubeconfig()?).await?;
    assert_eq!(listener.app("web").as_deref(), Some("b"));
    assert!(listener.findings.is_empty(), "{:?}", listener.findings);
    Ok(())
}

#[test]
fn an_agent_that_starts_without_an_api_repairs_and_enforces() -> Result<()> {
    let Scene {
        admin,
        runtime,
        mut server,
        mut lab,
    } = Scene::set()?;
    runtime.block_on(admin.admit("allow", "web"))?;
    let agent = Agent::start_on_api(&server.kubeconfig()?)?;
    {
        let _api = lab.serve("shop/api", PORTS)?;
        wait_reach(&lab, (true, false))?;
    }

    agent.kill()?;
    server.kill_server();
    // The runtime makes a pod's sandbox anew without asking anybody.
    lab.remove_pod("shop/api")?;
    lab.add_pod("shop/api", &[address(1)])?;
    let _api = lab.serve("shop/api", PORTS)?;
    wait_reach(&lab, (true, true)).context("nobody judges it yet")?;
    let agent = Agent::start_on_api(&server.kubeconfig()?)?;
    wait_reach(&lab, (true, false))?;
    let status = run_picket(&["status"])?;
    let text = String::from_utf8_lossy(&status.stdout);
    ensure!(text.contains(&format!("kept in {STATE}")), "{text}");

    server.start_server()?;
    runtime.block_on(admin.relabel("other", "web"))?;
    wait_reach(&lab, (true, true))?;
    wait_until("all to be well", WITHIN, || {
        let status = run_picket(&["status"])?;
        ensure!(
            status.status.success(),
            "{}",
            String::from_utf8_lossy(&status.stdout)
        );
        Ok(())
    })?;
    agent.stop()?;
    let uninstalled = run_picket(&["uninstall", "--yes", "--state", STATE])?;
    ensure!(uninstalled.status.success(), "{uninstalled:?}");
    ensure!(!std::path::Path::new(STATE).exists(), "nothing is left");
    Ok(())
}
