//! The agent: everything of Picket that touches the world, one module per neighbour, listed in
//! the order of the data's way. What policy means is not here: see `agent_policy`.
//!
//! Objects come in through [`source`] and [`endpoints`], pods that start through [`plugin`];
//! [`reconcile`] turns them into writes, [`dataplane`] carries those out; what the kernel reports
//! comes back through [`flows`] and [`metrics`] to [`http`] and [`cli`], or is answered by
//! [`resets`]. [`agent`] starts and stops it all, within what [`memory`] keeps; [`doctor`] looks
//! whether the node lets it.

pub mod config;

pub mod source;

pub mod endpoints;
mod inotify;
mod netfilter;
pub mod plugin;
mod signature;

pub mod reconcile;

pub mod conntrack;
pub mod dataplane;

pub mod flows;

pub mod resets;

pub mod metrics;
pub mod reading;

pub mod answer;
pub mod dto;
pub mod http;

pub mod cli;
pub mod doctor;

pub mod agent;
pub mod memory;
pub mod telemetry;
