//! `cargo xtask fuzz classify`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests_fuzz::classify::run(bytes));
