//! cluster: being written.
