//! `--help`, `--version`, and one line for a command line that cannot be parsed.

use super::errors::{exit_code, one_line};
use super::line::CommandLine;
use super::screen::{Screen, tell};
use super::stdout;
use crate::text::printable;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use std::ffi::OsString;
use std::path::Path;

/// Prints what clap reports of these arguments, and returns the exit code.
pub(super) fn answer(error: &Error, arguments: Vec<OsString>) -> u8 {
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
            tell(&format!("error: {}", line(error, CommandLine::command_of(arguments).as_deref())));
            2
        }
    }
}

/// What is wrong with the line of a command, or with one without; what may have been meant, and where to read more.
fn line(error: &Error, command: Option<&str>) -> String {
    let mut parts = match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) => stray_word(word, tips(error)),
        _ => {
            let text = error.to_string();
            // The first paragraph says what is wrong.
            let problem = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
            let problem = problem.strip_prefix("error: ").unwrap_or(&problem);
            let mut parts = vec![problem.to_string()];
            parts.extend(tips(error));
            parts.extend(advice_on_prompts(error, command));
            parts
        }
    };
    let command = command.map(|name| format!(" {name}")).unwrap_or_default();
    parts.push(format!("see prior-embed{command} --help"));
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
fn advice_on_prompts(error: &Error, command: Option<&str>) -> Option<String> {
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
        ErrorKind::UnknownArgument if tips(error).is_empty() && command.is_none() => {
            Some(format!("a prompt that looks like this is given as --prompt={option}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn line_of(arguments: &[&str]) -> String {
        let all: Vec<OsString> = ["prior-embed"].iter().chain(arguments).map(OsString::from).collect();
        let error = CommandLine::parse_from(all.clone()).expect_err(&format!("{arguments:?} can be parsed"));
        line(&error, CommandLine::command_of(all).as_deref())
    }

    #[test]
    fn a_line_names_the_help_of_its_command() {
        let mut whole = CommandLine::command();
        whole.build();
        let mut options = 0;
        for command in whole.get_subcommands() {
            let (name, end) = (command.get_name(), format!("; see prior-embed {} --help", command.get_name()));
            assert!(line_of(&[name, "--no-such-option"]).ends_with(&end), "{name}");
            for option in command.get_arguments().filter_map(|option| option.get_long()).filter(|long| *long != "help")
            {
                // A value that is missing, or one that a switch does not take.
                let wrong = [format!("--{option}="), format!("--{option}=\u{7}"), format!("--{option}")];
                let lines = wrong.iter().filter_map(|wrong| {
                    let all: Vec<OsString> = ["prior-embed", "-q", name, wrong].iter().map(OsString::from).collect();
                    let error = CommandLine::parse_from(all.clone()).err()?;
                    error.use_stderr().then(|| line(&error, CommandLine::command_of(all).as_deref()))
                });
                let lines: Vec<String> = lines.collect();
                assert!(!lines.is_empty(), "{name} --{option}");
                lines.iter().for_each(|line| assert!(line.ends_with(&end), "{name} --{option}: {line}"));
                options += 1;
            }
        }
        assert!(options > 100, "{options}");
    }

    #[test]
    fn a_line_without_a_command_names_the_help_of_all() {
        for arguments in [&["--steps", "0"][..], &["-p", "serve", "--bogus"], &["--bogus", "serve"], &["-p"], &["srve"]]
        {
            let line = line_of(arguments);
            assert!(line.ends_with("; see prior-embed --help"), "{line}");
        }
        let line = line_of(&["-m", "karlo", "info"]);
        assert!(line.ends_with("give it after info; see prior-embed info --help"), "{line}");
    }
}
