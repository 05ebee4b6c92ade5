//! Pinned TCX links: made, given another program, taken over from another layout version, dropped.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use super::failed;
use crate::dataplane::clsact::Side;
use crate::dataplane::error::DataplaneError;
use crate::dataplane::pins::{self, Pins, Version, file};
use crate::dataplane::sys::{self, LinkPlace};

/// A link's pin.
pub(crate) fn path(version: &Version, ifindex: u32, program: &str) -> PathBuf {
    version.links().join(format!("{ifindex}-{program}"))
}

/// Puts a program behind the link at its place, whichever version has pinned it, or makes and pins
/// a link. Afterwards it is this version's.
///
/// The pin is moved first: should the agent end right then, the program behind it tells whose it
/// still is.
pub(crate) fn put(
    pins: &Pins,
    ifindex: u32,
    (name, side): (&str, Side),
    program: BorrowedFd<'_>,
) -> Result<(), DataplaneError> {
    let others = pins.others()?;
    let own = path(&pins.own(), ifindex, name);
    if living_at(&own, ifindex)?.is_none() {
        for version in &others {
            let theirs = path(version, ifindex, name);
            if living_at(&theirs, ifindex)?.is_some() {
                pins::rename(&theirs, &own)?;
                break;
            }
        }
    }
    let wrong = |source| failed(ifindex, "", "attaching a program", source);
    if let Some(link) = living_at(&own, ifindex)? {
        sys::link_update(link.as_fd(), program).map_err(wrong)?;
    } else {
        let attach_type = match side {
            Side::Ingress => sys::TCX_INGRESS,
            Side::Egress => sys::TCX_INGRESS + 1,
        };
        let link = sys::link_tcx(program, ifindex, attach_type).map_err(wrong)?;
        sys::object_pin(link.as_fd(), &own).map_err(wrong)?;
    }
    // One program decides, and this one does by now.
    for version in &others {
        drop_at(&path(version, ifindex, name))?;
    }
    Ok(())
}

/// Detaches at once, not when the last holder of the link lets go, and removes the pin.
pub(crate) fn drop_at(path: &Path) -> Result<(), DataplaneError> {
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

/// What a pinned link joins, unless its interface is gone.
pub(crate) fn living(path: &Path) -> Result<Option<LinkPlace>, DataplaneError> {
    let link = sys::object_get(path).map_err(|source| file("opening link", path, source))?;
    let place =
        sys::link_place(link.as_fd()).map_err(|source| file("asking link", path, source))?;
    Ok((place.ifindex != 0).then_some(place))
}

/// The link pinned at a place, if there is one and it is on that interface. A dead one is reaped:
/// its index was given to another interface since.
fn living_at(path: &Path, ifindex: u32) -> Result<Option<std::os::fd::OwnedFd>, DataplaneError> {
    let link = match sys::object_get(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(file("opening link", path, source)),
    };
    let place =
        sys::link_place(link.as_fd()).map_err(|source| file("asking link", path, source))?;
    if place.ifindex == ifindex {
        return Ok(Some(link));
    }
    pins::remove_file(path)?;
    Ok(None)
}
