//! The demo's paths, measured over both families.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::story::{INTERNET, OUTSIDE, SERVICES, SOURCES, Service};
use crate::lab::{Lab, Place};
use crate::probe::{self, Outcome, Patience, Probe, Server, Servers};

/// A path's place in the grid: source, service.
pub type Cell = (usize, usize);

/// What was measured of a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reach {
    /// Over both families.
    Open,
    /// Over neither.
    Closed,
    /// Over IPv4 only.
    OnlyV4,
    /// Over IPv6 only.
    OnlyV6,
}

impl Reach {
    /// Something gets through.
    pub fn is_open(self) -> bool {
        self != Self::Closed
    }
}

/// Every path of the story; a source has none to itself.
pub type Paths = BTreeMap<Cell, Reach>;

/// True when the shop needs this path.
pub fn is_needed((source, service): Cell) -> bool {
    let source = SOURCES.get(source);
    let service = SERVICES.get(service);
    source
        .zip(service)
        .is_some_and(|(source, service)| service.needed_by.contains(source))
}

/// The names of a path's ends.
pub fn ends((source, service): Cell) -> Option<(&'static str, &'static Service)> {
    Some((SOURCES.get(source).copied()?, SERVICES.get(service)?))
}

/// The place a name of the story stands for, in one family.
fn place<'a>(lab: &'a Lab, name: &str, v4: bool) -> Result<(&'a Place, IpAddr)> {
    let [outside_v4, outside_v6] = INTERNET;
    let name = match name {
        OUTSIDE if v4 => outside_v4,
        OUTSIDE => outside_v6,
        other => other,
    };
    let place = lab.place(name)?;
    Ok((
        place,
        place
            .address(v4)
            .with_context(|| format!("{name} lacks an address family"))?,
    ))
}

/// Starts everything the story serves.
pub fn serve(lab: &Lab) -> Result<Servers> {
    let mut servers = Vec::new();
    for service in &SERVICES {
        for v4 in [true, false] {
            let (place, address) = place(lab, service.at, v4)?;
            let (protocol, port) = (service.protocol, service.port);
            servers.push(Server {
                namespace: &place.namespace,
                address,
                protocol,
                port,
            });
        }
    }
    Servers::start(&servers)
}

/// Tries every path with real sockets.
pub fn measure(lab: &Lab) -> Result<Paths> {
    let mut cells = Vec::new();
    let mut probes = Vec::new();
    for (row, from) in SOURCES.iter().enumerate() {
        for (column, service) in SERVICES.iter().enumerate() {
            if *from == service.at {
                continue;
            }
            cells.push((row, column));
            for v4 in [true, false] {
                let (source, source_address) = place(lab, from, v4)?;
                let (_, destination) = place(lab, service.at, v4)?;
                probes.push(Probe {
                    namespace: &source.namespace,
                    source: source_address,
                    destination,
                    protocol: service.protocol,
                    port: service.port,
                });
            }
        }
    }
    let outcomes = probe::run(&probes, Patience::USUAL)?;
    let reaches = outcomes.chunks(2).map(|pair| match pair {
        [v4, v6] => reach(v4, v6),
        _ => Reach::Closed,
    });
    Ok(cells.into_iter().zip(reaches).collect())
}

fn reach(v4: &Outcome, v6: &Outcome) -> Reach {
    match (v4.is_reached(), v6.is_reached()) {
        (true, true) => Reach::Open,
        (false, false) => Reach::Closed,
        (true, false) => Reach::OnlyV4,
        (false, true) => Reach::OnlyV6,
    }
}
