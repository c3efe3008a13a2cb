//! `prior-embed help [COMMAND or TOPIC]`.

use super::context::Context;
use super::stdout;
use crate::bad_input;
use anyhow::Result;
use clap::error::ErrorKind;

/// Texts on more than one option. A new topic is a file and a line here.
const TOPICS: [(&str, &str); 8] = [
    ("formats", include_str!("help/formats.txt")),
    ("resuming", include_str!("help/resuming.txt")),
    ("bad-rows", include_str!("help/bad-rows.txt")),
    ("models", include_str!("help/models.txt")),
    ("seeds", include_str!("help/seeds.txt")),
    ("schedulers", include_str!("help/schedulers.txt")),
    ("pictures", include_str!("help/pictures.txt")),
    ("serving", include_str!("help/serving.txt")),
];

/// The last line of the help.
pub(super) const TOPICS_LINE: &str = "\
Topics: formats, resuming, bad-rows, models, seeds, schedulers, pictures, serving; prior-embed help <TOPIC> explains one.";

/// Print this help, or the help on a command or a topic
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A command, or one of formats, resuming, bad-rows, models, seeds, schedulers, pictures, serving
    #[arg(value_name = "COMMAND or TOPIC")]
    topic: Option<String>,
}

/// Prints the help.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if there is no such command or topic, or printing fails.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let name = args.topic.as_deref();
    let topic = TOPICS.iter().find(|(topic, _)| Some(*topic) == name);
    if let Some((_, text)) = topic {
        stdout::print(text.trim_end())?;
    }
    let arguments = std::iter::once("prior-embed").chain(name).chain(["--help"]);
    match (context.command)().try_get_matches_from(arguments) {
        Err(help) if help.kind() == ErrorKind::DisplayHelp => {
            // `models` is a topic and a command.
            if topic.is_some() {
                stdout::print("")?;
            }
            stdout::write_with(|| help.print())?;
        }
        _ if topic.is_some() => {}
        _ => {
            let (name, topics) = (name.unwrap_or_default(), TOPICS.map(|(topic, _)| topic).join(", "));
            return Err(bad_input!("there is no help on {name:?}; topics are {topics}, and the names of commands"));
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_is_named_and_fits_a_terminal() {
        for (topic, text) in TOPICS {
            assert!(TOPICS_LINE.contains(topic), "{topic}");
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{topic}");
        }
    }
}
