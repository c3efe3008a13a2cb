//! The command line: what a person types, and what they see. No tensors.

mod args;
mod convert;
mod download;
mod embed;
mod info;
mod merge;
mod models;
mod notices;
mod outputs;
mod progress;
mod stats;

use crate::error;
use crate::model::kernels::process::prefer_huge_pages;
use anyhow::{Context, Result};
use args::{Command, CommandLine, TalkArgs};
use clap::Parser;
use clap::error::ErrorKind;
use progress::Screen;
use std::ffi::OsString;
use std::io::Write;
use std::time::Instant;

/// Runs the program with the arguments of its process and gives its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let start = Instant::now();
    prefer_huge_pages();
    let line = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => return refuse(&error),
    };
    let TalkArgs { quiet, verbose } = *line.talk();
    let screen = Screen::new(quiet, verbose);
    match work(&line, &screen, start) {
        Ok(code) => code,
        Err(error) => {
            screen.error(&error::one_line(&error, verbose));
            error::exit_code(&error)
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
    let mut output = std::io::stdout().lock();
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
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
    progress::tell(&format!("{problem}; see prior-embed --help"));
    2
}
