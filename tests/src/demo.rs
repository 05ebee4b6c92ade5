//! The demo's parts: what is told, what is measured, how it looks. `src/bin/demo.rs` tells it.

mod lines;
pub mod page;
pub mod paths;
pub mod story;
