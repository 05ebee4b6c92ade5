//! From nothing to a cluster, step by step: each waits for what the next one needs.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};

use super::certs::Authority;
use super::config::{self, PKI, Shape};
use super::kubectl::Kubectl;
use super::network;
use super::node::{self, CONTROL_PLANE, Node};
use super::process::{self, Look, TooLate, wait_for};
use super::state::State;
use super::{cgroup, images, workloads};
use crate::places;

/// What each step may take; machines that are busy with builds are slow.
const PATIENCE: Duration = Duration::from_mins(2);

/// What pods get their interfaces by: Debian's, copied to each node as an installer would.
const PLUGINS: &str = "/usr/lib/cni";
const PLUGIN_NAMES: &[&str] = &[
    "bridge",
    "host-local",
    "loopback",
    "portmap",
    "ptp",
    "tuning",
];

/// A cluster in the making.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    shape: Shape,
    state: &'a State,
    parts: &'a Path,
    archives: &'a [PathBuf],
    kubectl: Kubectl,
    started: Instant,
}

impl<'a> Cluster<'a> {
    pub(super) fn new(
        shape: Shape,
        state: &'a State,
        parts: &'a Path,
        archives: &'a [PathBuf],
    ) -> Self {
        Self {
            shape,
            state,
            parts,
            archives,
            kubectl: Kubectl::new(state, parts),
            started: Instant::now(),
        }
    }

    /// All of it: nodes that are Ready, and DNS.
    pub(super) fn bring_up(&self) -> Result<()> {
        let dir = self.state.dir();
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let authority = self.certificates()?;
        let mut control_plane = self.control_plane(&authority)?;
        self.door(&authority, &control_plane)?;
        self.api_answers(&mut control_plane)?;
        self.say("the API server answers");
        control_plane.run(self.state, &config::kube_controller_manager())?;
        control_plane.run(self.state, &config::kube_scheduler())?;
        let mut nodes = Vec::new();
        for number in 1..=self.shape.nodes {
            nodes.push(self.node(&authority, &control_plane, number)?);
        }
        self.containerd(&mut nodes)?;
        for (at, node) in nodes.iter_mut().enumerate() {
            let name = node.name.clone();
            let number = at + 1;
            node.run(
                self.state,
                &config::start_kubelet(self.shape.family, number, &name),
            )?;
            node.run(self.state, &config::start_kube_proxy())?;
        }
        let running: Vec<(String, u32)> = nodes
            .iter()
            .map(|node| (node.name.clone(), node.pid))
            .collect();
        images::load(&running, self.archives)?;
        self.say("images are loaded");
        self.nodes_are_ready(&mut control_plane, &mut nodes)?;
        self.say("all nodes are Ready");
        workloads::can_be_made(&self.kubectl)?;
        let dns = config::dns(self.shape.family);
        workloads::apply(&self.kubectl, "the cluster's DNS", &dns)
            .map_err(|error| explained(error, &nodes))?;
        self.say("DNS runs");
        self.state.set_complete(self.parts)
    }

    fn say(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.started.elapsed().as_secs_f32());
    }

    fn certificates(&self) -> Result<Authority> {
        let family = self.shape.family;
        let authority = Authority::found(&self.state.dir().join("pki"))?;
        let mut names: Vec<String> = ["127.0.0.1", "::1", "localhost"]
            .map(str::to_owned)
            .to_vec();
        names.extend(family.control_plane());
        names.extend(family.api_service());
        let service = "kubernetes.default.svc.cluster.local";
        for (at, _) in service.match_indices('.') {
            names.extend(service.get(..at).map(str::to_owned));
        }
        names.push(service.to_owned());
        authority.server("apiserver", "kube-apiserver", &names)?;
        let masters = Some("system:masters");
        for (file, user, group) in [
            ("admin", "admin", masters),
            ("controller-manager", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
            ("kube-proxy", "system:kube-proxy", None),
            ("kubelet-client", "kube-apiserver-kubelet-client", masters),
            ("front-proxy-client", "front-proxy-client", None),
        ] {
            authority.client(file, user, group)?;
        }
        for number in 1..=self.shape.nodes {
            let node = name_of(number);
            authority.client(&node, &format!("system:node:{node}"), Some("system:nodes"))?;
        }
        Ok(authority)
    }

    fn control_plane(&self, authority: &Authority) -> Result<Node> {
        let server = "https://127.0.0.1:6443";
        let mut node = Node::start(self.state, self.parts, CONTROL_PLANE, |root| {
            copy_dir(&self.state.dir().join("pki"), &inside(root, PKI))?;
            for file in ["controller-manager", "scheduler"] {
                let kubeconfig = authority.kubeconfig(file, server)?;
                write(root, &format!("/etc/kubernetes/{file}.conf"), kubeconfig)?;
            }
            Ok(())
        })?;
        node.ip(&network::fabric(self.shape.family))?;
        node.run(self.state, &config::etcd())?;
        node.run(self.state, &config::kube_apiserver(self.shape.family))?;
        Ok(node)
    }

    /// The way from this machine's loopback into the control plane's namespace, which nothing else
    /// of the machine can reach.
    fn door(&self, authority: &Authority, control_plane: &Node) -> Result<()> {
        let free =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
        let port = free.local_addr().context("looking for a free port")?.port();
        drop(free);
        let inside = format!(
            "EXEC:nsenter --net=/proc/{}/ns/net socat - TCP\\:127.0.0.1\\:6443",
            control_plane.pid
        );
        let outside = format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr");
        let mut socat = process::command("setsid");
        let log = self.state.dir().join("door.log");
        node::spawn(
            socat.args(["socat", &outside, &inside]),
            self.state.dir(),
            &log,
        )?;
        let kubeconfig = authority.kubeconfig("admin", &format!("https://127.0.0.1:{port}"))?;
        let file = self.state.kubeconfig();
        fs::write(&file, kubeconfig)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o600)))
            .and_then(|()| match (id("SUDO_UID"), id("SUDO_GID")) {
                // Whoever called sudo shall use it, too.
                (Some(user), group) => chown(&file, Some(user), group),
                (None, _) => Ok(()),
            })
            .with_context(|| format!("writing {}", file.display()))
    }

    fn api_answers(&self, control_plane: &mut Node) -> Result<()> {
        let answered = wait_for("an answer of the API server", PATIENCE, || {
            control_plane.still_runs()?;
            Ok(match self.kubectl.output(["get", "--raw=/readyz"]) {
                Ok(_) => Look::There(()),
                Err(error) => Look::Missing(format!("{error:#}")),
            })
        });
        answered.map_err(|error| explained(error, std::slice::from_ref(control_plane)))
    }

    fn node(&self, authority: &Authority, control_plane: &Node, number: usize) -> Result<Node> {
        let (name, family) = (name_of(number), self.shape.family);
        let cgroup = cgroup::make(&name, self.state.dir())?;
        let server = family.api_url();
        let runc = places::on_path("runc").context("there is no runc here")?;
        let node = Node::start(self.state, self.parts, &name, |root| {
            let pki = self.state.dir().join("pki/ca.crt");
            let ca = fs::read(&pki).with_context(|| format!("reading {}", pki.display()))?;
            write(root, &format!("{PKI}/ca.crt"), ca)?;
            for (file, client) in [("kubelet", name.as_str()), ("kube-proxy", "kube-proxy")] {
                let kubeconfig = authority.kubeconfig(client, &server)?;
                write(root, &format!("/etc/kubernetes/{file}.conf"), kubeconfig)?;
            }
            let kubelet = config::kubelet(family, &cgroup);
            write(root, "/etc/kubernetes/kubelet.json", kubelet.to_string())?;
            let proxy = config::kube_proxy(self.shape, &name);
            write(root, "/etc/kubernetes/kube-proxy.json", proxy.to_string())?;
            let containerd = config::containerd(&runc.to_string_lossy());
            write(root, "/etc/containerd/config.toml", containerd)?;
            let conflist = config::conflist(self.shape, number);
            write(
                root,
                "/etc/cni/net.d/10-cluster.conflist",
                format!("{conflist:#}\n"),
            )?;
            // A missing image must not ask the machine's resolver, a pod not the machine's servers.
            write(root, "/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
            write(root, "/etc/machine-id", format!("{number:032x}\n"))?;
            for plugin in PLUGIN_NAMES {
                let from = Path::new(PLUGINS).join(plugin);
                copy(&from, &inside(root, "/opt/cni/bin").join(plugin))?;
            }
            Ok(())
        })?;
        control_plane.ip(&network::cable(family, number, node.pid))?;
        node.ip(&network::node(family, number, self.shape.nodes))?;
        Ok(node)
    }

    fn containerd(&self, nodes: &mut [Node]) -> Result<()> {
        for node in nodes.iter_mut() {
            node.run(self.state, &["containerd".to_owned()])?;
        }
        for node in nodes {
            let name = node.name.clone();
            let answered = wait_for(
                &format!("{name}: an answer of containerd"),
                PATIENCE,
                || {
                    node.still_runs()?;
                    Ok(match process::output(node.command("ctr").arg("version")) {
                        Ok(_) => Look::There(()),
                        Err(error) => Look::Missing(format!("{error:#}")),
                    })
                },
            );
            answered.map_err(|error| explained(error, std::slice::from_ref(node)))?;
        }
        Ok(())
    }

    fn nodes_are_ready(&self, control_plane: &mut Node, nodes: &mut [Node]) -> Result<()> {
        let ready = wait_for("all nodes Ready", PATIENCE, || {
            control_plane.still_runs()?;
            for node in nodes.iter_mut() {
                node.still_runs()?;
            }
            let waiting = match self.kubectl.json(["get", "nodes"]) {
                Ok(list) => not_ready(&list, self.shape.nodes),
                Err(error) => vec![format!("{error:#}")],
            };
            Ok(if waiting.is_empty() {
                Look::There(())
            } else {
                Look::Missing(waiting.join(", "))
            })
        });
        ready.map_err(|error| explained(error, nodes))?;
        for number in 1..=self.shape.nodes {
            let ranges = self.shape.family.pods_of(number);
            let patch = json!({"spec": {"podCIDR": ranges.first(), "podCIDRs": ranges}});
            let patch = patch.to_string();
            self.kubectl
                .output(["patch", "node", &name_of(number), "--patch", &patch])?;
        }
        Ok(())
    }
}

/// The error; where nobody has said why, also what the nodes' programs complain of.
fn explained(error: anyhow::Error, nodes: &[Node]) -> anyhow::Error {
    if !error.is::<TooLate>() {
        return error;
    }
    let complaints: String = nodes.iter().map(Node::complaints).collect();
    anyhow!("{error:#}{complaints}")
}

/// Nodes that are not Ready, or not even there.
fn not_ready(list: &Value, nodes: usize) -> Vec<String> {
    let items = list.get("items").and_then(Value::as_array);
    let items: Vec<&Value> = items.into_iter().flatten().collect();
    let is_ready = |name: &str| {
        let is_it = |node: &&&Value| {
            let found = node.pointer("/metadata/name");
            found.and_then(Value::as_str) == Some(name)
        };
        let conditions = items.iter().find(is_it);
        let conditions = conditions.and_then(|node| node.pointer("/status/conditions"));
        let conditions = conditions.and_then(Value::as_array).into_iter().flatten();
        let mut fields =
            conditions.map(|condition| (condition.get("type"), condition.get("status")));
        fields.any(|(kind, status)| {
            kind.and_then(Value::as_str) == Some("Ready")
                && status.and_then(Value::as_str) == Some("True")
        })
    };
    (1..=nodes)
        .map(name_of)
        .filter(|name| !is_ready(name))
        .map(|name| format!("{name} is not Ready"))
        .collect()
}

fn name_of(number: usize) -> String {
    format!("n{number}")
}

fn id(variable: &str) -> Option<u32> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A node's path, in the directory that becomes part of it.
fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn write(root: &Path, path: &str, contents: impl AsRef<[u8]>) -> Result<()> {
    let path = inside(root, path);
    make_parent(&path)?;
    fs::write(&path, contents).with_context(|| format!("writing {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry.with_context(|| format!("reading {}", from.display()))?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_there_or_not_ready_is_waited_for() {
        let node = |name: &str, ready: &str| {
            json!({
                "metadata": {"name": name},
                "status": {"conditions": [
                    {"type": "DiskPressure", "status": "False"},
                    {"type": "Ready", "status": ready},
                ]},
            })
        };
        let list = json!({"items": [node("n1", "True"), node("n2", "Unknown")]});
        assert_eq!(not_ready(&list, 3), ["n2 is not Ready", "n3 is not Ready"]);
        assert!(not_ready(&list, 1).is_empty());
    }
}
