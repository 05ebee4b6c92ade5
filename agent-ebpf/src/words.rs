//! Whole words of a packet, wherever they lie. From types without alignment the compiler would
//! load byte by byte; the kernels we know load any word of a packet at once.

/// Declares one function that loads a word `AT` bytes behind `start`.
macro_rules! loads {
    ($($name:ident: $type:ty = $size:literal;)*) => {$(
        /// # Safety
        /// The bytes are inside the packet, by a comparison with its end.
        #[inline(always)]
        pub(crate) unsafe fn $name<const AT: usize>(start: usize) -> $type {
            #[cfg(target_arch = "bpf")]
            {
                let word: u64;
                // SAFETY: one load of bytes that are there, says the caller.
                unsafe {
                    core::arch::asm!(
                        concat!("{word} = *(", $size, " *)({start} + {at})"),
                        word = out(reg) word,
                        start = in(reg) start,
                        at = const AT,
                        options(nostack, preserves_flags, readonly),
                    );
                }
                word as $type
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: says the caller.
            unsafe {
                ((start + AT) as *const $type).read_unaligned()
            }
        }
    )*};
}

loads! {
    byte: u8 = "u8";
    short: u16 = "u16";
    word: u32 = "u32";
    long: u64 = "u64";
}
