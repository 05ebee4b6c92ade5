//! Programs on interfaces: pinned TCX links where the kernel has them, clsact filters elsewhere.
//! Both stay in force when the agent goes, however it goes.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use super::clsact::{self, Qdisc, Side};
use super::error::DataplaneError;
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
    pub(crate) fn of_this_kernel() -> Self {
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
}

impl Attached {
    /// Both directions are judged.
    pub const fn is_whole(&self) -> bool {
        self.from_pod && self.to_pod
    }
}

/// The two programs that are attached, with the side of the interface each is for.
pub(crate) const PLACES: [(&str, Side); 2] = [(FROM_POD, Side::Ingress), (TO_POD, Side::Egress)];

/// Attaches or replaces both programs, in the order of [`PLACES`].
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
        let result = match method {
            Method::Tcx => put_link(
                &link_path(&pins.links(), ifindex, name),
                ifindex,
                side,
                program,
            ),
            Method::Clsact => clsact::replace_filter(ifindex, side, program, name),
        };
        result.map_err(|source| failed(ifindex, interface, "attaching a program", source))?;
    }
    Ok(())
}

/// Takes both programs off; an interface that is gone, or never had any, is no error.
pub(crate) fn detach(pins: &Pins, ifindex: u32) -> Result<(), DataplaneError> {
    for (name, side) in PLACES {
        drop_link(&link_path(&pins.links(), ifindex, name))?;
        let removed = if is_interface(ifindex) {
            clsact::remove_filter(ifindex, side, name)
        } else {
            Ok(())
        };
        removed.map_err(|source| failed(ifindex, "", "removing a filter", source))?;
    }
    let marker = pins.clsact().join(ifindex.to_string());
    if marker.exists() {
        clsact::remove_empty_qdisc(ifindex)
            .map_err(|source| failed(ifindex, "", "removing the clsact qdisc", source))?;
        pins::remove_directory(&marker)?;
    }
    Ok(())
}

/// What is in force. Links whose interface is gone are reaped on the way.
pub(crate) fn attached(pins: &Pins) -> Result<Vec<Attached>, DataplaneError> {
    let mut found: Vec<Attached> = Vec::new();
    let mut note = |ifindex, name: &str, method| {
        let place = found
            .iter()
            .position(|one| one.ifindex == ifindex && one.method == method)
            .unwrap_or_else(|| {
                found.push(Attached {
                    ifindex,
                    from_pod: false,
                    to_pod: false,
                    method,
                });
                found.len() - 1
            });
        if let Some(one) = found.get_mut(place) {
            one.from_pod |= name == FROM_POD;
            one.to_pod |= name == TO_POD;
        }
    };
    for pin in pins::names(&pins.links())? {
        let path = pins.links().join(&pin);
        let Some((_, name)) = pin.split_once('-') else {
            continue;
        };
        match living(&path)? {
            Some(ifindex) => note(ifindex, name, Method::Tcx),
            None => pins::remove_file(&path)?,
        }
    }
    for (ifindex, interface) in interfaces()? {
        for (name, side) in PLACES {
            if clsact::has_filter(ifindex, side, name)
                .map_err(|source| failed(ifindex, &interface, "listing filters", source))?
            {
                note(ifindex, name, Method::Clsact);
            }
        }
    }
    found.sort_by_key(|one| one.ifindex);
    Ok(found)
}

/// Puts the newly loaded programs behind everything that is attached, atomically one by one.
pub(crate) fn update_all(
    pins: &Pins,
    programs: [BorrowedFd<'_>; 2],
) -> Result<Vec<Attached>, DataplaneError> {
    let found = attached(pins)?;
    for one in &found {
        for (((name, side), program), is_there) in PLACES
            .into_iter()
            .zip(programs)
            .zip([one.from_pod, one.to_pod])
        {
            if !is_there {
                continue;
            }
            match one.method {
                Method::Tcx => {
                    let path = link_path(&pins.links(), one.ifindex, name);
                    put_link(&path, one.ifindex, side, program)
                }
                Method::Clsact => clsact::replace_filter(one.ifindex, side, program, name),
            }
            .map_err(|source| failed(one.ifindex, "", "replacing a program", source))?;
        }
    }
    Ok(found)
}

/// Removes every link and filter of ours.
pub(crate) fn detach_all(pins: &Pins) -> Result<usize, DataplaneError> {
    let found = attached(pins)?;
    for one in &found {
        detach(pins, one.ifindex)?;
    }
    // Qdiscs whose filters somebody else has removed.
    for marker in pins::names(&pins.clsact())? {
        if let Some(ifindex) = pins::ifindex_of(&marker) {
            detach(pins, ifindex)?;
        }
    }
    Ok(found.len())
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
            let marker = pins.clsact().join(ifindex.to_string());
            match std::fs::create_dir(&marker) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(source) => Err(file("making", &marker, source)),
            }
        }
    }
}

fn link_path(links: &Path, ifindex: u32, program: &str) -> PathBuf {
    links.join(format!("{ifindex}-{program}"))
}

/// Updates the pinned link, or makes and pins one.
fn put_link(path: &Path, ifindex: u32, side: Side, program: BorrowedFd<'_>) -> io::Result<()> {
    match sys::object_get(path) {
        Ok(link) if sys::link_ifindex(link.as_fd())? == ifindex => {
            return sys::link_update(link.as_fd(), program);
        }
        // The interface is gone, and its index was given to another one since.
        Ok(_dead) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let attach_type = match side {
        Side::Ingress => sys::TCX_INGRESS,
        Side::Egress => sys::TCX_INGRESS + 1,
    };
    let link = sys::link_tcx(program, ifindex, attach_type)?;
    sys::object_pin(link.as_fd(), path)
}

/// Detaches at once, not when the last holder of the link lets go, and removes the pin.
fn drop_link(path: &Path) -> Result<(), DataplaneError> {
    match sys::object_get(path) {
        Ok(link) => match sys::link_detach(link.as_fd()) {
            Ok(()) => {}
            // The interface has gone and taken the link with it.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(source) => return Err(file("detaching link", path, source)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(file("opening link", path, source)),
    }
    pins::remove_file(path)
}

/// The interface of a pinned link, unless that is gone.
fn living(path: &Path) -> Result<Option<u32>, DataplaneError> {
    let link = sys::object_get(path).map_err(|source| file("opening link", path, source))?;
    let ifindex =
        sys::link_ifindex(link.as_fd()).map_err(|source| file("asking link", path, source))?;
    Ok((ifindex != 0).then_some(ifindex))
}

fn is_interface(ifindex: u32) -> bool {
    nix::net::if_::if_indextoname(ifindex).is_ok()
}

fn interfaces() -> Result<Vec<(u32, String)>, DataplaneError> {
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
