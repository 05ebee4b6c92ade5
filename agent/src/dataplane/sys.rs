//! bpf(2) as far as aya does not go: element access with plain errors, batches, memory-mapped
//! arrays, inner maps, links by interface index. Nothing here knows what a map is for.

#![expect(
    clippy::struct_field_names,
    reason = "fields are named as in linux/bpf.h"
)]

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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
    MapById = 14,
    ObjectInfo = 15,
    ProgramQuery = 16,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// `BPF_F_NO_PREALLOC`.
pub(crate) const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`.
pub(crate) const MMAPABLE: u32 = 1 << 10;
/// `BPF_MAP_TYPE_LRU_HASH`.
pub(crate) const LRU_HASH: u32 = 9;
/// `BPF_TCX_INGRESS`; egress is the next number.
pub(crate) const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`: in front of the programs that are there.
const BEFORE: u32 = 1 << 3;
/// The kernel's own ENOTSUPP, which libc does not know.
const ENOTSUPP: i32 = 524;

/// Runs one bpf(2) command.
fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<u32> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a live, `repr(C)` prefix of `union bpf_attr` of the size passed; the
    // pointers inside it were made by this file from slices that outlive the call.
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
pub(crate) fn update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> (u32, io::Result<()>) {
    let mut attributes = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: address(keys),
        values: address(values),
        count,
        map_fd: raw(map),
        element_flags: 0,
        flags: 0,
    };
    match bpf(Command::MapUpdateBatch, &mut attributes) {
        Ok(_zero) => (count, Ok(())),
        // EINVAL: the command itself is unknown (before 5.6).
        Err(error) if matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EINVAL)) => {
            (0, Err(io::ErrorKind::Unsupported.into()))
        }
        // The kernel writes the count back only once it has begun.
        Err(error) if attributes.count < count => (attributes.count, Err(error)),
        Err(error) => (0, Err(error)),
    }
}

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
}

/// Makes an LRU hash with the common list, as the inner maps of `CONNTRACK` are.
pub(crate) fn create_lru(key_size: u32, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut map_name = [0; 16];
    for (place, byte) in map_name.iter_mut().zip(b"CONNTRACK_SLOT") {
        *place = *byte;
    }
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

fn info<const N: usize>(object: BorrowedFd<'_>) -> io::Result<[u32; N]> {
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

/// Interface a TCX link is on; 0 once that interface is gone.
pub(crate) fn link_ifindex(link: BorrowedFd<'_>) -> io::Result<u32> {
    // type, id, program, padding, then the link type's own part.
    let [_type, _id, _program, _pad, ifindex, _attach_type] = info::<6>(link)?;
    Ok(ifindex)
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

/// An array map's values, mapped into this process: words are stored and loaded atomically, so a
/// program that loads a word once sees all of the old or all of the new one.
#[derive(Debug)]
pub(crate) struct MappedWords {
    base: ptr::NonNull<u8>,
    words: usize,
}

// SAFETY: the mapping is shared memory reached only through atomics; it belongs to the value and
// is unmapped once, in `drop`.
unsafe impl Send for MappedWords {}
// SAFETY: as above: every access is atomic.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps an array of `words` values of up to 8 bytes; the kernel spaces them 8 bytes apart.
    pub(crate) fn map(array: BorrowedFd<'_>, words: u32) -> io::Result<Self> {
        let words = words as usize;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; the kernel refuses
        // lengths beyond the array.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                words * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                array.as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        ptr::NonNull::new(base.cast())
            .map(|base| Self { base, words })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn place(&self, index: u32) -> Option<ptr::NonNull<u64>> {
        let index = index as usize;
        // SAFETY: `index` is inside the mapping, which is page-aligned and 8 bytes a word.
        (index < self.words).then(|| unsafe { self.base.cast::<u64>().add(index) })
    }

    /// The 8-byte word at `index`.
    pub(crate) fn load(&self, index: u32) -> Option<u64> {
        self.place(index).map(|place| {
            // SAFETY: aligned, inside the mapping, only ever accessed atomically.
            unsafe { AtomicU64::from_ptr(place.as_ptr()) }.load(Ordering::Acquire)
        })
    }

    /// Publishes the 8-byte word at `index`; false when there is no such place.
    pub(crate) fn store(&self, index: u32, word: u64) -> bool {
        self.place(index).is_some_and(|place| {
            // SAFETY: aligned, inside the mapping, only ever accessed atomically.
            unsafe { AtomicU64::from_ptr(place.as_ptr()) }.store(word, Ordering::Release);
            true
        })
    }

    /// The 4-byte value at `index`.
    pub(crate) fn load_u32(&self, index: u32) -> Option<u32> {
        self.place(index).map(|place| {
            // SAFETY: aligned, inside the mapping, only ever accessed atomically.
            unsafe { AtomicU32::from_ptr(place.cast().as_ptr()) }.load(Ordering::Acquire)
        })
    }

    /// Publishes the 4-byte value at `index`; false when there is no such place.
    pub(crate) fn store_u32(&self, index: u32, value: u32) -> bool {
        self.place(index).is_some_and(|place| {
            // SAFETY: aligned, inside the mapping, only ever accessed atomically.
            unsafe { AtomicU32::from_ptr(place.cast().as_ptr()) }.store(value, Ordering::Release);
            true
        })
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `map` made; nothing borrows from it.
        let unmapped =
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * size_of::<u64>()) };
        debug_assert_eq!(unmapped, 0, "munmap of a mapping we made");
    }
}
