//! The look-ups of a packet's way, as BPF map operations. No decision is made here.

use agent_common::Address;
use agent_common::classify::{FlowTables, Room, Route};
use agent_common::event::FlowEvent;
use agent_common::judge::PolicyTables;
use agent_common::maps::{
    Budget, Config, Connection, Counter, Denied, DeniedKey, ENDPOINT_ROWS, EndpointWord, FlowKey,
    Fragment, FragmentKey, PeerEntry, PortFunction, PortVerdict, Service, ServiceKey, Settings,
    VerdictKey, dropped_index, passed_index,
};
use agent_common::verdict::{Direction, Reason};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST, BPF_RB_NO_WAKEUP};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::programs::TcContext;

use crate::diagnostics;
use crate::entry::{Entry, Row, add};
use crate::fib;
use crate::maps::{
    BUDGETS, CONFIGS, CONNTRACK, COUNTERS, DENIED, DROPPED, ENDPOINTS, ENDPOINTS_COLLIDING, EVENTS,
    FRAGMENTS, PASSED, PEER_REVISION, PEERS_CIDR, PEERS_EXACT, PENDING, PORTS, ROOM, RULE_HITS,
    SERVICES, SETTINGS, VERDICTS,
};

/// The maps, with the packet for diagnostics' sake.
pub(crate) struct KernelTables<'a> {
    pub(crate) context: &'a TcContext,
}

/// This CPU's place for what is read of a packet. tc programs of one CPU never interrupt each
/// other, so it is one packet's at a time.
#[inline(always)]
pub(crate) fn room() -> Option<&'static mut Room> {
    let place: *mut Room = ROOM.get_ptr_mut(0)?.cast();
    // SAFETY: large enough and aligned to 8 bytes. It is zeroed at first, and every field is
    // written before it is read.
    Some(unsafe { &mut *place })
}

/// Read where SETTINGS has no row, which an array always has: no knob on, nothing open.
static NO_SETTINGS: Settings = Settings {
    flags: 0,
    hz: 0,
    report_interval: 0,
    mid_stream_grace: 0,
    timeouts: [0; 8],
    budget_rate: 0,
    budget_burst: 0,
    mark_mask: 0,
    reserved: 0,
};

/// Row and revision in one aligned 8-byte load: they always belong together.
#[inline(always)]
#[expect(
    clippy::cast_ptr_alignment,
    reason = "the kernel aligns every map value to 8 bytes"
)]
fn load_word(word: *const EndpointWord) -> (u32, u32) {
    // SAFETY: map values are aligned to 8 bytes; user space stores the word atomically.
    let [a, b, c, d, e, f, g, h] = unsafe { word.cast::<u64>().read_volatile() }.to_ne_bytes();
    (
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    )
}

#[inline(always)]
fn published(word: *const EndpointWord, ifindex: u32) -> Option<(&'static Config, u32)> {
    let (row, revision) = load_word(word);
    let config = CONFIGS.get(row)?;
    (row != 0 && config.ifindex == ifindex).then_some((config, revision))
}

impl PolicyTables for KernelTables<'_> {
    #[inline(always)]
    fn endpoint(&self, ifindex: u32) -> Option<(&Config, u32)> {
        if let Some(word) = ENDPOINTS.get_ptr(ifindex & (ENDPOINT_ROWS - 1))
            && let Some(found) = published(word, ifindex)
        {
            return Some(found);
        }
        published(ENDPOINTS_COLLIDING.get_ptr(ifindex)?, ifindex)
    }

    #[inline(always)]
    fn peer_revision(&self, bucket: u16) -> u32 {
        match PEER_REVISION.get_ptr(u32::from(bucket)) {
            // SAFETY: a live map value; user space stores it atomically.
            Some(revision) => unsafe { revision.read_volatile() },
            None => 0,
        }
    }

    #[inline(always)]
    fn peer_exact(&self, address: &Address) -> Option<PeerEntry> {
        // SAFETY: copied at once; values are replaced, never changed in place.
        unsafe { PEERS_EXACT.get(address) }.copied()
    }

    #[inline(always)]
    fn peer_prefix(&self, address: &Address) -> Option<PeerEntry> {
        PEERS_CIDR.get(&Key::new(128, address.0)).copied()
    }

    #[inline(always)]
    fn verdict(&self, key: &VerdictKey) -> Option<&PortFunction> {
        // SAFETY: without preallocation a deleted value stays until the RCU grace period is over.
        unsafe { VERDICTS.get(key) }
    }

    #[inline(always)]
    fn port(&self, function: u32, protocol: u8, port: u16) -> Option<PortVerdict> {
        let [a, b, c, d] = function.to_be_bytes();
        let [high, low] = port.to_be_bytes();
        PORTS
            .get(&Key::new(56, [a, b, c, d, protocol, high, low, 0]))
            .copied()
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        // SAFETY: without preallocation a deleted value stays until the RCU grace period is over.
        unsafe { SERVICES.get(key) }
    }

    #[inline(always)]
    fn settings(&self) -> &Settings {
        SETTINGS.get(0).unwrap_or(&NO_SETTINGS)
    }

    #[inline(always)]
    fn default_row_missing(&self) {
        self.count(Counter::DefaultRowMissing);
        diagnostics::default_row_missing(self.context);
    }
}

impl FlowTables for KernelTables<'_> {
    type Entry = Entry;
    type Row = Row;

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn route(&self, ifindex: u32, source: &Address, destination: &Address) -> Route {
        fib::route(self.context, ifindex, source, destination)
    }

    #[inline(always)]
    fn connection(&self, flow: &FlowKey) -> Option<Entry> {
        CONNTRACK
            .get_value_ptr_mut(u32::from(flow.slot), flow)
            .map(Entry)
    }

    #[inline(always)]
    fn insert_connection(&self, flow: &FlowKey, connection: &Connection) -> bool {
        match CONNTRACK.get(u32::from(flow.slot)) {
            Some(own) => own.insert(flow, connection, u64::from(BPF_ANY)).is_ok(),
            None => false,
        }
    }

    #[inline(always)]
    fn pending(&self, flow: &FlowKey) -> Option<Entry> {
        PENDING.get_ptr_mut(flow).map(Entry)
    }

    #[inline(always)]
    fn insert_pending(&self, flow: &FlowKey, connection: &Connection) -> bool {
        PENDING.insert(flow, connection, u64::from(BPF_ANY)).is_ok()
    }

    #[inline(always)]
    fn delete_pending(&self, flow: &FlowKey) {
        // Another CPU may have been first.
        let _deleted_or_gone = PENDING.remove(flow);
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: a live map value, copied; one that is another's by now at worst names other ports
        // for what a first fragment decides.
        unsafe { FRAGMENTS.get(key).copied() }
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        // Without it, the later fragments are dropped and counted.
        let _kept_or_not = FRAGMENTS.insert(key, fragment, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn denied(&self, key: &DeniedKey) -> Option<Row> {
        DENIED.get_ptr_mut(key).map(Row)
    }

    #[inline(always)]
    fn insert_denied(&self, key: &DeniedKey, row: &Denied) -> bool {
        DENIED.insert(key, row, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn spend(&self, slot: u32, spend: impl FnOnce(Budget) -> Option<Budget>) -> bool {
        let Some(bucket) = BUDGETS.get_ptr_mut(slot) else {
            return false;
        };
        // SAFETY: a live map value; a lost update costs or gives one token.
        let Some(after) = spend(unsafe { bucket.read() }) else {
            return false;
        };
        // SAFETY: as above.
        unsafe { bucket.write(after) };
        true
    }

    #[inline(always)]
    fn passed(&self, slot: u32, direction: Direction, bytes: u32) {
        if let Some(row) = PASSED.get_ptr_mut(passed_index(slot, direction.index())) {
            // SAFETY: this CPU's own value; tc programs of one CPU do not interrupt each other.
            let row = unsafe { &mut *row };
            row.packets += 1;
            row.bytes += u64::from(bytes);
        }
    }

    #[inline(always)]
    fn dropped(&self, slot: u32, direction: Direction, reason: Reason, bytes: u32) {
        let index = dropped_index(slot, direction.index(), reason.number());
        if let Some(row) = DROPPED.get_ptr_mut(index) {
            // SAFETY: only the field's address is taken.
            add(unsafe { &raw mut (*row).packets }, 1);
            // SAFETY: only the field's address is taken.
            add(unsafe { &raw mut (*row).bytes }, u64::from(bytes));
        }
    }

    #[inline(always)]
    fn begun(&self, row: u32, now: u64) {
        if let Some(row) = RULE_HITS.get_ptr_mut(row) {
            // SAFETY: this CPU's own value; tc programs of one CPU do not interrupt each other.
            let row = unsafe { &mut *row };
            row.connections += 1;
            row.last_seen = now;
        }
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        if let Some(row) = COUNTERS.get_ptr_mut(counter as u32) {
            // SAFETY: this CPU's own value; tc programs of one CPU do not interrupt each other.
            unsafe { *row += 1 };
        }
    }

    #[inline(always)]
    fn report(&self, write: impl FnOnce(&mut FlowEvent)) -> bool {
        // The reader polls on a timer: waking it costs a packet up to 100 ns.
        let Some(mut place) = EVENTS.reserve(0) else {
            return false;
        };
        // SAFETY: the ring's memory, ours until it is submitted; any bytes in it are an event.
        write(unsafe { &mut *place.as_mut_ptr() });
        place.submit(u64::from(BPF_RB_NO_WAKEUP));
        true
    }
}
