//! Picket in a real cluster: pods that a kubelet starts, policies that an API server takes, traffic
//! between nodes. `cargo xtask test e2e` runs these.
#![expect(
    clippy::print_stderr,
    reason = "how long a stream stood still is for whoever reads the test's output"
)]
#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value does not have is null there"
)]

mod boot;
mod cni_plugin;
mod deployment;
mod dns;
mod first_act;
mod host;
mod namespace;
mod node;
mod probes;
mod reach;
mod starts;
mod streams;
mod workloads;
