//! The maps as user space holds them: typed tables over pinned maps, opened by their place in the
//! pin directory and checked against `agent_common::maps::MAPS`.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use agent_common::Address;
use agent_common::maps::{
    Budget, Config, Connection, Denied, DeniedKey, EndpointWord, FlowKey, Fragment, FragmentKey,
    MAPS, MapKind, MapSpec, Name, NameKey, PeerEntry, PortFunction, PortKey, PortVerdict,
    PrefixKey, RuleHit, Service, ServiceKey, Settings, Traffic, VerdictKey,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::error::DataplaneError;
use super::slots::Slots;
use super::sys::{self, MapShape, MappedWords};

/// Plain data that may be a map's key or value.
pub(crate) trait Plain: FromBytes + IntoBytes + Immutable + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + Copy> Plain for T {}

/// One map with keys `K` and values `V`.
pub(crate) struct Table<K, V> {
    fd: OwnedFd,
    spec: &'static MapSpec,
    capacity: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({}, {})", self.spec.name, self.capacity)
    }
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Opens a pinned map; refused when it is not as described.
    pub(crate) fn open(directory: &Path, spec: &'static MapSpec) -> Result<Self, DataplaneError> {
        let (fd, shape) = open_pinned(directory, spec)?;
        Ok(Self {
            fd,
            spec,
            capacity: shape.capacity,
            types: PhantomData,
        })
    }

    /// An inner map, described by its outer one.
    pub(crate) fn of(fd: OwnedFd, spec: &'static MapSpec) -> io::Result<Self> {
        let shape = sys::map_shape(fd.as_fd())?;
        if shape.key_size as usize != size_of::<K>() || shape.value_size as usize != size_of::<V>()
        {
            return Err(io::Error::other(
                "an inner map that is laid out differently",
            ));
        }
        Ok(Self {
            fd,
            spec,
            capacity: shape.capacity,
            types: PhantomData,
        })
    }

    /// The map's name.
    pub(crate) fn name(&self) -> &'static str {
        self.spec.name
    }

    /// Entries the map may hold.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The map itself.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        let found = sys::lookup(self.fd(), key.as_bytes(), bytes_mut(&mut value))?;
        Ok(found.then_some(value))
    }

    /// Inserts or replaces.
    pub(crate) fn put(&self, key: &K, value: &V) -> io::Result<()> {
        sys::update(self.fd(), key.as_bytes(), value.as_bytes())
    }

    /// Inserts or replaces many; the number is how many are in, from the front.
    pub(crate) fn put_all(&self, keys: &[K], values: &[V]) -> (usize, io::Result<()>) {
        let count = keys.len().min(values.len());
        let Ok(count_u32) = u32::try_from(count) else {
            return (0, Err(io::ErrorKind::InvalidInput.into()));
        };
        if count > 1 {
            let (done, result) =
                sys::batch::update(self.fd(), keys.as_bytes(), values.as_bytes(), count_u32);
            match result {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                other => return (done as usize, other),
            }
        }
        for (done, (key, value)) in keys.iter().zip(values).enumerate() {
            if let Err(error) = self.put(key, value) {
                return (done, Err(error));
            }
        }
        (count, Ok(()))
    }

    /// Deletes; false when there was nothing.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        sys::delete(self.fd(), key.as_bytes())
    }

    /// Deletes many; what is not there is no error. The number is how many are gone, from the front.
    pub(crate) fn remove_all(&self, keys: &[K]) -> (usize, io::Result<()>) {
        let mut done = 0;
        while let Some(rest) = keys.get(done..)
            && rest.len() > 1
        {
            let count = u32::try_from(rest.len()).unwrap_or(u32::MAX);
            let (gone, result) = sys::batch::delete(self.fd(), rest.as_bytes(), count);
            done += gone as usize;
            match result {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => done += 1,
                Err(error) if error.kind() == io::ErrorKind::Unsupported => break,
                Err(error) => return (done, Err(error)),
            }
        }
        for key in keys.get(done..).unwrap_or_default() {
            if let Err(error) = self.remove(key) {
                return (done, Err(error));
            }
            done += 1;
        }
        (done, Ok(()))
    }

    /// Shows the bytes of every element of a map that nobody changes meanwhile, many in one call,
    /// until `visit` has seen enough and says false.
    ///
    /// # Errors
    /// `Unsupported`: this kernel cannot, for this map. Any other: the walk does not come to an end.
    pub(crate) fn walk(&self, mut visit: impl FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        const ROOM: u32 = 4096;
        let mut keys = vec![K::new_zeroed(); ROOM as usize];
        let mut values = vec![V::new_zeroed(); ROOM as usize];
        let mut cursor = sys::batch::cursor(size_of::<K>());
        let mut is_first = true;
        // A map can't hold more, and a call that returns is more than half full.
        for _ in 0..2 * (self.capacity() / ROOM + 1) {
            let (count, has_more) = sys::batch::lookup(
                self.fd(),
                is_first,
                &mut cursor,
                keys.as_mut_slice().as_mut_bytes(),
                values.as_mut_slice().as_mut_bytes(),
                ROOM,
            )?;
            for (key, value) in keys.iter().zip(&values).take(count as usize) {
                if !visit(key.as_bytes(), value.as_bytes()) {
                    return Ok(());
                }
            }
            if !has_more {
                return Ok(());
            }
            is_first = false;
        }
        Err(io::Error::other("the walk goes in circles"))
    }

    /// Every key there is. What is deleted meanwhile may restart the walk: keys can come twice.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys = Vec::new();
        let mut next = K::new_zeroed();
        let mut previous: Option<K> = None;
        // A map can't hold more; the bound ends a walk that a busy map keeps restarting.
        let bound = 2 * self.capacity as usize + 64;
        while keys.len() < bound
            && sys::next_key(
                self.fd(),
                previous.as_ref().map(IntoBytes::as_bytes),
                bytes_mut(&mut next),
            )?
        {
            keys.push(next);
            previous = Some(next);
        }
        Ok(keys)
    }

    /// Every entry there is.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        for key in self.keys()? {
            if let Some(value) = self.get(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }
}

/// A value's bytes, to be filled by the kernel.
fn bytes_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    value.as_mut_bytes()
}

/// A per-CPU array: each place holds one value for each possible CPU.
#[derive(Debug)]
pub(crate) struct PerCpu<V> {
    table: Table<u32, V>,
    cpus: usize,
}

impl<V: Plain> PerCpu<V> {
    /// The map's name.
    pub(crate) fn name(&self) -> &'static str {
        self.table.name()
    }

    /// The values of a place, one for each possible CPU.
    pub(crate) fn get(&self, index: u32) -> io::Result<Vec<V>> {
        // The kernel rounds each CPU's value up to 8 bytes.
        let stride = size_of::<V>().next_multiple_of(8);
        let mut bytes = vec![0; stride * self.cpus];
        if !sys::lookup(self.table.fd(), index.as_bytes(), &mut bytes)? {
            return Ok(Vec::new());
        }
        Ok(bytes
            .chunks_exact(stride)
            .filter_map(|chunk| V::read_from_prefix(chunk).ok().map(|(value, _rest)| value))
            .collect())
    }

    /// Sets a place to zero on every CPU.
    pub(crate) fn clear(&self, index: u32) -> io::Result<()> {
        let zeroes = vec![0; size_of::<V>().next_multiple_of(8) * self.cpus];
        sys::update(self.table.fd(), index.as_bytes(), &zeroes)
    }
}

/// Every map of `MAPS`, open.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) endpoints: MappedWords,
    pub(crate) endpoints_colliding: Table<u32, EndpointWord>,
    pub(crate) configs: Table<u32, Config>,
    pub(crate) settings: Table<u32, Settings>,
    pub(crate) peer_revision: MappedWords,
    pub(crate) conntrack: Slots,
    pub(crate) pending: Table<FlowKey, Connection>,
    pub(crate) peers_exact: Table<Address, PeerEntry>,
    pub(crate) peers_cidr: Table<PrefixKey, PeerEntry>,
    pub(crate) verdicts: Table<VerdictKey, PortFunction>,
    pub(crate) ports: Table<PortKey, PortVerdict>,
    pub(crate) services: Table<ServiceKey, Service>,
    pub(crate) fragments: Table<FragmentKey, Fragment>,
    pub(crate) budgets: Table<u32, Budget>,
    pub(crate) passed: PerCpu<Traffic>,
    pub(crate) dropped: Table<u32, Traffic>,
    pub(crate) denied: Table<DeniedKey, Denied>,
    pub(crate) rule_hits: PerCpu<RuleHit>,
    pub(crate) counters: PerCpu<u64>,
    pub(crate) ids: Table<u32, u64>,
    pub(crate) names: Table<NameKey, Name>,
}

impl Maps {
    /// Opens every map pinned in `directory`, refusing any that is laid out differently.
    pub(crate) fn open(directory: &Path) -> Result<Self, DataplaneError> {
        let cpus = possible_cpus()?;
        let endpoints: Table<u32, u64> = open(directory, "ENDPOINTS")?;
        let peer_revision: Table<u32, u32> = open(directory, "PEER_REVISION")?;
        Ok(Self {
            endpoints: mapped(&endpoints)?,
            endpoints_colliding: open(directory, "ENDPOINTS_COLLIDING")?,
            configs: open(directory, "CONFIGS")?,
            settings: open(directory, "SETTINGS")?,
            peer_revision: mapped(&peer_revision)?,
            conntrack: Slots::new(open(directory, "CONNTRACK")?),
            pending: open(directory, "PENDING")?,
            peers_exact: open(directory, "PEERS_EXACT")?,
            peers_cidr: open(directory, "PEERS_CIDR")?,
            verdicts: open(directory, "VERDICTS")?,
            ports: open(directory, "PORTS")?,
            services: open(directory, "SERVICES")?,
            fragments: open(directory, "FRAGMENTS")?,
            budgets: open(directory, "BUDGETS")?,
            passed: per_cpu(directory, "PASSED", cpus)?,
            dropped: open(directory, "DROPPED")?,
            denied: open(directory, "DENIED")?,
            rule_hits: per_cpu(directory, "RULE_HITS", cpus)?,
            counters: per_cpu(directory, "COUNTERS", cpus)?,
            ids: open(directory, "IDS")?,
            names: open(directory, "NAMES")?,
        })
    }
}

/// The description of a map by its name.
pub(crate) fn spec_of(name: &str) -> Option<&'static MapSpec> {
    MAPS.iter().find(|spec| spec.name == name)
}

/// What the kernel must say of a map with this description; its capacity is free.
pub(crate) fn shape_of(spec: &MapSpec) -> MapShape {
    let (map_type, flags) = match spec.kind {
        MapKind::Hash => (1, sys::NO_PREALLOC),
        MapKind::Array => (2, 0),
        MapKind::MappedArray => (2, sys::MMAPABLE),
        MapKind::PerCpuArray => (6, 0),
        MapKind::LruHash => (sys::LRU_HASH, 0),
        MapKind::LpmTrie => (11, sys::NO_PREALLOC),
        MapKind::ArrayOfLruHash => (12, 0),
        MapKind::RingBuffer => (27, 0),
    };
    // An outer map goes from slot to inner map; the inner map has the flow's sizes.
    let (key_size, value_size) = match spec.kind {
        MapKind::ArrayOfLruHash => (size_of::<u32>(), size_of::<u32>()),
        MapKind::Hash
        | MapKind::Array
        | MapKind::MappedArray
        | MapKind::PerCpuArray
        | MapKind::LruHash
        | MapKind::LpmTrie
        | MapKind::RingBuffer => (spec.key_size, spec.value_size),
    };
    MapShape {
        map_type,
        key_size: u32::try_from(key_size).unwrap_or(u32::MAX),
        value_size: u32::try_from(value_size).unwrap_or(u32::MAX),
        capacity: spec.capacity,
        flags,
    }
}

/// Opens a pinned map and compares it with its description, field by field.
pub(crate) fn open_pinned(
    directory: &Path,
    spec: &'static MapSpec,
) -> Result<(OwnedFd, MapShape), DataplaneError> {
    let path = directory.join(spec.name);
    let fd = sys::object_get(&path).map_err(|source| DataplaneError::File {
        action: "opening pinned map",
        path: path.clone(),
        source,
    })?;
    let found = sys::map_shape(fd.as_fd()).map_err(|source| DataplaneError::Map {
        map: spec.name,
        action: "asking what it is",
        source,
    })?;
    let wanted = shape_of(spec);
    for (what, found, wanted) in [
        ("type", found.map_type, wanted.map_type),
        ("key size", found.key_size, wanted.key_size),
        ("value size", found.value_size, wanted.value_size),
        ("flags", found.flags, wanted.flags),
    ] {
        if found != wanted {
            return Err(DataplaneError::Layout {
                map: spec.name,
                path,
                what,
                found,
                wanted,
            });
        }
    }
    Ok((fd, found))
}

fn open<K: Plain, V: Plain>(
    directory: &Path,
    name: &'static str,
) -> Result<Table<K, V>, DataplaneError> {
    let spec = spec_of(name).ok_or(DataplaneError::Capacity {
        map: name.to_owned(),
        why: "no map has this name",
    })?;
    Table::open(directory, spec)
}

fn per_cpu<V: Plain>(
    directory: &Path,
    name: &'static str,
    cpus: usize,
) -> Result<PerCpu<V>, DataplaneError> {
    Ok(PerCpu {
        table: open(directory, name)?,
        cpus,
    })
}

fn mapped<V: Plain>(table: &Table<u32, V>) -> Result<MappedWords, DataplaneError> {
    MappedWords::map(table.fd(), table.capacity).map_err(|source| DataplaneError::Map {
        map: table.name(),
        action: "mapping it into memory",
        source,
    })
}

/// CPUs that could ever run here: per-CPU maps have a value for each.
fn possible_cpus() -> Result<usize, DataplaneError> {
    aya::util::nr_cpus().map_err(|(path, source)| DataplaneError::File {
        action: "reading",
        path: path.into(),
        source,
    })
}
