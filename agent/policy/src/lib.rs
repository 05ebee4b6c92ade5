//! The meaning of NetworkPolicy, once: objects in, decisions out. Pure: no I/O, no clocks, no
//! Kubernetes client, no BPF.
//!
//! - [`model`]: validated policies, pods, namespaces; [`manifest`]: Kubernetes objects to model.
//! - [`cluster`]: the ground state and what a change touches.
//! - [`evaluate`]: the specification, slow and obvious. [`explain`] and [`matrix`] speak from it.
//! - [`compile`]: policy sets, peer classes, port functions; [`tables`]: wanted map contents;
//!   [`plan`]: the ordered writes that get there. [`engine`] is the whole of it for the agent.
//! - [`hash`]: the map that all of them use.

pub mod cluster;
pub mod compile;
pub mod engine;
pub mod evaluate;
pub mod explain;
pub mod hash;
pub mod manifest;
pub mod matrix;
pub mod model;
pub mod plan;
#[cfg(test)]
mod random;
pub mod selector;
pub mod tables;
#[cfg(test)]
mod written;
