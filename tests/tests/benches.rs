//! Benchmarks come to their end, each with the least there is to do: what they say of speed is
//! for those who run them, that they run is for everybody.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

fn smoke(program: &str, arguments: &[&str], says: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .arg("--smoke")
        .args(arguments)
        .output()
        .with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{program}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    for part in says {
        ensure!(said.contains(part), "no {part:?} in\n{said}");
    }
    Ok(())
}

#[test]
fn the_benchmark_of_a_packets_cost_runs() -> Result<()> {
    smoke(
        env!("CARGO_BIN_EXE_bench_dataplane"),
        &[],
        &["established", "floor", "picket", "1024"],
    )
}

#[test]
fn the_benchmark_of_a_connections_segments_runs() -> Result<()> {
    smoke(
        env!("CARGO_BIN_EXE_bench_dataplane"),
        &["--connection"],
        &["IPv4, at the client", "IPv6, at the server", "SYN-ACK"],
    )
}

#[test]
fn the_benchmark_of_traffic_between_pods_runs() -> Result<()> {
    smoke(
        env!("CARGO_BIN_EXE_bench_wire"),
        &[],
        &[
            "TCP_RR",
            "TCP_CRR",
            "bulk",
            "floor programs",
            "Picket",
            "nf_conntrack",
            "nft set",
        ],
    )
}

#[test]
fn the_benchmark_of_changes_runs() -> Result<()> {
    smoke(
        env!("CARGO_BIN_EXE_bench_scale"),
        // The cluster's part needs an API server: kube_api's `scale` is it.
        &["--only", "plans,peer,policy,adoption"],
        &["one more comes", "the rule names one more", "they go"],
    )
}
