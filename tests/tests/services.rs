//! What goes out to a Service's address is judged by the pods behind it: real connections through
//! the node's address translation, as a Service proxy sets it up, in both families.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::metric;
use tests::lab::objects::{endpoint_slice, namespace, pod, policy, service};
use tests::lab::pair::Pair;
use tests::lab::stage::Stage;
use tests::lab::wait_until;

/// How long a message may take; one that is dropped never comes.
const HEARD_WITHIN: Duration = Duration::from_millis(800);
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const PORTS: &str = "{name: tcp, port: 80, targetPort: 8080}, \
                     {name: udp, protocol: UDP, port: 80, targetPort: 8080}";
const TARGETS: &str = "{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}";

/// A family's addresses.
#[derive(Clone, Copy, Debug)]
struct Family {
    service: &'static str,
    client: &'static str,
    web: &'static str,
    other: &'static str,
    /// How netfilter calls it.
    table: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        service: "10.96.0.10",
        client: "10.21.0.1",
        web: "10.21.0.2",
        other: "10.21.0.3",
        table: "ip",
    },
    Family {
        service: "fd00:96::10",
        client: "fd00:21::1",
        web: "fd00:21::2",
        other: "fd00:21::3",
        table: "ip6",
    },
];

/// Everything but the client's policy: the backend has these labels, and these addresses are behind
/// the Service.
fn world(family: Family, role: &str, behind: &[&str]) -> String {
    [
        namespace("shop", ""),
        pod("shop/client", "role: client", &[family.client]),
        pod("shop/web", role, &[family.web]),
        pod("shop/other", "role: other", &[family.other]),
        service("shop/web", &[family.service], PORTS),
        endpoint_slice("shop/web", behind, TARGETS),
    ]
    .join("---\n")
}

/// The client may send to whatever this says, and to nobody else.
fn egress(to: &str) -> String {
    let spec = format!(
        "{{podSelector: {{matchLabels: {{role: client}}}}, policyTypes: [Egress], egress: [{to}]}}"
    );
    policy("shop", "client", &spec)
}

const TO_WEB: &str = "{to: [{podSelector: {matchLabels: {role: web}}}]}";

fn stage(family: Family) -> Result<Stage> {
    let stage = Stage::open(&world(family, "role: web", &[family.web]))?;
    let Family {
        service,
        web,
        table,
        ..
    } = family;
    let web = SocketAddr::new(web.parse()?, TARGET);
    stage.lab.nft(&format!(
        "add table {table} proxy\n\
         add chain {table} proxy prerouting {{ type nat hook prerouting priority dstnat; }}\n\
         add rule {table} proxy prerouting {table} daddr {service} tcp dport {PORT} dnat to {web}\n\
         add rule {table} proxy prerouting {table} daddr {service} udp dport {PORT} dnat to {web}\n"
    ))?;
    Ok(stage)
}

/// Opens flows to the Service, TCP and UDP.
fn open(stage: &Stage, family: Family) -> Result<Pair> {
    let server = &stage.lab.place("shop/web")?.namespace;
    let client = &stage.lab.place("shop/client")?.namespace;
    let listening = SocketAddr::new(family.web.parse()?, TARGET);
    let through = SocketAddr::new(family.service.parse()?, PORT);
    Pair::open(server, client, (listening, through), HEARD_WITHIN)
}

/// Whether the client is heard, by TCP and by UDP.
fn goes_on(pair: &mut Pair) -> Result<[bool; 2]> {
    let [client, server] = &mut pair.tcp;
    client.write_all(&[1])?;
    let tcp = server.read_exact(&mut [0]).is_ok();
    let [client, server] = &pair.udp;
    client.send(&[1])?;
    Ok([tcp, server.recv(&mut [0]).is_ok()])
}

/// Refusals of the client's for a reason.
fn refused(reason: &str) -> Result<f64> {
    metric(&format!(
        r#"picket_verdicts_total{{direction="egress",verdict="deny",reason="{reason}"}}"#
    ))
}

/// A new connection is dropped, for this reason; had it come to the pod, that would answer.
fn is_refused(stage: &Stage, family: Family, reason: &str) -> Result<()> {
    let before = refused(reason).unwrap_or_default();
    let to = SocketAddr::new(family.service.parse()?, PORT);
    let client = &stage.lab.place("shop/client")?.namespace;
    let connected = client.enter(|| Ok(TcpStream::connect_timeout(&to, HEARD_WITHIN)))?;
    let error = connected.err().map(|error| error.kind());
    ensure!(error == Some(ErrorKind::TimedOut), "{family:?}: {error:?}");
    wait_until("the refusal to be counted", Duration::from_secs(10), || {
        let now = refused(reason)?;
        ensure!(now > before, "{reason}: {now}, {before} before");
        Ok(())
    })
}

#[test]
fn who_may_reach_the_pods_behind_a_service_may_reach_it_and_nobody_else() -> Result<()> {
    for family in FAMILIES {
        let mut stage = stage(family)?;
        let name = format!("{family:?}");
        drop(open(&stage, family).context("nothing isolates the client")?);
        stage.apply("policy.yaml", &egress(TO_WEB))?;
        ensure!(goes_on(&mut open(&stage, family)?)? == [true; 2], "{name}");
        let at = |port: u16| {
            let ports = ["TCP", "UDP"]
                .map(|protocol| format!("{{protocol: {protocol}, port: {port}}}"))
                .join(", ");
            format!("{{to: [{{podSelector: {{matchLabels: {{role: web}}}}}}], ports: [{ports}]}}")
        };
        stage.apply("policy.yaml", &egress(&at(TARGET)))?;
        drop(open(&stage, family).context("the port is the pods'")?);
        stage.apply("policy.yaml", &egress(&at(PORT)))?;
        is_refused(&stage, family, "service-none").context("not the Service's own")?;
        let block = |address: &str| format!("{{to: [{{ipBlock: {{cidr: \"{address}\"}}}}]}}");
        let bits = if family.table == "ip" { 32 } else { 128 };
        let address = format!("{}/{bits}", family.service);
        stage.apply("policy.yaml", &egress(&block(&address)))?;
        is_refused(&stage, family, "service-none").context("nor its address")?;
        let address = format!("{}/{bits}", family.web);
        stage.apply("policy.yaml", &egress(&block(&address)))?;
        drop(open(&stage, family).context("but the pod's")?);
    }
    Ok(())
}

#[test]
fn a_pod_that_is_another_peer_now_is_that_behind_its_service_too() -> Result<()> {
    for family in FAMILIES {
        let mut stage = stage(family)?;
        stage.apply("policy.yaml", &egress(TO_WEB))?;
        let mut pair = open(&stage, family)?;
        ensure!(goes_on(&mut pair)? == [true; 2], "{family:?}");
        let relabelled = world(family, "role: database", &[family.web]);
        stage.apply("cluster.yaml", &relabelled)?;
        ensure!(goes_on(&mut pair)? == [false; 2], "{family:?}: cut");
        is_refused(&stage, family, "service-none")?;
        drop(pair);
        stage.apply("cluster.yaml", &world(family, "role: web", &[family.web]))?;
        ensure!(
            goes_on(&mut open(&stage, family)?)? == [true; 2],
            "{family:?}: again"
        );
    }
    Ok(())
}

#[test]
fn flows_go_on_when_others_come_behind_a_service_and_new_ones_are_for_who_may_reach_all()
-> Result<()> {
    for family in FAMILIES {
        let mut stage = stage(family)?;
        stage.apply("policy.yaml", &egress(TO_WEB))?;
        let mut pair = open(&stage, family)?;
        let both = world(family, "role: web", &[family.web, family.other]);
        stage.apply("cluster.yaml", &both)?;
        ensure!(
            goes_on(&mut pair)? == [true; 2],
            "{family:?}: placed already"
        );
        is_refused(&stage, family, "service-unseen")?;
        // Its policy changes, and the verdict with it: who is behind the Service decides again.
        stage.apply("policy.yaml", &egress("{to: [{podSelector: {}}]}"))?;
        ensure!(
            goes_on(&mut pair)? == [true; 2],
            "{family:?}: allowed all the time"
        );
        drop(pair);
        drop(open(&stage, family)?);
        let nobody: [&str; 0] = [];
        stage.apply("cluster.yaml", &world(family, "role: web", &nobody))?;
        stage.apply("policy.yaml", &egress(""))?;
        let client = &stage.lab.place("shop/client")?.namespace;
        let to = SocketAddr::new(family.service.parse()?, PORT);
        let passed = || {
            metric(
                r#"picket_verdicts_total{direction="egress",verdict="allow",reason="no-endpoints"}"#,
            )
        };
        let before = passed().unwrap_or_default();
        // With nobody behind it the proxy refuses; here nothing does, and it arrives.
        drop(client.enter(|| Ok(TcpStream::connect_timeout(&to, HEARD_WITHIN)))?);
        wait_until("it to be let through", Duration::from_secs(10), || {
            ensure!(passed()? > before, "{family:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_cache_on_the_node_is_asked_by_who_may_reach_the_dns_pods() -> Result<()> {
    const CACHE: &str = "169.254.20.10";
    let dns = [
        namespace("kube-system", ""),
        namespace("shop", ""),
        pod("shop/client", "role: client", &["10.22.0.1"]),
        pod("kube-system/dns", "k8s-app: kube-dns", &["10.22.0.2"]),
        service(
            "kube-system/kube-dns",
            &["10.96.0.10"],
            "{name: dns, protocol: UDP, port: 53}",
        ),
        endpoint_slice(
            "kube-system/kube-dns",
            &["10.22.0.2"],
            "{name: dns, protocol: UDP, port: 53}",
        ),
    ];
    let mut stage = Stage::open(&dns.join("---\n"))?;
    let cache: IpAddr = CACHE.parse()?;
    stage.lab.add_node_address(cache)?;
    let at = SocketAddr::new(cache, 53);
    let answers = stage.lab.node().enter(|| Ok(UdpSocket::bind(at)?))?;
    answers.set_read_timeout(Some(HEARD_WITHIN))?;
    let is_answered = |stage: &Stage| -> Result<bool> {
        let client = &stage.lab.place("shop/client")?.namespace;
        let asks = client.enter(|| Ok(UdpSocket::bind(("0.0.0.0", 0))?))?;
        asks.set_read_timeout(Some(HEARD_WITHIN))?;
        asks.send_to(&[1], at)?;
        let Ok((_, peer)) = answers.recv_from(&mut [0]) else {
            return Ok(false);
        };
        answers.send_to(&[2], peer)?;
        Ok(asks.recv(&mut [0]).is_ok())
    };
    ensure!(is_answered(&stage)?, "nothing isolates the client");
    let to_dns = |port: u16| {
        format!(
            "{{to: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: kube-system}}}}, \
             podSelector: {{matchLabels: {{k8s-app: kube-dns}}}}}}], \
             ports: [{{protocol: UDP, port: {port}}}]}}"
        )
    };
    stage.apply("policy.yaml", &egress(&to_dns(53)))?;
    ensure!(is_answered(&stage)?, "by the rule for the DNS pods");
    stage.apply("policy.yaml", &egress(&to_dns(5353)))?;
    ensure!(!is_answered(&stage)?, "by its port only");
    stage.apply("policy.yaml", &egress(""))?;
    ensure!(!is_answered(&stage)?, "not without a rule");
    Ok(())
}
