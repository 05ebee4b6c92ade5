//! What each program of the cluster is told: files and options, as text.
//!
//! Paths are a node's: its own /etc, and `/run/state`, which is its part of the state directory.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::images::PAUSE;
use super::network::Family;

/// Where a node's certificates are.
pub(super) const PKI: &str = "/etc/kubernetes/pki";

/// The plugins that a pod's interface is made by.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Cni {
    /// A pair of interfaces a pod, routed.
    Ptp,
    /// A bridge a node.
    Bridge,
}

/// How kube-proxy serves Services.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Proxy {
    Nftables,
    Iptables,
}

impl Proxy {
    fn mode(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// What a cluster is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) nodes: usize,
    pub(super) cni: Cni,
    pub(super) proxy: Proxy,
    pub(super) family: Family,
}

/// The list of CNI plugins of node `number`.
pub(super) fn conflist(shape: Shape, number: usize) -> Value {
    let ranges: Vec<Value> = shape
        .family
        .pods_of(number)
        .into_iter()
        .map(|subnet| json!([{"subnet": subnet}]))
        .collect();
    let routes: Vec<Value> = shape
        .family
        .anywhere()
        .into_iter()
        .map(|dst| json!({"dst": dst}))
        .collect();
    let ipam = json!({"type": "host-local", "ranges": ranges, "routes": routes});
    let main = match shape.cni {
        Cni::Ptp => json!({"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": ipam}),
        Cni::Bridge => json!({
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": ipam,
        }),
    };
    json!({
        "cniVersion": "1.0.0",
        "name": "cluster",
        "plugins": [main, {"type": "portmap", "capabilities": {"portMappings": true}}],
    })
}

/// containerd's configuration: what it is by itself, but for what this machine may not do.
pub(super) fn containerd(runc: &str) -> String {
    format!(
        r#"version = 3
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs",
]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
  # A machine that is itself a container may not lower anybody's score.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = "{runc}"
  SystemdCgroup = false
"#
    )
}

/// kubelet's configuration on a node whose pods have their cgroups under `cgroup`.
pub(super) fn kubelet(family: Family, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": format!("{PKI}/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": false,
        "failSwapOn": false,
        // It refuses to start rather than change the machine's kernel.
        "protectKernelDefaults": true,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        "clusterDNS": [family.dns()],
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        // The disk is the machine's: no reason to move pods about.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
        "maxPods": 200,
    })
}

/// kube-proxy's configuration on a node.
pub(super) fn kube_proxy(shape: Shape, node: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": shape.proxy.mode(),
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.conf"},
        "clusterCIDR": shape.family.pods().join(","),
        // The table of connections is the machine's, and stays as large as it is.
        "conntrack": {"maxPerCore": 0, "min": 0},
    })
}

/// etcd and what it is started with. Nothing has to outlive the machine: it need not wait for disks.
pub(super) fn etcd() -> Vec<String> {
    words([
        "etcd",
        "--data-dir=/run/state/etcd",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ])
}

/// The API server and what it is started with.
pub(super) fn kube_apiserver(family: Family) -> Vec<String> {
    let mut all = words([
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=::",
        "--secure-port=6443",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
    ]);
    for (option, file) in [
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("client-ca-file", "ca.crt"),
        ("kubelet-client-certificate", "kubelet-client.crt"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
        ("requestheader-client-ca-file", "ca.crt"),
        ("proxy-client-cert-file", "front-proxy-client.crt"),
        ("proxy-client-key-file", "front-proxy-client.key"),
    ] {
        all.push(format!("--{option}={PKI}/{file}"));
    }
    all.push(format!(
        "--service-cluster-ip-range={}",
        family.services().join(",")
    ));
    all.extend(
        family
            .control_plane()
            .first()
            .map(|address| format!("--advertise-address={address}")),
    );
    all
}

/// The controllers and what they are started with. They hand no ranges to nodes: whose pods are
/// where is decided with the nodes' routes.
pub(super) fn kube_controller_manager() -> Vec<String> {
    let mut all = words([
        "kube-controller-manager",
        "--kubeconfig=/etc/kubernetes/controller-manager.conf",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        "--node-monitor-period=2s",
    ]);
    for (option, file) in [
        ("service-account-private-key-file", "sa.key"),
        ("root-ca-file", "ca.crt"),
        ("cluster-signing-cert-file", "ca.crt"),
        ("cluster-signing-key-file", "ca.key"),
    ] {
        all.push(format!("--{option}={PKI}/{file}"));
    }
    all
}

/// The scheduler and what it is started with.
pub(super) fn kube_scheduler() -> Vec<String> {
    words([
        "kube-scheduler",
        "--kubeconfig=/etc/kubernetes/scheduler.conf",
        "--leader-elect=false",
    ])
}

/// kubelet and what it is started with on node `number`.
pub(super) fn start_kubelet(family: Family, number: usize, node: &str) -> Vec<String> {
    let mut all = words([
        "kubelet",
        "--config=/etc/kubernetes/kubelet.json",
        "--kubeconfig=/etc/kubernetes/kubelet.conf",
        "--cert-dir=/var/lib/kubelet/pki",
        "--v=2",
    ]);
    all.push(format!("--hostname-override={node}"));
    all.push(format!("--node-ip={}", family.node(number).join(",")));
    all
}

/// kube-proxy and what it is started with.
pub(super) fn start_kube_proxy() -> Vec<String> {
    words([
        "kube-proxy",
        "--config=/etc/kubernetes/kube-proxy.json",
        "--v=2",
    ])
}

/// Manifests of the cluster's DNS.
pub(super) fn dns(family: Family) -> String {
    include_str!("dns.yaml").replace("DNS-SERVICE-ADDRESS", &family.dns())
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(cni: Cni, family: Family) -> Shape {
        Shape {
            nodes: 2,
            cni,
            proxy: Proxy::Nftables,
            family,
        }
    }

    #[test]
    fn a_pod_gets_an_address_of_each_family_and_a_way_to_everywhere() {
        let list = conflist(shape(Cni::Ptp, Family::Dual), 2);
        assert_eq!(
            list["plugins"][0]["ipam"],
            json!({
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.2.0/24"}], [{"subnet": "fd00:10:244:2::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            })
        );
        let list = conflist(shape(Cni::Bridge, Family::V6), 1);
        assert_eq!(list["plugins"][0]["bridge"], "cni0");
        assert_eq!(
            list["plugins"][0]["ipam"]["ranges"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn the_dns_service_has_the_address_that_pods_ask() {
        for family in [Family::V4, Family::V6] {
            let asked = kubelet(family, "/x")["clusterDNS"][0]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(dns(family).contains(&format!("clusterIP: \"{asked}\"")));
        }
    }

    #[test]
    fn the_api_server_offers_the_clusters_families() {
        let args = kube_apiserver(Family::V6).join(" ");
        assert!(
            args.contains("--service-cluster-ip-range=fd00:10:96::/112 "),
            "{args}"
        );
        assert!(
            args.ends_with("--advertise-address=fd00:172:30::1"),
            "{args}"
        );
    }
}
