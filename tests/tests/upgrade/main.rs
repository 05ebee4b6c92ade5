//! An agent whose maps are laid out differently comes, and the one before comes back: what policy
//! allows goes on packet by packet, what it forbids stays out, and nothing of the other is left.
//!
//! The other build is `picket-next-layout` (feature `next-layout`), which `cargo xtask test` makes.
//! `PICKET_SEED` repeats the moments of the killed ones; `PICKET_THOROUGH` makes it long.
#![expect(clippy::print_stdout, reason = "the run prints what it carried")]

mod traffic;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::dataplane::Method;
use agent::dto::{EndpointState, Status};
use agent_common::maps::LAYOUT_VERSION;
use anyhow::{Context as _, Result, ensure};
use tests::lab::agent::{Agent, ask, log, metric, picket, picket_of_next_layout, run_picket};
use tests::lab::namespace::sysctl;
use tests::lab::objects::{namespace, pod, policy};
use tests::lab::pins::PINS;
use tests::lab::stage::Stage;
use tests::lab::wait_until;
use tests::runs::{Moments, is_thorough};
use traffic::{Books, Lasting, Traffic, pass};

const WITHIN: Duration = Duration::from_mins(1);
/// A flow whose first packet the old programs let through, and whose answer comes before the new
/// ones were told of it, loses that answer: at most one of the two pods and the two kinds of flows
/// that begin all the time, in each of three changes. Hardly ever one, that is.
const MOST_UNANSWERED: u64 = 12;

/// Which build of the agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Build {
    /// The one that is shipped.
    Usual,
    /// The one after it, by its layout.
    Next,
}

impl Build {
    fn program(self) -> Result<PathBuf> {
        match self {
            Self::Usual => picket(),
            Self::Next => picket_of_next_layout(),
        }
    }

    fn version(self) -> String {
        let number = LAYOUT_VERSION + u32::from(self == Self::Next);
        format!("v{number}")
    }
}

/// The server admits the client and, in some rounds, the third one; it calls nobody. The client
/// calls the server only, and nobody calls it.
fn manifests(admits_third: bool, without: &str) -> String {
    let third = if admits_third {
        ", {podSelector: {matchLabels: {role: third}}}"
    } else {
        ""
    };
    let server = format!(
        "{{podSelector: {{matchLabels: {{role: server}}}}, policyTypes: [Ingress, Egress], \
         ingress: [{{from: [{{podSelector: {{matchLabels: {{role: client}}}}}}{third}]}}]}}"
    );
    let client = "{podSelector: {matchLabels: {role: client}}, policyTypes: [Ingress, Egress], \
         egress: [{to: [{podSelector: {matchLabels: {role: server}}}]}]}";
    let pods = ["server", "client", "stranger", "third"];
    let pods = pods.iter().zip(1..).filter(|(name, _)| **name != without);
    let pods = pods.map(|(name, number)| {
        pod(
            &format!("shop/{name}"),
            &format!("role: {name}"),
            &[format!("10.14.0.{number}")],
        )
    });
    let mut objects = vec![namespace("shop", "")];
    objects.extend(pods);
    objects.push(policy("shop", "server", &server));
    objects.push(policy("shop", "client", client));
    objects.join("---\n")
}

/// A node on which the kernel tracks connections, or does not.
fn node(tracks: bool) -> Result<Stage> {
    let stage = Stage::without_agent(&manifests(true, ""))?;
    if tracks {
        stage.lab.track_connections()?;
        // A version that goes back knows of idle flows what the kernel does, which forgets UDP's
        // after 30 s (nf_conntrack-sysctl): a busy machine takes longer for a few changes.
        stage
            .lab
            .node()
            .enter(|| sysctl("netfilter/nf_conntrack_udp_timeout", "600"))?;
    }
    Ok(stage)
}

fn options(method: Method) -> Vec<OsString> {
    ["--attach", method.as_label()].map(Into::into).to_vec()
}

fn spawn(stage: &mut Stage, build: Build, method: Method) -> Result<()> {
    let manifests = stage.lab.manifests();
    let agent = Agent::spawn_program(&build.program()?, &manifests, &options(method))?;
    stage.agent = Some(agent);
    Ok(())
}

/// Starts a build and waits until it alone decides, whatever was before.
fn start(stage: &mut Stage, build: Build, method: Method) -> Result<()> {
    spawn(stage, build, method)?;
    stage.agent.as_mut().context("an agent")?.wait_ready()?;
    decides(build)
}

/// Waits until a build decides everywhere and nothing of another is pinned.
fn decides(build: Build) -> Result<()> {
    wait_until("the build to decide alone", WITHIN, || {
        let status: Status = ask("/v1/status")?;
        ensure!(status.elsewhere.is_empty(), "{:?}", status.elsewhere);
        let mut endpoints = status.endpoints.iter();
        let late = endpoints.find(|each| each.state != EndpointState::Programmed);
        ensure!(late.is_none(), "{late:?}");
        ensure!(pinned()? == [build.version()], "pinned: {:?}", pinned()?);
        Ok(())
    })
    .with_context(|| format!("the agents said:\n{}", log()))
}

/// Versions that have pins.
fn pinned() -> Result<Vec<String>> {
    let entries = std::fs::read_dir(PINS)?;
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn kill(stage: &mut Stage) -> Result<()> {
    stage.agent.take().context("an agent runs")?.kill()
}

/// Packets that only the mid-stream rule let through.
fn guessed() -> Result<f64> {
    metric(r#"picket_kernel_events_total{kind="mid_stream"}"#)
}

/// Every way of attaching that this kernel has.
fn methods() -> &'static [Method] {
    match Method::of_this_kernel() {
        Method::Tcx => &[Method::Tcx, Method::Clsact],
        Method::Clsact => &[Method::Clsact],
    }
}

/// Takes everything away: nothing of ours is on any interface of the node.
fn uninstall(stage: &mut Stage) -> Result<()> {
    kill(stage)?;
    let uninstalled = run_picket(&["uninstall", "--yes"])?;
    ensure!(uninstalled.status.success(), "{uninstalled:?}");
    ensure!(!Path::new(PINS).exists(), "{PINS} is still there");
    for place in stage.lab.places().values().filter(|place| place.veth != 0) {
        let device = format!("pod{}", place.veth);
        let shown = Command::new("tc")
            .args(["qdisc", "show", "dev", &device])
            .output()?;
        let shown = String::from_utf8(shown.stdout)?;
        ensure!(!shown.contains("clsact"), "{device}: {shown}");
    }
    Ok(())
}

#[test]
fn versions_change_under_traffic_and_nothing_that_lasts_is_lost_nor_forbidden_let_in() -> Result<()>
{
    for method in methods() {
        let mut stage = node(true)?;
        let mut traffic = Traffic::open(&stage)?;
        let mut silent = Lasting::open(&stage, 8003)?;
        let mut idle = Lasting::open(&stage, 8004)?;
        start(&mut stage, Build::Usual, *method)?;
        traffic.drain();
        let books = Books::default();
        std::thread::scope(|scope| -> Result<()> {
            traffic.run(scope, &books);
            let done = (|| -> Result<()> {
                let mut admits_third = true;
                for build in [Build::Next, Build::Usual, Build::Next] {
                    books.wait_for_more(&books.arrived, 20)?;
                    kill(&mut stage)?;
                    admits_third = !admits_third;
                    stage
                        .lab
                        .write_manifest("cluster.yaml", &manifests(admits_third, ""))?;
                    start(&mut stage, build, *method)?;
                    // One may have been on its way.
                    books.wait_for_more(&books.sent, 20)?;
                    let before = books.arrived.load(Ordering::Relaxed);
                    books.wait_for_more(&books.sent, 100)?;
                    let after = books.arrived.load(Ordering::Relaxed);
                    ensure!(
                        admits_third == (after > before),
                        "{method:?}, {build:?}: the third one's came: {}",
                        after - before
                    );
                    ensure!(guessed()? < 1.0, "{build:?}: known, not guessed");
                    silent.goes_on().with_context(|| format!("{build:?}"))?;
                    if !admits_third {
                        // Back to a policy that admits it, so that the next change can be seen.
                        admits_third = true;
                        stage.apply("cluster.yaml", &manifests(admits_third, ""))?;
                    }
                }
                idle.goes_on().context("idle all the time")?;
                books.wait_for_more(&books.exchanged, 1000)
            })();
            books.stop();
            done
        })
        .with_context(|| format!("{method:?}; faults: {:?}", books.faults()))?;
        books.are_clean().with_context(|| format!("{method:?}"))?;
        let unanswered = books.unanswered.load(Ordering::Relaxed);
        ensure!(
            unanswered <= MOST_UNANSWERED,
            "{method:?}: {unanswered} answers lost"
        );
        println!(
            "{method:?}: {} exchanges; {unanswered} lost of those that began as programs were \
             replaced; of the stranger's none came",
            books.exchanged.load(Ordering::Relaxed)
        );
        uninstall(&mut stage)?;
    }
    Ok(())
}

#[test]
fn a_pod_that_is_not_known_stays_with_the_version_before_until_it_is_known_or_gone() -> Result<()> {
    for method in methods() {
        let mut stage = node(true)?;
        let traffic = Traffic::open(&stage)?;
        start(&mut stage, Build::Usual, *method)?;
        kill(&mut stage)?;
        // Its object went while no agent ran: who else is there is taken over.
        stage
            .lab
            .write_manifest("cluster.yaml", &manifests(true, "server"))?;
        spawn(&mut stage, Build::Next, *method)?;
        let veth = format!("pod{}", stage.lab.place("shop/server")?.veth);
        let stays = |why: &str| {
            wait_until("all others to be taken over", WITHIN, || {
                let status: Status = ask("/v1/status")?;
                let elsewhere: Vec<_> = status.elsewhere.iter().collect();
                ensure!(elsewhere.len() == 1, "{why}: {elsewhere:?}");
                ensure!(elsewhere[0].interface == veth, "{why}: {elsewhere:?}");
                ensure!(
                    elsewhere[0].layout == Build::Usual.version(),
                    "{why}: {elsewhere:?}"
                );
                ensure!(elsewhere[0].message.contains("no object"), "{elsewhere:?}");
                Ok(())
            })
            .with_context(|| format!("the agents said:\n{}", log()))
        };
        stays("at the first start")?;
        let both = [Build::Usual, Build::Next].map(Build::version);
        ensure!(pinned()? == both, "{:?}", pinned()?);
        traffic.drain();
        traffic
            .goes_as_before()
            .with_context(|| format!("{method:?}"))?;
        // Nor does another start change that.
        kill(&mut stage)?;
        spawn(&mut stage, Build::Next, *method)?;
        stage.agent.as_mut().context("an agent")?.wait_ready()?;
        stays("at the second start")?;
        traffic
            .goes_as_before()
            .with_context(|| format!("{method:?}, again"))?;
        if *method == Method::Tcx {
            stage
                .lab
                .write_manifest("cluster.yaml", &manifests(true, ""))?;
        } else {
            stage.lab.remove_pod("shop/server")?;
        }
        decides(Build::Next)?;
    }
    Ok(())
}

fn rounds() -> u32 {
    if is_thorough() { 200 } else { 8 }
}

/// No kill comes later than this after the agent began to take over: by then it is mostly done.
const KILLED_WITHIN: Duration = Duration::from_millis(40);

#[test]
fn an_agent_killed_while_it_takes_over_leaves_every_pod_judged_and_either_version_goes_on()
-> Result<()> {
    let methods = methods();
    let mut moments = Moments::of_this_run();
    let mut caught = 0;
    for method in methods {
        let mut stage = node(true)?;
        let mut traffic = Traffic::open(&stage)?;
        start(&mut stage, Build::Usual, *method)?;
        traffic.drain();
        let books = Books::default();
        std::thread::scope(|scope| -> Result<()> {
            traffic.run(scope, &books);
            let done = (|| -> Result<()> {
                let mut build = Build::Usual;
                for round in 0..rounds() {
                    kill(&mut stage)?;
                    build = match (build, moments.next_part() < 0.7) {
                        (Build::Usual, true) | (Build::Next, false) => Build::Next,
                        (Build::Usual, false) | (Build::Next, true) => Build::Usual,
                    };
                    let signs = || log().matches(TAKES_OVER).count() + log().matches(READY).count();
                    let before = signs();
                    spawn(&mut stage, build, *method)?;
                    wait_until("the agent to begin", WITHIN, || {
                        ensure!(signs() > before, "it said:\n{}", log());
                        Ok(())
                    })?;
                    pass(moments.next_within(KILLED_WITHIN));
                    caught += usize::from(pinned()?.len() == 2);
                    if round % 4 == 3 {
                        kill(&mut stage)?;
                        start(&mut stage, build, *method)?;
                        books.wait_for_more(&books.exchanged, 200)?;
                    }
                }
                Ok(())
            })();
            books.stop();
            done
        })
        .with_context(|| format!("{method:?}; faults: {:?}", books.faults()))?;
        books.are_clean().with_context(|| format!("{method:?}"))?;
        println!(
            "{method:?}: {} exchanges, {} lost of those that had just begun",
            books.exchanged.load(Ordering::Relaxed),
            books.unanswered.load(Ordering::Relaxed)
        );
        uninstall(&mut stage)?;
    }
    println!("killed {caught} times between two versions");
    ensure!(caught > 0, "no kill came while one took over");
    Ok(())
}

/// What the agent says when it begins.
const TAKES_OVER: &str = "another layout version's programs are in force";
const READY: &str = "ready: what is known is enforced";

#[test]
fn where_the_kernel_tracks_nothing_tcp_goes_on_after_a_downgrade() -> Result<()> {
    let mut stage = node(false)?;
    let mut pair = Lasting::open(&stage, 8001)?;
    start(&mut stage, Build::Next, methods()[0])?;
    pair.says_by_tcp()?;
    kill(&mut stage)?;
    start(&mut stage, Build::Usual, methods()[0])?;
    pair.says_by_tcp()?;
    ensure!(guessed()? >= 1.0, "taken up in its middle");
    Ok(())
}
