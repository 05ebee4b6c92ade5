//! Wanted content of every map as plain values: being written.
