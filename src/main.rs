//! The `ocistern` program: wiring only.

fn main() {}
