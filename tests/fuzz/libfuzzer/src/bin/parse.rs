//! `cargo xtask fuzz parse`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests_fuzz::parse::run(bytes));
