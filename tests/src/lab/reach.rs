//! What most tests ask of a lab: a server here, and does that pod reach it?

use std::time::Duration;

use agent_policy::model::Protocol;
use anyhow::{Result, ensure};

use super::{Lab, agent, wait_until};
use crate::probe::{self, Outcome, Patience, Probe, Server, Servers};

/// How long until a change shows on packets, on a machine that does other things, too.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);

impl Lab {
    /// Starts a server for each of the ports on every address of a place.
    pub fn serve(&self, place: &str, ports: &[(Protocol, u16)]) -> Result<Servers> {
        let place = self.place(place)?;
        let servers: Vec<Server<'_>> = place
            .addresses
            .iter()
            .flat_map(|&address| {
                ports.iter().map(move |&(protocol, port)| Server {
                    namespace: &place.namespace,
                    address,
                    protocol,
                    port,
                })
            })
            .collect();
        Servers::start(&servers)
    }

    /// Whether packets get from one place to another and back, over all of the ports and every
    /// address family that both have; an error where they do not agree. What an unused port
    /// refuses was reached.
    pub fn reaches(&self, from: &str, to: &str, ports: &[(Protocol, u16)]) -> Result<bool> {
        self.reaches_within(from, to, ports, Patience::USUAL)
    }

    /// Waits until one place reaches another, or does not, as [`reaches`](Self::reaches) says it.
    pub fn wait_reaches(
        &self,
        from: &str,
        to: &str,
        ports: &[(Protocol, u16)],
        expected: bool,
    ) -> Result<()> {
        let way = if expected { "reach" } else { "not reach" };
        let what = format!("{from} to {way} {to}");
        wait_until(&what, SHOWN_WITHIN, || {
            let reached = self.reaches_within(from, to, ports, Patience::SHORT)?;
            ensure!(
                reached == expected,
                "not so; the agent said:\n{}",
                agent::log()
            );
            Ok(())
        })
    }

    fn reaches_within(
        &self,
        from: &str,
        to: &str,
        ports: &[(Protocol, u16)],
        patience: Patience,
    ) -> Result<bool> {
        let (source, destination) = (self.place(from)?, self.place(to)?);
        let probes: Vec<Probe<'_>> = destination
            .addresses
            .iter()
            .filter_map(|&to| Some((source.address(to.is_ipv4())?, to)))
            .flat_map(|(from, to)| {
                ports.iter().map(move |&(protocol, port)| Probe {
                    namespace: &source.namespace,
                    source: from,
                    destination: to,
                    protocol,
                    port,
                })
            })
            .collect();
        ensure!(!probes.is_empty(), "{from} and {to} share no family");
        let outcomes = probe::run(&probes, patience)?;
        let reached = outcomes.iter().filter(|each| each.is_reached()).count();
        ensure!(
            !outcomes
                .iter()
                .any(|each| matches!(each, Outcome::Failed(_))),
            "{from} to {to}: {outcomes:?}"
        );
        ensure!(
            reached == 0 || reached == outcomes.len(),
            "{from} to {to}: {outcomes:?}"
        );
        Ok(reached > 0)
    }
}
