//! Parses, runs, and ends with the exit code; everything else is in the library.

use prior_embed::cli;
use prior_embed::model::kernels::process;

fn main() {
    process::tame_signals();
    process::leave(cli::run(std::env::args_os()))
}
