//! Objects made to mislead: names that join alike, addresses of the dead, annotations that a tenant
//! may write, policies larger than other enforcers keep. Each on real packets.

use std::fmt::Write as _;
use std::net::IpAddr;

use agent::dto::Status;
use agent_policy::model::Protocol;
use anyhow::{Result, ensure};
use tests::lab::agent::ask;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::stage::Stage;

const PORT: (Protocol, u16) = (Protocol::TCP, 8080);
const PORTS: &[(Protocol, u16)] = &[PORT];

/// A pod's address of each family.
fn addresses(number: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 13, 0, number]),
        IpAddr::from([0xfd13, 0, 0, 0, 0, 0, 0, number.into()]),
    ]
}

fn documents(objects: &[String]) -> String {
    objects.join("---\n")
}

fn no_findings() -> Result<()> {
    let findings = ask::<Status>("/v1/status")?.findings;
    ensure!(findings.is_empty(), "{findings:?}");
    Ok(())
}

#[test]
fn names_and_labels_that_join_alike_are_not_alike() -> Result<()> {
    // Joined without a separator, both servers are `abc` and both policies are `abc`.
    let mut stage = Stage::open(&documents(&[
        namespace("ab", ""),
        namespace("a", ""),
        namespace("clients", "ab: c"),
        namespace("others", "a: bc"),
        pod("ab/c", "ab: c", &addresses(1)),
        pod("a/bc", "a: bc", &addresses(2)),
        pod("clients/client", "ab: c", &addresses(3)),
        pod("others/other", "a: bc", &addresses(4)),
    ]))?;
    let _first = stage.lab.serve("ab/c", PORTS)?;
    let _second = stage.lab.serve("a/bc", PORTS)?;
    // Two policies of one set of rules each: by namespace, by a pod's label, by a namespace's.
    let from = |label: &str| {
        format!(
            "{{podSelector: {{matchLabels: {{{label}}}}}, ingress: [{{from: [{{namespaceSelector: \
             {{matchLabels: {{{label}}}}}, podSelector: {{matchLabels: {{{label}}}}}}}]}}]}}"
        )
    };
    stage.apply(
        "policies.yaml",
        &documents(&[
            policy("ab", "c", &from("ab: c")),
            policy("a", "bc", &from("a: bc")),
        ]),
    )?;
    no_findings()?;
    let reaches = |from: &str, to: &str| stage.lab.reaches(from, to, PORTS);
    ensure!(reaches("clients/client", "ab/c")?, "its own client");
    ensure!(!reaches("clients/client", "a/bc")?, "another's client");
    ensure!(reaches("others/other", "a/bc")?, "its own client");
    ensure!(!reaches("others/other", "ab/c")?, "another's client");
    Ok(())
}

fn created(time: &str, object: &str) -> String {
    let metadata = format!("metadata: {{creationTimestamp: \"{time}\", ");
    object.replacen("metadata: {", &metadata, 1)
}

#[test]
fn a_completed_pods_address_means_its_next_owner_though_its_object_stays() -> Result<()> {
    let cluster = |phase: &str| {
        let mut job = pod("clients/job", "role: client", &addresses(2));
        job = created("2026-02-02T00:00:00Z", &job);
        job = job.replace("status: {", &format!("status: {{phase: {phase}, "));
        documents(&[
            namespace("servers", ""),
            namespace("clients", ""),
            pod("servers/server", "", &addresses(1)),
            job,
        ])
    };
    let mut stage = Stage::open(&cluster("Running"))?;
    let _servers = stage.lab.serve("servers/server", PORTS)?;
    let spec = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, \
                podSelector: {matchLabels: {role: client}}}]}]}";
    stage.apply("policy.yaml", &policy("servers", "p", spec))?;
    ensure!(
        stage.lab.reaches("clients/job", "servers/server", PORTS)?,
        "while it runs"
    );
    // The Job's pod has completed; its object stays for its logs. Its address goes to a stranger.
    stage.lab.remove_pod("clients/job")?;
    stage
        .lab
        .write_manifest("cluster.yaml", &cluster("Succeeded"))?;
    stage.lab.add_pod("clients/stranger", &addresses(2))?;
    // Which has waited for a node since before there was a Job: it is not the younger of the two.
    let stranger = pod("clients/stranger", "role: stranger", &addresses(2));
    stage.apply("stranger.yaml", &created("2026-01-01T00:00:00Z", &stranger))?;
    stage.programmed("clients/stranger")?;
    ensure!(
        !stage
            .lab
            .reaches("clients/stranger", "servers/server", PORTS)?,
        "it is another's address"
    );
    Ok(())
}

/// Everything that Picket's annotations may say, as one who wants out would write it.
const ANNOTATIONS: &str = "annotations: {picket.dev/enforcement: disabled, picket.dev/mode: audit, \
     picket.dev/allow-source: \"0.0.0.0/0,::/0\", \
     picket.dev/break-glass: \"2099-01-01T00:00:00Z because\"}, ";

#[test]
fn annotations_that_a_tenant_writes_on_its_own_objects_open_nothing() -> Result<()> {
    let annotated = |object: String| {
        let object = object.replacen("metadata: {", &format!("metadata: {{{ANNOTATIONS}"), 1);
        assert!(object.contains("enforcement: disabled"), "{object}");
        object
    };
    let mut stage = Stage::open(&documents(&[
        annotated(namespace("tenant", "")),
        namespace("servers", ""),
        annotated(pod("tenant/pod", "", &addresses(1))),
        pod("servers/server", "", &addresses(2)),
    ]))?;
    let _tenant = stage.lab.serve("tenant/pod", PORTS)?;
    let _servers = stage.lab.serve("servers/server", PORTS)?;
    let both = |stage: &Stage| -> Result<(bool, bool)> {
        Ok((
            stage.lab.reaches("tenant/pod", "servers/server", PORTS)?,
            stage.lab.reaches("servers/server", "tenant/pod", PORTS)?,
        ))
    };
    ensure!(both(&stage)? == (true, true), "nothing isolates");
    let spec = "{podSelector: {}, policyTypes: [Ingress, Egress]}";
    stage.apply("policy.yaml", &policy("tenant", "closed", spec))?;
    ensure!(both(&stage)? == (false, false), "isolated all the same");
    Ok(())
}

/// A cluster of one server and one client.
fn server_and_client() -> String {
    documents(&[
        namespace("shop", ""),
        pod("shop/server", "app: server", &addresses(1)),
        pod("shop/client", "app: client", &addresses(2)),
    ])
}

#[test]
fn more_ports_of_one_range_than_others_keep_are_all_enforced() -> Result<()> {
    let mut stage = Stage::open(&server_and_client())?;
    // AWS keeps 24 of them: no two are neighbours, so nothing can be joined.
    let port = |index: u16| (Protocol::TCP, 9000 + 2 * index);
    let allowed: Vec<_> = (0..100).map(port).collect();
    let refused: Vec<_> = allowed.iter().map(|(tcp, port)| (*tcp, port + 1)).collect();
    let _allowed = stage.lab.serve("shop/server", &allowed)?;
    let _refused = stage.lab.serve("shop/server", &refused)?;
    let list: Vec<String> = allowed
        .iter()
        .map(|(_, port)| format!("{{port: {port}}}"))
        .collect();
    let [v4, v6] = addresses(2);
    let spec = format!(
        "{{podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{{ipBlock: {{cidr: \
         {v4}/32}}}}, {{ipBlock: {{cidr: \"{v6}/128\"}}}}], ports: [{}]}}]}}",
        list.join(", ")
    );
    stage.apply("policy.yaml", &policy("shop", "p", &spec))?;
    // All of them or none: `reaches` fails where they do not agree.
    ensure!(stage.lab.reaches("shop/client", "shop/server", &allowed)?);
    ensure!(!stage.lab.reaches("shop/client", "shop/server", &refused)?);
    Ok(())
}

#[test]
fn a_policy_of_more_ranges_than_others_keep_is_enforced_to_its_last() -> Result<()> {
    let mut stage = Stage::open(&server_and_client())?;
    let _servers = stage.lab.serve("shop/server", PORTS)?;
    // Cilium's map of an endpoint ends at 16 384. None of these can be joined; the client's own
    // comes last.
    let spec = |last: [IpAddr; 2]| -> Result<String> {
        let mut ranges = String::new();
        for index in 0..20_000_u32 {
            let [_, a, b, c] = (2 * index).to_be_bytes();
            write!(ranges, "{{ipBlock: {{cidr: 11.{a}.{b}.{c}/32}}}}, ")?;
        }
        let [v4, v6] = last;
        Ok(format!(
            "{{podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{ranges}{{ipBlock: \
             {{cidr: {v4}/32}}}}, {{ipBlock: {{cidr: \"{v6}/128\"}}}}]}}]}}"
        ))
    };
    stage.apply("policy.yaml", &policy("shop", "p", &spec(addresses(2))?))?;
    no_findings()?;
    ensure!(
        stage.lab.reaches("shop/client", "shop/server", PORTS)?,
        "the last one"
    );
    stage.apply("policy.yaml", &policy("shop", "p", &spec(addresses(9))?))?;
    ensure!(
        !stage.lab.reaches("shop/client", "shop/server", PORTS)?,
        "it was the last one"
    );
    Ok(())
}
