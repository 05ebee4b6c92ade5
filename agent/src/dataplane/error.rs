//! What can go wrong between the agent and the kernel.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Opening, attaching, reading. Carrying out a plan has its own: [`ApplyError`].
#[derive(Debug, Error)]
pub enum DataplaneError {
    /// The pin directory is not on a BPF file system.
    #[error(
        "pin directory {path}: not on a BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf"
    )]
    NoBpfFs {
        /// The directory.
        path: PathBuf,
    },
    /// What shall be uninstalled from is an ordinary directory.
    #[error(
        "pin directory {path}: an ordinary directory, where nothing is pinned; is --pins right?"
    )]
    NotPins {
        /// The directory.
        path: PathBuf,
    },
    /// Another process holds the pin directory.
    #[error(
        "pin directory {path}: another agent holds it; stop that one first, or name another with --pins"
    )]
    Held {
        /// The directory.
        path: PathBuf,
    },
    /// A file system operation failed.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A pinned map is not laid out as this agent lays it out.
    #[error(
        "map {map} pinned at {path}: {what} is {found}, this agent wants {wanted}; picket uninstall \
         removes the old pins (and enforcement with them)"
    )]
    Layout {
        /// The map.
        map: &'static str,
        /// Its pin.
        path: PathBuf,
        /// Which property.
        what: &'static str,
        /// What the pin has.
        found: u32,
        /// What is wanted.
        wanted: u32,
    },
    /// A capacity was given for a map that has a fixed one, or for none.
    #[error("capacity of map {map}: {why}")]
    Capacity {
        /// The name as given.
        map: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The kernel accounts maps to `RLIMIT_MEMLOCK`, and the agent may not raise it.
    #[error(
        "RLIMIT_MEMLOCK is {limit}: Linux before 5.11 counts maps against it, and this process may \
         not raise it; give the agent the capability CAP_SYS_RESOURCE (or run it as privileged), \
         or start it under `ulimit -l unlimited` (systemd: LimitMEMLOCK=infinity)"
    )]
    MemoryLimit {
        /// The limit in force, for people.
        limit: String,
        /// What the kernel refused; boxed to keep every other error small.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// The BPF object could not be loaded.
    #[error("loading the BPF programs{}", needs(.0, BPF))]
    Load(#[from] aya::EbpfError),
    /// The verifier, or the kernel, refused a program.
    #[error("loading program {program}{}", needs(source, BPF))]
    Program {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// The object lacks a program that this agent needs: a broken build.
    #[error("the BPF object has no program {program}; build the agent again")]
    NoProgram {
        /// The program.
        program: &'static str,
    },
    /// A map could not be read or written.
    #[error("map {map}: {action}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The interface has an `ingress` qdisc, which leaves no place for clsact on this kernel.
    #[error(
        "interface {name} (index {ifindex}): an ingress qdisc sits there (CNI bandwidth plugin?) \
         and this kernel has no TCX (6.6 or newer); its pod is not enforced"
    )]
    IngressQdisc {
        /// Interface index.
        ifindex: u32,
        /// Interface name.
        name: String,
    },
    /// A program could not be attached, replaced or detached.
    #[error(
        "interface {name} (index {ifindex}): {action}{}",
        needs(source, INTERFACES)
    )]
    Attach {
        /// Interface index.
        ifindex: u32,
        /// Interface name, or empty when it is not known.
        name: String,
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel's tick could not be measured.
    #[error("measuring the kernel's tick: {0}")]
    Clock(String),
    /// The ring buffer could not be opened or polled.
    #[error("ring buffer EVENTS")]
    Events(#[source] io::Error),
}

/// For maps and programs.
const BPF: &str = "CAP_SYS_ADMIN";
/// For programs on interfaces.
const INTERFACES: &str = "CAP_NET_ADMIN";

/// What to do where the kernel said EPERM, which a process without a capability hears.
fn needs(error: &(dyn std::error::Error + 'static), capability: &str) -> String {
    if is_refused(error) {
        format!("; give the agent the capability {capability}, as the manifests in deploy/ do")
    } else {
        String::new()
    }
}

/// Whether the kernel said EPERM.
pub(crate) fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.raw_os_error() == Some(libc::EPERM))
}

/// A plan that stopped: everything before `at` is in force and was read back, `at` itself and
/// everything after it is not. Calling again with the writes from `at` on continues.
#[derive(Debug, Error)]
#[error("write {at} of the plan, map {map}")]
pub struct ApplyError {
    /// Index of the write that failed.
    pub at: usize,
    /// The map it was for.
    pub map: &'static str,
    /// Why.
    #[source]
    pub cause: ApplyCause,
}

/// Why a write failed, as far as the caller would act differently.
#[derive(Debug, Error)]
pub enum ApplyCause {
    /// The map holds as many entries as it can. Deleting or a greater capacity helps; waiting does
    /// not.
    #[error(
        "full: it holds {capacity} entries; start the agent with more in --map-capacity \
         (`picket uninstall` first: a pinned map keeps its size)"
    )]
    Full {
        /// Its capacity.
        capacity: u32,
    },
    /// The kernel had no memory at that moment. Trying again later may help.
    #[error("the kernel is out of memory for it")]
    OutOfMemory,
    /// What was read back is not what was written.
    #[error("reading back gave something else than was written")]
    ReadBack,
    /// The write names a place that does not exist.
    #[error("{0}")]
    Invalid(&'static str),
    /// Anything else the kernel said.
    #[error("the kernel refused")]
    Io(#[source] io::Error),
}

impl ApplyCause {
    /// Sorts what bpf(2) said of an update.
    pub(crate) fn from_update(error: io::Error, capacity: u32) -> Self {
        match error.raw_os_error() {
            // Hashes say E2BIG, tries ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => Self::Full { capacity },
            Some(libc::ENOMEM) => Self::OutOfMemory,
            _ => Self::Io(error),
        }
    }

    /// True when trying the same write again later can succeed without any other change.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::OutOfMemory => true,
            Self::Full { .. } | Self::ReadBack | Self::Invalid(_) | Self::Io(_) => false,
        }
    }
}
