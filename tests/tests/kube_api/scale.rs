//! The whole agent in a cluster of two thousand pods. Figures are printed; `cargo xtask bench scale`
//! measures with ten times as many.

#![expect(clippy::print_stdout, reason = "figures are for whoever runs this")]

use std::time::Duration;

use anyhow::Result;
use tests::bench::{median, percentile};
use tests::crowd::Crowd;
use tests::scale::Scene;

const CROWD: Crowd = Crowd {
    namespaces: 50,
    policies: 200,
    pods: 2_000,
    locals: 20,
};
/// Far from what any machine takes.
const ENFORCED_WITHIN: Duration = Duration::from_mins(1);
const CHANGES: usize = 20;

#[test]
fn an_agent_enforces_in_a_crowd_and_follows_it() -> Result<()> {
    let mut scene = Scene::set(&CROWD)?;
    scene.grow(&CROWD)?;
    let run = scene.start()?;
    let memory = run.memory_at_rest()?;
    let changes = scene.changes(CHANGES)?.into_iter();
    let changes: Vec<f64> = changes.map(|change| change.since_request).collect();
    println!(
        "{CROWD:?}: enforced after {:.1} s; a label's change is in the maps {:.1} ms after its request \
         at the median, {:.1} ms at most; {} MiB resident, {} MiB of the cgroup",
        run.enforced.as_secs_f32(),
        median(changes.clone()),
        percentile(changes, 99),
        memory.rss >> 10,
        run.charged()? >> 20,
    );
    assert!(run.enforced < ENFORCED_WITHIN, "{:?}", run.enforced);
    run.stop()
}
