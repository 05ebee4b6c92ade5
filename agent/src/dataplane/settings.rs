//! What programs are told about this node, and the tick they count in.

use agent_common::maps::Settings;
use aya::Ebpf;

use super::error::DataplaneError;
use super::load::{CLOCK, program};
use super::maps::Maps;
use super::{clock, present, probe};

/// The rate of an earlier agent of this boot (pins do not outlive the kernel), or a measurement.
pub(super) fn hz(maps: &Maps, ebpf: &mut Ebpf) -> Result<u32, DataplaneError> {
    let wrong = |source| present::reading("SETTINGS", source);
    let settings = maps.settings.get(&0).map_err(wrong)?.unwrap_or_default();
    if settings.hz != 0 {
        return Ok(settings.hz);
    }
    let hz = clock::measure(|| jiffies(ebpf).map_err(std::io::Error::other))?;
    write_settings(maps, &Settings { hz, ..settings })?;
    Ok(hz)
}

pub(super) fn write_settings(maps: &Maps, settings: &Settings) -> Result<(), DataplaneError> {
    maps.settings
        .put(&0, settings)
        .map_err(|source| DataplaneError::Map {
            map: "SETTINGS",
            action: "writing",
            source,
        })
}

/// The kernel's tick: the low half between two equal readings of the high half.
pub(super) fn jiffies(ebpf: &mut Ebpf) -> Result<u64, DataplaneError> {
    let clock = program(ebpf, CLOCK)?;
    let half = |mark| {
        let context = probe::Context {
            mark,
            ..probe::Context::default()
        };
        probe::run(clock, &[0; 64], context)
            .map_err(|error| DataplaneError::Clock(error.to_string()))
    };
    let mut high = half(1)?;
    loop {
        let low = half(0)?;
        let again = half(1)?;
        if high == again {
            return Ok(u64::from(high) << 32 | u64::from(low));
        }
        high = again;
    }
}
