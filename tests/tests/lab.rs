//! The lab as a command: its answer is the matrix, line for line, and nothing else.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::picket;

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/lab");

/// A closed pod on one node, a hostNetwork pod on another.
const TWO_NODES: &str = "
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Node
  metadata: {name: one}
  status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: x, name: closed}
  spec: {nodeName: one, containers: [{name: c, image: i}]}
  status: {podIP: 10.1.1.1}
- apiVersion: v1
  kind: Pod
  metadata: {namespace: x, name: host}
  spec: {hostNetwork: true, nodeName: another, containers: [{name: c, image: i}]}
  status: {podIP: 192.0.2.2}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {namespace: x, name: deny}
  spec: {podSelector: {}, policyTypes: [Ingress]}
";

#[test]
fn measured_matrix_is_the_judged_one_line_for_line() -> Result<()> {
    let arguments = ["-f", MANIFESTS, "-o", "jsonl"];
    let measured = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(arguments)
        .output()?;
    let judged = Command::new(picket()?)
        .arg("matrix")
        .args(arguments)
        .output()?;

    let complaint = String::from_utf8_lossy(&measured.stderr);
    ensure!(
        measured.status.success(),
        "{}: {complaint}",
        measured.status
    );
    let measured = String::from_utf8(measured.stdout)?;
    assert_eq!(measured.lines().count(), 432, "9 pods, 72 pairs, 6 ports");
    assert_eq!(measured, String::from_utf8(judged.stdout)?);
    Ok(())
}

#[test]
fn external_endpoints_are_probed_beyond_a_router() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args([
            "-f", MANIFESTS, "-o", "jsonl", "--port", "TCP/80", "--port", "UDP/53",
        ])
        .args(["--endpoint", "198.51.100.7", "--endpoint", "2001:db8:1::7"])
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {complaint}", output.status);
    let rows = String::from_utf8(output.stdout)?;
    let row = r#"{"from":"x/a","to":"2001:db8:1::7","protocol":"TCP","port":80,"ingress":"allow","egress":"deny","verdict":"deny"}"#;
    assert!(rows.lines().any(|line| line == row), "{rows}");
    let row = r#"{"from":"198.51.100.7","to":"y/a","protocol":"UDP","port":53,"ingress":"deny","egress":"allow","verdict":"deny"}"#;
    assert!(rows.lines().any(|line| line == row), "{rows}");
    Ok(())
}

#[test]
fn pods_of_all_nodes_are_judged_as_pods_of_the_one_node_there_is() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("picket-lab-nodes-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("nodes.yaml"), TWO_NODES)?;
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .arg("-f")
        .arg(&directory)
        .args(["-o", "jsonl", "--port", "TCP/80"])
        .output();
    std::fs::remove_dir_all(&directory)?;
    let output = output?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {complaint}", output.status);
    let rows = String::from_utf8(output.stdout)?;
    let row = r#"{"from":"x/host","to":"x/closed","protocol":"TCP","port":80,"ingress":"allow","egress":"allow","verdict":"allow"}"#;
    assert!(rows.lines().any(|line| line == row), "{rows}");
    Ok(())
}

#[test]
fn directory_that_is_not_there_is_an_error_with_its_name() -> Result<()> {
    let missing = Path::new(MANIFESTS).join("nowhere");
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .arg("-f")
        .arg(&missing)
        .output()?;
    assert_eq!(output.status.code(), Some(2));
    let complaint = String::from_utf8(output.stderr)?;
    complaint
        .contains("nowhere")
        .then_some(())
        .context(complaint)
}
