//! The lab as a command: its answer is the matrix, line for line, and nothing else.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::picket;

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/lab");

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
