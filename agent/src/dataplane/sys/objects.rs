//! Maps and what is pinned, as objects: made, opened, pinned and asked what they are.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use super::{Command, bpf, bpf_fd, btf, path_string, raw};

/// `BPF_MAP_TYPE_LRU_HASH`.
pub(crate) const LRU_HASH: u32 = 9;

#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
    map_ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
}

/// Makes an LRU hash with the common list, as the inner maps of `CONNTRACK` are.
pub(crate) fn create_lru(key_size: u32, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut map_name = [0; 16];
    for (place, byte) in map_name.iter_mut().zip(b"CONNTRACK_SLOT") {
        *place = *byte;
    }
    let described = btf::load(key_size, value_size)?;
    bpf_fd(
        Command::MapCreate,
        &mut Create {
            map_type: LRU_HASH,
            key_size,
            value_size,
            max_entries: entries,
            map_flags: 0,
            inner_map_fd: 0,
            numa_node: 0,
            map_name,
            map_ifindex: 0,
            btf_fd: raw(described.as_fd()),
            btf_key_type_id: btf::KEY,
            btf_value_type_id: btf::VALUE,
        },
    )
}

#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Opens a map by its id, as an outer map shows its inner ones.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(
        Command::MapById,
        &mut ById {
            id,
            next_id: 0,
            open_flags: 0,
        },
    )
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens what is pinned at `path`.
pub(crate) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    bpf_fd(
        Command::ObjectGet,
        &mut Object {
            path: path.as_ptr() as u64,
            fd: 0,
            flags: 0,
        },
    )
}

/// Pins an object at `path`.
pub(crate) fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attributes = Object {
        path: path.as_ptr() as u64,
        fd: raw(object),
        flags: 0,
    };
    bpf(Command::ObjectPin, &mut attributes).map(|_zero| ())
}

#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    info: u64,
}

/// Most maps of one program that the kernel is asked to name; ours have fewer than half.
const MAPS_OF_PROGRAM: u32 = 64;

/// `struct bpf_prog_info` up to the program's maps.
#[repr(C)]
struct ProgramInfo {
    skipped: [u64; 6],
    created_by_uid: u32,
    map_count: u32,
    map_ids: u64,
}

/// Ids of the maps that a program uses, by the program's id; none once that is gone.
pub(crate) fn maps_of_program(id: u32) -> io::Result<Vec<u32>> {
    let mut by_id = ById {
        id,
        next_id: 0,
        open_flags: 0,
    };
    let program = match bpf_fd(Command::ProgramById, &mut by_id) {
        Ok(program) => program,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ids = [0_u32; MAPS_OF_PROGRAM as usize];
    let mut program_info = ProgramInfo {
        skipped: [0; 6],
        created_by_uid: 0,
        map_count: MAPS_OF_PROGRAM,
        map_ids: ids.as_mut_ptr() as u64,
    };
    let mut attributes = Info {
        fd: raw(std::os::fd::AsFd::as_fd(&program)),
        length: u32::try_from(size_of::<ProgramInfo>()).unwrap_or(0),
        info: std::ptr::from_mut(&mut program_info) as u64,
    };
    bpf(Command::ObjectInfo, &mut attributes)?;
    let count = program_info.map_count.min(MAPS_OF_PROGRAM) as usize;
    Ok(ids.iter().take(count).copied().collect())
}

pub(super) fn info<const N: usize>(object: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut words = [0; N];
    let mut attributes = Info {
        fd: raw(object),
        length: u32::try_from(size_of::<[u32; N]>()).unwrap_or(0),
        info: words.as_mut_ptr() as u64,
    };
    bpf(Command::ObjectInfo, &mut attributes)?;
    Ok(words)
}

/// What a map is, from `struct bpf_map_info`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct MapShape {
    /// `enum bpf_map_type`.
    pub(crate) map_type: u32,
    /// Bytes of a key.
    pub(crate) key_size: u32,
    /// Bytes of a value.
    pub(crate) value_size: u32,
    /// Entries it may hold.
    pub(crate) capacity: u32,
    /// `BPF_F_*`.
    pub(crate) flags: u32,
}

/// A map's id.
pub(crate) fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    let [_type, id] = info::<2>(map)?;
    Ok(id)
}

/// Asks the kernel what a map is.
pub(crate) fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    let [map_type, _id, key_size, value_size, capacity, flags] = info::<6>(map)?;
    Ok(MapShape {
        map_type,
        key_size,
        value_size,
        capacity,
        flags,
    })
}
