//! Yardsticks: the least that a tc program can cost, for benchmarks to compare with, and the
//! readers of the torn-read test. Nothing but tests loads them.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::needless_pass_by_value,
    reason = "the programs' generated entry points are public, without docs, and own the context"
)]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "to find a map value's place and to access it is one operation"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_ptr_alignment,
    reason = "halves of words; the kernel aligns every map value to 8 bytes"
)]

use agent_common::maps::{ENDPOINT_ROWS, EndpointWord};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, BPF_F_MMAPABLE, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::{Array, LruHashMap, PerCpuArray};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

/// A TCP or UDP flow over IPv4, as short as a key can be.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Flow {
    /// Source and destination address.
    addresses: [u8; 8],
    /// Source and destination port.
    ports: [u8; 4],
    /// IP protocol number.
    protocol: u32,
}

/// What stands for an endpoint.
#[btf_map]
static FLOOR_WORDS: Array<u64, { ENDPOINT_ROWS as usize }> = Array::new();
/// What stands for connections.
#[btf_map]
static FLOOR_FLOWS: LruHashMap<Flow, u64, 65_536> = LruHashMap::new();
/// What stands for counters.
#[btf_map]
static FLOOR_COUNTS: PerCpuArray<u64, 16> = PerCpuArray::new();

/// The programs' own map of this name: tests pin it where theirs is.
#[btf_map]
static ENDPOINTS: Array<EndpointWord, { ENDPOINT_ROWS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
/// Six words that belong together, written by the system call, as a contrast. The second row lies
/// across two cache lines.
#[btf_map]
static TORN_ROWS: Array<[u64; 6], 2> = Array::new();
/// Reads and mismatches: of the word in 0 and 1, of the row in 2 and 3.
#[btf_map]
static TORN_COUNTS: PerCpuArray<u64, 4> = PerCpuArray::new();

/// Reads in one run of a reader.
const READS: u32 = 1000;
/// What a revision must be, given its config row (any odd constant will do).
const PAIR: u32 = 0x9e37_79b1;

/// Nothing at all.
#[classifier]
pub fn bare(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Ethernet, IPv4 and ports, by direct packet access.
#[classifier]
pub fn parse(context: TcContext) -> i32 {
    match flow(&context) {
        // Something must depend on what was read.
        Some(flow) if flow.protocol == 255 => TC_ACT_SHOT,
        Some(_) => TC_ACT_UNSPEC,
        None => TC_ACT_SHOT,
    }
}

/// The least an established packet can cost: parse, one array, one LRU, one per-CPU counter.
#[classifier]
pub fn floor(context: TcContext) -> i32 {
    let Some(flow) = flow(&context) else {
        return TC_ACT_SHOT;
    };
    let skb: *const __sk_buff = context.as_ptr().cast_const().cast();
    // SAFETY: the context is the kernel's own; the field is readable by tc programs.
    let ifindex = unsafe { (*skb).ifindex };
    let Some(word) = FLOOR_WORDS.get(ifindex & (ENDPOINT_ROWS - 1)) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: only read, and at once.
    let known = unsafe { FLOOR_FLOWS.get(flow) };
    if let Some(count) = FLOOR_COUNTS.get_ptr_mut((*word & 1) as u32) {
        // SAFETY: this CPU's own value.
        unsafe { *count += 1 };
    }
    if known.is_some() {
        TC_ACT_UNSPEC
    } else {
        TC_ACT_SHOT
    }
}

/// Reads the word of interface 1 many times, and counts words whose halves do not belong together.
#[classifier]
pub fn torn_word(_context: TcContext) -> i32 {
    let mut torn = 0;
    let mut read = 0;
    while read < READS {
        if let Some(word) = ENDPOINTS.get_ptr(1) {
            // SAFETY: a live map value, aligned to 8 bytes; loaded as the real programs do.
            let word = unsafe { word.cast::<u64>().read_volatile() };
            let (row, revision) = (word as u32, (word >> 32) as u32);
            torn += u64::from(revision != row.wrapping_mul(PAIR));
        }
        read += 1;
    }
    count(0, torn);
    TC_ACT_UNSPEC
}

/// The same for a row of six words that a system call writes.
#[classifier]
pub fn torn_row(_context: TcContext) -> i32 {
    let mut torn = 0;
    let mut read = 0;
    while read < READS {
        if let Some(row) = TORN_ROWS.get_ptr(1) {
            let row = row.cast::<u64>();
            // SAFETY: a live map value of six words.
            let first = unsafe { row.read_volatile() };
            // SAFETY: as above.
            let last = unsafe { row.add(5).read_volatile() };
            torn += u64::from(first != last);
        }
        read += 1;
    }
    count(2, torn);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn count(place: u32, torn: u64) {
    for (index, amount) in [(place, u64::from(READS)), (place + 1, torn)] {
        if let Some(row) = TORN_COUNTS.get_ptr_mut(index) {
            // SAFETY: this CPU's own value.
            unsafe { *row += amount };
        }
    }
}

#[inline(always)]
fn flow(context: &TcContext) -> Option<Flow> {
    const ETHERTYPE: usize = 12;
    const IPV4: usize = 14;
    const IPV4_BYTES: usize = 20;
    let (data, end) = (context.data(), context.data_end());
    if data + IPV4 + IPV4_BYTES + 4 > end {
        return None;
    }
    // SAFETY: the comparison above proves that every byte read below is there.
    let byte = |offset: usize| unsafe { *((data + offset) as *const u8) };
    if byte(ETHERTYPE) != 8 || byte(ETHERTYPE + 1) != 0 || byte(IPV4) != 0x45 {
        return None;
    }
    let bytes = |offset: usize| {
        [
            byte(offset),
            byte(offset + 1),
            byte(offset + 2),
            byte(offset + 3),
        ]
    };
    let ([a, b, c, d], [e, f, g, h]) = (bytes(IPV4 + 12), bytes(IPV4 + 16));
    Some(Flow {
        addresses: [a, b, c, d, e, f, g, h],
        ports: bytes(IPV4 + IPV4_BYTES),
        protocol: u32::from(byte(IPV4 + 9)),
    })
}

/// What the kernel's GPL-only helpers ask for.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier would refuse an endless loop, so a reachable panic cannot be loaded.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
