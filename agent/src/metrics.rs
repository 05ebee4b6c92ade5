//! Every metric: name, type, labels and help, once. Values come from what the kernel has counted
//! ([`crate::reading`]), never from events; `ledger` keeps them from going back.
//!
//! Labels come from closed lists or from objects that live in the cluster; when the object goes,
//! its series go. Families with closed labels start at 0, so that the first refusal is an increase.

mod aging;
mod encoder;
mod ledger;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use agent_common::maps::{Counter, DeniedKey};
use agent_common::{Direction, Reason, Verdict};
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};

use self::encoder::{Encoder, Labels, Value};
use self::ledger::Ledger;
use crate::dto::{DirectionWord, EndpointState};
use crate::reading::{self, Denial, DeniedReading, Reading, TakeError, Wanted};
use crate::reconcile::Handle;

/// What the text is, for whoever scrapes it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a killed agent had cleared since the latest sample is in no total.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Refusals named or removed between two plans.
const DENIALS_AT_ONCE: usize = 256;

/// A moment's values, ready to be encoded.
#[derive(Debug)]
struct Moment {
    reading: Reading,
    ledger: Ledger,
}

impl prometheus_client::collector::Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut encoder = Encoder(&mut encoder);
        self.about_agent(&mut encoder)?;
        self.about_verdicts(&mut encoder)?;
        self.about_endpoints(&mut encoder)?;
        self.about_plans(&mut encoder)?;
        self.about_kernel(&mut encoder)
    }
}

fn direction_label(direction: Direction) -> (&'static str, String) {
    ("direction", direction.as_label().to_owned())
}

fn level(number: impl TryInto<u32>) -> f64 {
    number.try_into().map_or(f64::from(u32::MAX), f64::from)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus knows floating point only"
)]
fn wide(number: u64) -> f64 {
    number as f64
}

impl Moment {
    fn about_agent(&self, encoder: &mut Encoder<'_, '_>) -> fmt::Result {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        encoder.gauge(
            "picket_build_info",
            "Version of the agent and of the kernel it runs on; always 1",
            vec![(
                vec![
                    ("version", env!("CARGO_PKG_VERSION").to_owned()),
                    (
                        "revision",
                        option_env!("PICKET_REVISION")
                            .unwrap_or("unknown")
                            .to_owned(),
                    ),
                    ("kernel", kernel.trim().to_owned()),
                ],
                1.0,
            )],
        )?;
        let mut findings = BTreeMap::from([("error", 0_u32), ("warning", 0)]);
        for finding in &self.reading.findings {
            if let Some(count) = findings.get_mut(finding.severity.as_str()) {
                *count += 1;
            }
        }
        encoder.gauge(
            "picket_findings",
            "What is wrong with the objects that are enforced, by severity",
            findings
                .into_iter()
                .map(|(severity, count)| {
                    (vec![("severity", severity.to_owned())], f64::from(count))
                })
                .collect(),
        )
    }

    fn about_verdicts(&self, encoder: &mut Encoder<'_, '_>) -> fmt::Result {
        let traffic = self.ledger.node_traffic();
        let allowed = self.ledger.allowed_connections();
        let mut verdicts = Vec::new();
        let mut bytes = Vec::new();
        for direction in Direction::ALL {
            let labels = |reason: Reason| {
                vec![
                    direction_label(direction),
                    ("verdict", reason.verdict().as_label().to_owned()),
                    ("reason", reason.as_label().to_owned()),
                ]
            };
            for reason in Reason::ALL.iter().copied().filter(|reason| begins(*reason)) {
                let count = allowed.get(&(direction, reason)).copied();
                verdicts.push((labels(reason), count.unwrap_or_default()));
            }
            let mut dropped = 0;
            for reason in Reason::ALL
                .iter()
                .filter(|reason| reason.verdict() == Verdict::Deny)
            {
                let row = traffic
                    .get(&(direction, Some(*reason)))
                    .copied()
                    .unwrap_or_default();
                verdicts.push((labels(*reason), row.packets));
                dropped += row.bytes;
            }
            let passed = traffic.get(&(direction, None)).copied().unwrap_or_default();
            for (verdict, sum) in [(Verdict::Allow, passed.bytes), (Verdict::Deny, dropped)] {
                bytes.push((
                    vec![
                        direction_label(direction),
                        ("verdict", verdict.as_label().to_owned()),
                    ],
                    sum,
                ));
            }
        }
        encoder.counter(
            "picket_verdicts",
            "New connections that were allowed, and packets that were refused, by reason",
            verdicts,
        )?;
        encoder.counter(
            "picket_verdict_bytes",
            "Bytes let through and refused, from the IP header on",
            bytes,
        )?;
        let by_namespace = self.ledger.namespace_packets();
        encoder.counter(
            "picket_namespace_verdicts",
            "Packets let through and refused at the endpoints of a namespace on this node",
            by_namespace
                .into_iter()
                .map(|((namespace, direction, verdict), packets)| {
                    let verdict = ("verdict", verdict.as_label().to_owned());
                    (
                        vec![
                            ("namespace", namespace),
                            direction_label(direction),
                            verdict,
                        ],
                        packets,
                    )
                })
                .collect(),
        )?;
        encoder.counter(
            "picket_policy_verdicts",
            "New connections that a policy's rules decided, for policies of namespaces on this node",
            self.ledger
                .policy_connections(&self.reading)
                .into_iter()
                .map(|((namespace, policy, direction), connections)| {
                    let verdict = ("verdict", Verdict::Allow.as_label().to_owned());
                    let labels =
                        vec![("namespace", namespace), ("policy", policy), direction_label(direction), verdict];
                    (labels, connections)
                })
                .collect(),
        )?;
        self.about_refusals(encoder)
    }

    fn about_refusals(&self, encoder: &mut Encoder<'_, '_>) -> fmt::Result {
        encoder.counter(
            "picket_denied_connections",
            "Refused packets that would have opened a connection, by endpoint and peer workload; what exceeds the limit of series is under __overflow__",
            self.ledger
                .denied_pairs()
                .into_iter()
                .map(|(pair, packets)| {
                    let labels = vec![
                        ("direction", pair.direction),
                        ("reason", pair.reason),
                        ("namespace", pair.namespace),
                        ("workload", pair.workload),
                        ("peer_namespace", pair.peer_namespace),
                        ("peer_workload", pair.peer_workload),
                    ];
                    (labels, packets)
                })
                .collect(),
        )?;
        encoder.counter(
            "picket_dns_denied",
            "Refused packets to port 53, by the namespace whose look-ups fail",
            self.ledger
                .dns_denied()
                .into_iter()
                .map(|(namespace, packets)| (vec![("namespace", namespace)], packets))
                .collect(),
        )?;
        encoder.counter(
            "picket_metrics_overflow",
            "Label sets that found no series of their own",
            vec![(
                vec![("metric", "picket_denied_connections_total".to_owned())],
                self.ledger.overflowed,
            )],
        )
    }

    fn about_endpoints(&self, encoder: &mut Encoder<'_, '_>) -> fmt::Result {
        let mut states: BTreeMap<&str, usize> = EndpointState::ALL
            .iter()
            .map(|state| (state.as_label(), 0))
            .collect();
        states.insert("host_network", self.reading.host_network);
        let mut isolation: BTreeMap<(String, DirectionWord, &str), usize> = BTreeMap::new();
        for endpoint in &self.reading.endpoints {
            *states.entry(endpoint.state.as_label()).or_default() += 1;
            for direction in &endpoint.directions {
                for mode in ["open", "audit", "enforce", "break_glass"] {
                    isolation
                        .entry((endpoint.namespace.clone(), direction.direction, mode))
                        .or_default();
                }
                let mode = if direction.isolated {
                    "enforce"
                } else {
                    "open"
                };
                *isolation
                    .entry((endpoint.namespace.clone(), direction.direction, mode))
                    .or_default() += 1;
            }
        }
        *states.entry(EndpointState::Failed.as_label()).or_default() +=
            self.reading.unenforced.len();
        *states.entry(EndpointState::Pending.as_label()).or_default() += self
            .reading
            .unclaimed
            .iter()
            .filter(|each| each.enclosed)
            .count();
        encoder.gauge(
            "picket_endpoints",
            "Pods on this node by how far their policy is in force; failed ones are not enforced as they should be",
            states
                .into_iter()
                .map(|(state, count)| (vec![("state", state.to_owned())], level(count)))
                .collect(),
        )?;
        encoder.gauge(
            "picket_endpoint_isolation",
            "Pods on this node by namespace, direction and what policy does to them",
            isolation
                .into_iter()
                .map(|((namespace, direction, mode), count)| {
                    let labels = vec![
                        ("namespace", namespace),
                        direction_label(direction.into()),
                        ("mode", mode.to_owned()),
                    ];
                    (labels, level(count))
                })
                .collect(),
        )?;
        encoder.gauge(
            "picket_other_layout_interfaces",
            "Interfaces that an agent with another map layout left and that are not taken over yet",
            vec![(Vec::new(), level(self.reading.elsewhere.len()))],
        )
    }

    fn about_plans(&self, encoder: &mut Encoder<'_, '_>) -> fmt::Result {
        let plans = &self.reading.plans;
        let stages = [
            ("watch_to_map", &plans.watch_to_map),
            ("compile", &plans.compile),
            ("swap", &plans.swap),
        ];
        encoder.family(
            "picket_policy_apply_duration_seconds",
            "How long changes take: from being noticed to being in force, and of that compiling and writing",
            MetricType::Histogram,
            stages.map(|(stage, histogram)| {
                (vec![("stage", stage.to_owned())], Value::Histogram(histogram))
            }),
        )?;
        encoder.family(
            "picket_pod_first_enforced_seconds",
            "How long new pods wait, from the first sign of their interface to their policy being in force",
            MetricType::Histogram,
            [(Labels::new(), Value::Histogram(&plans.first_enforced))],
        )?;
        encoder.counter(
            "picket_policy_apply_failures",
            "Changes that did not get in force at once: refused by a limit, or by the kernel; the state before stays",
            vec![
                (vec![("reason", "limit".to_owned())], plans.refusals),
                (vec![("reason", "kernel".to_owned())], plans.failures),
            ],
        )
    }

    fn about_kernel(&self, encoder: &mut Encoder<'_, '_>) -> fmt::Result {
        let label = |name: &str| vec![("map", name.to_owned())];
        let maps = &self.reading.maps;
        encoder.gauge(
            "picket_bpf_map_entries",
            "Entries in a map",
            maps.iter()
                .filter_map(|map| Some((label(&map.name), wide(map.entries?))))
                .collect(),
        )?;
        encoder.gauge(
            "picket_bpf_map_capacity",
            "Entries a map has room for",
            maps.iter()
                .filter(|map| map.entries.is_some())
                .map(|map| (label(&map.name), wide(map.capacity)))
                .collect(),
        )?;
        encoder.counter(
            "picket_events_lost",
            "Flow events that were lost: the counts are exact all the same",
            vec![(
                vec![("stage", "ringbuf".to_owned())],
                self.reading.counter(Counter::EventsLost),
            )],
        )?;
        encoder.counter(
            "picket_kernel_events",
            "What else the programs count: see the names of the kinds",
            Counter::ALL
                .iter()
                .filter_map(|counter| {
                    Some((
                        vec![("kind", counter_label(*counter)?.to_owned())],
                        self.reading.counter(*counter),
                    ))
                })
                .collect(),
        )
    }
}

/// True for what connections are allowed for; the other reasons are said of single packets.
const fn begins(reason: Reason) -> bool {
    match reason {
        Reason::Rule
        | Reason::NotIsolated
        | Reason::Itself
        | Reason::Node
        | Reason::MidStream
        | Reason::BreakGlass
        | Reason::FailOpen
        | Reason::NoEndpoints => true,
        Reason::Reply
        | Reason::Link
        | Reason::IcmpRelated
        | Reason::IsolatedNoRule
        | Reason::DenyRule
        | Reason::SpoofedSource
        | Reason::Malformed
        | Reason::Fragment
        | Reason::NotProgrammed
        | Reason::FailClosed
        | Reason::ServiceNone
        | Reason::ServiceUnseen
        | Reason::WouldDeny
        | Reason::WouldAllow => false,
    }
}

/// The word of a counter; `None` for what has a metric of its own.
const fn counter_label(counter: Counter) -> Option<&'static str> {
    match counter {
        Counter::EventsLost => None,
        Counter::DeniedOverflow => Some("denied_overflow"),
        Counter::ConnectionRefused => Some("connection_refused"),
        Counter::DefaultRowMissing => Some("default_row_missing"),
        Counter::MidStream => Some("mid_stream"),
        Counter::NotMine => Some("not_mine"),
        Counter::BudgetExceeded => Some("budget_exceeded"),
        Counter::UnknownEndpoint => Some("unknown_endpoint"),
        Counter::RuleHitLost => Some("rule_hit_lost"),
        Counter::Cut => Some("cut"),
    }
}

/// A way to ask for the metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(mpsc::Sender<oneshot::Sender<String>>);

/// The task is over: the agent stops.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the agent is shutting down")]
pub struct Stopped;

impl Metrics {
    /// Every metric as text.
    ///
    /// # Errors
    /// The agent stops.
    pub async fn text(&self) -> Result<String, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.map_err(|_closed| Stopped)?;
        answered.await.map_err(|_closed| Stopped)
    }
}

/// The task that samples the maps and answers scrapes, and the way to ask it. `totals` is where
/// the ledger outlives the agent. The future ends when the agent stops.
pub fn start(handle: Handle, totals: PathBuf) -> (Metrics, impl Future<Output = ()> + Send) {
    let (ask, mut asked) = mpsc::channel::<oneshot::Sender<String>>(16);
    let task = async move {
        let mut ledger = Ledger::load(&totals);
        let mut timer = tokio::time::interval(SAMPLE_EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_savable = true;
        loop {
            let scrape = tokio::select! {
                _ = timer.tick() => None,
                scrape = asked.recv() => match scrape {
                    Some(scrape) => Some(scrape),
                    None => return,
                },
            };
            let reading = match sample(&handle, &mut ledger, scrape.is_some()).await {
                Ok(reading) => reading,
                Err(TakeError::Stopped(_)) => return,
                Err(error @ (TakeError::Unreadable(_) | TakeError::BrokenOff)) => {
                    tracing::warn!(%error, "the kernel's counts cannot be read");
                    continue;
                }
            };
            if let Err(error) = ledger.save(&totals) {
                if is_savable {
                    tracing::warn!(path = %totals.display(), %error, "totals are not kept: a restart may set counters back");
                }
                is_savable = false;
            }
            if let Some(scrape) = scrape {
                // Whoever asked may have gone.
                drop(scrape.send(encode(reading, ledger.clone())));
            }
        }
    };
    (Metrics(ask), task)
}

/// Brings the ledger up to date. Maps are read outside the loop, so what is cleared meanwhile is
/// asked for last.
async fn sample(
    handle: &Handle,
    ledger: &mut Ledger,
    with_maps: bool,
) -> Result<Reading, TakeError> {
    let wanted = Wanted {
        maps: with_maps,
        isolating: false,
    };
    let reading = Reading::take(handle, wanted).await?;
    let denials = reading::denials(handle).await?;
    let grown = named(handle, ledger.grown(denials.clone())).await?;
    let known = ledger.folded();
    let folds = handle.ask(move |view| view.folds.since(known)).await?;
    let cleared = ledger.take(&reading, &folds);
    let present: Vec<DeniedKey> = denials.iter().map(|(key, _)| *key).collect();
    ledger.take_denied(&grown, &present, &cleared);
    ledger.forget_series(&reading);
    forget_denied(handle, ledger, &denials).await?;
    Ok(reading)
}

/// Puts names to refusals, a few at a time: plans come first.
async fn named(handle: &Handle, rows: Vec<Denial>) -> Result<Vec<DeniedReading>, TakeError> {
    let mut named = Vec::with_capacity(rows.len());
    for some in rows.chunks(DENIALS_AT_ONCE).map(<[Denial]>::to_vec) {
        named.append(&mut handle.ask(move |view| reading::denied(view, &some)).await?);
    }
    Ok(named)
}

/// Removes refusals that are too old, and the oldest when there are too many.
async fn forget_denied(
    handle: &Handle,
    ledger: &mut Ledger,
    denials: &[Denial],
) -> Result<(), TakeError> {
    let (tick, kept_for, capacity) = handle
        .ask(|view| {
            let capacity = view.dataplane.denied_capacity();
            (view.tick, view.config.denied_retention, capacity)
        })
        .await?;
    let oldest = tick.map(|tick| aging::before(&tick, kept_for));
    for surplus in aging::surplus(denials, oldest.unwrap_or_default(), capacity) {
        for some in surplus.rows.chunks(DENIALS_AT_ONCE).map(<[_]>::to_vec) {
            let is_urgent = surplus.is_urgent;
            let removed = handle
                .ask(move |view| view.dataplane.forget_denied(&some, is_urgent))
                .await??;
            ledger.forget_denied(&removed);
        }
    }
    Ok(())
}

fn encode(reading: Reading, ledger: Ledger) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Moment { reading, ledger }));
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
        tracing::error!("the metrics could not be written as text");
    }
    text
}

#[cfg(test)]
mod tests;
