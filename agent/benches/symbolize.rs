//! Symbolisation throughput.
fn main() {}
