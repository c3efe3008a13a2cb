//! The command line: one file a command, with its options and what it prints. No tensors.
//!
//! ```text
//! line: arguments ─► CommandLine ─► commands: a command's Args ─► run ─► exit code
//!                        └───────► embed: Args ─► Request ─► job
//! ```
//!
//! `embed` is what the program does without a command. Everything that a person reads goes through `screen`
//! (standard error) or `stdout`.

mod args;
mod commands;
mod context;
mod convert;
mod download;
mod draw;
mod edit;
mod embed;
mod encode_image;
#[doc(hidden)]
pub mod errors;
mod help;
mod info;
mod interpolate;
mod line;
mod merge;
mod mixing;
mod models;
mod output_args;
mod prior_args;
mod progress;
mod reports;
mod rows;
mod score;
mod screen;
#[cfg(feature = "serve")]
mod serve;
mod stdout;
mod usage;
mod values;
mod warnings;

use crate::kernels::process::{self, prefer_huge_pages};
use clap::CommandFactory;
use context::Context;
use line::CommandLine;
use screen::Screen;
use std::ffi::OsString;
use std::time::Instant;

/// The program: runs with the arguments of the process, and ends the process with the exit code.
pub fn main() -> ! {
    process::tame_signals();
    process::leave(run(std::env::args_os()))
}

/// Runs the program with these arguments, the first of which is its name, and returns its exit code.
#[doc(hidden)]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let start = Instant::now();
    prefer_huge_pages();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let line = match CommandLine::parse_from(arguments.clone()) {
        Ok(line) => line,
        Err(error) => return usage::answer(&error, arguments),
    };
    let screen = Screen::new(line.global.quiet, line.global.verbose);
    let context = Context { screen, hub: line.global.hub(), start, command: CommandLine::command };
    let done = match &line.command {
        Some(command) => command.run(&context),
        None => embed::run(&line.embed, &context),
    };
    done.unwrap_or_else(|error| {
        context.screen.error(&errors::one_line(&error, line.global.verbose));
        errors::exit_code(&error)
    })
}
