//! Parses, runs, and ends with the exit code; everything else is in the library.

fn main() {
    prior_embed::cli::main()
}
