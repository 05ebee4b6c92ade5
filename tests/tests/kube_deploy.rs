//! `deploy/` as a real API server takes it: every manifest as it is, strictly; the account's rights;
//! and that the chart renders what the plain manifests say. Run by `cargo xtask test api`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::api_server::{ApiServer, PARTS};
use tests::deploy::{Overlay, deploy};

/// The Helm that renders the chart.
const HELM: &str = "PICKET_HELM";
/// Whom the agent is to the server.
const ACCOUNT: &str = "system:serviceaccount:picket-system:picket";

/// A server, and what talks to it.
struct Cluster {
    server: ApiServer,
}

impl Cluster {
    fn start() -> Result<Self> {
        let server = ApiServer::start()?;
        Ok(Self { server })
    }

    /// What kubectl prints; an error when it fails.
    fn kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        output(self.server.kubectl()?.args(arguments))
    }

    /// Applies what `how` names; nothing of it may be unknown to the server.
    fn apply(&self, how: &str, what: &Path) -> Result<Vec<String>> {
        let what = what.as_os_str();
        let strictly = ["apply", "--validate=strict", "-o", "name", how].map(OsStr::new);
        let said = self.kubectl(strictly.into_iter().chain([what]))?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// The `DaemonSet` as the server has it, without what only the server says.
    fn daemon_set(&self) -> Result<Value> {
        let namespace = ["-n", "picket-system"];
        let asked = ["get", "daemonset", "picket", "-o", "json"];
        let text = self.kubectl(asked.into_iter().chain(namespace))?;
        let set: Value = serde_json::from_str(&text)?;
        let spec = set.pointer("/spec").context("a DaemonSet without spec")?;
        Ok(spec.clone())
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("reading what it prints")
}

/// The chart as Helm renders it with these values.
fn rendered(values: &[&str]) -> Result<String> {
    let Some(helm) = std::env::var_os(HELM) else {
        bail!("{HELM} is not set: run `cargo xtask test api`, which builds Helm and sets it");
    };
    let mut helm = Command::new(helm);
    helm.args(["template", "picket"]).arg(deploy("chart"));
    // The version of a cluster that Helm does not ask.
    helm.args(["--namespace", "picket-system", "--kube-version", "1.36.0"]);
    for value in values {
        helm.args(["--set", value]);
    }
    output(&mut helm)
}

/// The objects of some text, by kind and name.
fn objects(text: &str) -> Result<BTreeMap<(String, String), Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let word = |object: &Value, path: &str| {
        let word = object.pointer(path).and_then(Value::as_str);
        word.unwrap_or_default().to_owned()
    };
    let named = documents.into_iter().map(|object| {
        let name = (word(&object, "/kind"), word(&object, "/metadata/name"));
        (name, object)
    });
    Ok(named.collect())
}

#[test]
fn picket_yaml_is_accepted_as_it_is_and_applying_it_again_changes_nothing() -> Result<()> {
    let cluster = Cluster::start()?;
    let manifest = deploy("picket.yaml");
    let names = cluster.apply("-f", &manifest)?;
    ensure!(
        names
            == [
                "namespace/picket-system",
                "serviceaccount/picket",
                "clusterrole.rbac.authorization.k8s.io/picket",
                "clusterrolebinding.rbac.authorization.k8s.io/picket",
                "daemonset.apps/picket",
            ],
        "{names:?}"
    );
    let differences = cluster.kubectl([OsStr::new("diff"), "-f".as_ref(), manifest.as_ref()])?;
    ensure!(differences.is_empty(), "{differences}");
    Ok(())
}

#[test]
fn the_account_may_list_and_watch_what_policy_is_made_of_and_nothing_else() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.apply("-f", &deploy("picket.yaml"))?;
    let may = |user: &str| cluster.kubectl(["auth", "can-i", "--list", "--as", user]);
    let everyone = may("system:serviceaccount:picket-system:other")?;
    let mut own: Vec<String> = may(ACCOUNT)?
        .lines()
        .filter(|line| !everyone.contains(line))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    own.sort();
    ensure!(
        own == [
            "endpointslices.discovery.k8s.io [] [] [list watch]",
            "namespaces [] [] [list watch]",
            "networkpolicies.networking.k8s.io [] [] [list watch]",
            "nodes [] [] [list watch]",
            "pods [] [] [list watch]",
            "services [] [] [list watch]",
        ],
        "{own:#?}"
    );
    Ok(())
}

/// Where a container mounts what another does not; the other's are the first of its own.
fn added(before: &Value, after: &Value) -> Result<Vec<String>> {
    let mounts = |of: &Value| of["volumeMounts"].as_array().cloned().context("no mounts");
    let (before, after) = (mounts(before)?, mounts(after)?);
    let rest = after.strip_prefix(before.as_slice());
    let rest = rest.with_context(|| format!("{after:?}"))?.iter();
    let paths = rest.map(|mount| mount["mountPath"].as_str().unwrap_or_default().to_owned());
    Ok(paths.collect())
}

#[test]
fn every_component_is_accepted_and_adds_only_what_it_says() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.apply("-f", &deploy("picket.yaml"))?;
    let agent = |set: &Value| set["template"]["spec"]["containers"][0].clone();
    let plain = agent(&cluster.daemon_set()?);
    let all = [
        "cni-plugin",
        "linux-5.10",
        "metrics",
        "reset-on-cut",
        "startup-taint",
    ];
    let all = Overlay::of(&all, &[])?;
    cluster.apply("-k", all.path())?;
    let mut changed = agent(&cluster.daemon_set()?);
    let environment = changed["env"].as_array().context("no environment")?;
    let at = |name: &str| environment.iter().position(|one| one["name"] == name);
    ensure!(
        at("NODE_ADDRESS") < at("PICKET_METRICS"),
        "referred to before it is there"
    );
    ensure!(environment[at("PICKET_METRICS").context("none")?]["value"] == "$(NODE_ADDRESS)");
    ensure!(environment[at("PICKET_ON_CUT").context("none")?]["value"] == "reset");
    ensure!(environment[at("PICKET_CNI_PLUGIN").context("none")?]["value"] == "install");
    ensure!(added(&plain, &changed)? == ["/etc/cni/net.d", "/opt/cni/bin"]);
    let capabilities = &changed["securityContext"]["capabilities"]["add"];
    ensure!(
        *capabilities == serde_json::json!(["NET_ADMIN", "SYS_ADMIN", "SYS_RESOURCE", "NET_RAW"]),
        "{capabilities}"
    );
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        ensure!(changed[probe]["httpGet"].get("host").is_none(), "{probe}");
        changed[probe] = plain[probe].clone();
    }
    for part in ["env", "securityContext", "volumeMounts"] {
        changed[part] = plain[part].clone();
    }
    ensure!(changed == plain, "{changed:#}");
    Ok(())
}

#[test]
fn the_uninstalling_overlay_replaces_the_agent_and_keeps_what_it_may() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.apply("-f", &deploy("picket.yaml"))?;
    let before = cluster.daemon_set()?["template"]["spec"]["containers"][0].take();
    cluster.apply("-k", &deploy("kustomize/overlays/uninstall"))?;
    let mut set = cluster.daemon_set()?;
    let pod = &mut set["template"]["spec"];
    let uninstall = pod["initContainers"][0].take();
    ensure!(uninstall["args"] == serde_json::json!(["uninstall", "--yes"]));
    ensure!(added(&before, &uninstall)? == ["/etc/cni/net.d", "/opt/cni/bin"]);
    for part in ["image", "securityContext"] {
        ensure!(
            uninstall[part] == before[part],
            "{part}: {}",
            uninstall[part]
        );
    }
    let rest = pod["containers"].as_array().context("no containers")?;
    let [done] = rest.as_slice() else {
        bail!("{rest:?}");
    };
    ensure!(done["args"] == serde_json::json!(["uninstall", "--yes", "--wait"]));
    ensure!(done["image"] == before["image"], "{done}");
    ensure!(done.get("volumeMounts").is_none(), "{done}");
    ensure!(
        done["securityContext"]["capabilities"] == serde_json::json!({"drop": ["ALL"]}),
        "{done}"
    );
    Ok(())
}

#[test]
fn the_chart_renders_what_picket_yaml_says() -> Result<()> {
    let mut plain = objects(&fs::read_to_string(deploy("picket.yaml"))?)?;
    // Helm makes it.
    plain.remove(&("Namespace".to_owned(), "picket-system".to_owned()));
    let chart = objects(&rendered(&[])?)?;
    ensure!(chart == plain, "{chart:#?}\nis not\n{plain:#?}");
    Ok(())
}

#[test]
fn the_charts_startup_taint_is_the_components() -> Result<()> {
    let mut chart = objects(&rendered(&["startupTaint=true"])?)?;
    for plain in objects(&rendered(&[])?)?.keys() {
        chart.remove(plain);
    }
    let mut component = BTreeMap::new();
    for file in ["access.yaml", "policy.yaml"] {
        let path = deploy("kustomize/components/startup-taint").join(file);
        component.append(&mut objects(&fs::read_to_string(path)?)?);
    }
    ensure!(chart == component, "{chart:#?}\nis not\n{component:#?}");
    Ok(())
}

#[test]
fn the_chart_uninstalls_as_the_overlay_does() -> Result<()> {
    let parts = std::env::var_os(PARTS).with_context(|| format!("{PARTS} is not set"))?;
    let mut kustomize = Command::new(Path::new(&parts).join("kubectl"));
    kustomize.arg("kustomize");
    let overlay = output(kustomize.arg(deploy("kustomize/overlays/uninstall")))?;
    let mut overlay = objects(&overlay)?;
    overlay.remove(&("Namespace".to_owned(), "picket-system".to_owned()));
    let chart = objects(&rendered(&["uninstall=true"])?)?;
    ensure!(chart == overlay, "{chart:#?}\nis not\n{overlay:#?}");
    Ok(())
}

#[test]
fn the_chart_with_every_value_set_is_accepted_and_wrong_values_are_refused() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.kubectl(["create", "namespace", "picket-system"])?;
    let text = rendered(&[
        "image.repository=registry.example/picket,image.tag=1.2.3,image.pullSecrets[0].name=key",
        "posture=open,onCut=reset,midStreamGrace=60s,deniedRetention=1h,logFormat=json",
        "mapCapacities.PEERS_EXACT=262144,linux510=true,metrics.address=node,maxUnavailable=1",
        "startupTaint=true,cniPlugin.enabled=true,cniPlugin.onTimeout=fail",
        "podLabels.team=platform,podAnnotations.note=x",
    ])?;
    let file = Scratch::new("chart.yaml");
    fs::write(&file.0, &text)?;
    cluster.apply("-f", &file.0)?;
    let agent = cluster.daemon_set()?["template"]["spec"]["containers"][0].take();
    ensure!(agent["image"] == "registry.example/picket:1.2.3");
    ensure!(
        agent["args"][1] == "--map-capacity=PEERS_EXACT=262144",
        "{agent}"
    );
    for (value, complaint) in [
        ("posture=ajar", "/posture"),
        ("mapCapacities.PEERS_EXACT=0", "/mapCapacities/PEERS_EXACT"),
        ("postre=open", "'postre' not allowed"),
        ("midStreamGrace=1h30", "/midStreamGrace"),
        ("deniedRetention=1h30", "/deniedRetention"),
        ("cniPlugin.onTimeout=perhaps", "/cniPlugin/onTimeout"),
        (
            "metrics.podMonitor.enabled=true",
            "set metrics.address to node",
        ),
    ] {
        let refused = rendered(&[value]).err().context(value)?;
        ensure!(format!("{refused:#}").contains(complaint), "{refused:#}");
    }
    Ok(())
}

#[test]
fn what_a_prometheus_operator_reads_is_rendered_when_asked_for() -> Result<()> {
    let chart = objects(&rendered(&[
        "metrics.address=node,metrics.podMonitor.enabled=true,metrics.podMonitor.labels.a=b",
        "metrics.rules.enabled=true",
    ])?)?;
    let of = |kind: &str| chart.get(&(kind.to_owned(), "picket".to_owned()));
    let monitor = of("PodMonitor").context("no PodMonitor")?;
    ensure!(monitor["metadata"]["labels"]["a"] == "b");
    ensure!(monitor["spec"]["podMetricsEndpoints"][0]["port"] == "metrics");
    let rules = of("PrometheusRule").context("no PrometheusRule")?;
    let rules = rules["spec"]["groups"][0]["rules"].as_array();
    // Every series that an alert asks for is one that the agent serves.
    for rule in rules.context("no rules")? {
        let expression = rule["expr"].as_str().context("no expression")?;
        let series = expression
            .split(|char: char| !(char.is_ascii_lowercase() || char == '_'))
            .filter(|word| word.starts_with("picket_"));
        for name in series {
            let name = name.strip_suffix("_total").unwrap_or(name);
            ensure!(METRICS.contains(&format!("\"{name}\"")), "{name}");
        }
    }
    Ok(())
}

/// Where series are named.
const METRICS: &str = include_str!("../../agent/src/metrics.rs");

/// A file of this test's own, gone with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("picket-deploy-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Gone already is what is wanted.
        drop(fs::remove_file(&self.0));
    }
}
