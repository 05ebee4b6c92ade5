//! compile: being written.
