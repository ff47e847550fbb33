//! The `routecause` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    routecause::cli::main()
}
