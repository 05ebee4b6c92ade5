//! `picket status`: is it enforced, on which pods, and what is wrong.

use std::io::{self, Write};

use super::Outcome;
use super::client::Socket;
use super::explain::seconds_since;
use super::output::{Cell, Column, Format, Paint, Table, Terminal, age, counted, grouped};
use crate::dto::{DirectionWord, Endpoint, EndpointState, MapFill, Status, Unclaimed};

/// Is policy enforced on this node? Pods, isolation, drops, findings, maps
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 everything known is in force · 1 something is not, or the objects have errors ·
2 no agent answers.

Examples:
  picket status
  picket status -n shop
  picket status -o json | jq '.endpoints[] | select(.state != \"programmed\")'")]
pub(super) struct Args {
    /// Only pods of this namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    socket: Socket,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// A map this full is worth a line.
const NEARLY_FULL: f64 = 0.85;

impl Args {
    pub(super) fn run(&self, terminal: &Terminal) -> anyhow::Result<Outcome> {
        let mut document = self.socket.get::<Status>("/v1/status", &[])?;
        let here = Here::of(&document.body.endpoints);
        if let Some(namespace) = &self.namespace {
            document
                .body
                .endpoints
                .retain(|endpoint| endpoint.namespace == *namespace);
        }
        self.output.print(&document, |out| {
            let now = jiff::Timestamp::now();
            write_status(out, terminal, &document.body, here, self.no_headers, now)
        })?;
        if let Some(namespace) = &self.namespace
            && document.body.endpoints.is_empty()
        {
            terminal.say(&format!("no pod of namespace {namespace} is on this node"));
        }
        Ok(if is_clean(&document.body) {
            Outcome::Yes
        } else {
            Outcome::No
        })
    }
}

/// The pods of this node, whichever are listed.
#[derive(Clone, Copy, Debug)]
struct Here {
    programmed: usize,
    all: usize,
}

impl Here {
    fn of(endpoints: &[Endpoint]) -> Self {
        let is_programmed = |each: &&Endpoint| each.state == EndpointState::Programmed;
        Self {
            programmed: endpoints.iter().filter(is_programmed).count(),
            all: endpoints.len(),
        }
    }
}

fn is_clean(status: &Status) -> bool {
    status.enforcing
        && status.unenforced.is_empty()
        && status
            .endpoints
            .iter()
            .all(|endpoint| endpoint.state == EndpointState::Programmed)
        && status
            .findings
            .iter()
            .all(|finding| finding.severity != "error")
        && status.error.is_none()
}

fn write_status(
    out: &mut impl Write,
    terminal: &Terminal,
    status: &Status,
    here: Here,
    without_headings: bool,
    now: jiff::Timestamp,
) -> io::Result<()> {
    let (paint, word) = if status.enforcing {
        (Paint::Allow, "enforcing")
    } else {
        (Paint::Audit, "not yet enforcing")
    };
    let node = status
        .node
        .as_ref()
        .map_or_else(String::new, |node| format!("   node {node}"));
    writeln!(
        out,
        "picket {}{node}   {}   {}/{} pods here   {}   {} in {}",
        status.version,
        terminal.paint(paint, word),
        here.programmed,
        here.all,
        counted(status.policies, "policy", "policies"),
        counted(status.pods, "pod", "pods"),
        counted(status.namespaces, "namespace", "namespaces"),
    )?;
    if let Some(apply) = &status.last_apply {
        let ago = seconds_since(&apply.time, now)
            .map_or_else(String::new, |ago| format!(" {} ago", age(ago)));
        let took = apply
            .took_ms
            .map_or_else(String::new, |took| format!(" in {took:.1} ms"));
        let line = format!(
            "last change applied{ago}: {}{took}",
            counted(apply.writes, "write", "writes")
        );
        writeln!(out, "{}", terminal.paint(Paint::Dim, &line))?;
    }
    if !status.endpoints.is_empty() {
        writeln!(out)?;
        endpoints(&status.endpoints, without_headings).write(out, terminal)?;
    }
    writeln!(out, "\n{}", terminal.paint(Paint::Dim, &fill_line(status)))?;
    write_warnings(out, terminal, status)
}

fn endpoints(endpoints: &[Endpoint], without_headings: bool) -> Table {
    let mut table = Table::new(vec![
        Column::Name("POD"),
        Column::Left("INGRESS"),
        Column::Left("EGRESS"),
        Column::Left("SETS"),
        Column::Left("STATE"),
        Column::Right("PASSED"),
        Column::Right("DROPPED"),
        Column::Left("WHY"),
    ])
    .without_headings(without_headings);
    for endpoint in endpoints {
        let of = |word| {
            endpoint
                .directions
                .iter()
                .find(|each| each.direction == word)
        };
        let isolation = |word| match of(word) {
            Some(direction) if direction.isolated => Cell::from("isolated"),
            Some(_) => Cell::painted(Paint::Dim, "open"),
            None => Cell::from("-"),
        };
        let set = |word| {
            of(word)
                .and_then(|direction| direction.set)
                .map_or_else(|| "-".to_owned(), |set| set.to_string())
        };
        let passed: u64 = endpoint
            .directions
            .iter()
            .map(|each| each.passed.packets)
            .sum();
        let mut reasons: Vec<(String, u64)> = Vec::new();
        for direction in &endpoint.directions {
            for (reason, traffic) in &direction.dropped {
                match reasons.iter_mut().find(|(known, _)| known == reason) {
                    Some((_, packets)) => *packets += traffic.packets,
                    None => reasons.push((reason.clone(), traffic.packets)),
                }
            }
        }
        reasons.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let dropped: u64 = reasons.iter().map(|(_, packets)| packets).sum();
        let why: Vec<String> = match reasons.as_slice() {
            [(only, _)] => vec![only.clone()],
            several => several
                .iter()
                .map(|(reason, packets)| format!("{reason} {}", grouped(*packets)))
                .collect(),
        };
        let state = match endpoint.state {
            EndpointState::Programmed => Paint::Allow,
            EndpointState::Pending => Paint::Audit,
            EndpointState::Failed => Paint::Deny,
        };
        table.push(vec![
            format!("{}/{}", endpoint.namespace, endpoint.pod).into(),
            isolation(DirectionWord::Ingress),
            isolation(DirectionWord::Egress),
            format!(
                "{}/{}",
                set(DirectionWord::Ingress),
                set(DirectionWord::Egress)
            )
            .into(),
            Cell::painted(state, endpoint.state.as_label()),
            grouped(passed).into(),
            Cell::painted(
                if dropped > 0 {
                    Paint::Deny
                } else {
                    Paint::Plain
                },
                grouped(dropped),
            ),
            why.join(", ").into(),
        ]);
    }
    table
}

fn share(map: &MapFill) -> Option<f64> {
    let entries = map.entries?;
    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    let share = entries as f64 / map.capacity.max(1) as f64;
    Some(share)
}

fn fill_line(status: &Status) -> String {
    let fullest = status
        .maps
        .iter()
        .filter_map(|map| Some((map, share(map)?)))
        .max_by(|a, b| a.1.total_cmp(&b.1));
    let fullest = fullest.map_or_else(
        || "map fill unknown".to_owned(),
        |(map, share)| format!("fullest map {} {:.1}%", map.name, share * 100.0),
    );
    let lost = match status.events_lost {
        0 => "no events lost".to_owned(),
        lost => format!("{} events lost", grouped(lost)),
    };
    format!("{fullest} · {lost}")
}

fn unclaimed_line(unclaimed: &Unclaimed) -> String {
    let fate = match (unclaimed.enclosed, unclaimed.open) {
        (true, false) => "it is closed until one does",
        (true, true) => "it is open until one does",
        (false, _) => "it was here before the agent and stays open until one does",
    };
    let mut place = unclaimed.addresses.clone();
    place.extend(unclaimed.netns.clone());
    let lacking = match &unclaimed.pod {
        Some(pod) => format!("made for {pod}, which has no object here with its UID"),
        None => "no object states its pod".to_owned(),
    };
    format!(
        "interface {} ({}): {lacking}; {fate}",
        unclaimed.interface,
        place.join(", ")
    )
}

/// What someone has to look at, one `!` line each.
fn write_warnings(out: &mut impl Write, terminal: &Terminal, status: &Status) -> io::Result<()> {
    let mut lines: Vec<(Paint, String)> = Vec::new();
    for unenforced in &status.unenforced {
        lines.push((
            Paint::Deny,
            format!("{} is not enforced: {}", unenforced.pod, unenforced.message),
        ));
    }
    for unclaimed in &status.unclaimed {
        lines.push((Paint::Audit, unclaimed_line(unclaimed)));
    }
    for elsewhere in &status.elsewhere {
        lines.push((
            Paint::Audit,
            format!(
                "interface {} is judged by the agent before, of map layout {}: {}",
                elsewhere.interface, elsewhere.layout, elsewhere.message
            ),
        ));
    }
    for endpoint in &status.endpoints {
        if let Some(note) = &endpoint.note {
            lines.push((
                Paint::Deny,
                format!(
                    "{}/{} is {}: {note}",
                    endpoint.namespace,
                    endpoint.pod,
                    endpoint.state.as_label()
                ),
            ));
        }
    }
    if let Some(error) = &status.error {
        lines.push((
            Paint::Deny,
            format!("the latest change is not in force: {error}"),
        ));
    }
    for finding in &status.findings {
        let paint = if finding.severity == "error" {
            Paint::Deny
        } else {
            Paint::Audit
        };
        lines.push((paint, format!("{}: {}", finding.severity, finding.message)));
    }
    for map in &status.maps {
        if let (Some(share), Some(entries)) = (share(map), map.entries)
            && share >= NEARLY_FULL
        {
            lines.push((
                Paint::Audit,
                format!(
                    "map {} has {} of {} entries; start the agent with --map-capacity {}=MORE",
                    map.name,
                    grouped(entries),
                    grouped(map.capacity),
                    map.name.to_ascii_uppercase()
                ),
            ));
        }
    }
    if status.denied_overflow > 0 {
        lines.push((
            Paint::Audit,
            format!(
                "{} refusals found no room in the denied map: they are counted as drops, not by peer",
                grouped(status.denied_overflow)
            ),
        ));
    }
    for (paint, line) in lines {
        writeln!(out, "{} {line}", terminal.paint(paint, "!"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::dto::{Apply, EndpointDirection, Finding, Traffic, Unenforced};

    fn status() -> Status {
        let direction = |direction, isolated, set, dropped: u64| EndpointDirection {
            direction,
            isolated,
            set,
            isolated_by: Vec::new(),
            passed: Traffic {
                packets: 600,
                bytes: 36_000,
            },
            dropped: if dropped > 0 {
                BTreeMap::from([(
                    "isolated-no-rule".to_owned(),
                    Traffic {
                        packets: dropped,
                        bytes: 60 * dropped,
                    },
                )])
            } else {
                BTreeMap::new()
            },
        };
        Status {
            version: "0.1.0".to_owned(),
            node: Some("node-a".to_owned()),
            enforcing: true,
            policies: 2,
            pods: 12,
            namespaces: 1,
            endpoints: vec![Endpoint {
                namespace: "shop".to_owned(),
                pod: "api-1".to_owned(),
                workload: "Deployment/api".to_owned(),
                addresses: vec!["10.0.0.1".to_owned()],
                ifindex: Some(7),
                slot: Some(1),
                state: EndpointState::Programmed,
                note: None,
                revision: Some("9".to_owned()),
                directions: vec![
                    direction(DirectionWord::Ingress, true, Some(3), 37),
                    direction(DirectionWord::Egress, false, None, 0),
                ],
            }],
            unenforced: Vec::new(),
            unclaimed: Vec::new(),
            elsewhere: Vec::new(),
            findings: Vec::new(),
            maps: vec![MapFill {
                name: "verdicts".to_owned(),
                entries: Some(90),
                capacity: 1_000,
            }],
            last_apply: Some(Apply {
                time: "2026-11-21T14:00:00Z".to_owned(),
                writes: 214,
                took_ms: Some(4.25),
            }),
            error: None,
            events_lost: 0,
            cni_plugin: None,
            denied_overflow: 0,
        }
    }

    fn written(status: &Status) -> String {
        let mut out = Vec::new();
        let now = "2026-11-21T14:00:03Z".parse().unwrap();
        let here = Here::of(&status.endpoints);
        write_status(&mut out, &Terminal::PLAIN, status, here, false, now).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_healthy_node_reads_in_a_glance() {
        let expected = "\
picket 0.1.0   node node-a   enforcing   1/1 pods here   2 policies   12 pods in 1 namespace
last change applied 3s ago: 214 writes in 4.2 ms

POD         INGRESS   EGRESS  SETS  STATE       PASSED  DROPPED  WHY
shop/api-1  isolated  open    3/-   programmed   1,200       37  isolated-no-rule

fullest map verdicts 9.0% · no events lost
";
        assert_eq!(written(&status()), expected);
        assert!(is_clean(&status()));
    }

    #[test]
    fn whatever_is_not_in_force_is_said_and_ends_with_1() {
        let mut broken = status();
        broken.findings.push(Finding {
            severity: "error".to_owned(),
            message: "shop.yaml:3: networkpolicy shop/x: spec is wrong".to_owned(),
        });
        broken.unenforced.push(Unenforced {
            pod: "shop/vf-0".to_owned(),
            message: "macvlan".to_owned(),
        });
        broken.maps.push(MapFill {
            name: "ports".to_owned(),
            entries: Some(900),
            capacity: 1_000,
        });
        let text = written(&broken);
        assert!(
            text.contains("! shop/vf-0 is not enforced: macvlan\n"),
            "{text}"
        );
        assert!(
            text.contains("! error: shop.yaml:3: networkpolicy shop/x: spec is wrong\n"),
            "{text}"
        );
        assert!(text.contains("! map ports has 900 of 1,000 entries; start the agent with --map-capacity PORTS=MORE"), "{text}");
        assert!(!is_clean(&broken));
    }
}
