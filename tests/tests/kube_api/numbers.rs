//! What it costs: the time from nothing to the first whole list, bytes an event, memory. Printed;
//! only what is far from any machine's noise fails.

#![expect(clippy::print_stdout, reason = "figures are for whoever runs this")]

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tests::api_front::Front;
use tests::memory::Memory;

use super::server;
use super::world::Listener;

const PODS: usize = 2000;
/// Objects written at a time.
const WRITERS: usize = 16;
const RELABELS: usize = 50;

/// Memory of this process.
fn resident_kib() -> Result<u64> {
    Ok(Memory::of(std::process::id())?.rss)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_pods_are_one_batch_within_seconds() -> Result<()> {
    let (server, admin) = server().await?;
    let written = Instant::now();
    stream::iter(0..PODS)
        .map(|n| {
            let admin = &admin;
            async move {
                let labels = json!({"app": format!("app-{}", n % 40), "tier": "backend",
                    "pod-template-hash": format!("{:010x}", n % 40), "version": "v1"});
                let address = format!("10.1.{}.{}", n / 250, n % 250 + 1);
                admin.pod_with(&format!("pod-{n}"), labels, &address).await
            }
        })
        .buffer_unordered(WRITERS)
        .try_collect::<Vec<()>>()
        .await?;
    println!(
        "{PODS} pods written in {:.1} s",
        written.elapsed().as_secs_f32()
    );

    let front = Front::start(admin.client.clone()).await?;
    let before = resident_kib()?;
    let started = Instant::now();
    let mut listener = Listener::complete(&server.kubeconfig_at("admin", front.url())?).await?;
    let took = started.elapsed();
    println!(
        "{PODS} pods: list to batch in {:.2} s (up to 0.5 s of them chance), {} KiB received, \
         {} KiB more memory, the test's own front and copy of them included",
        took.as_secs_f32(),
        front.bytes() >> 10,
        resident_kib()?.saturating_sub(before)
    );
    assert_eq!(listener.batches_told, 1);
    assert_eq!(listener.cluster.pods().count(), PODS);
    assert!(took < Duration::from_secs(30), "{took:?}");

    let received = front.bytes();
    let mut times = Vec::new();
    for n in 0..RELABELS {
        let name = format!("pod-{n}");
        let asked = Instant::now();
        admin.relabel(&name, "changed").await?;
        listener
            .until("the change", |seen| {
                seen.app(&name).as_deref() == Some("changed")
            })
            .await?;
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    println!(
        "a pod event: {} bytes; from the request to the batch {:.1} ms at the median of {RELABELS}",
        (front.bytes() - received) / RELABELS as u64,
        times[RELABELS / 2].as_secs_f64() * 1e3,
    );
    Ok(())
}
