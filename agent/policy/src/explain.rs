//! explain: being written.
