//! Parses, runs, and gives the exit code; everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    prior_embed::cli::run(std::env::args_os())
}
