//! Whole-system tests: a node of network namespaces, real programs, real sockets. The tests
//! themselves are under `tests/`, the `lab` and `demo` commands under `src/bin/`.

#![expect(
    clippy::missing_errors_doc,
    reason = "an error here ends the run, and says why itself"
)]

pub mod api_front;
pub mod api_server;
pub mod bench;
pub mod cpu;
pub mod crowd;
pub mod demo;
pub mod deploy;
pub mod dice;
pub mod lab;
pub mod machine;
pub mod memory;
pub mod packets;
pub mod probe;
pub mod runs;
pub mod scale;
pub mod wild;
