//! Picket's tc programs: a thin shell that runs `agent_common::classify` on a pod's packets.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
use aya_ebpf::{macros::classifier, programs::TcContext};

/// What a pod sends.
#[cfg(target_arch = "bpf")]
#[classifier]
pub fn from_pod(_context: TcContext) -> i32 {
    -1
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
