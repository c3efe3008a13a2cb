//! `--help`, `--version`, and one line for a command line that cannot be parsed.

use super::errors::{exit_code, one_line};
use super::line::CommandLine;
use super::screen::{Screen, tell};
use super::stdout;
use crate::text::printable;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use std::path::Path;

/// Prints what clap reports, and returns the exit code.
pub(super) fn answer(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match stdout::write_with(|| error.print()) {
            Ok(()) => 0,
            Err(error) => {
                Screen::new(false, false).error(&one_line(&error, false));
                exit_code(&error)
            }
        },
        // A person reads the help; a script that lost its arguments sees the exit code.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            2
        }
        _ => {
            tell(&format!("error: {}", line(error)));
            2
        }
    }
}

/// What is wrong, what may have been meant, and where to read more.
fn line(error: &Error) -> String {
    let mut parts = match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) => stray_word(word, tips(error)),
        _ => {
            let text = error.to_string();
            // The first paragraph says what is wrong.
            let problem = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
            let problem = problem.strip_prefix("error: ").unwrap_or(&problem);
            let mut parts = vec![problem.to_string()];
            parts.extend(tips(error));
            parts.extend(advice_on_prompts(error));
            parts
        }
    };
    parts.push(format!("see prior-embed{} --help", command(error)));
    printable(&parts.join("; "))
}

/// A word where none is expected: most likely a prompt, or a file of prompts.
fn stray_word(word: &str, tips: Vec<String>) -> Vec<String> {
    let example = if word.contains(char::is_whitespace) { word } else { "a red apple" };
    let advice = match Path::new(word).is_file() {
        true => format!("a file of prompts goes after -f: -f {word:?}"),
        false => format!("a prompt goes after -p, in quotes if it has spaces: -p {example:?}"),
    };
    let mut parts = vec![format!("unexpected argument {word:?}")];
    parts.extend(tips);
    parts.push(advice);
    parts
}

/// What clap suggests.
fn tips(error: &Error) -> Vec<String> {
    let text = error.to_string();
    let tips = text.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
    // clap suggests `-- --name` where an option of another command is far likelier to be meant.
    tips.filter(|tip| !tip.starts_with("to pass ")).map(str::to_string).collect()
}

/// How to give a prompt that was taken for an option.
fn advice_on_prompts(error: &Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let option = text(ContextKind::InvalidArg)?;
    match error.kind() {
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue) == Some("") => {
            let names = ["--prompt", "--negative-prompt"];
            let name = names.into_iter().find(|name| option.starts_with(&format!("{name} ")))?;
            Some(format!("a text that looks like an option is given as {name}=TEXT"))
        }
        ErrorKind::UnknownArgument if tips(error).is_empty() && command(error).is_empty() => {
            Some(format!("a prompt that looks like this is given as --prompt={option}"))
        }
        _ => None,
    }
}

/// A space and the command's name, if there was one.
fn command(error: &Error) -> String {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return String::new() };
    let usage = usage.to_string();
    let after = usage.split("prior-embed ").nth(1).unwrap_or_default();
    let name = after.split_whitespace().next().unwrap_or_default();
    if CommandLine::command_names().iter().any(|command| command == name) { format!(" {name}") } else { String::new() }
}
