//! bpf(2) as far as aya does not go: element access with plain errors, batches, memory-mapped
//! arrays, inner maps, links by interface index. Nothing here knows what a map is for.

#![expect(
    clippy::struct_field_names,
    reason = "fields are named as in linux/bpf.h"
)]

pub(crate) mod batch;
mod btf;
mod links;
mod objects;
mod words;

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

pub(crate) use links::{
    LinkPlace, TCX_INGRESS, has_tcx, link_detach, link_place, link_tcx, link_update,
};
pub(crate) use objects::{
    LRU_HASH, MapShape, create_lru, map_by_id, map_id, map_shape, maps_of_program, object_get,
    object_pin,
};
pub(crate) use words::MappedWords;

/// Commands of bpf(2), by their numbers in linux/bpf.h.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjectPin = 6,
    ObjectGet = 7,
    ProgramById = 13,
    MapById = 14,
    ObjectInfo = 15,
    ProgramQuery = 16,
    BtfLoad = 18,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// `BPF_F_NO_PREALLOC`.
pub(crate) const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`.
pub(crate) const MMAPABLE: u32 = 1 << 10;
/// The kernel's own ENOTSUPP, which libc does not know.
const ENOTSUPP: i32 = 524;

/// Runs one bpf(2) command.
fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<u32> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a live, `repr(C)` prefix of `union bpf_attr` of the size passed; the
    // pointers inside it were made by this module from slices that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            ptr::from_mut(attributes),
            size,
        )
    };
    u32::try_from(result).map_err(|_negative| io::Error::last_os_error())
}

/// A command whose result is a new file descriptor.
fn bpf_fd<T>(command: Command, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?.cast_signed();
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr() as u64
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn element(map: BorrowedFd<'_>, key: &[u8], value: u64) -> Element {
    Element {
        map_fd: raw(map),
        pad: 0,
        key: address(key),
        value,
        flags: 0,
    }
}

/// Reads the value of `key` into `value`; false when there is none. The caller has sized both by
/// the map's own description.
pub(crate) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let value = value.as_mut_ptr() as u64;
    absent_is_false(bpf(Command::MapLookup, &mut element(map, key, value)))
}

/// Inserts or replaces one element.
pub(crate) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    bpf(Command::MapUpdate, &mut element(map, key, address(value))).map(|_zero| ())
}

/// Inserts one element unless there is one already; false when there is.
pub(crate) fn insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
    let mut attributes = Element {
        flags: NO_EXIST,
        ..element(map, key, address(value))
    };
    match bpf(Command::MapUpdate, &mut attributes) {
        Ok(_zero) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes one element; false when there was none.
pub(crate) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    absent_is_false(bpf(Command::MapDelete, &mut element(map, key, 0)))
}

/// The key after `key` (the first for `None`); false at the end.
pub(crate) fn next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    let next = next.as_mut_ptr() as u64;
    let mut attributes = element(map, key.unwrap_or_default(), next);
    if key.is_none() {
        attributes.key = 0;
    }
    absent_is_false(bpf(Command::MapNextKey, &mut attributes))
}

fn absent_is_false(result: io::Result<u32>) -> io::Result<bool> {
    match result {
        Ok(_zero) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
