//! Packets between pods under policies, all as dice have it, and what may come of each. Fuzzers share
//! it: the one at packet sockets has its dice from a seed, libFuzzer breeds bytes.

pub mod cluster;
mod flows;
pub mod frames;
pub mod witness;
