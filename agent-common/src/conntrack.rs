//! conntrack: being written.
