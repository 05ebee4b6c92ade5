//! The BPF objects that build.rs leaves beside the agent.

/// The tc programs and their maps.
pub fn programs() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/picket-ebpf"))
}

/// The floor programs that the benchmarks compare with; nothing but tests loads them.
pub fn floor() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/picket-floor"))
}
