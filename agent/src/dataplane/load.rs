//! Loads the programs over the pinned maps: maps that are pinned are taken as they are, missing
//! ones are made.

use std::io::ErrorKind;
use std::path::Path;

use agent_common::maps::{MAPS, MapKind, MapSpec};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use super::Options;
use super::error::{DataplaneError, is_refused};
use super::maps::{open_pinned, spec_of};
use super::objects;

/// What a pod sends.
pub(crate) const FROM_POD: &str = "from_pod";
/// What reaches a pod.
pub(crate) const TO_POD: &str = "to_pod";
/// Tells the kernel's tick; never attached.
pub(crate) const CLOCK: &str = "clock";
/// Every program of the object.
pub(crate) const PROGRAMS: [&str; 3] = [FROM_POD, TO_POD, CLOCK];

/// A map that is pinned with another capacity than was asked for. The pinned one stays: changing
/// it would drop what is in force.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KeptCapacity {
    /// The map.
    pub map: &'static str,
    /// The capacity in force.
    pub pinned: u32,
    /// The capacity asked for.
    pub wanted: u32,
}

/// Loads the object, pinning maps into `directory`; every program is verified and ready.
pub(crate) fn load(
    directory: &Path,
    options: &Options,
) -> Result<(Ebpf, Vec<KeptCapacity>), DataplaneError> {
    let memory_limit = raise_memory_limit();
    let capacities = capacities(options)?;
    // Refused before anything is made: a mixture of layouts would be worse than none.
    let kept = compare_pins(directory, &capacities)?;
    let log_level = u8::from(options.diagnostics);
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global("AYA_LOG_LEVEL", &log_level, false);
    for spec in MAPS {
        loader.map_pin_path(spec.name, directory.join(spec.name));
    }
    for (map, entries) in &capacities {
        loader.map_max_entries(map, *entries);
    }
    let mut ebpf = loader
        .load(objects::programs())
        .map_err(|source| match memory_limit {
            Some(limit) if is_refused(&source) => DataplaneError::MemoryLimit {
                limit,
                source: Box::new(source),
            },
            Some(_) | None => source.into(),
        })?;
    for name in PROGRAMS {
        load_program(program(&mut ebpf, name)?).map_err(|source| DataplaneError::Program {
            program: name,
            source,
        })?;
    }
    Ok((ebpf, kept))
}

/// Loads a program. The verifier gives up when a signal comes, be it one that nobody waits for: a child
/// that ends sends one. That says nothing about the program.
fn load_program(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    const ATTEMPTS: u32 = 20;
    for _ in 1..ATTEMPTS {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
    program.load()
}

/// A program of the object.
pub(crate) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, DataplaneError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(DataplaneError::NoProgram { program: name })
}

/// Capacities that were asked for, by the names of `MAPS`. CONNTRACK's is of the inner maps, which
/// are made with their slots.
fn capacities(options: &Options) -> Result<Vec<(&'static str, u32)>, DataplaneError> {
    let mut capacities = Vec::new();
    for (name, entries) in &options.capacities {
        let wrong = |why| DataplaneError::Capacity {
            map: name.clone(),
            why,
        };
        let spec = spec_of(name).ok_or_else(|| wrong("no map has this name"))?;
        if *entries == 0 {
            return Err(wrong("0 entries; give at least 1"));
        }
        match spec.kind {
            MapKind::ArrayOfLruHash => {}
            MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie => {
                capacities.push((spec.name, *entries));
            }
            MapKind::Array | MapKind::MappedArray | MapKind::PerCpuArray | MapKind::RingBuffer => {
                return Err(wrong("fixed by what indexes it; leave it out"));
            }
        }
    }
    Ok(capacities)
}

fn compare_pins(
    directory: &Path,
    capacities: &[(&'static str, u32)],
) -> Result<Vec<KeptCapacity>, DataplaneError> {
    let mut kept = Vec::new();
    for spec in MAPS {
        if !directory.join(spec.name).exists() {
            continue;
        }
        let (_fd, shape) = open_pinned(directory, spec)?;
        let wanted = wanted_capacity(spec, capacities);
        if shape.capacity != wanted {
            kept.push(KeptCapacity {
                map: spec.name,
                pinned: shape.capacity,
                wanted,
            });
        }
    }
    Ok(kept)
}

fn wanted_capacity(spec: &MapSpec, capacities: &[(&'static str, u32)]) -> u32 {
    capacities
        .iter()
        .find(|(name, _)| *name == spec.name)
        .map_or(spec.capacity, |(_, entries)| *entries)
}

/// Before 5.11 maps count against `RLIMIT_MEMLOCK`, 64 KiB by default; newer kernels do not look.
/// Where it matters and may not be raised, because `CAP_SYS_RESOURCE` is missing: what it is.
fn raise_memory_limit() -> Option<String> {
    let unlimited = rustix::process::Rlimit {
        current: None,
        maximum: None,
    };
    let error = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited).err()?;
    tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    if !accounts_maps_to_the_process(&release) {
        return None;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    // Without a limit, whatever is refused later is refused for another reason.
    limit.current.map(|bytes| format!("{} KiB", bytes >> 10))
}

/// Whether a kernel of this release is older than 5.11, where memory cgroups took over.
pub(crate) fn accounts_maps_to_the_process(release: &str) -> bool {
    let mut numbers = release.split('.').map(str::parse::<u32>);
    matches!(
        (numbers.next(), numbers.next()),
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < (5, 11)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, entries: u32) -> Result<Vec<(&'static str, u32)>, DataplaneError> {
        let mut options = Options::new("/sys/fs/bpf/x");
        options.capacities.push((name.to_owned(), entries));
        capacities(&options)
    }

    #[test]
    fn linux_5_10_is_the_last_to_account_maps_to_the_process() {
        assert!(accounts_maps_to_the_process("5.10.0-46-cloud-amd64\n"));
        assert!(accounts_maps_to_the_process("4.18.0-553.el8"));
        for newer in ["5.11.0", "6.1.0-56-amd64", "7.2", "unknown"] {
            assert!(!accounts_maps_to_the_process(newer), "{newer}");
        }
    }

    #[test]
    fn a_refused_map_is_told_from_a_broken_object() {
        let map = |code| {
            aya::EbpfError::MapError(aya::maps::MapError::CreateError {
                name: "PASSED".to_owned(),
                io_error: std::io::Error::from_raw_os_error(code),
            })
        };
        assert!(is_refused(&map(1)), "EPERM");
        assert!(!is_refused(&map(12)), "ENOMEM");
    }

    #[test]
    fn only_maps_that_hold_what_comes_have_a_capacity_to_choose() {
        assert_eq!(asked("VERDICTS", 7).unwrap(), [("VERDICTS", 7)]);
        assert_eq!(asked("CONNTRACK", 7).unwrap(), []);
        for refused in ["CONFIGS", "ENDPOINTS", "PASSED", "EVENTS", "NONSENSE"] {
            assert!(
                matches!(asked(refused, 7), Err(DataplaneError::Capacity { .. })),
                "{refused}"
            );
        }
        assert!(asked("VERDICTS", 0).is_err());
    }
}
