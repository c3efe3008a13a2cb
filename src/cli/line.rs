//! The command line as a whole, and what clap neither handles before it parses nor checks after.

use super::args::GlobalArgs;
use super::commands::Command;
use super::embed;
use clap::error::{Error, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser};
use std::ffi::{OsStr, OsString};

/// Turn text into CLIP image embeddings with a diffusion prior.
#[derive(Debug, Parser)]
#[command(name = "prior-embed", version, max_term_width = 110, args_override_self = true)]
#[command(arg_required_else_help = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
#[command(override_usage = "prior-embed -p <TEXT> -o <FILE> [OPTIONS]\n       prior-embed <COMMAND>")]
#[command(after_help = super::help::TOPICS_LINE)]
pub(super) struct CommandLine {
    /// The command; none to embed.
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    /// Options of embedding, which no command takes.
    #[command(flatten)]
    pub(super) embed: embed::Args,

    /// Options of every command.
    #[command(flatten)]
    pub(super) global: GlobalArgs,
}

impl CommandLine {
    /// Parses the arguments of the process.
    ///
    /// # Errors
    /// clap's, which include `--help` and `--version`.
    pub(super) fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut command = Self::command();
        let mut matches = command.try_get_matches_from_mut(tie_prompts(arguments))?;
        check_places(&mut command, &matches)?;
        check_repeats(&mut command, &matches)?;
        let line = Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
        // One may stand before a command and the other after it, which clap's own conflicts do not see.
        if line.global.quiet && line.global.verbose {
            return Err(command.error(ErrorKind::ArgumentConflict, "--quiet and --verbose exclude each other"));
        }
        Ok(line)
    }

    /// The command that arguments name, whatever is wrong with those after it.
    pub(super) fn command_of(arguments: impl IntoIterator<Item = OsString>) -> Option<String> {
        let matches = Self::command().ignore_errors(true).try_get_matches_from(tie_prompts(arguments));
        matches.ok()?.subcommand_name().map(str::to_string)
    }
}

/// Refuses options of embedding beside a command.
fn check_places(command: &mut clap::Command, matches: &ArgMatches) -> Result<(), Error> {
    let Some((name, _)) = matches.subcommand() else { return Ok(()) };
    let is_given = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let stray = command.get_arguments().filter(|arg| !arg.is_global_set()).find(is_given);
    let Some(long) = stray.and_then(Arg::get_long) else { return Ok(()) };
    let own = command.find_subcommand(name).map(clap::Command::get_arguments);
    let has_it = own.is_some_and(|mut args| args.any(|arg| arg.get_long() == Some(long)));
    let advice = if has_it { format!("give it after {name}") } else { "leave it out".to_string() };
    Err(command.error(ErrorKind::ArgumentConflict, format!("--{long} does not go before the command {name}; {advice}")))
}

/// Refuses a second value where input would be lost. Of a setting the last value counts, which scripts that append
/// options rely on.
fn check_repeats(command: &mut clap::Command, matches: &ArgMatches) -> Result<(), Error> {
    let of_command = matches.subcommand().map(|(_, of_command)| of_command);
    let mut places = std::iter::once(matches).chain(of_command);
    let values =
        |place: &ArgMatches| place.try_get_raw("negative_prompt").ok().flatten().map_or(0, |values| values.len());
    if places.any(|place| values(place) > 1) {
        let advice = "join the texts, or give each row its own in a file of prompts";
        let line = format!("--negative-prompt cannot be used multiple times; {advice}");
        return Err(command.error(ErrorKind::ArgumentConflict, line));
    }
    Ok(())
}

/// Ties a prompt that begins with a dash to its option: `-p "-5 degrees"` becomes `-p=-5 degrees`. clap would take it
/// for an option or, with `allow_hyphen_values`, every option after `-p` for a prompt.
fn tie_prompts(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut tied = Vec::new();
    let mut rest = arguments.into_iter().peekable();
    while let Some(mut argument) = rest.next() {
        if argument == "--" {
            tied.push(argument);
            break;
        }
        if takes_prompt(&argument)
            && let Some(prompt) =
                rest.next_if(|next| next.as_encoded_bytes().starts_with(b"-") && !is_option_like(next))
        {
            argument.push("=");
            argument.push(prompt);
        }
        tied.push(argument);
    }
    tied.extend(rest);
    tied
}

/// Whether the next argument is a prompt. Flags may be bundled with the option (`-qp`).
fn takes_prompt(argument: &OsStr) -> bool {
    let short =
        |text: &str| matches!(text.strip_prefix('-').map(|text| text.trim_start_matches(['q', 'v'])), Some("p" | "n"));
    argument.to_str().is_some_and(|text| matches!(text, "--prompt" | "--negative-prompt") || short(text))
}

/// Whether an argument looks like an option, known or mistyped, rather than a prompt: a dash and a letter, two dashes
/// and a word, or two dashes alone.
fn is_option_like(argument: &OsStr) -> bool {
    let text = argument.to_string_lossy();
    match text.strip_prefix("--") {
        Some(long) => {
            let word = long.split('=').next().unwrap_or_default();
            let is_word = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            long.is_empty() || is_word && word.starts_with(|first: char| first.is_ascii_alphabetic())
        }
        None => matches!(text.as_bytes(), [b'-', letter] if letter.is_ascii_alphabetic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(arguments: &[&str]) -> Result<(Vec<String>, Option<String>), ErrorKind> {
        let all = ["prior-embed", "--out", "e.npy"].iter().chain(arguments).map(OsString::from);
        let line = CommandLine::parse_from(all).map_err(|error| error.kind())?;
        Ok((line.embed.prompt, line.embed.sampling.negative_prompt))
    }

    #[test]
    fn a_prompt_may_begin_with_a_dash() {
        for prompt in
            ["-5 degrees", "-5", "-blurry", "- a list", "-", "--5", "-- no people", "--no people", "—", "-ö", ""]
        {
            let expected = Ok((vec![prompt.to_string(), "x".to_string()], Some(prompt.to_string())));
            assert_eq!(prompts(&["-p", prompt, "-n", prompt, "-p", "x"]), expected, "{prompt}");
            assert_eq!(prompts(&["--prompt", prompt, "-qp", "x", "--negative-prompt", prompt]), expected, "{prompt}");
        }
    }

    #[test]
    fn what_reads_like_an_option_is_no_prompt_unless_it_is_tied_to_one() {
        for option in ["--normalize", "--normalise", "--steps=3", "--out=a b", "-q", "-p", "-h", "--"] {
            for arguments in [&["-p", option][..], &["-p", "x", "-n", option]] {
                let kind = prompts(arguments).unwrap_err();
                assert!(matches!(kind, ErrorKind::InvalidValue | ErrorKind::UnknownArgument), "{option}: {kind}");
            }
            let expected = Ok((vec![option.to_string()], Some(option.to_string())));
            assert_eq!(prompts(&[&format!("--prompt={option}"), &format!("-n={option}")]), expected, "{option}");
        }
    }

    #[test]
    fn what_follows_two_dashes_is_left_alone() {
        let arguments = ["prior-embed", "-p", "-5", "--", "-p", "-5"].map(OsString::from);
        assert_eq!(tie_prompts(arguments), ["prior-embed", "-p=-5", "--", "-p", "-5"]);
    }

    #[test]
    fn global_options_stand_before_a_command_or_after_it() {
        let parse =
            |text: &str| CommandLine::parse_from(text.split(' ').map(OsString::from)).map_err(|error| error.kind());
        for text in [
            "p -q --offline --cache-dir c info",
            "p info -q --offline --cache-dir c",
            "p -q --offline info --cache-dir c",
        ] {
            let line = parse(text).unwrap();
            assert!(line.global.quiet && !line.global.verbose, "{text}");
            assert!(matches!(line.command, Some(Command::Info(_))), "{text}");
            assert!(line.global.offline && line.global.cache_dir == Some("c".into()), "{text}");
        }
        for text in [
            "p -q info -v",
            "p -q -v info",
            "p info -qv",
            "p -p x -o y -q -v",
            "p -p x info",
            "p -m x info",
            "p --overwrite merge a -o b",
        ] {
            assert_eq!(parse(text).err(), Some(ErrorKind::ArgumentConflict), "{text}");
        }
    }

    #[test]
    fn of_settings_the_last_counts_and_no_input_is_lost() {
        let line =
            |text: &str| CommandLine::parse_from(text.split(' ').map(OsString::from)).map_err(|error| error.kind());
        assert_eq!(line("p -p x -o y --steps 3 --steps 5 -o z").unwrap().embed.sampling.steps, Some(5));
        let files = line("p -f a - -o y -f b*").unwrap().embed.prompts;
        assert_eq!(files, ["a", "-", "b*"].map(std::path::PathBuf::from));
        assert_eq!(line("p -p x -o y -n a -n b").err(), Some(ErrorKind::ArgumentConflict));
    }
}
