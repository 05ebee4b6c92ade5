//! Yardsticks: the least that a tc program can cost, for benchmarks to compare with; the program
//! that gives them and ours their packets; and the reader of the torn-read test. Nothing but tests
//! loads them.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
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

#[cfg(target_arch = "bpf")]
mod object;
mod words;

use agent_common::maps::{ENDPOINT_ROWS, EndpointWord};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ANY, BPF_F_MMAPABLE, BPF_RB_NO_WAKEUP, TC_ACT_SHOT, TC_ACT_UNSPEC,
};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

/// Addresses, ports and protocol of a flow over IPv4, as short as a key can be.
type FlowV4 = [u64; 2];
/// The same over IPv6.
type FlowV6 = [u64; 5];
/// Entries of the tables: more than a benchmark opens flows.
const FLOWS: usize = 262_144;

/// What stands for an endpoint.
#[btf_map]
static FLOOR_WORDS: Array<u64, { ENDPOINT_ROWS as usize }> = Array::new();
/// What stands for connections.
#[btf_map]
static FLOOR_FLOWS_V4: LruHashMap<FlowV4, u64, FLOWS> = LruHashMap::new();
/// The same over IPv6.
#[btf_map]
static FLOOR_FLOWS_V6: LruHashMap<FlowV6, u64, FLOWS> = LruHashMap::new();
/// What stands for all of policy: who is refused, by address.
#[btf_map]
static FLOOR_REFUSED: HashMap<[u64; 2], u64, 1024> = HashMap::new();
/// What stands for counters.
#[btf_map]
static FLOOR_COUNTS: PerCpuArray<u64, 16> = PerCpuArray::new();
/// What stands for events.
#[btf_map]
static FLOOR_EVENTS: RingBuf<FlowV6, { 4 << 20 }> = RingBuf::new();

/// How `vary` makes a packet of the one that it is given.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Variation {
    /// Number of the next flow; its low half becomes the pod's port.
    next: u32,
    /// Bits of the number that count.
    mask: u32,
    /// Where the pod's port is in the packet.
    pod_port: u32,
    /// Where the peer's port is; it becomes the number's high half and `peer_base`.
    peer_port: u32,
    /// The peer's port of the first 65 536 flows.
    peer_base: u32,
    /// Place of the program that gets the packet.
    program: u32,
}

#[btf_map]
static VARIATION: Array<Variation, 1> = Array::new();
#[btf_map]
static PROGRAMS: ProgramArray<16> = ProgramArray::new();

/// The programs' own map of this name: tests pin it where theirs is.
#[btf_map]
static ENDPOINTS: Array<EndpointWord, { ENDPOINT_ROWS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
/// Reads of the word in 0, mismatches in 1.
#[btf_map]
static TORN_COUNTS: PerCpuArray<u64, 2> = PerCpuArray::new();

/// Reads in one run of a reader.
const READS: u32 = 1000;
/// What a revision must be, given its config row (any odd constant will do).
const PAIR: u32 = 0x9e37_79b1;

/// Makes the packet one of the next flow and hands it on, so that a test run without a system call
/// between is one of many flows.
#[classifier]
pub fn vary(context: TcContext) -> i32 {
    let Some(state) = VARIATION.get_ptr_mut(0) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: a live map value, and one test run at a time.
    let Variation {
        next,
        mask,
        pod_port,
        peer_port,
        peer_base,
        program,
    } = unsafe { *state };
    // SAFETY: as above.
    unsafe { (*state).next = next.wrapping_add(1) };
    let flow = next & mask;
    write_port(&context, pod_port, flow as u16);
    write_port(&context, peer_port, (peer_base + (flow >> 16)) as u16);
    // SAFETY: nothing here waits to be dropped.
    unsafe { PROGRAMS.tail_call(&context, program) };
    TC_ACT_SHOT
}

#[inline(always)]
fn write_port(context: &TcContext, at: u32, port: u16) {
    let place = context.data() + (at as usize & 0x3f);
    if place + 2 <= context.data_end() {
        // SAFETY: the comparison proves that the bytes are there.
        unsafe { (place as *mut [u8; 2]).write(port.to_be_bytes()) };
    }
}

/// Nothing at all.
#[classifier]
pub fn bare(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// The floors of one family: programs of their own, because the verifier makes a slower call of a
/// look-up whose map depends on the packet.
macro_rules! floors {
    (
        $flow:ident, $reply:ident, $flows:ident, $address:ident, $parse:ident, $known:ident,
        $new:ident, $denied:ident, $from_pod:ident, $to_pod:ident
    ) => {
        /// Ethernet, IP and ports, by direct packet access.
        #[classifier]
        pub fn $parse(context: TcContext) -> i32 {
            match $flow(&context) {
                // Something must depend on what was read.
                Some([_, 0, ..]) | None => TC_ACT_SHOT,
                Some(_) => TC_ACT_UNSPEC,
            }
        }

        /// The least an established packet can cost: parse, one array, one LRU whose
        /// entries say when they were last seen, one per-CPU counter.
        #[classifier]
        pub fn $known(context: TcContext) -> i32 {
            let Some(flow) = $flow(&context).filter(|_| count(&context)) else {
                return TC_ACT_SHOT;
            };
            let Some(last_seen) = $flows.get_ptr_mut(flow) else {
                return TC_ACT_SHOT;
            };
            touch(last_seen);
            TC_ACT_UNSPEC
        }

        /// The least a new flow can cost, whatever is asked of policy: the above, but a miss; a
        /// place in the LRU and an event.
        #[classifier]
        pub fn $new(context: TcContext) -> i32 {
            let Some(flow) = $flow(&context).filter(|_| count(&context)) else {
                return TC_ACT_SHOT;
            };
            // SAFETY: only whether it is there is asked.
            if unsafe { $flows.get(flow) }.is_some() {
                return TC_ACT_UNSPEC;
            }
            if $flows.insert(flow, 1, u64::from(BPF_ANY)).is_err() {
                return TC_ACT_SHOT;
            }
            if !report(flow[0], flow[1]) {
                return TC_ACT_SHOT;
            }
            TC_ACT_UNSPEC
        }

        /// The least a refusal can cost: the floor, but a miss; and one look-up that says no.
        #[classifier]
        pub fn $denied(context: TcContext) -> i32 {
            let Some(flow) = $flow(&context).filter(|_| count(&context)) else {
                return TC_ACT_SHOT;
            };
            // SAFETY: only whether it is there is asked.
            if unsafe { $flows.get(flow) }.is_some() {
                return TC_ACT_UNSPEC;
            }
            // SAFETY: as above.
            if unsafe { FLOOR_REFUSED.get($address(&flow)) }.is_some() {
                TC_ACT_SHOT
            } else {
                TC_ACT_UNSPEC
            }
        }

        /// The least that tracking a pod's connections can cost, of whatever it sends: a packet is
        /// new or established as it is above. All of them pass.
        #[classifier]
        pub fn $from_pod(context: TcContext) -> i32 {
            track(&context, &$flows, $flow(&context))
        }

        /// The same of what reaches the pod, under the same keys.
        #[classifier]
        pub fn $to_pod(context: TcContext) -> i32 {
            track(&context, &$flows, $reply(&context))
        }
    };
}

floors! {
    flow_v4, reply_v4, FLOOR_FLOWS_V4, address_v4, parse_v4, floor_v4,
    new_v4, denied_v4, track_from_v4, track_to_v4
}
floors! {
    flow_v6, reply_v6, FLOOR_FLOWS_V6, address_v6, parse_v6, floor_v6,
    new_v6, denied_v6, track_from_v6, track_to_v6
}

#[inline(always)]
fn track<const WORDS: usize>(
    context: &TcContext,
    flows: &LruHashMap<[u64; WORDS], u64, FLOWS>,
    flow: Option<[u64; WORDS]>,
) -> i32 {
    let Some(flow) = flow.filter(|_| count(context)) else {
        return TC_ACT_UNSPEC;
    };
    match flows.get_ptr_mut(flow) {
        Some(last_seen) => touch(last_seen),
        None if flows.insert(flow, 1, u64::from(BPF_ANY)).is_ok() => {
            let _reported_or_lost = report(flow[0], flow[1]);
        }
        None => {}
    }
    TC_ACT_UNSPEC
}

/// Says when a flow was last seen.
#[inline(always)]
fn touch(last_seen: *mut u64) {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() };
    // SAFETY: a pointer that a look-up of this very run returned.
    if unsafe { last_seen.read() } != now {
        // SAFETY: as above.
        unsafe { last_seen.write(now) };
    }
}

/// False when there was no room.
#[inline(always)]
fn report(first: u64, second: u64) -> bool {
    let Some(mut event) = FLOOR_EVENTS.reserve(0) else {
        return false;
    };
    event.write([first, second, 0, 0, 0]);
    event.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}

/// One array, one per-CPU counter.
#[inline(always)]
fn count(context: &TcContext) -> bool {
    let skb: *const __sk_buff = context.as_ptr().cast_const().cast();
    // SAFETY: the context is the kernel's own; the field is readable by tc programs.
    let ifindex = unsafe { (*skb).ifindex };
    let Some(word) = FLOOR_WORDS.get(ifindex & (ENDPOINT_ROWS - 1)) else {
        return false;
    };
    if let Some(count) = FLOOR_COUNTS.get_ptr_mut((*word & 1) as u32) {
        // SAFETY: this CPU's own value.
        unsafe { *count += 1 };
    }
    true
}

/// Both addresses; ports and protocol.
#[inline(always)]
fn flow_v4(context: &TcContext) -> Option<FlowV4> {
    let data = context.data();
    if data + 14 + 20 + 8 > context.data_end() {
        return None;
    }
    // SAFETY: the comparison proves that every byte read here is there.
    unsafe {
        if words::short::<12>(data) != 0x0800_u16.to_be() || words::byte::<14>(data) != 0x45 {
            return None;
        }
        let rest = u64::from(words::word::<34>(data)) << 8 | u64::from(words::byte::<23>(data));
        Some([words::long::<26>(data), rest])
    }
}

/// Both addresses; ports and protocol.
#[inline(always)]
fn flow_v6(context: &TcContext) -> Option<FlowV6> {
    let data = context.data();
    if data + 14 + 40 + 8 > context.data_end() {
        return None;
    }
    // SAFETY: the comparison proves that every byte read here is there.
    unsafe {
        if words::short::<12>(data) != 0x86dd_u16.to_be() {
            return None;
        }
        let rest = u64::from(words::word::<54>(data)) << 8 | u64::from(words::byte::<20>(data));
        Some([
            words::long::<22>(data),
            words::long::<30>(data),
            words::long::<38>(data),
            words::long::<46>(data),
            rest,
        ])
    }
}

/// The same of the flow that goes the other way.
#[inline(always)]
fn reply_v4(context: &TcContext) -> Option<FlowV4> {
    let [addresses, rest] = flow_v4(context)?;
    Some([addresses.rotate_left(32), turned(rest)])
}

/// The same of the flow that goes the other way.
#[inline(always)]
fn reply_v6(context: &TcContext) -> Option<FlowV6> {
    let [a, b, c, d, rest] = flow_v6(context)?;
    Some([c, d, a, b, turned(rest)])
}

/// Ports, which a protocol follows, the other one first.
#[inline(always)]
fn turned(rest: u64) -> u64 {
    let ports = (rest >> 8) as u32;
    u64::from(ports.rotate_left(16)) << 8 | rest & 0xff
}

/// The destination.
#[inline(always)]
fn address_v4(flow: &FlowV4) -> [u64; 2] {
    [flow[0] >> 32, 0]
}

/// The destination.
#[inline(always)]
fn address_v6(flow: &FlowV6) -> [u64; 2] {
    [flow[2], flow[3]]
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
    for (index, amount) in [(0, u64::from(READS)), (1, torn)] {
        if let Some(row) = TORN_COUNTS.get_ptr_mut(index) {
            // SAFETY: this CPU's own value.
            unsafe { *row += amount };
        }
    }
    TC_ACT_UNSPEC
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
