//! The node's routes, as the kernel itself would look them up.

use agent_common::Address;
use agent_common::classify::Route;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Lookup,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::programs::TcContext;

/// `AF_INET6`.
const IPV6: u8 = 10;

/// Where the node takes what comes in by an interface. Not inlined: what is asked takes 64 bytes of
/// stack, and few packets ask.
#[inline(never)]
pub(crate) fn route(
    context: &TcContext,
    ifindex: u32,
    source: &Address,
    destination: &Address,
) -> Route {
    // SAFETY: plain numbers, for which zero is a value: the kernel's for what is not said.
    let mut lookup: Lookup = unsafe { core::mem::zeroed() };
    lookup.family = IPV6;
    lookup.ifindex = ifindex;
    lookup.__bindgen_anon_3.ipv6_src = source.words();
    lookup.__bindgen_anon_4.ipv6_dst = destination.words();
    let size = (size_of::<Lookup>() as u32).cast_signed();
    // SAFETY: the helper reads and writes a structure of its own that is this long.
    let result = unsafe { bpf_fib_lookup(context.as_ptr(), &raw mut lookup, size, 0) };
    // Its documentation lists what it says, in linux/bpf.h.
    match u32::try_from(result) {
        Ok(BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED) => {
            Route::By(lookup.ifindex)
        }
        // A way that ends here, an address of the node's, or an interface that forwards nothing.
        Ok(1..=BPF_FIB_LKUP_RET_FWD_DISABLED) => Route::Nowhere,
        _ => Route::Unknown,
    }
}
