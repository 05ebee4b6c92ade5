//! `picket doctor` on nodes as they are: what it says, how it ends, and that nothing of it stays,
//! however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use agent::dto::{CheckReport, CheckResult, Doctor, Document};
use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::tc::TcAttachType;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use tests::lab::Lab;
use tests::lab::agent::picket;
use tests::lab::foreign::{Foreign, Place};
use tests::lab::namespace::sysctl;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;
use tests::lab::wait_until;

/// The lab's own `/run` is empty: these are not there before somebody makes them.
const NETWORKS: &str = "/run/cni/net.d";
const PLUGINS: &str = "/run/cni/bin";
const RESULTS: &str = "/run/cni/results";
const STATE: &str = "/run/lab/state";
const WITHIN: Duration = Duration::from_mins(1);
const PTP: &str =
    r#"{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"ptp"},{"type":"portmap"}]}"#;
const CALICO: &str = r#"{"cniVersion":"0.3.1","name":"k8s-pod-network",
    "plugins":[{"type":"calico"},{"type":"portmap"}]}"#;

/// A node with a network that enforces nothing.
fn node() -> Result<Lab> {
    let lab = Lab::enter()?;
    for directory in [NETWORKS, PLUGINS, RESULTS] {
        fs::create_dir_all(directory).with_context(|| format!("making {directory}"))?;
    }
    network("10-lab.conflist", PTP)?;
    Ok(lab)
}

fn network(file: &str, content: &str) -> Result<()> {
    let path = Path::new(NETWORKS).join(file);
    fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
}

fn command() -> Result<Command> {
    let mut command = Command::new(picket()?);
    command.args(["doctor", "-o", "json", "--state", STATE]);
    command.args(["--cni-conf-dir", NETWORKS, "--cni-bin-dir", PLUGINS]);
    command.args(["--cni-results", RESULTS]);
    command.stdin(Stdio::null());
    Ok(command)
}

/// What it found, and its exit code.
fn doctor() -> Result<(Doctor, i32)> {
    let output = command()?.output().context("running picket doctor")?;
    let document: Document<Doctor> =
        serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
    ensure!(document.kind == "Doctor", "{}", document.kind);
    ensure!(output.stderr.is_empty(), "{}", said(&output));
    let code = output.status.code().context("it was killed")?;
    Ok((document.body, code))
}

fn said(output: &Output) -> String {
    let [out, error] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    format!("{}: {out}{error}", output.status)
}

fn check<'a>(doctor: &'a Doctor, name: &str) -> Result<&'a CheckReport> {
    let found = doctor.checks.iter().find(|check| check.check == name);
    found.with_context(|| format!("no {name} in {doctor:?}"))
}

/// What of a node could be left behind: mounts, interfaces, pins and names of namespaces.
#[derive(Debug, Eq, PartialEq)]
struct Remains {
    mounts: String,
    interfaces: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl Remains {
    fn read() -> Result<Self> {
        let mut files = BTreeSet::new();
        for directory in ["/sys/fs/bpf", "/run", "/run/netns", "/run/lab"] {
            files.extend(entries(Path::new(directory))?);
        }
        Ok(Self {
            mounts: fs::read_to_string("/proc/thread-self/mountinfo").context("reading mounts")?,
            interfaces: entries(Path::new("/sys/class/net"))?,
            files,
        })
    }
}

fn entries(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[test]
fn on_a_node_that_will_do_it_sends_packets_that_policy_decides_about_and_leaves_nothing()
-> Result<()> {
    let _lab = node()?;
    let before = Remains::read()?;
    let (doctor, code) = doctor()?;
    for name in [
        "kernel",
        "capabilities",
        "bpffs",
        "cni",
        "programs",
        "packets",
    ] {
        let check = check(&doctor, name)?;
        ensure!(check.result == CheckResult::Ok, "{check:?}");
        ensure!(check.remedy.is_none(), "{check:?}");
    }
    let packets = &check(&doctor, "packets")?.found;
    ensure!(
        packets.ends_with("ingress and egress, IPv4 and IPv6"),
        "{packets}"
    );
    ensure!(
        code == 0 && doctor.result == CheckResult::Ok,
        "{code}: {doctor:?}"
    );
    let after = Remains::read()?;
    ensure!(before == after, "{before:?}\n{after:?}");
    Ok(())
}

#[test]
fn a_network_that_enforces_by_itself_is_a_problem_with_a_remedy() -> Result<()> {
    let _lab = node()?;
    // The runtime takes the first by name.
    network("05-calico.conflist", CALICO)?;
    let (doctor, code) = doctor()?;
    let cni = check(&doctor, "cni")?;
    ensure!(cni.result == CheckResult::Problem, "{cni:?}");
    ensure!(
        cni.found
            .contains("05-calico.conflist: calico, portmap; Calico"),
        "{cni:?}"
    );
    ensure!(
        cni.remedy
            .as_ref()
            .is_some_and(|remedy| remedy.contains("switch")),
        "{cni:?}"
    );
    ensure!(code == 1 && doctor.result == CheckResult::Problem, "{code}");
    Ok(())
}

#[test]
fn an_entry_of_ours_without_its_program_is_a_problem() -> Result<()> {
    let _lab = node()?;
    network("10-lab.conflist", &PTP.replace("portmap", "picket-cni"))?;
    let (without, code) = doctor()?;
    let plugin = check(&without, "cni-plugin")?;
    ensure!(
        plugin.result == CheckResult::Problem && code == 1,
        "{plugin:?}"
    );
    symlink(picket()?, Path::new(PLUGINS).join("picket-cni")).context("a program")?;
    let (with, code) = doctor()?;
    ensure!(
        check(&with, "cni-plugin")?.result == CheckResult::Ok && code == 0,
        "{with:?}"
    );
    Ok(())
}

#[test]
fn where_a_capability_lacks_it_is_named_and_what_hangs_on_it_is_unknown() -> Result<()> {
    let _lab = node()?;
    let before = Remains::read()?;
    // What is started from this thread, and only that, can no longer have it.
    for capability in [CapabilitySet::SYS_ADMIN, CapabilitySet::BPF] {
        remove_capability_from_bounding_set(capability).context("giving a capability up")?;
    }
    let (doctor, code) = doctor()?;
    let capabilities = check(&doctor, "capabilities")?;
    ensure!(
        capabilities.result == CheckResult::Problem,
        "{capabilities:?}"
    );
    ensure!(
        capabilities.found.contains("without CAP_SYS_ADMIN no map"),
        "{capabilities:?}"
    );
    let remedy = capabilities.remedy.as_deref().unwrap_or_default();
    ensure!(
        remedy.starts_with("add SYS_ADMIN to securityContext"),
        "{remedy}"
    );
    for name in ["programs", "packets"] {
        let check = check(&doctor, name)?;
        ensure!(check.result == CheckResult::Unknown, "{check:?}");
    }
    ensure!(code == 1, "{code}");
    let after = Remains::read()?;
    ensure!(before == after, "{before:?}\n{after:?}");
    Ok(())
}

#[test]
fn an_ordinary_user_learns_that_it_cannot_be_told() -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    let _lab = node()?;
    let output = command()?.uid(65_534).gid(65_534).output()?;
    let document: Document<Doctor> =
        serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
    let doctor = document.body;
    ensure!(doctor.result == CheckResult::Unknown, "{doctor:?}");
    ensure!(output.status.code() == Some(3), "{}", output.status);
    let capabilities = check(&doctor, "capabilities")?;
    ensure!(capabilities.remedy.as_deref() == Some("run picket doctor as root"));
    Ok(())
}

#[test]
fn what_serves_services_and_whether_they_reach_a_bridges_own_pods_is_told() -> Result<()> {
    let mut lab = node()?;
    lab.add_pod("shop/api", &["10.16.0.1".parse()?])?;
    network("10-lab.conflist", &PTP.replace("ptp", "bridge"))?;
    lab.nft("add table ip kube-proxy; add chain ip kube-proxy services")?;
    lab.bridge(&["shop/api"], false)?;
    let (off, code) = doctor()?;
    let proxy = check(&off, "kube-proxy")?;
    ensure!(
        proxy.found.starts_with("nftables, by its rules"),
        "{proxy:?}"
    );
    ensure!(
        check(&off, "bridge")?.result == CheckResult::Problem && code == 1,
        "{off:?}"
    );
    for family in ["iptables", "ip6tables"] {
        sysctl(&format!("bridge/bridge-nf-call-{family}"), "1")?;
    }
    lab.nft("delete table ip kube-proxy; add table ip nat; add chain ip nat KUBE-SERVICES")?;
    let (on, code) = doctor()?;
    let proxy = check(&on, "kube-proxy")?;
    ensure!(proxy.found == "iptables, by its rules", "{proxy:?}");
    ensure!(
        check(&on, "bridge")?.result == CheckResult::Ok && code == 0,
        "{on:?}"
    );
    Ok(())
}

#[test]
fn beside_an_agent_it_says_what_that_one_enforces_and_leaves_it_alone() -> Result<()> {
    let objects = [
        namespace("shop", ""),
        pod("shop/api", "role: api", &["10.16.0.1"]),
        pod("shop/web", "role: web", &["10.16.0.2"]),
        policy("shop", "api", "{podSelector: {matchLabels: {role: api}}}"),
    ];
    let mut stage = Stage::open(&objects.join("---\n"))?;
    let meter = Foreign::uncounted(
        &format!("pod{}", stage.lab.place("shop/web")?.veth),
        TcAttachType::Ingress,
        Place::Tcx,
    );
    let before = Remains::read()?;
    let (with, _) = doctor()?;
    let agent = check(&with, "agent")?;
    let wanted = "enforces: pods here 3, of which isolated 1";
    ensure!(
        agent.found.ends_with(wanted) && agent.result == CheckResult::Ok,
        "{agent:?}"
    );
    ensure!(
        check(&with, "packets")?.result == CheckResult::Ok,
        "{with:?}"
    );
    // Where the kernel has TCX.
    if meter.is_ok() {
        let interfaces = check(&with, "interfaces")?;
        ensure!(interfaces.result == CheckResult::Warning, "{interfaces:?}");
        ensure!(
            interfaces.found.ends_with("on 1 of them: bare"),
            "{interfaces:?}"
        );
    }
    let after = Remains::read()?;
    ensure!(before == after, "{before:?}\n{after:?}");
    stage.settle()?;

    stage.agent.take().context("no agent")?.stop()?;
    let (without, code) = doctor()?;
    let agent = check(&without, "agent")?;
    ensure!(
        agent.result == CheckResult::Problem && code == 1,
        "{agent:?}"
    );
    ensure!(
        agent.found.contains("3 interfaces keep the policy"),
        "{agent:?}"
    );
    Ok(())
}

#[test]
fn killed_in_the_middle_it_leaves_nothing() -> Result<()> {
    let _lab = node()?;
    let before = Remains::read()?;
    for sign in ["/ground/", "bpf-map", "bpf-prog"] {
        let mut child = command()?.stdout(Stdio::null()).spawn()?;
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        let seen = wait_until("the attempt to be under way", WITHIN, || {
            if let Some(status) = child.try_wait()? {
                return Ok(Err(status));
            }
            let grounds = grounds(&process)?;
            ensure!(!grounds.is_empty(), "it is still where it was started");
            let is_seen = sign == "/ground/" || holds(&process, sign)?;
            ensure!(is_seen, "no {sign}");
            Ok(Ok(grounds))
        });
        child.kill().context("killing it")?;
        child.wait().context("waiting for it")?;
        let Ok(grounds) = seen? else {
            bail!("it has ended before {sign} was seen");
        };
        let after = Remains::read()?;
        ensure!(before == after, "{sign}: {before:?}\n{after:?}");
        wait_until("its namespaces to go", WITHIN, || {
            for ground in &grounds {
                ensure!(
                    !is_inhabited(ground)?,
                    "somebody is in {}",
                    ground.display()
                );
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Namespaces that threads of a process have and the process itself has not.
fn grounds(process: &Path) -> Result<BTreeSet<PathBuf>> {
    let of = |path: PathBuf| -> Result<[PathBuf; 2]> {
        Ok([
            fs::read_link(path.join("ns/net"))?,
            fs::read_link(path.join("ns/mnt"))?,
        ])
    };
    let own = of(process.to_owned())?;
    let mut found = BTreeSet::new();
    for thread in entries(&process.join("task"))? {
        found.extend(of(thread)?);
    }
    for namespace in own {
        found.remove(&namespace);
    }
    Ok(found)
}

/// Whether a descriptor of a process is of this kind.
fn holds(process: &Path, kind: &str) -> Result<bool> {
    let descriptors = entries(&process.join("fd"))?;
    let is_it =
        |path: PathBuf| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains(kind));
    Ok(descriptors.into_iter().any(is_it))
}

/// Whether any thread of the machine is in a namespace.
fn is_inhabited(namespace: &Path) -> Result<bool> {
    for process in entries(Path::new("/proc"))? {
        let Ok(threads) = entries(&process.join("task")) else {
            continue;
        };
        for thread in threads {
            for kind in ["ns/net", "ns/mnt"] {
                if fs::read_link(thread.join(kind)).is_ok_and(|found| found == namespace) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}
