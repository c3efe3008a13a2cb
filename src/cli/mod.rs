//! The command line: what a person types, and what they see. No tensors.

mod args;
mod convert;
mod download;
mod embed;
#[doc(hidden)]
pub mod errors;
mod info;
mod merge;
mod models;
mod notices;
mod outputs;
mod progress;
mod stats;
mod usage;

use crate::kernels::process::{self, prefer_huge_pages, stdout_was_closed};
use anyhow::{Context, Result, ensure};
use args::{Command, CommandLine, TalkArgs};
use errors::{exit_code, one_line};
use progress::Screen;
use std::ffi::OsString;
use std::io::Write;
use std::time::Instant;

/// The program: runs it with the arguments of its process and ends the process with the exit code.
pub fn main() -> ! {
    process::tame_signals();
    process::leave(run(std::env::args_os()))
}

/// Runs the program with these arguments and gives its exit code.
fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let start = Instant::now();
    prefer_huge_pages();
    let line = match CommandLine::of(arguments) {
        Ok(line) => line,
        Err(error) => return usage::answer(&error),
    };
    let TalkArgs { quiet, verbose } = *line.talk();
    let screen = Screen::new(quiet, verbose);
    match work(&line, &screen, start) {
        Ok(code) => code,
        Err(error) => {
            screen.error(&one_line(&error, verbose));
            exit_code(&error)
        }
    }
}

/// Does what the command line asks for and gives the exit code.
fn work(line: &CommandLine, screen: &Screen, start: Instant) -> Result<u8> {
    match &line.command {
        Some(Command::Models(args)) => models::run(args),
        Some(Command::Download(args)) => download::run(args, screen),
        Some(Command::Info(args)) => info::run(args, screen),
        Some(Command::Convert(args)) => return convert::run(args, screen),
        Some(Command::Merge(args)) => merge::run(args, screen),
        None => return embed::run(&line.embed, screen, start),
    }
    .map(|()| 0)
}

/// Prints on standard output. Whoever does not want to read on is not kept from that.
fn print(text: &str) -> Result<()> {
    write_stdout(|| writeln!(std::io::stdout(), "{text}"))
}

/// Writes to standard output with `write`, to its end.
fn write_stdout(write: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
    check_stdout()?;
    match write().and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Checks that there is a standard output, for those who are about to write to it.
fn check_stdout() -> Result<()> {
    ensure!(!stdout_was_closed(), "cannot write to standard output: it is closed");
    Ok(())
}
