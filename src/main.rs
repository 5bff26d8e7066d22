//! The `qtunnel` program.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    qtunnel::cli::run()
}
