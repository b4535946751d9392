//! The `ocistern` program: wiring only.

use std::process::ExitCode;

fn main() -> ExitCode {
    ocistern::cli::run()
}
