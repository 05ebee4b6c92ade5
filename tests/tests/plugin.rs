//! The chained CNI plugin, called as a runtime calls it, on a node where nothing else says whose an
//! interface is: a pod's policy is in force when it returns, or what the configuration says happens.
#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value does not have is null there"
)]

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent::dto::{EndpointState, Status};
use agent_policy::model::Protocol;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::lab::agent::{Agent, ask, run_picket};
use tests::lab::namespace::NETNS_DIR;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::{Stage, endpoint};
use tests::lab::wait_until;

/// The lab's own `/run` is empty: these are not there before somebody makes them.
const NETWORKS: &str = "/run/cni/net.d";
const PLUGINS: &str = "/run/cni/bin";
const PROGRAM: &str = "/run/cni/bin/picket-cni";
const LIST: &str = "/run/cni/net.d/10-lab.conflist";
const RESULTS: &str = "/run/cni/nowhere";
const PORTS: &[(Protocol, u16)] = &[(Protocol::TCP, 8080)];
const WITHIN: Duration = Duration::from_secs(30);
/// As a CNI writes it.
const AS_WRITTEN: &str = r#"{
  "name": "lab",
  "cniVersion": "1.0.0",
  "plugins": [
    {"type": "ptp", "ipam": {"type": "host-local"}}
  ]
}
"#;

fn options() -> Vec<&'static str> {
    vec![
        "--cni-results",
        RESULTS,
        "--cni-plugin",
        "install",
        "--cni-conf-dir",
        NETWORKS,
        "--cni-bin-dir",
        PLUGINS,
    ]
}

/// An agent that has put the plugin into the lab's network.
fn stage() -> Result<Stage> {
    let objects = [
        namespace("shop", ""),
        pod("shop/server", "role: server", &["10.14.0.1"]),
        pod("shop/other", "role: other", &["10.14.0.2"]),
        policy(
            "shop",
            "clients",
            "{podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], \
             egress: [{to: [{podSelector: {matchLabels: {role: server}}}]}]}",
        ),
    ];
    let mut stage = Stage::without_agent(&objects.join("---\n"))?;
    fs::create_dir_all(NETWORKS).context("making the directory of networks")?;
    fs::write(LIST, AS_WRITTEN).context("writing the list")?;
    let manifests = stage.lab.manifests();
    stage.agent = Some(Agent::start_with(&manifests, &options())?);
    installed()?;
    Ok(stage)
}

/// Waits until the list names the plugin; its entry.
fn installed() -> Result<Value> {
    wait_until("the list to name the plugin", WITHIN, || {
        let list: Value = serde_json::from_str(&fs::read_to_string(LIST)?)?;
        let last = list["plugins"]
            .as_array()
            .and_then(|plugins| plugins.last());
        let ours = last.filter(|plugin| plugin["type"] == "picket-cni");
        ours.cloned().with_context(|| format!("{list}"))
    })
}

/// A pod's object as the API has it before the kubelet has told its address.
fn unaddressed(name: &str, uid: &str, labels: &str) -> String {
    let metadata = format!("metadata: {{uid: {uid}, ");
    pod::<IpAddr>(name, labels, &[]).replacen("metadata: {", &metadata, 1)
}

/// A call of the plugin for a pod that the lab has made.
struct Call {
    command: &'static str,
    pod: String,
    uid: String,
    network: Value,
}

impl Call {
    /// ADD, with the entry that is in the list.
    fn add(name: &str, uid: &str, address: &str) -> Result<Self> {
        let mut network = installed()?;
        let netns = Path::new(NETNS_DIR).join(name.replace('/', "_"));
        network["cniVersion"] = "1.0.0".into();
        network["name"] = "lab".into();
        network["prevResult"] = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": netns}],
            "ips": [{"interface": 0, "address": format!("{address}/32")}],
            "vendor": {"z": 1, "a": [2]},
        });
        Ok(Self {
            command: "ADD",
            pod: name.to_owned(),
            uid: uid.to_owned(),
            network,
        })
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.network[key] = value.into();
        self
    }

    fn run(&self) -> Result<Output> {
        run(
            self.command,
            &self.pod,
            &self.uid,
            &self.network.to_string(),
        )
    }

    /// It lets the pod start: what it prints is what it was given.
    fn starts(&self) -> Result<()> {
        let output = self.run()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{said}");
        ensure!(
            said == format!("{}\n", self.network["prevResult"]),
            "{said}"
        );
        Ok(())
    }

    /// It keeps the pod from starting; what it says.
    fn fails(&self) -> Result<Value> {
        let output = self.run()?;
        let said: Value = serde_json::from_slice(&output.stdout).context("reading its answer")?;
        ensure!(output.status.code() == Some(1), "{said}");
        ensure!(said["cniVersion"] == "1.0.0", "{said}");
        Ok(said)
    }
}

/// Runs the installed program with what a runtime gives it.
fn run(command: &str, pod: &str, uid: &str, input: &str) -> Result<Output> {
    let (namespace, name) = pod.split_once('/').context("namespace/name")?;
    let netns = Path::new(NETNS_DIR).join(pod.replace('/', "_"));
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
         K8S_POD_INFRA_CONTAINER_ID=c-{uid};K8S_POD_UID={uid}"
    );
    let mut child = Command::new(PROGRAM)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", format!("c-{uid}"))
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", arguments)
        .env("CNI_PATH", PLUGINS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the plugin")?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    // One that does not want it may have ended.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    child.wait_with_output().context("waiting for the plugin")
}

fn is_programmed(name: &str) -> Result<bool> {
    let status: Status = ask("/v1/status")?;
    let found = endpoint(&status, name);
    Ok(found.is_ok_and(|endpoint| endpoint.state == EndpointState::Programmed))
}

#[test]
fn a_pods_policy_is_in_force_when_the_plugin_returns_what_it_was_given() -> Result<()> {
    let mut stage = stage()?;
    let object = unaddressed("shop/client", "u-client", "role: client");
    stage.apply("client.yaml", &object)?;
    stage.lab.add_pod("shop/client", &["10.14.0.3".parse()?])?;
    let _servers = [
        stage.lab.serve("shop/server", PORTS)?,
        stage.lab.serve("shop/other", PORTS)?,
    ];
    ensure!(
        !is_programmed("shop/client")?,
        "nobody has said whose it is"
    );
    Call::add("shop/client", "u-client", "10.14.0.3")?.starts()?;
    ensure!(
        is_programmed("shop/client")?,
        "it may start, and is not enforced"
    );
    ensure!(stage.lab.reaches("shop/client", "shop/server", PORTS)?);
    ensure!(!stage.lab.reaches("shop/client", "shop/other", PORTS)?);
    // The runtime has forgotten it, and it goes on.
    let mut gone = Call::add("shop/client", "u-client", "10.14.0.3")?;
    gone.command = "DEL";
    ensure!(gone.run()?.stdout.is_empty());
    stage.settle()?;
    ensure!(is_programmed("shop/client")?);
    Ok(())
}

#[test]
fn what_a_pod_does_first_never_waits_for_a_retransmit() -> Result<()> {
    const PODS: u8 = 25;
    /// A first segment that is lost is sent again after a second.
    const BEFORE_A_RETRANSMIT: Duration = Duration::from_millis(900);
    let mut stage = stage()?;
    let named = |number: u8| (format!("shop/client-{number}"), format!("u-{number}"));
    let objects: Vec<String> = (0..PODS)
        .map(|number| unaddressed(&named(number).0, &named(number).1, "role: client"))
        .collect();
    stage.apply("clients.yaml", &objects.join("---\n"))?;
    let _server = stage.lab.serve("shop/server", PORTS)?;
    let server = SocketAddr::from(([10, 14, 0, 1], PORTS[0].1));
    for number in 0..PODS {
        let (name, uid) = named(number);
        let address = Ipv4Addr::new(10, 14, 1, number + 1);
        stage.lab.add_pod(&name, &[address.into()])?;
        Call::add(&name, &uid, &address.to_string())?.starts()?;
        let namespace = &stage.lab.place(&name)?.namespace;
        let first =
            namespace.enter(|| Ok(TcpStream::connect_timeout(&server, BEFORE_A_RETRANSMIT)?));
        first.with_context(|| format!("the first act of {name}"))?;
    }
    Ok(())
}

#[test]
fn a_pod_that_nobody_knows_starts_or_fails_as_the_network_says_and_waits_no_longer() -> Result<()> {
    let mut stage = stage()?;
    stage
        .lab
        .add_pod("shop/stranger", &["10.14.0.3".parse()?])?;
    let call = || Call::add("shop/stranger", "u-stranger", "10.14.0.3");
    let began = Instant::now();
    call()?.with("waitMillis", 300).starts()?;
    ensure!(
        began.elapsed() >= Duration::from_millis(150),
        "it did not wait"
    );
    let said = call()?
        .with("waitMillis", 2_000)
        .with("onTimeout", "fail")
        .fails()?;
    ensure!(said["code"] == 11, "{said}");
    let message = said["msg"].as_str().context("no message")?;
    ensure!(
        message.contains("no object of the pod is known"),
        "{message}"
    );
    // However long it is told to.
    let began = Instant::now();
    call()?.with("waitMillis", 600_000).starts()?;
    ensure!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    Ok(())
}

#[test]
fn without_an_agent_pods_start_or_fail_as_the_network_says_and_one_that_comes_back_is_heard()
-> Result<()> {
    let mut stage = stage()?;
    let object = unaddressed("shop/client", "u-client", "role: client");
    stage.apply("client.yaml", &object)?;
    stage.lab.add_pod("shop/client", &["10.14.0.3".parse()?])?;
    let call = || Call::add("shop/client", "u-client", "10.14.0.3");
    let agent = stage.agent.take().context("no agent")?;
    agent.stop()?;
    call()?.with("waitMillis", 200).starts()?;
    let said = call()?
        .with("waitMillis", 200)
        .with("onTimeout", "fail")
        .fails()?;
    ensure!(said["code"] == 11, "{said}");
    let message = said["msg"].as_str().context("no message")?;
    ensure!(
        message.contains("no agent answers at /run/picket/agent.sock"),
        "{message}"
    );

    // As the kubelet does, until it is let.
    let waiting = call()?.with("onTimeout", "fail");
    let waiting =
        std::thread::spawn(move || wait_until("the pod to start", WITHIN, || waiting.starts()));
    let manifests = stage.lab.manifests();
    stage.agent = Some(Agent::start_with(&manifests, &options())?);
    let waited = waiting.join().ok().context("the plugin's thread")?;
    waited.context("an agent came back")?;
    ensure!(is_programmed("shop/client")?);
    Ok(())
}

#[test]
fn what_a_runtime_asks_besides_is_answered_and_removing_always_succeeds() -> Result<()> {
    let stage = stage()?;
    let mut call = Call::add("shop/server", "u-server", "10.14.0.1")?;
    for command in ["DEL", "GC", "CHECK", "STATUS"] {
        call.command = command;
        let output = call.run()?;
        ensure!(
            output.status.success() && output.stdout.is_empty(),
            "{command}: {output:?}"
        );
    }
    for input in ["", "{", "[]"] {
        ensure!(
            run("DEL", "shop/server", "u", input)?.status.success(),
            "{input}"
        );
    }
    call.command = "VERSION";
    let said: Value = serde_json::from_slice(&call.run()?.stdout)?;
    ensure!(said["cniVersion"] == "1.0.0", "{said}");
    ensure!(
        said["supportedVersions"]
            .as_array()
            .is_some_and(|all| all.contains(&json!("1.1.0")))
    );
    call.command = "ADD";
    for (key, value, code) in [
        ("prevResult", Value::Null, 7),
        ("cniVersion", "0.2.0".into(), 1),
        ("onTimeout", "perhaps".into(), 6),
    ] {
        let said: Value = serde_json::from_slice(
            &Call::add("shop/server", "u", "10.14.0.1")?
                .with(key, value)
                .run()?
                .stdout,
        )?;
        ensure!(said["code"] == code, "{key}: {said}");
    }
    call.command = "DANCE";
    ensure!(serde_json::from_slice::<Value>(&call.run()?.stdout)?["code"] == 4);
    drop(stage);
    Ok(())
}

#[test]
fn the_list_names_the_plugin_while_the_agent_runs_and_is_what_it_was_after_an_uninstall()
-> Result<()> {
    let mut stage = stage()?;
    let ours = fs::read_to_string(LIST)?;
    let status: Status = ask("/v1/status")?;
    let plugin = status.cni_plugin.context("status does not say")?;
    ensure!(
        plugin.list.as_deref() == Some(LIST) && plugin.writes == 1,
        "{plugin:?}"
    );
    // The CNI writes its list anew.
    fs::write("/run/cni/net.d/new", AS_WRITTEN)?;
    fs::rename("/run/cni/net.d/new", LIST)?;
    installed()?;
    ensure!(fs::read_to_string(LIST)? == ours);
    // A network that the runtime prefers, behind which nothing can stand.
    fs::write("/run/cni/net.d/00-one.conf", "{}")?;
    wait_until("the problem to be said", WITHIN, || {
        let output = run_picket(&["status"])?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            said.contains("00-one.conf: the configuration of a single plugin"),
            "{said}"
        );
        ensure!(output.status.code() == Some(1));
        Ok(())
    })?;
    fs::remove_file("/run/cni/net.d/00-one.conf")?;

    stage.agent.take().context("no agent")?.stop()?;
    ensure!(
        fs::read_to_string(LIST)? == ours,
        "an agent that stops changes nothing"
    );
    let uninstall = [
        "uninstall",
        "--yes",
        "--cni-conf-dir",
        NETWORKS,
        "--cni-bin-dir",
        PLUGINS,
    ];
    let output = run_picket(&uninstall)?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{output:?}");
    ensure!(
        said.starts_with(&format!(
            "removed picket-cni from {LIST}\nremoved {PROGRAM}\n"
        )),
        "{said}"
    );
    ensure!(fs::read_to_string(LIST)? == AS_WRITTEN);
    ensure!(!Path::new(PROGRAM).exists());
    Ok(())
}
