//! The least description of a map's types (BTF) that the kernel takes: a key of so many bytes, a
//! value that is a structure of so many bytes.
//!
//! Linux 5.15 to 6.1 put an inner map into an outer one only when both the template the outer one
//! was made with and the inner map are described, or neither is. aya describes the template.
//!
//! Format: Linux, Documentation/bpf/btf.rst.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::OwnedFd;

use super::{Command, address, bpf_fd};

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_SIZE: u32 = 24;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
/// Types are numbered in their order, from 1.
const BYTE: u32 = 1;
/// The type of a key.
pub(super) const KEY: u32 = 2;
/// The type of a value.
pub(super) const VALUE: u32 = 3;
/// Names, each ended by a NUL; the first is none.
const NAMES: [u8; NAMES_SIZE as usize] = *b"\0u8\0";
const NAMES_SIZE: u32 = 4;
const NAME_OF_BYTE: u32 = 1;
/// Words of the three types: an integer, an array, a structure.
const WORDS: u32 = 4 + 6 + 3;
const TYPES_SIZE: u32 = WORDS * 4;
const SIZE: u32 = HEADER_SIZE + TYPES_SIZE + NAMES_SIZE;

/// What the kernel reads; it refuses one whose lengths are not those of its parts.
#[repr(C)]
struct Description {
    magic: u16,
    version: u8,
    flags: u8,
    header_size: u32,
    /// Places count from the header's end.
    types_at: u32,
    types_size: u32,
    names_at: u32,
    names_size: u32,
    types: [u32; WORDS as usize],
    names: [u8; NAMES_SIZE as usize],
}

const _: () = assert!(size_of::<Description>() == SIZE as usize);
const _: () = assert!(offset_of!(Description, types) == HEADER_SIZE as usize);

#[repr(C)]
struct Load {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    /// Older kernels want all that follows what they know to be zero, padding included.
    log_true_size: u32,
}

/// Hands a description to the kernel. A map that is made with it keeps it.
pub(super) fn load(key_size: u32, value_size: u32) -> io::Result<OwnedFd> {
    let description = [describe(key_size, value_size)];
    bpf_fd(
        Command::BtfLoad,
        &mut Load {
            btf: address(&description),
            log: 0,
            size: SIZE,
            log_size: 0,
            log_level: 0,
            log_true_size: 0,
        },
    )
}

const fn describe(key_size: u32, value_size: u32) -> Description {
    const INT: u32 = KIND_INT << 24;
    const ARRAY: u32 = KIND_ARRAY << 24;
    const STRUCT: u32 = KIND_STRUCT << 24;
    Description {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        header_size: HEADER_SIZE,
        types_at: 0,
        types_size: TYPES_SIZE,
        names_at: TYPES_SIZE,
        names_size: NAMES_SIZE,
        #[rustfmt::skip]
        types: [
            // An integer of one byte, eight bits.
            NAME_OF_BYTE, INT, 1, 8,
            // Bytes, indexed by bytes.
            0, ARRAY, 0, BYTE, BYTE, key_size,
            // A structure whose members nobody asks for.
            0, STRUCT, value_size,
        ],
        names: NAMES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_names_the_sizes_of_keys_and_values() {
        let described = describe(40, 64);
        assert_eq!(described.types[..4], [NAME_OF_BYTE, KIND_INT << 24, 1, 8]);
        let [_, kind, _, element, index, bytes] = described.types[4..10] else {
            unreachable!("six words");
        };
        assert_eq!((kind, element, index), (KIND_ARRAY << 24, BYTE, BYTE));
        assert_eq!(bytes, 40, "of a key");
        assert_eq!(described.types[10..], [0, KIND_STRUCT << 24, 64]);
    }
}
