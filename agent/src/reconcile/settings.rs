//! The knobs of the kernel's programs, and the engine's limits, from the configuration.

use std::time::Duration;

use agent_common::conntrack::Timeout;
use agent_common::maps::{Settings, settings_flags};
use agent_policy::engine;

use crate::config::{Config, MidStreamGrace, OnCut, Posture};
use crate::dataplane::Dataplane;

/// Seconds after which a refusal that goes on is reported again.
const REPORT_AFTER_S: u32 = 30;
/// New flows a second that one endpoint may open: several times what a busy proxy opens, a fifth
/// of the flood that pushed idle connections out of a shared table within seconds.
const NEW_FLOWS_PER_S: u32 = 10_000;
/// New flows an endpoint may open at once: half of what PENDING holds unless it is told otherwise, so
/// that no burst of one pod pushes out what others are opening.
const NEW_FLOWS_AT_ONCE: u32 = 8_192;

/// What the programs read.
pub(super) fn settings(config: &Config, hz: u32) -> Settings {
    knobs(config.posture, config.mid_stream_grace, config.on_cut, hz)
}

/// The same of an agent of which nothing was said.
pub(crate) fn default_settings(hz: u32) -> Settings {
    let (posture, grace) = (Posture::default(), MidStreamGrace::default());
    knobs(posture, grace, OnCut::default(), hz)
}

fn knobs(posture: Posture, grace: MidStreamGrace, on_cut: OnCut, hz: u32) -> Settings {
    let posture = match posture {
        Posture::Closed => 0,
        Posture::Open => settings_flags::UNKNOWN_OPEN,
    };
    let (strict, grace) = match grace {
        MidStreamGrace::Forever => (0, 0),
        MidStreamGrace::For(grace) => (settings_flags::STRICT_MID_STREAM, jiffies(grace, hz)),
    };
    let told = match on_cut {
        OnCut::Silence => 0,
        OnCut::Reset => settings_flags::TELL_CUT,
    };
    Settings {
        flags: settings_flags::REPORT_ALLOWED | posture | strict | told,
        hz,
        report_interval: hz.saturating_mul(REPORT_AFTER_S),
        mid_stream_grace: grace,
        timeouts: Timeout::defaults(hz),
        budget_rate: NEW_FLOWS_PER_S,
        budget_burst: NEW_FLOWS_AT_ONCE,
        mark_mask: 0,
        reserved: 0,
    }
}

/// Half of the clock that stamps are compared by at most.
fn jiffies(span: Duration, hz: u32) -> u32 {
    let ticks = span.as_millis() * u128::from(hz) / 1_000;
    u32::try_from(ticks).unwrap_or(u32::MAX).min(u32::MAX / 2)
}

/// How much the engine may use: what the maps hold.
pub(super) fn limits(config: &Config, dataplane: &Dataplane) -> engine::Options {
    let entries = |name: &str| {
        let kept = dataplane.kept_capacities();
        let pinned = kept.iter().find(|kept| kept.map == name);
        let entries = pinned.map_or_else(|| config.capacities.of(name), |kept| kept.pinned);
        usize::try_from(entries).unwrap_or(usize::MAX)
    };
    engine::Options {
        rows: entries("VERDICTS"),
        peers: entries("PEERS_EXACT"),
        prefixes: entries("PEERS_CIDR"),
        ports: entries("PORTS"),
        services: entries("SERVICES"),
        names: entries("NAMES"),
        ..engine::Options::default()
    }
}
