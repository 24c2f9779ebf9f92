//! The one binary: parse, run, exit code.

use std::process::ExitCode;

/// It halves the 99th percentile against mimalloc under load, in a prototype (docs/performance.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    quorate::cli::run(std::env::args_os())
}
