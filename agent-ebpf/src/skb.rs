//! A packet in the kernel: `impl Packet` over an skb.
//!
//! Direct packet access to the linear part. Headers are linear in all but hand-made packets: local
//! sockets build them there, drivers and GRO pull them there. A header that is not linear is read
//! by `bpf_skb_load_bytes`, which costs 15 ns a piece but changes nothing; `bpf_skb_pull_data`
//! would un-share every cloned TCP segment whose payload is paged, for headers that are linear
//! already.

use core::cell::UnsafeCell;

use agent_common::packet::{OFFSET_MASK, Packet};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;

/// One packet from its Ethernet header on.
pub(crate) struct Skb<'a> {
    context: &'a TcContext,
    data: usize,
    data_end: usize,
    /// Where bytes that are not linear are put: one place for all of them, the stack is small.
    paged: UnsafeCell<[u8; LONGEST_LOAD]>,
}

/// Nobody loads more than an IPv6 address at once.
const LONGEST_LOAD: usize = 16;

impl<'a> Skb<'a> {
    #[inline(always)]
    pub(crate) fn new(context: &'a TcContext) -> Self {
        Self {
            context,
            data: context.data(),
            data_end: context.data_end(),
            paged: UnsafeCell::new([0; LONGEST_LOAD]),
        }
    }
}

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.data + (offset & OFFSET_MASK);
        if at + N <= self.data_end {
            // SAFETY: the comparison proves to us and to the verifier that the bytes are there.
            return Some(unsafe { *(at as *const [u8; N]) });
        }
        const { assert!(N <= LONGEST_LOAD) };
        let place = self.paged.get();
        // SAFETY: the helper writes N bytes into a place that holds at least as many.
        let result = unsafe {
            bpf_skb_load_bytes(
                self.context.as_ptr(),
                (offset & OFFSET_MASK) as u32,
                place.cast(),
                N as u32,
            )
        };
        // SAFETY: nobody else refers to the place; its first N bytes have just been written.
        (result == 0).then(|| unsafe { *place.cast() })
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.context.len()
    }
}

/// The interface the program runs on.
#[inline(always)]
pub(crate) fn ifindex(context: &TcContext) -> u32 {
    // SAFETY: the context is the kernel's own; the field is readable by tc programs.
    unsafe { (*skb(context)).ifindex }
}

/// The interface the packet entered the node by; 0 when the node made it.
#[inline(always)]
pub(crate) fn ingress_ifindex(context: &TcContext) -> u32 {
    // SAFETY: the context is the kernel's own; the field is readable by tc programs.
    unsafe { (*skb(context)).ingress_ifindex }
}

/// The packet's mark.
#[inline(always)]
pub(crate) fn mark(context: &TcContext) -> u32 {
    // SAFETY: the context is the kernel's own; the field is readable by tc programs.
    unsafe { (*skb(context)).mark }
}

#[inline(always)]
fn skb(context: &TcContext) -> *const __sk_buff {
    context.as_ptr().cast_const().cast()
}
