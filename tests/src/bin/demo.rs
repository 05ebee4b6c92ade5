//! `cargo xtask demo`: the way from a flat network to one where every path is meant, on a node of
//! network namespaces, with the real agent, measured with real sockets after each step.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use agent::dto::{Explanation, ExplanationList, Status};
use anyhow::{Context as _, Result};
use clap::Parser;
use tests::demo::page::{Ink, Page, brief};
use tests::demo::paths::{self, Cell, Paths};
use tests::demo::story::{CLUSTER, INTERNET, OUTSIDE, STEPS, Service, Step};
use tests::lab::agent::{Agent, ask, picket};
use tests::lab::stage::Stage;

/// Exit code when something went wrong.
const EXIT_ERROR: u8 = 2;
/// How many denied paths are explained in a step; the others are named.
const EXPLAINED: usize = 2;
/// Counts for a side that no rule comes near to.
const FAR: usize = 9;
/// How many endpoints' drop counters are shown.
const COUNTED: usize = 4;
/// The path of the rogue pod that is explained once it is denied.
const ROGUE: (&str, &str) = ("sandbox/rogue", "data/db");

/// Show Picket at work: a shop from flat network to least privilege, on real packets
///
/// Lays out nine pods as network namespaces (IPv4 and IPv6), starts the real agent on a directory
/// of manifests and applies policies step by step. What you see is measured after each step.
/// Everything lives in namespaces of this process and is gone when it ends, however it ends.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo", max_term_width = 100)]
struct Arguments {}

fn main() -> ExitCode {
    let Arguments {} = Arguments::parse();
    match run(&Page::open()) {
        Ok(()) => ExitCode::SUCCESS,
        // `cargo xtask demo | head`: the reader has what it wanted.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            writeln!(std::io::stderr(), "\ndemo: {error:#}").unwrap_or_default();
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn run(page: &Page) -> Result<()> {
    let begin = Instant::now();
    page.title(
        "Picket demo",
        "NetworkPolicy enforced on real packets, without a cluster",
    )?;
    page.line("")?;
    page.progress("laying out nine pods, a node and the internet beyond a router …")?;
    let mut stage = Stage::without_agent(CLUSTER)?;
    for address in INTERNET {
        stage
            .lab
            .add_external(address.parse().context("an address of the internet")?)?;
    }
    let _servers = paths::serve(&stage.lab)?;
    let laid_out = format!(
        "node of network namespaces: 9 pods with a veth each, IPv4 and IPv6, and the internet \
         beyond a router ({} ms)",
        begin.elapsed().as_millis()
    );
    page.note("lab", Ink::Bold, &[laid_out])?;
    page.progress("starting picket agent …")?;
    let started = Instant::now();
    stage.agent = Some(Agent::start(&stage.lab.manifests())?);
    stage.settle()?;
    let command = "picket agent --manifests …: programs loaded, attached to 9 pods, ready";
    let ready = format!("{command} ({} ms)", started.elapsed().as_millis());
    page.note("agent", Ink::Bold, &[ready])?;
    page.note("legend", Ink::Bold, &[page.legend()])?;

    let mut before: Option<Paths> = None;
    let mut counted = drops()?;
    for (place, step) in STEPS.iter().enumerate() {
        page.heading(place + 1, STEPS.len(), step.title, step.text)?;
        apply(page, &mut stage, step)?;
        page.progress("trying every path …")?;
        let paths = paths::measure(&stage.lab)?;
        page.grid(&paths, before.as_ref())?;
        score(page, &paths)?;
        if let Some(before) = &before {
            changes(page, before, &paths)?;
        }
        denials(page, &paths)?;
        let now = drops()?;
        counters(page, &counted, &now)?;
        counted = now;
        before = Some(paths);
    }
    drop(stage);
    page.line("")?;
    page.line("")?;
    let end = format!(
        "{} s; the lab lived in namespaces of this process and is gone with it. Look further:",
        begin.elapsed().as_secs()
    );
    let picket = picket()?;
    let here = std::env::current_dir().unwrap_or_default();
    let picket = picket.strip_prefix(&here).unwrap_or(&picket).display();
    let picket = picket.to_string();
    let wide = picket.chars().count() + " why A B:PORT -f DIR".len();
    let further = [
        end,
        format!(
            "  {:wide$}   measure your own manifests like this",
            "cargo xtask lab -f DIR"
        ),
        format!(
            "  {:wide$}   the same matrix, judged without a lab",
            format!("{picket} matrix -f DIR")
        ),
        format!(
            "  {:wide$}   which rule admits it, or what is missing",
            format!("{picket} why A B:PORT -f DIR")
        ),
    ];
    page.note("done", Ink::Green, &further)?;
    page.line("")
}

fn apply(page: &Page, stage: &mut Stage, step: &Step) -> Result<()> {
    page.progress("applying …")?;
    let begin = Instant::now();
    for (name, content) in step.writes {
        stage.apply(name, content)?;
    }
    for name in step.removes {
        stage.remove(name)?;
    }
    if step.writes.is_empty() && step.removes.is_empty() {
        return Ok(());
    }
    let took = begin.elapsed();
    let files = step.writes.iter().map(|(name, _)| format!("+ {name}"));
    let files: Vec<String> = files
        .chain(step.removes.iter().map(|name| format!("- {name}")))
        .collect();
    page.line("")?;
    page.note(
        "applied",
        Ink::Bold,
        &[format!(
            "{}   in force after {}",
            files.join("  "),
            milliseconds(took)
        )],
    )
}

fn milliseconds(duration: Duration) -> String {
    format!("{} ms", duration.as_millis().max(1))
}

/// How far the shop works, and how far anything else is possible.
fn score(page: &Page, paths: &Paths) -> Result<()> {
    let (needed, other): (Vec<_>, Vec<_>) =
        paths.iter().partition(|(cell, _)| paths::is_needed(**cell));
    let open = |paths: &[(&Cell, &paths::Reach)]| {
        paths.iter().filter(|(_, reach)| reach.is_open()).count()
    };
    let (works, exposed) = (open(&needed), open(&other));
    let ink = if works == needed.len() {
        Ink::Green
    } else {
        Ink::Red
    };
    page.bar("needed", ink, works, needed.len(), "paths of the shop work")?;
    page.bar(
        "exposed",
        Ink::Red,
        exposed,
        other.len(),
        "paths that nobody needs are open",
    )
}

/// What changed, in words.
fn changes(page: &Page, before: &Paths, paths: &Paths) -> Result<()> {
    let changed = |open: bool| -> Vec<Cell> {
        paths
            .iter()
            .filter(|(cell, reach)| before.get(*cell) != Some(*reach) && reach.is_open() == open)
            .map(|(cell, _)| *cell)
            .collect()
    };
    let (opened, closed) = (changed(true), changed(false));
    if opened.is_empty() && closed.is_empty() {
        return page.note(
            "changed",
            Ink::Bold,
            &["nothing: no path opened, none closed".to_owned()],
        );
    }
    page.note("opened", Ink::Green, &page.gathered(&named(&opened)))?;
    let needed: Vec<Cell> = closed
        .iter()
        .copied()
        .filter(|cell| paths::is_needed(*cell))
        .collect();
    let mut lines = Vec::new();
    if !closed.is_empty() {
        lines.push(format!(
            "{} paths, {} of them needed:",
            closed.len(),
            needed.len()
        ));
        lines.extend(page.gathered(&named(&needed)));
    }
    page.note("closed", Ink::Red, &lines)
}

/// Paths by name.
fn named(cells: &[Cell]) -> Vec<String> {
    let ends = cells.iter().filter_map(|cell| paths::ends(*cell));
    ends.map(|(from, service)| path(from, service)).collect()
}

fn path(from: &str, service: &Service) -> String {
    format!(
        "{from} → {} {}/{}",
        service.at, service.protocol, service.port
    )
}

/// The denied paths that the shop needs, explained by the agent, and one that it does not.
fn denials(page: &Page, paths: &Paths) -> Result<()> {
    let denied = paths
        .iter()
        .filter(|(cell, reach)| !reach.is_open() && paths::is_needed(**cell));
    let mut explained = Vec::new();
    for (from, service) in denied.filter_map(|(cell, _)| paths::ends(*cell)) {
        explained.push((path(from, service), explanation(from, service)?));
    }
    // The nearer a rule, the more there is to learn.
    explained.sort_by_key(|(_, explanation)| failing(explanation));
    for (place, (_, explanation)) in explained.iter().take(EXPLAINED).enumerate() {
        let word = if place == 0 { "denied" } else { "" };
        page.note(word, Ink::Red, &page.reasons(explanation))?;
    }
    page.note(
        "also",
        Ink::Red,
        &in_columns(explained.get(EXPLAINED..).unwrap_or_default()),
    )?;
    let rogue = paths.iter().find_map(|(cell, reach)| {
        let (from, service) = paths::ends(*cell)?;
        (!reach.is_open() && (from, service.at) == ROGUE).then_some((from, service))
    });
    let Some((from, service)) = rogue else {
        return Ok(());
    };
    let kept_out = (path(from, service), explanation(from, service)?);
    page.note(
        "kept out",
        Ink::Bold,
        &in_columns(std::slice::from_ref(&kept_out)),
    )
}

/// Each path's name, and beside it why it is denied.
fn in_columns(explained: &[(String, Explanation)]) -> Vec<String> {
    let names = explained.iter().map(|(name, _)| name.chars().count());
    let wide = names.max().unwrap_or_default();
    let mut lines = Vec::new();
    for (name, explanation) in explained {
        let mut name = name.as_str();
        for side in brief(explanation) {
            lines.push(format!("{name:wide$}   {side}"));
            name = "";
        }
    }
    lines
}

/// How many conditions of the nearest rules fail; a side without any rule counts most.
fn failing(explanation: &Explanation) -> usize {
    let denied = explanation
        .judgements
        .iter()
        .filter(|judgement| judgement.verdict == agent::dto::VerdictWord::Deny);
    denied
        .map(|judgement| {
            judgement
                .nearest
                .first()
                .map_or(FAR, |near| near.failed.len())
        })
        .sum()
}

fn explanation(from: &str, service: &Service) -> Result<Explanation> {
    let [outside, _] = INTERNET;
    let reference = |name: &str| {
        if name == OUTSIDE {
            format!("ip:{outside}")
        } else {
            name.to_owned()
        }
    };
    let question = format!(
        "/v1/why?from={}&to={}:{}/{}&namespace=default",
        reference(from),
        reference(service.at),
        service.port,
        service.protocol
    );
    let list: ExplanationList = ask(&question)?;
    list.items
        .into_iter()
        .next()
        .with_context(|| format!("no answer to {question}"))
}

/// Packets dropped so far, by endpoint and by (direction, reason).
#[derive(Debug, Default)]
struct Drops {
    endpoints: BTreeMap<String, u64>,
    reasons: BTreeMap<(&'static str, String), u64>,
}

fn drops() -> Result<Drops> {
    let status: Status = ask("/v1/status")?;
    let mut drops = Drops::default();
    for endpoint in &status.endpoints {
        for direction in &endpoint.directions {
            let word = direction.direction.as_label();
            for (reason, traffic) in &direction.dropped {
                let name = format!("{}/{}", endpoint.namespace, endpoint.pod);
                *drops.endpoints.entry(name).or_default() += traffic.packets;
                *drops.reasons.entry((word, reason.clone())).or_default() += traffic.packets;
            }
        }
    }
    Ok(drops)
}

/// The drop counters' growth in this step.
fn counters(page: &Page, before: &Drops, now: &Drops) -> Result<()> {
    let grown = |now: u64, before: Option<&u64>| now.saturating_sub(before.copied().unwrap_or(0));
    let mut endpoints: Vec<(u64, &String)> = now
        .endpoints
        .iter()
        .map(|(name, packets)| (grown(*packets, before.endpoints.get(name)), name))
        .filter(|(packets, _)| *packets > 0)
        .collect();
    endpoints.sort_by(|a, b| b.cmp(a));
    let reasons: Vec<String> = now
        .reasons
        .iter()
        .map(|(key, packets)| (key, grown(*packets, before.reasons.get(key))))
        .filter(|(_, packets)| *packets > 0)
        .map(|((direction, reason), packets)| format!("{packets} {direction} {reason}"))
        .collect();
    let total: u64 = endpoints.iter().map(|(packets, _)| packets).sum();
    if total == 0 {
        return page.note("dropped", Ink::Bold, &["no packet".to_owned()]);
    }
    let mut most: Vec<String> = endpoints
        .iter()
        .take(COUNTED)
        .map(|(packets, name)| format!("{name} {packets}"))
        .collect();
    if endpoints.len() > COUNTED {
        most.push(format!("{} more pods", endpoints.len() - COUNTED));
    }
    let lines = [
        format!("{total} packets: {}", reasons.join(", ")),
        format!("at {}", most.join(", ")),
    ];
    page.note("dropped", Ink::Bold, &lines)
}
