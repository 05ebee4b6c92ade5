//! The least description of a map's types (BTF) that the kernel takes: a key of so many bytes, a
//! value that is a structure of so many bytes.
//!
//! Linux 5.15 to 6.1 put an inner map into an outer one only when both the template the outer one
//! was made with and the inner map are described, or neither is. aya describes the template.
//!
//! Format: Linux, Documentation/bpf/btf.rst.

use std::io;
use std::os::fd::OwnedFd;

use super::{Command, address, bpf_fd};

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER: u32 = 24;
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
const NAMES: &[u8; 4] = b"\0u8\0";
const NAME_OF_BYTE: u32 = 1;

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
    let description = describe(key_size, value_size);
    bpf_fd(
        Command::BtfLoad,
        &mut Load {
            btf: address(&description),
            log: 0,
            size: u32::try_from(description.len()).unwrap_or(0),
            log_size: 0,
            log_level: 0,
            log_true_size: 0,
        },
    )
}

fn describe(key_size: u32, value_size: u32) -> Vec<u8> {
    let kind = |kind: u32| kind << 24;
    let types = [
        // An integer of one byte, eight bits.
        [NAME_OF_BYTE, kind(KIND_INT), 1, 8].as_slice(),
        // Bytes, indexed by bytes.
        &[0, kind(KIND_ARRAY), 0, BYTE, BYTE, key_size],
        // A structure whose members nobody asks for.
        &[0, kind(KIND_STRUCT), value_size],
    ]
    .concat();
    let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
    let types_size = u32::try_from(types.len()).unwrap_or(0);
    let mut bytes = Vec::new();
    bytes.extend(MAGIC.to_ne_bytes());
    bytes.extend([VERSION, 0]);
    let names_size = u32::try_from(NAMES.len()).unwrap_or(0);
    for word in [HEADER, 0, types_size, types_size, names_size] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(types);
    bytes.extend(NAMES);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_a_header_three_types_and_their_names() {
        let bytes = describe(40, 64);
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let (types, names) = (word(12), word(20));
        assert_eq!(bytes.len(), (HEADER + types + names) as usize);
        assert_eq!(word(HEADER as usize + 16 + 20), 40, "bytes of a key");
        assert_eq!(word(HEADER as usize + 16 + 24 + 8), 64, "bytes of a value");
    }
}
