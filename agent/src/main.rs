//! picket
fn main() {}
