//! What every object of kernel programs carries: its licence, and the panic handler that the
//! language asks for.

/// What the kernel's GPL-only helpers ask for.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier would refuse an endless loop, so a reachable panic cannot be loaded.
    loop {}
}
