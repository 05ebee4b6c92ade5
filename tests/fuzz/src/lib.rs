//! What fuzzing calls: a function for each target, from bytes to a panic where a claim does not
//! hold. They need no fuzzer: a test replays every committed input on stable Rust.
//!
//! Another target is a function here, a line in [`TARGETS`], a folder of inputs in `corpus/` and a
//! program of four lines in `libfuzzer/src/bin/`.

pub mod classify;
pub mod manifests;
pub mod parse;

// Shared with the whole-system tests, which send what `wild` thinks of through the kernel.
#[path = "../../src/dice.rs"]
pub mod dice;
#[path = "../../src/machine.rs"]
pub mod machine;
#[path = "../../src/packets.rs"]
pub mod packets;
#[path = "../../src/wild"]
pub mod wild {
    //! Packets between pods under policies, all as dice have it, and what may come of each.

    pub mod cluster;
    mod flows;
    pub mod frames;
    pub mod witness;
}

/// A target's claim about any bytes; a panic says that it does not hold.
pub type Claim = fn(&[u8]);

/// Every target, by the name of its corpus and of its program.
pub const TARGETS: &[(&str, Claim)] = &[
    ("classify", classify::run),
    ("manifests", manifests::run),
    ("parse", parse::run),
];
