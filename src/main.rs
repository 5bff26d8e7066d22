//! The `qtunnel` program.

#![forbid(unsafe_code)]

fn main() {}
