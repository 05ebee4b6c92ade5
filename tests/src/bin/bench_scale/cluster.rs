//! A large cluster on a real API server: from the lists to enforcement, from the watch to the maps,
//! memory, also after churn.

use std::time::Duration;

use anyhow::Result;
use tests::bench::{Goal, median, percentile};
use tests::crowd::Crowd;
use tests::memory::Memory;
use tests::scale::{Run, Scene};

use crate::{Sizes, ms};

/// From the agent's start until it enforces, in the whole cluster.
const ENFORCED_WITHIN_MS: f64 = 5_000.0;
/// From the watch's event to the maps: the middle one, and all but one of a hundred.
const CHANGE_WITHIN_MS: [f64; 2] = [10.0, 50.0];
/// What is resident with half of the cluster.
const RSS_AT_MOST_MIB: f64 = 40.0;
/// By how much of a hundred it may be more after churn.
const GROWTH_AT_MOST: f64 = 5.0;
/// Of the time of churn until memory is looked at for the first time.
const WARM_UP: f64 = 0.2;

fn goal(what: String, figure: f64, at_most: f64, unit: &'static str) -> Goal {
    Goal {
        what,
        figure,
        at_most,
        unit,
    }
}

/// What an agent takes of memory.
fn tell(sizes: &Sizes, when: &str, run: &Run) -> Result<Memory> {
    let memory = run.memory_at_rest()?;
    sizes.say(&format!(
        "{when}: resident {:.1} MiB, {:.1} of them no file's, {:.1} the kernel's maps; {:.1} at most \
         until now; the cgroup, with all maps, is charged with {:.1} MiB",
        mib(memory.rss),
        mib(memory.anonymous),
        mib(memory.maps),
        mib(memory.peak),
        mib(run.charged()? >> 10),
    ));
    Ok(memory)
}

pub(crate) fn measure(sizes: &Sizes) -> Result<Vec<Goal>> {
    let whole = sizes.crowd;
    let half = Crowd {
        pods: whole.pods / 2,
        policies: whole.policies / 2,
        ..whole
    };
    let mut scene = Scene::set(&whole)?;
    scene.grow(&half)?;
    let run = scene.start()?;
    let memory = tell(sizes, &of(&half), &run)?;
    let mut goals = vec![goal(
        format!("resident memory of the agent without maps, {}", of(&half)),
        mib(memory.rss.saturating_sub(memory.maps)),
        RSS_AT_MOST_MIB,
        "MiB",
    )];
    run.stop()?;

    scene.grow(&whole)?;
    let run = scene.start()?;
    tell(sizes, &of(&whole), &run)?;
    goals.push(goal(
        format!("from the start of the agent to enforcement, {}", of(&whole)),
        ms(run.enforced),
        ENFORCED_WITHIN_MS,
        "ms",
    ));
    let changes = scene.changes(sizes.labels)?;
    let since_request: Vec<f64> = changes.iter().map(|each| each.since_request).collect();
    let since_event: Vec<f64> = changes.iter().map(|each| each.since_event).collect();
    sizes.say(&format!(
        "from the request to the maps: {:.1} ms the middle, {:.1} ms the 99th of {} labels' changes",
        median(since_request.clone()),
        percentile(since_request, 99),
        sizes.labels
    ));
    for (word, figure, at_most) in [
        (
            "the middle",
            median(since_event.clone()),
            CHANGE_WITHIN_MS[0],
        ),
        ("the 99th", percentile(since_event, 99), CHANGE_WITHIN_MS[1]),
    ] {
        let count = sizes.labels;
        goals.push(goal(
            format!("from the watch's event to the maps, {word} of {count} labels' changes"),
            figure,
            at_most,
            "ms",
        ));
    }
    goals.push(growth(sizes, &scene, &run)?);
    run.stop()?;
    Ok(goals)
}

/// What memory becomes while pods come and go.
fn growth(sizes: &Sizes, scene: &Scene, run: &Run) -> Result<Goal> {
    let warm_up = sizes.churn.mul_f64(WARM_UP);
    scene.churn(warm_up, |_| ())?;
    let before = tell(sizes, "after the first changes", run)?;
    let mut most: u64 = 0;
    let made = scene.churn(sizes.churn.saturating_sub(warm_up), |_| {
        most = most.max(run.memory().unwrap_or_default().rss);
    })?;
    let after = tell(sizes, &format!("after {made} changes more"), run)?;
    sizes.say(&format!("meanwhile at most {:.1} MiB", mib(most)));
    #[expect(
        clippy::cast_precision_loss,
        reason = "KiB of memory are far below 2^52"
    )]
    let grown = (after.rss as f64 / before.rss as f64 - 1.0) * 100.0;
    Ok(goal(
        format!(
            "growth of resident memory over {} s of churn",
            sizes.churn.as_secs()
        ),
        grown,
        GROWTH_AT_MOST,
        "%",
    ))
}

fn of(crowd: &Crowd) -> String {
    format!(
        "{} pods, {} namespaces, {} policies, {} pods here",
        crowd.pods, crowd.namespaces, crowd.policies, crowd.locals
    )
}

#[expect(
    clippy::cast_precision_loss,
    reason = "KiB of memory are far below 2^52"
)]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// How long churn lasts when nothing is said.
pub(crate) const CHURN: Duration = Duration::from_mins(1);
