//! What fuzzing calls: a function for each target, from bytes to a panic where a claim does not
//! hold. They need no fuzzer: a test replays every committed input on stable Rust.
//!
//! Another target is a function here, a line in [`TARGETS`], a folder of inputs in `corpus/` and a
//! program of four lines in `libfuzzer/src/bin/`.

pub mod manifests;
pub mod parse;

/// A target's claim about any bytes; a panic says that it does not hold.
pub type Claim = fn(&[u8]);

/// Every target, by the name of its corpus and of its program.
pub const TARGETS: &[(&str, Claim)] = &[("manifests", manifests::run), ("parse", parse::run)];
