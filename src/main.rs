//! The `ocistern` program: wiring only.

use std::process::ExitCode;

/// The GNU C library's allocator is set up for what this program does, and keeps less for each thread; others' are slow.
/// Without huge pages, which would make its reserve of 64 MiB resident at once.
#[cfg(not(target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ocistern::cli::run()
}
