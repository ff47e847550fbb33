//! The `routecause` command.

use std::process::ExitCode;

use mimalloc::MiMalloc;

// A request takes some forty pieces of memory, of which one is freed on the thread that writes the records.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    routecause::cli::main()
}
