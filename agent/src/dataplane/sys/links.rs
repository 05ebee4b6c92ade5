//! Links: programs at interfaces, by index and by descriptor.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::objects::info;
use super::{Command, bpf, bpf_fd, raw};

/// `BPF_TCX_INGRESS`; egress is the next number.
pub(crate) const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`: in front of the programs that are there.
const BEFORE: u32 = 1 << 3;

/// What a TCX link joins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct LinkPlace {
    /// The interface; 0 once that is gone.
    pub(crate) ifindex: u32,
    /// Id of the program.
    pub(crate) program: u32,
}

/// What a TCX link joins.
pub(crate) fn link_place(link: BorrowedFd<'_>) -> io::Result<LinkPlace> {
    // type, id, program, padding, then the link type's own part.
    let [_type, _id, program, _pad, ifindex, _attach_type] = info::<6>(link)?;
    Ok(LinkPlace { ifindex, program })
}

#[repr(C)]
struct CreateLink {
    program_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program in front of all others at a TCX hook.
pub(crate) fn link_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    bpf_fd(
        Command::LinkCreate,
        &mut CreateLink {
            program_fd: raw(program),
            target_ifindex: ifindex,
            attach_type,
            flags: BEFORE,
            relative_fd: 0,
            pad: 0,
            expected_revision: 0,
        },
    )
}

/// Puts another program behind a link, atomically.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = [raw(link), raw(program), 0, 0];
    bpf(Command::LinkUpdate, &mut attributes).map(|_zero| ())
}

/// Detaches a link now, whoever still holds it.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::LinkDetach, &mut raw(link)).map(|_zero| ())
}

#[repr(C)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    pad: u32,
    attach_flags_array: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// True when this kernel has TCX (6.6 and newer): asked at the loopback interface.
pub(crate) fn has_tcx() -> bool {
    let mut attributes = Query {
        target_ifindex: 1,
        attach_type: TCX_INGRESS,
        query_flags: 0,
        attach_flags: 0,
        program_ids: 0,
        count: 0,
        pad: 0,
        attach_flags_array: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    bpf(Command::ProgramQuery, &mut attributes).is_ok()
}
