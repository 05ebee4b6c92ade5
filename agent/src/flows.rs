//! What the kernel reports, for people: records are decoded, joined with names, folded into edges
//! and handed to whoever follows.

pub mod aggregate;
pub mod decode;
pub mod join;
