//! A packet in the kernel: `impl Packet` over an skb.
//!
//! Direct packet access to the linear part. Headers are linear in all but hand-made packets: local
//! sockets build them there, drivers and GRO pull them there. A header that is not linear is read
//! by `bpf_skb_load_bytes`, which costs 15 ns a piece but changes nothing; `bpf_skb_pull_data`
//! would un-share every cloned TCP segment whose payload is paged, for headers that are linear
//! already.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use agent_common::Address;
use agent_common::packet::{Head, OFFSET_MASK, Packet};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;

use crate::words;

/// One packet from its Ethernet header on.
pub(crate) struct Skb<'a> {
    context: &'a TcContext,
    data: usize,
    data_end: usize,
    /// Where bytes that are not linear are put: one place for all of them, the stack is small.
    paged: UnsafeCell<MaybeUninit<[u8; LONGEST_LOAD]>>,
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
            paged: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }
}

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.data + (offset & OFFSET_MASK);
        if at + N <= self.data_end {
            // SAFETY: the comparison proves to us and to the verifier that the bytes are there.
            return Some(unsafe { chunk(at) });
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
    fn head<const N: usize>(&self) -> Option<impl Head> {
        (self.data + N <= self.data_end).then_some(Linear { data: self.data })
    }

    #[inline(always)]
    fn load_address(&self, offset: usize) -> Option<Address> {
        let at = self.data + (offset & OFFSET_MASK);
        if at + size_of::<Address>() <= self.data_end {
            // SAFETY: the comparison proves to us and to the verifier that the bytes are there.
            let halves = unsafe { [words::long::<0>(at), words::long::<8>(at)] };
            return Some(Address::from_halves(halves));
        }
        self.load(offset).map(Address::from_v6)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.context.len()
    }
}

/// The bytes at `at`, as few words as they are.
///
/// # Safety
/// They are inside the packet.
#[inline(always)]
unsafe fn chunk<const N: usize>(at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    // SAFETY: says the caller.
    unsafe {
        match N {
            2 => bytes.copy_from_slice(&words::short::<0>(at).to_ne_bytes()),
            4 => bytes.copy_from_slice(&words::word::<0>(at).to_ne_bytes()),
            8 => bytes.copy_from_slice(&words::long::<0>(at).to_ne_bytes()),
            _ => bytes = *(at as *const [u8; N]),
        }
    }
    bytes
}

/// The beginning of a packet's linear part, as long as was compared.
struct Linear {
    data: usize,
}

impl Head for Linear {
    #[inline(always)]
    fn byte<const AT: usize>(&self) -> u8 {
        // SAFETY: whoever made it has compared with the end, as the verifier checks.
        unsafe { words::byte::<AT>(self.data) }
    }

    #[inline(always)]
    fn short<const AT: usize>(&self) -> u16 {
        // SAFETY: as above.
        unsafe { words::short::<AT>(self.data) }
    }

    #[inline(always)]
    fn word<const AT: usize>(&self) -> u32 {
        // SAFETY: as above.
        unsafe { words::word::<AT>(self.data) }
    }

    #[inline(always)]
    fn long<const AT: usize>(&self) -> u64 {
        // SAFETY: as above.
        unsafe { words::long::<AT>(self.data) }
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
