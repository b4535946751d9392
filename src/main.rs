//! The `ocistern` program: wiring only.

use std::process::ExitCode;

/// The buffers of bodies are large and short-lived: an allocator that gives them back to the kernel each time costs a
/// tenth of a cold pull in page faults. Without huge pages, which would make its reserve of 64 MiB resident at once.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ocistern::cli::run()
}
