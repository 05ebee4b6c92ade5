//! The kernel side: loads, pins and attaches the programs, carries out plans, reads the maps. The
//! only module that names aya, and the only owner of map handles.
//!
//! Whatever happens to the agent, what is pinned stays in force: nothing here detaches or clears
//! when a [`Dataplane`] is dropped. [`uninstall()`] is a deed of its own.

mod adopt;
mod apply;
mod attach;
mod clock;
mod clsact;
mod counted;
mod counts;
mod diagnostics;
mod elsewhere;
mod error;
mod events;
mod foreign;
mod inherit;
mod layouts;
mod load;
mod maps;
pub mod objects;
mod pins;
mod present;
mod probe;
mod settings;
mod slots;
mod sys;
mod uninstall;

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use agent_common::classify::Hook;
use agent_common::maps::{
    CONNTRACK_CAPACITY, Connection, Denied, DeniedKey, FlowKey, ID_ROWS, Settings,
};
use agent_policy::plan::Write;
use agent_policy::tables::Tables;
use aya::Ebpf;

pub use adopt::Known;
pub use attach::{Attached, Method};
pub use clock::Tick;
pub use counted::Counted;
pub use counts::{Dropped, MapUse};
pub use diagnostics::Diagnostics;
pub use error::{ApplyCause, ApplyError, DataplaneError};
pub use events::Events;
pub use foreign::{Foreign, foreign};
pub use layouts::Layout;
pub use load::KeptCapacity;
pub(crate) use load::accounts_maps_to_the_process;
pub(crate) use pins::{is_bpf_fs, pinned_interfaces};
pub use probe::Action;
pub use uninstall::{Uninstalled, uninstall};

use inherit::Before;
use load::{FROM_POD, TO_POD, program};
use maps::Maps;
use pins::Pins;
use settings::{hz, jiffies, write_settings};

/// What a dataplane is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a BPF file system under which the versioned pin directory is made.
    pub pins: PathBuf,
    /// Entries per map, by the names of `MAPS`, where the default is not wanted. `CONNTRACK` means
    /// each endpoint's own map, and only those made from now on.
    pub capacities: Vec<(String, u32)>,
    /// The programs may report what cannot happen (see [`Dataplane::diagnostics`]).
    pub diagnostics: bool,
    /// How to hold programs; the best that the kernel has when not said.
    pub method: Option<Method>,
}

impl Options {
    /// Defaults, pinned under `pins`.
    pub fn new(pins: impl Into<PathBuf>) -> Self {
        Self {
            pins: pins.into(),
            capacities: Vec::new(),
            diagnostics: true,
            method: None,
        }
    }
}

/// The loaded programs, the pinned maps and links, held by this process alone.
#[derive(Debug)]
pub struct Dataplane {
    maps: Arc<Maps>,
    counted: Counted,
    ebpf: Ebpf,
    method: Method,
    conntrack_capacity: u32,
    hz: u32,
    taken_up: Vec<Attached>,
    elsewhere: Vec<Attached>,
    before: Option<Before>,
    kept: Vec<KeptCapacity>,
    // Last, so that the pin directory is let go of after everything in it.
    pins: Pins,
}

impl Dataplane {
    /// Loads the programs over the maps that are pinned, making what is missing, and puts them
    /// behind every link and filter that this layout version has in force. The maps' content stays
    /// as it is, and so do other versions' programs, until they are replaced one by one.
    ///
    /// # Errors
    /// Nothing is attached or changed when the directory is not on a BPF file system or held by
    /// another agent, when a pinned map is laid out differently, or when the kernel refuses a
    /// program.
    pub fn open(options: &Options) -> Result<Self, DataplaneError> {
        let pins = Pins::hold(&options.pins)?;
        let own = pins.own();
        let (mut ebpf, kept) = load::load(own.directory(), options)?;
        let maps = Arc::new(Maps::open(own.directory())?);
        let hz = hz(&maps, &mut ebpf)?;
        let found = attach::attached(&pins)?;
        attach::update_all(&pins, &found, programs(&mut ebpf)?)?;
        let (taken_up, elsewhere) = found.into_iter().partition(|one| one.layout == Layout::Own);
        let before = Before::find(&pins).unwrap_or_else(|error| {
            tracing::warn!(%error, "the maps of the version before cannot be read");
            None
        });
        let conntrack_capacity = options
            .capacities
            .iter()
            .find(|(name, _)| name == "CONNTRACK")
            .map_or(CONNTRACK_CAPACITY, |(_, entries)| *entries);
        let mut dataplane = Self {
            counted: Counted::new(&maps),
            maps,
            ebpf,
            method: options.method.unwrap_or_else(Method::of_this_kernel),
            conntrack_capacity,
            hz,
            taken_up,
            elsewhere,
            before,
            kept,
            pins,
        };
        // An agent may have ended between taking the last one over and clearing away.
        if let Err(error) = dataplane.leave_other_layouts() {
            tracing::warn!(%error, "what another layout version has pinned stays");
        }
        Ok(dataplane)
    }

    /// Interfaces that had programs of ours when this dataplane was opened.
    pub fn taken_up(&self) -> &[Attached] {
        &self.taken_up
    }

    /// Maps whose pinned capacity is not the one asked for; the pinned one is in force.
    pub fn kept_capacities(&self) -> &[KeptCapacity] {
        &self.kept
    }

    /// How programs are held on this kernel.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The directory of the pins, as it was given.
    pub fn pins(&self) -> &Path {
        self.pins.root()
    }

    /// Puts both programs on an interface, or behind what is there, another layout version's
    /// included. Programs judge by what is published for `ifindex`: without that the posture
    /// decides.
    ///
    /// # Errors
    /// [`DataplaneError::IngressQdisc`] when there is no place for clsact; otherwise what the
    /// kernel said. What was attached of the two is taken off again, unless another version's
    /// programs were there: then each direction is judged by one of the two versions.
    pub fn attach(&mut self, ifindex: u32, interface: &str) -> Result<(), DataplaneError> {
        let elsewhere = self.elsewhere.iter().find(|one| one.ifindex == ifindex);
        let was_elsewhere = elsewhere.is_some();
        let method = elsewhere.map_or(self.method, |one| one.method);
        let programs = programs(&mut self.ebpf)?;
        attach::attach(&self.pins, method, ifindex, interface, programs).inspect_err(|_| {
            if was_elsewhere {
                return;
            }
            if let Err(error) = attach::detach(&self.pins, ifindex) {
                tracing::warn!(ifindex, interface, %error, "a half-attached interface stays");
            }
        })?;
        self.elsewhere.retain(|one| one.ifindex != ifindex);
        Ok(())
    }

    /// Takes the programs off an interface; one that is gone, or never had any, is no error.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), DataplaneError> {
        attach::detach(&self.pins, ifindex)
    }

    /// What is in force, by interface. Links whose interface is gone are reaped on the way.
    ///
    /// # Errors
    /// The pins or the interfaces could not be listed.
    pub fn attached(&self) -> Result<Vec<Attached>, DataplaneError> {
        attach::attached(&self.pins)
    }

    /// Carries out a plan in order, reading each write back; returns how many writes that were.
    ///
    /// # Errors
    /// Where it stopped and why. Everything before that is in force, and writes are idempotent:
    /// the caller may take the plan up again from there, or give it up.
    pub fn apply(&mut self, writes: &[Write]) -> Result<usize, ApplyError> {
        apply::apply(&self.maps, self.conntrack_capacity, writes)
    }

    /// Writes down connections that are older than our programs; returns how many.
    ///
    /// # Errors
    /// A map could not be written; those before are in.
    pub fn adopt(
        &mut self,
        entries: &[(FlowKey, Connection)],
        known: Known,
    ) -> Result<usize, DataplaneError> {
        adopt::adopt(&self.maps, entries, known)
    }

    /// Everything that plans have ever written, as it is in the maps now.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn present(&self) -> Result<Tables, DataplaneError> {
        present::read(&self.maps)
    }

    /// The next unused id of each kind, by `IdKind`; 0 on a node where none was ever reserved.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn first_ids(&self) -> Result<[u64; ID_ROWS as usize], DataplaneError> {
        present::first_ids(&self.maps)
    }

    /// The knobs as the programs read them; all zero until [`Self::put_settings`].
    ///
    /// # Errors
    /// The map could not be read.
    pub fn settings(&self) -> Result<Settings, DataplaneError> {
        let row = self.maps.settings.get(&0);
        row.map(Option::unwrap_or_default)
            .map_err(|source| present::reading("SETTINGS", source))
    }

    /// Replaces the knobs. `hz` is filled in here. They are read piecemeal by the programs, so
    /// packets of the same moment may meet some old and some new ones.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn put_settings(&mut self, settings: &Settings) -> Result<(), DataplaneError> {
        write_settings(
            &self.maps,
            &Settings {
                hz: self.hz,
                ..*settings
            },
        )
    }

    /// Kernel ticks a second.
    pub fn hz(&self) -> u32 {
        self.hz
    }

    /// The kernel's tick now, to turn stamps into times.
    ///
    /// # Errors
    /// The kernel refused the test run.
    pub fn tick(&mut self) -> Result<Tick, DataplaneError> {
        let jiffies = jiffies(&mut self.ebpf)?;
        Ok(Tick {
            hz: self.hz,
            jiffies,
            at: SystemTime::now(),
        })
    }

    /// Runs a program on a packet (Ethernet header first) as if it were at the hook of `ifindex`,
    /// having entered the node by `ingress_ifindex`. Counters and flows move as with a real one.
    ///
    /// # Errors
    /// The kernel refused the run: an unknown interface, a packet shorter than its headers, or, on
    /// Linux 5.10, an `ingress_ifindex` other than 0.
    pub fn test_run(
        &mut self,
        hook: Hook,
        packet: &[u8],
        ifindex: u32,
        ingress_ifindex: u32,
    ) -> Result<Action, DataplaneError> {
        let name = match hook {
            Hook::FromPod => FROM_POD,
            Hook::ToPod => TO_POD,
        };
        let context = probe::Context {
            mark: 0,
            ingress_ifindex,
            ifindex,
        };
        probe::action(name, program(&mut self.ebpf, name)?, packet, context)
    }

    /// Instructions that the verifier walked for each program; `None` before Linux 5.16.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn verified_instructions(
        &mut self,
    ) -> Result<Vec<(&'static str, Option<u32>)>, DataplaneError> {
        load::PROGRAMS
            .into_iter()
            .map(|name| {
                let wrong = |source| DataplaneError::Program {
                    program: name,
                    source,
                };
                let info = program(&mut self.ebpf, name)?.info().map_err(wrong)?;
                Ok((name, info.verified_instruction_count()))
            })
            .collect()
    }

    /// What the programs have counted, for reading from any thread.
    pub fn counted(&self) -> Counted {
        self.counted.clone()
    }

    /// Removes refusals from DENIED and returns each as it was at the end. One that went on after
    /// `known` (its `last`) stays, unless `is_urgent`.
    ///
    /// # Errors
    /// The map could not be read or written; what was removed until then is lost to the caller.
    pub fn forget_denied(
        &self,
        known: &[(DeniedKey, u64)],
        is_urgent: bool,
    ) -> Result<Vec<(DeniedKey, Denied)>, DataplaneError> {
        counts::forget_denied(&self.maps, known, is_urgent)
    }

    /// The ring buffer's reader. There can be only one: two would each see half.
    ///
    /// # Errors
    /// The ring could not be mapped.
    pub fn events(&self) -> Result<Events, DataplaneError> {
        Events::open(self.pins.own().directory())
    }

    /// What the programs themselves report; `None` when asked for a second time.
    ///
    /// # Errors
    /// The ring could not be mapped.
    pub fn diagnostics(&mut self) -> Result<Option<Diagnostics>, DataplaneError> {
        Diagnostics::open(&mut self.ebpf)
    }
}

/// Reading counts needs nothing of a dataplane but its maps.
impl std::ops::Deref for Dataplane {
    type Target = Counted;

    fn deref(&self) -> &Counted {
        &self.counted
    }
}

/// The two programs that are attached, in the order of `attach::PLACES`.
fn programs(ebpf: &mut Ebpf) -> Result<[BorrowedFd<'_>; 2], DataplaneError> {
    let wrong = |program| move |source| DataplaneError::Program { program, source };
    // Both are borrowed at once, so not by way of `program`, which borrows the object.
    let fd = |name: &'static str| {
        let found = ebpf.program(name);
        found
            .ok_or(DataplaneError::NoProgram { program: name })?
            .fd()
            .map(aya::programs::ProgramFd::as_fd)
            .map_err(wrong(name))
    };
    Ok([fd(FROM_POD)?, fd(TO_POD)?])
}
