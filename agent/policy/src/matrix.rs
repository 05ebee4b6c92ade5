//! matrix: being written.
