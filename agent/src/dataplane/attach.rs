//! Programs on interfaces: pinned TCX links where the kernel has them, clsact filters elsewhere.
//! Both stay in force when the agent goes, however it goes.

mod links;

use std::io;
use std::os::fd::BorrowedFd;

use super::clsact::{self, Qdisc, Side};
use super::error::DataplaneError;
use super::layouts::{Layout, Layouts};
use super::load::{FROM_POD, TO_POD};
use super::pins::{self, Pins, file};
use super::sys;

/// How programs are held on interfaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// Pinned TCX links (Linux 6.6 and newer).
    Tcx,
    /// Filters in a clsact qdisc.
    Clsact,
}

impl Method {
    /// The word used in logs and JSON.
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// What this kernel has.
    pub fn of_this_kernel() -> Self {
        if sys::has_tcx() {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }
}

/// An interface that has programs of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attached {
    /// Interface index.
    pub ifindex: u32,
    /// What the pod sends is judged.
    pub from_pod: bool,
    /// What reaches the pod is judged.
    pub to_pod: bool,
    /// How.
    pub method: Method,
    /// Which version's maps decide. An interface whose two programs read different maps is two of
    /// these.
    pub layout: Layout,
}

impl Attached {
    /// Both directions are judged, by the same version.
    pub const fn is_whole(&self) -> bool {
        self.from_pod && self.to_pod
    }
}

/// The two programs that are attached, with the side of the interface each is for.
pub(crate) const PLACES: [(&str, Side); 2] = [(FROM_POD, Side::Ingress), (TO_POD, Side::Egress)];

/// Attaches or replaces both programs, in the order of [`PLACES`]. What another version has there
/// is taken over, its place included: each packet is judged by its program or by ours.
pub(crate) fn attach(
    pins: &Pins,
    method: Method,
    ifindex: u32,
    interface: &str,
    programs: [BorrowedFd<'_>; 2],
) -> Result<(), DataplaneError> {
    if method == Method::Clsact {
        prepare_qdisc(pins, ifindex, interface)?;
    }
    for ((name, side), program) in PLACES.into_iter().zip(programs) {
        match method {
            Method::Tcx => links::put(pins, ifindex, (name, side), program)?,
            Method::Clsact => clsact::replace_filter(ifindex, side, program, name)
                .map_err(|source| failed(ifindex, interface, "attaching a program", source))?,
        }
    }
    take_marks(pins, |marked| marked == ifindex)
}

/// Takes both programs off, whichever version's; an interface that is gone, or never had any, is no
/// error.
pub(crate) fn detach(pins: &Pins, ifindex: u32) -> Result<(), DataplaneError> {
    let versions = pins.versions()?;
    for (name, side) in PLACES {
        for version in &versions {
            links::drop_at(&links::path(version, ifindex, name))?;
        }
        let removed = if is_interface(ifindex) {
            clsact::remove_filter(ifindex, side, name)
        } else {
            Ok(())
        };
        removed.map_err(|source| failed(ifindex, "", "removing a filter", source))?;
    }
    for version in &versions {
        let mark = version.clsact().join(ifindex.to_string());
        if mark.exists() {
            clsact::remove_empty_qdisc(ifindex)
                .map_err(|source| failed(ifindex, "", "removing the clsact qdisc", source))?;
            pins::remove_directory(&mark)?;
        }
    }
    Ok(())
}

/// What is in force, of every version. Links whose interface is gone are reaped on the way.
pub(crate) fn attached(pins: &Pins) -> Result<Vec<Attached>, DataplaneError> {
    let mut layouts = Layouts::pinned(pins)?;
    let mut found: Vec<Attached> = Vec::new();
    let mut note = |ifindex, name: &str, method, layout| {
        let place = found
            .iter()
            .position(|one| one.ifindex == ifindex && one.method == method && one.layout == layout)
            .unwrap_or_else(|| {
                found.push(Attached {
                    ifindex,
                    from_pod: false,
                    to_pod: false,
                    method,
                    layout,
                });
                found.len() - 1
            });
        if let Some(one) = found.get_mut(place) {
            one.from_pod |= name == FROM_POD;
            one.to_pod |= name == TO_POD;
        }
    };
    for version in pins.versions()? {
        for pin in pins::names(&version.links())? {
            let path = version.links().join(&pin);
            let Some((_, name)) = pin.split_once('-') else {
                continue;
            };
            let Some(place) = links::living(&path)? else {
                pins::remove_file(&path)?;
                continue;
            };
            let layout = layouts
                .of_program(place.program)
                .map_err(|source| file("asking the program of link", &path, source))?;
            note(place.ifindex, name, Method::Tcx, layout);
        }
    }
    for (ifindex, interface) in interfaces()? {
        let wrong = |source| failed(ifindex, &interface, "listing filters", source);
        for (name, side) in PLACES {
            if let Some(program) = clsact::program(ifindex, side, name).map_err(wrong)? {
                let layout = layouts.of_program(program).map_err(wrong)?;
                note(ifindex, name, Method::Clsact, layout);
            }
        }
    }
    found.sort_by_key(|one| one.ifindex);
    Ok(found)
}

/// Puts the newly loaded programs behind everything that this version has attached, atomically one
/// by one. Other versions' stay as they are: what they judge by is not in our maps yet.
pub(crate) fn update_all(
    pins: &Pins,
    found: &[Attached],
    programs: [BorrowedFd<'_>; 2],
) -> Result<(), DataplaneError> {
    for one in found.iter().filter(|one| one.layout == Layout::Own) {
        for (((name, side), program), is_there) in PLACES
            .into_iter()
            .zip(programs)
            .zip([one.from_pod, one.to_pod])
        {
            if !is_there {
                continue;
            }
            match one.method {
                Method::Tcx => links::put(pins, one.ifindex, (name, side), program)?,
                Method::Clsact => clsact::replace_filter(one.ifindex, side, program, name)
                    .map_err(|source| failed(one.ifindex, "", "replacing a program", source))?,
            }
        }
    }
    Ok(())
}

/// Removes every link and filter of ours, whichever version's.
pub(crate) fn detach_all(pins: &Pins) -> Result<usize, DataplaneError> {
    let mut found: Vec<u32> = attached(pins)?.iter().map(|one| one.ifindex).collect();
    found.dedup();
    for ifindex in &found {
        detach(pins, *ifindex)?;
    }
    // Qdiscs whose filters somebody else has removed.
    for version in pins.versions()? {
        for mark in pins::names(&version.clsact())? {
            if let Some(ifindex) = pins::ifindex_of(&mark) {
                detach(pins, ifindex)?;
            }
        }
    }
    Ok(found.len())
}

/// Removes what other versions have pinned. The caller has seen that none of their programs is in
/// force.
pub(crate) fn remove_others(pins: &Pins) -> Result<usize, DataplaneError> {
    take_marks(pins, is_interface)?;
    let others = pins.others()?;
    for version in &others {
        pins::remove_version(version.directory())?;
    }
    Ok(others.len())
}

/// Takes over other versions' marks of qdiscs that we made, on interfaces as said.
fn take_marks(pins: &Pins, is_wanted: impl Fn(u32) -> bool) -> Result<(), DataplaneError> {
    for version in pins.others()? {
        for mark in pins::names(&version.clsact())? {
            if pins::ifindex_of(&mark).is_some_and(&is_wanted) {
                let own = pins.own().clsact().join(&mark);
                pins::rename(&version.clsact().join(&mark), &own)?;
            }
        }
    }
    Ok(())
}

fn prepare_qdisc(pins: &Pins, ifindex: u32, interface: &str) -> Result<(), DataplaneError> {
    let found = clsact::qdisc(ifindex)
        .map_err(|source| failed(ifindex, interface, "listing qdiscs", source))?;
    match found {
        Qdisc::Clsact => Ok(()),
        // Adding clsact would fail with EEXIST, which must not be taken for ours.
        Qdisc::Ingress => Err(DataplaneError::IngressQdisc {
            ifindex,
            name: interface.to_owned(),
        }),
        Qdisc::None => {
            clsact::add_qdisc(ifindex)
                .map_err(|source| failed(ifindex, interface, "adding clsact", source))?;
            let marker = pins.own().clsact().join(ifindex.to_string());
            match std::fs::create_dir(&marker) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(source) => Err(file("making", &marker, source)),
            }
        }
    }
}

fn is_interface(ifindex: u32) -> bool {
    nix::net::if_::if_indextoname(ifindex).is_ok()
}

/// Every interface of the calling thread's network namespace.
pub(crate) fn interfaces() -> Result<Vec<(u32, String)>, DataplaneError> {
    let all = nix::net::if_::if_nameindex()
        .map_err(|errno| failed(0, "", "listing interfaces", errno.into()))?;
    Ok(all
        .iter()
        .map(|one| (one.index(), one.name().to_string_lossy().into_owned()))
        .collect())
}

fn failed(ifindex: u32, name: &str, action: &'static str, source: io::Error) -> DataplaneError {
    DataplaneError::Attach {
        ifindex,
        name: name.to_owned(),
        action,
        source,
    }
}
