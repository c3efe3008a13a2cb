//! The command line: what a person types, and what they see. No tensors.

mod args;
mod embed;
mod progress;
mod stats;

use crate::error;
use crate::model::kernels::process::prefer_huge_pages;
use args::Args;
use clap::Parser;
use clap::error::ErrorKind;
use progress::Screen;
use std::ffi::OsString;
use std::time::Instant;

/// Runs the program with the arguments of its process and gives its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let start = Instant::now();
    prefer_huge_pages();
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => return refuse(&error),
    };
    let (quiet, verbose) = (args.quiet, args.verbose);
    let screen = Screen::new(quiet, verbose);
    match embed::run(&args, &screen, start) {
        Ok(()) => 0,
        Err(error) => {
            screen.error(&error::one_line(&error, verbose));
            error::exit_code(&error)
        }
    }
}

/// Help and version as they are; a wrong usage as one line.
fn refuse(error: &clap::Error) -> u8 {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nobody is left to tell if standard output is closed.
        let _ = error.print();
        return 0;
    }
    let text = error.to_string();
    // The first paragraph says what is wrong; usage and hints follow.
    let problem: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let problem = problem.join(" ");
    let problem = problem.strip_prefix("error: ").unwrap_or(&problem);
    eprintln!("prior-embed: {problem}; see prior-embed --help");
    2
}
