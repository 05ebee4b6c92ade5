//! What the agent and its kernel programs agree on, and a packet's way through both.
//!
//! Nothing here allocates, blocks, does I/O or knows Kubernetes, so the same code runs in the
//! kernel (agent-ebpf), in the agent's decoders and in ordinary host tests.
//!
//! Read in this order: [`verdict`] (the words), [`maps`] (what user space writes), [`packet`]
//! (bytes to headers), [`conntrack`] (known flows), [`judge`] (policy look-up) and [`classify`]
//! (the packet's way, top to bottom).
#![no_std]

pub mod address;
pub mod classify;
pub mod conntrack;
pub mod event;
pub mod judge;
pub mod maps;
pub mod packet;
pub mod verdict;

pub use address::Address;
pub use verdict::{Direction, Reason, RuleId, Verdict};
