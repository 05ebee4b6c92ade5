//! What `deploy/` says, held against the agent it starts: options, mounts, and that one manifest is
//! the same as the other.

use std::fs;
use std::path::{Path, PathBuf};

use agent::config::{DEFAULT_METRICS_PORT, DEFAULT_NETNS, DEFAULT_PINS, DEFAULT_SOCKET};
use agent::endpoints::DEFAULT_CNI_RESULTS;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::lab::agent::run_picket;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn text(name: &str) -> Result<String> {
    let path = deploy().join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// What is at a JSON pointer.
fn part<'a>(value: &'a Value, path: &str) -> Result<&'a Value> {
    value.pointer(path).with_context(|| format!("no {path}"))
}

/// What the pods of the agent's `DaemonSet` are, as `picket.yaml` has it.
fn pod() -> Result<Value> {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&text("picket.yaml")?).context("reading picket.yaml")?;
    let is_set = |object: &&Value| object.get("kind").is_some_and(|kind| kind == "DaemonSet");
    let set = objects.iter().find(is_set);
    let set = set.context("picket.yaml has no DaemonSet")?;
    Ok(part(set, "/spec/template/spec")?.clone())
}

#[test]
fn picket_yaml_is_the_kustomize_base_in_one_file() -> Result<()> {
    let whole = text("picket.yaml")?;
    let mut rest = whole.as_str();
    let base = serde_saphyr::from_str::<Value>(&text("kustomize/base/kustomization.yaml")?)?;
    for part in base["resources"].as_array().context("no resources")? {
        let part = part.as_str().context("a resource is no file's name")?;
        let (_, after) = rest
            .split_once("---\n")
            .with_context(|| format!("picket.yaml ends before {part}"))?;
        let same = text(&format!("kustomize/base/{part}"))?;
        rest = after
            .strip_prefix(same.as_str())
            .with_context(|| format!("kustomize/base/{part} is not what picket.yaml has there"))?;
    }
    ensure!(rest.is_empty(), "only picket.yaml has: {rest}");
    Ok(())
}

#[test]
fn what_the_agent_opens_is_mounted_where_it_looks_for_it() -> Result<()> {
    let pod = pod()?;
    let parent = |path: &str| Path::new(path).parent().map(Path::to_owned);
    let mounts = part(&pod, "/containers/0/volumeMounts")?;
    let mounts = mounts.as_array().context("no list")?;
    for place in [
        parent(DEFAULT_PINS),
        parent(DEFAULT_SOCKET),
        parent(DEFAULT_CNI_RESULTS),
        Some(DEFAULT_NETNS.into()),
    ] {
        let place = place.context("at the root of everything")?;
        let place = place.to_str().context("no text")?;
        let mount = mounts.iter().find(|mount| mount["mountPath"] == place);
        let name = &mount.with_context(|| format!("{place}: not mounted"))?["name"];
        let volumes = pod["volumes"].as_array();
        let volume = volumes
            .into_iter()
            .flatten()
            .find(|one| one["name"] == *name);
        // The node's own `picket` looks in the same places.
        ensure!(
            volume.is_some_and(|volume| volume["hostPath"]["path"] == place),
            "{place}: {volume:?}"
        );
    }
    Ok(())
}

#[test]
fn every_variable_is_an_option_of_the_agent_and_probes_ask_where_it_answers() -> Result<()> {
    let pod = pod()?;
    let container = part(&pod, "/containers/0")?;
    let output = run_picket(&["agent", "--help"])?;
    let help = String::from_utf8_lossy(&output.stdout);
    for variable in container["env"].as_array().context("no environment")? {
        let name = variable["name"].as_str().context("no name")?;
        ensure!(help.contains(&format!("[env: {name}=]")), "{name}: {help}");
    }
    let port = &container["ports"][0];
    ensure!(*port == json!({"name": "metrics", "containerPort": DEFAULT_METRICS_PORT}));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        ensure!(
            container[probe]["httpGet"]["port"] == port["name"],
            "{probe}"
        );
    }
    Ok(())
}

#[test]
fn every_option_of_the_agent_is_an_environment_variable_too() -> Result<()> {
    let output = run_picket(&["agent", "--help"])?;
    let help = String::from_utf8_lossy(&output.stdout);
    let (_, options) = help.split_once("Options:").context("no options")?;
    // Each begins with its name, and its text goes on to the next one's.
    let mut options = options.split("\n      --").skip(1);
    let without = options.find(|option| !option.contains("[env:"));
    let name = without.and_then(|option| option.split_whitespace().next());
    ensure!(name == Some("color"), "--{name:?}: {help}");
    ensure!(options.next().is_none(), "--color is the last: {help}");
    Ok(())
}
