//! What loading costs a kernel: the instructions that its verifier walks, and the memory of the
//! maps. `cargo xtask bpf` and `cargo xtask test vm` hold both against what is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use ::tests::lab::Lab;
use agent::dataplane::{Dataplane, DataplaneError, Options, uninstall};
use agent_common::maps::MAPS;
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::MapData;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::report;

/// Pins of their own, for programs that are loaded to be counted.
const PINS: &str = "/sys/fs/bpf/picket-costs";
/// Descriptors with which the programs load, whatever the maps are.
const MOST_ROOM: u64 = 256;

/// Loads the programs, on the machine itself, and says what that cost; nothing is attached.
pub(crate) fn check() -> Result<()> {
    let _lab = Lab::enter().context("making a namespace")?;
    let mut dataplane =
        Dataplane::open(&Options::new(PINS)).context("loading programs, making maps")?;
    let verified = dataplane.verified_instructions()?;
    drop(dataplane);
    tell(verified, PINS)?;
    uninstall(PINS.as_ref()).context("uninstalling")?;
    Ok(())
}

/// Notes what the programs and maps cost of a dataplane whose pins nobody holds any more.
pub(crate) fn tell(verified: Vec<(&'static str, Option<u32>)>, pins: &str) -> Result<()> {
    // Before Linux 5.16 only the verifier's log tells.
    let missing = verified.iter().filter(|(_, count)| count.is_none());
    let mut logged = counted_by_log(pins, missing.map(|(program, _)| *program).collect())?;
    for (program, count) in verified {
        if let Some(count) = count.or_else(|| logged.remove(program)) {
            report::note("verified", &format!("{program} {count}"));
        }
    }
    let memory = map_memory(pins.as_ref())?;
    report::note("memory", &format!("{} KiB", memory >> 10));
    Ok(())
}

/// What the kernel says that the pinned maps take, in bytes.
fn map_memory(pins: &Path) -> Result<u64> {
    let mut sum = 0;
    for version in fs::read_dir(pins).with_context(|| format!("reading {}", pins.display()))? {
        let version = version.context("reading the pins")?.path();
        for spec in MAPS {
            let path = version.join(spec.name);
            let map =
                MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
            let info = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
            let info = fs::read_to_string(&info).with_context(|| format!("reading {info}"))?;
            let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"));
            let bytes = bytes.with_context(|| format!("no memlock of {}", spec.name))?;
            sum += bytes.trim().parse::<u64>().context("memlock of a map")?;
        }
    }
    Ok(sum)
}

/// Counts what the verifier's log says. aya shows the log of programs that the kernel refused, and
/// one that is verified and then finds no descriptor left is refused: so each in turn is left
/// without one. The clock's few instructions are not worth loading the others once more.
fn counted_by_log(
    pins: &str,
    mut missing: BTreeSet<&'static str>,
) -> Result<BTreeMap<&'static str, u32>> {
    missing.remove("clock");
    let limit = getrlimit(Resource::Nofile);
    let in_use = fs::read_dir("/proc/self/fd").context("counting descriptors")?;
    let in_use = in_use.count() as u64;
    let mut counted = BTreeMap::new();
    // The programs come after the maps.
    let mut room = MAPS.len() as u64;
    while !missing.is_empty() {
        ensure!(
            room < MOST_ROOM,
            "with room for {room} descriptors not all programs load"
        );
        let narrow = Rlimit {
            current: Some(in_use + room),
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, narrow).context("lowering RLIMIT_NOFILE")?;
        let opened = Dataplane::open(&Options::new(pins));
        setrlimit(Resource::Nofile, limit).context("raising RLIMIT_NOFILE again")?;
        match opened {
            Err(DataplaneError::Program { program, source }) => {
                let said = chain(&source);
                let count = walked(&said)
                    .with_context(|| format!("{program}: no count of instructions in: {said}"))?;
                missing.remove(program);
                counted.insert(program, count);
            }
            // Not even the maps are open.
            Err(_) => {}
            Ok(_) => bail!("{missing:?} load without having been refused"),
        }
        room += 1;
    }
    Ok(counted)
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing into a string cannot fail.
        write!(said, ": {error}").unwrap_or_default();
        cause = error.source();
    }
    said
}

/// The count in `processed 1234 insns (limit 1000000) …`.
fn walked(log: &str) -> Option<u32> {
    let (_, rest) = log.split_once("processed ")?;
    rest.split_once(" insns")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_log_says_how_many_instructions_it_walked() {
        let log = "verification time 9 usec\nstack depth 480+0\n\
                   processed 1234 insns (limit 1000000) max_states_per_insn 4\n";
        assert_eq!(walked(log), Some(1234));
        assert_eq!(walked("processed none"), None);
    }
}
