//! What leaves the process.
