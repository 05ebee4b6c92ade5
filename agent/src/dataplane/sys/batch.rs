//! Many elements of a map in one call, where the kernel has that (5.6 and newer, not every map).

use std::io;
use std::os::fd::BorrowedFd;

use super::{Command, ENOTSUPP, address, bpf, raw};

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Inserts `count` elements in one call. The number says how many are in, counted from the front,
/// also when the call failed; `Unsupported` means that this kernel has no batches for this map.
pub(crate) fn update(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> (u32, io::Result<()>) {
    run(
        Command::MapUpdateBatch,
        map,
        address(keys),
        address(values),
        count,
    )
}

/// Deletes `count` elements in one call, as [`update`] inserts them. The first key that is not
/// there ends it with `NotFound`.
pub(crate) fn delete(map: BorrowedFd<'_>, keys: &[u8], count: u32) -> (u32, io::Result<()>) {
    run(Command::MapDeleteBatch, map, address(keys), 0, count)
}

fn run(
    command: Command,
    map: BorrowedFd<'_>,
    keys: u64,
    values: u64,
    count: u32,
) -> (u32, io::Result<()>) {
    let mut attributes = Batch {
        in_batch: 0,
        out_batch: 0,
        keys,
        values,
        count,
        map_fd: raw(map),
        element_flags: 0,
        flags: 0,
    };
    match bpf(command, &mut attributes) {
        Ok(_zero) => (count, Ok(())),
        Err(error) if is_unsupported(&error) => (0, Err(io::ErrorKind::Unsupported.into())),
        // The kernel writes the count back only once it has begun.
        Err(error) if attributes.count < count => (attributes.count, Err(error)),
        Err(error) => (0, Err(error)),
    }
}

/// Room for where a walk stands: the kernel writes a bucket's number there for hashes, a whole key
/// for every other kind of map.
pub(crate) fn cursor(key_size: usize) -> Vec<u8> {
    vec![0; key_size.max(size_of::<u32>())]
}

/// Reads the next elements of a map into `keys` and `values`, which have room for `room` of them:
/// how many came, and whether there are more. `cursor` is a [`cursor`], kept from call to call.
pub(crate) fn lookup(
    map: BorrowedFd<'_>,
    is_first: bool,
    cursor: &mut [u8],
    keys: &mut [u8],
    values: &mut [u8],
    room: u32,
) -> io::Result<(u32, bool)> {
    let place = cursor.as_mut_ptr() as u64;
    let mut attributes = Batch {
        in_batch: if is_first { 0 } else { place },
        out_batch: place,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room,
        map_fd: raw(map),
        element_flags: 0,
        flags: 0,
    };
    match bpf(Command::MapLookupBatch, &mut attributes) {
        Ok(_zero) => Ok((attributes.count, true)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attributes.count, false)),
        Err(error) if is_unsupported(&error) => Err(io::ErrorKind::Unsupported.into()),
        Err(error) => Err(error),
    }
}

/// EINVAL: the command itself is unknown (before 5.6).
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL))
}
