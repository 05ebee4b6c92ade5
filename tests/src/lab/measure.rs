//! The matrix, measured: rows of `picket matrix` as questions, rows of the same form as answers.
//!
//! `verdict` is measured end to end with real sockets. Where it is deny between two pods, each
//! side is measured by itself (see `sides`), because a packet dropped when it leaves its pod says
//! nothing about whether the other pod would have let it in. Of a pod and something that is no
//! pod, the only side there is decided.

use std::collections::BTreeSet;
use std::net::IpAddr;

use agent_policy::cluster::Cluster;
use agent_policy::matrix::{self, matrix};
use agent_policy::model::{Protocol, Verdict};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::sides::{self, Question};
use super::{Kind, Lab, Place};
use crate::probe::{self, Outcome, Patience, Probe, Server, Servers};

/// May it pass?
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// Yes.
    Allow,
    /// No.
    Deny,
}

impl Word {
    fn of(passed: bool) -> Self {
        if passed { Self::Allow } else { Self::Deny }
    }
}

/// One line of `picket matrix -o jsonl`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Row {
    /// `namespace/pod`, or an address.
    pub from: String,
    /// As `from`.
    pub to: String,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// Destination port.
    pub port: u16,
    /// Judged at the destination.
    pub ingress: Word,
    /// Judged at the source.
    pub egress: Word,
    /// Both together.
    pub verdict: Word,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} -> {} {}/{}",
            self.from, self.to, self.protocol, self.port
        )
    }
}

/// What `picket matrix` says, from the same function.
#[derive(Debug)]
pub struct Judged {
    /// Its rows.
    pub rows: Vec<Row>,
    /// Who or what has no row, and why.
    pub remarks: Vec<String>,
}

/// Judges every pair, on the declared ports when `question` has none.
pub fn judged(cluster: &Cluster, question: &matrix::Question) -> Result<Judged> {
    let matrix = matrix(cluster, question);
    let names: Vec<String> = matrix.ends.iter().map(ToString::to_string).collect();
    let name = |end: usize| names.get(end).cloned().context("an end of the matrix");
    let word = |verdict| Word::of(verdict == Verdict::Allow);
    let rows = matrix.rows.iter().map(|row| {
        Ok(Row {
            from: name(row.from)?,
            to: name(row.to)?,
            protocol: row.port.protocol.to_string(),
            port: row.port.number,
            ingress: word(row.ingress),
            egress: word(row.egress),
            verdict: word(row.verdict()),
        })
    });
    Ok(Judged {
        rows: rows.collect::<Result<_>>()?,
        remarks: matrix.findings.iter().map(ToString::to_string).collect(),
    })
}

/// Starts a server for every destination and port among the rows.
pub fn serve(lab: &Lab, rows: &[Row]) -> Result<Servers> {
    let mut wanted = BTreeSet::new();
    let mut servers = Vec::new();
    for row in rows {
        let Some(place) = lab.places().get(&row.to) else {
            continue;
        };
        let protocol = protocol(row)?;
        for address in &place.addresses {
            if wanted.insert((*address, protocol, row.port)) {
                let (address, port) = (*address, row.port);
                servers.push(Server {
                    namespace: &place.namespace,
                    address,
                    protocol,
                    port,
                });
            }
        }
    }
    Servers::start(&servers)
}

/// What is measured of each row end to end; `None` where a side is not laid out or the two have
/// no address family in common.
pub fn outcomes(lab: &Lab, rows: &[Row]) -> Result<Vec<Option<Outcome>>> {
    let ways = ways(lab, rows)?;
    let probes: Vec<Probe<'_>> = ways.iter().flatten().map(Way::probe).collect();
    let mut outcomes = probe::run(&probes, Patience::USUAL)?.into_iter();
    Ok(ways
        .iter()
        .map(|way| way.as_ref().and_then(|_| outcomes.next()))
        .collect())
}

/// The rows that cannot be reached although nothing enforces anything: faults of the lab, which
/// would otherwise pass for denials.
pub fn faults(lab: &Lab, rows: &[Row]) -> Result<Vec<String>> {
    let outcomes = outcomes(lab, rows)?;
    let unreached = rows
        .iter()
        .zip(outcomes)
        .filter_map(|(row, outcome)| match outcome {
            Some(Outcome::Answered) => None,
            Some(outcome) => Some(format!("{row}: {outcome:?} before anything was enforced")),
            None => Some(format!(
                "{row}: cannot be laid out (no address, or none of the same family)"
            )),
        });
    Ok(unreached.collect())
}

/// Measures every row. Rows that cannot be measured are left out.
pub fn measure(lab: &mut Lab, rows: &[Row]) -> Result<Vec<Row>> {
    let outcomes = outcomes(lab, rows)?;
    let ways = ways(lab, rows)?;
    let mut questions = Vec::new();
    for (way, outcome) in ways.iter().zip(&outcomes) {
        if let (Some(way), Some(outcome)) = (way, outcome)
            && !outcome.is_reached()
            && (way.from.kind, way.to.kind) == (Kind::Pod, Kind::Pod)
        {
            questions.push(way.question());
        }
    }
    let mut sides = sides::measure(lab, &questions)?.into_iter();
    let ways = self::ways(lab, rows)?;
    let mut measured = Vec::new();
    for ((row, way), outcome) in rows.iter().zip(&ways).zip(outcomes) {
        let (Some(way), Some(outcome)) = (way, outcome) else {
            continue;
        };
        let verdict = Word::of(outcome.is_reached());
        let (egress, ingress) = match (way.from.kind, way.to.kind) {
            _ if verdict == Word::Allow => (verdict, verdict),
            (Kind::Pod, Kind::Pod) => {
                let sides = sides.next().context("a measured pair of pods")?;
                (Word::of(sides.left), Word::of(sides.entered))
            }
            (Kind::Pod, Kind::Host | Kind::External) => (verdict, Word::Allow),
            (Kind::Host | Kind::External, _) => (Word::Allow, verdict),
        };
        measured.push(Row {
            ingress,
            egress,
            verdict,
            ..row.clone()
        });
    }
    Ok(measured)
}

/// A row as addresses.
struct Way<'a> {
    from: &'a Place,
    to: &'a Place,
    name: &'a str,
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    port: u16,
}

impl<'a> Way<'a> {
    fn probe(&self) -> Probe<'a> {
        Probe {
            namespace: &self.from.namespace,
            source: self.source,
            destination: self.destination,
            protocol: self.protocol,
            port: self.port,
        }
    }

    fn question(&self) -> Question {
        Question {
            from: self.name.to_owned(),
            source: self.source,
            destination: self.destination,
            protocol: self.protocol,
            port: self.port,
        }
    }
}

fn ways<'a>(lab: &'a Lab, rows: &'a [Row]) -> Result<Vec<Option<Way<'a>>>> {
    rows.iter()
        .map(|row| {
            let (from, to) = (lab.places().get(&row.from), lab.places().get(&row.to));
            let (protocol, port) = (protocol(row)?, row.port);
            Ok(from.zip(to).and_then(|(from, to)| {
                let (source, destination) = from.pair_with(to)?;
                Some(Way {
                    from,
                    to,
                    name: &row.from,
                    source,
                    destination,
                    protocol,
                    port,
                })
            }))
        })
        .collect()
}

fn protocol(row: &Row) -> Result<Protocol> {
    Protocol::from_name(&row.protocol)
        .with_context(|| format!("{row}: unknown protocol {:?}", row.protocol))
}
