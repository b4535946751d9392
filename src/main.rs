//! The `ocistern` program: wiring only.

use std::process::ExitCode;

/// Only where it is asked for (ADR 0017); its settings are in `sys::allocator`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The GNU C library's allocator is set up for what this program does, and keeps less for each thread; others' are slow.
/// Without huge pages, which would make its reserve of 64 MiB resident at once.
#[cfg(not(any(target_env = "gnu", feature = "jemalloc")))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ocistern::cli::run()
}
