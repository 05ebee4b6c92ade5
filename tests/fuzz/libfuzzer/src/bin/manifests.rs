//! `cargo xtask fuzz manifests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests_fuzz::manifests::run(bytes));
