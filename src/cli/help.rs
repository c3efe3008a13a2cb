//! `prior-embed help [COMMAND or TOPIC]`.

use super::context::Context;
use super::stdout::print;
use crate::bad_input;
use anyhow::Result;

/// Texts on more than one option. A new topic is a file and a line here.
const TOPICS: [(&str, &str); 5] = [
    ("formats", include_str!("help/formats.txt")),
    ("resuming", include_str!("help/resuming.txt")),
    ("bad-rows", include_str!("help/bad-rows.txt")),
    ("models", include_str!("help/models.txt")),
    ("seeds", include_str!("help/seeds.txt")),
];

/// The last line of the help.
pub(super) const TOPICS_LINE: &str = "\
Topics: formats, resuming, bad-rows, models, seeds; prior-embed help <TOPIC> explains one.";

/// Print this help, or the help on a command or a topic
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A command, or one of formats, resuming, bad-rows, models, seeds
    #[arg(value_name = "COMMAND or TOPIC")]
    topic: Option<String>,
}

/// Prints the help.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if there is no such command or topic, or printing fails.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let mut command = (context.command)();
    command.build();
    let text = match args.topic.as_deref() {
        None => command.render_long_help().to_string(),
        Some(name) => match (TOPICS.iter().find(|(topic, _)| *topic == name), command.find_subcommand_mut(name)) {
            // `models` is both.
            (Some((_, text)), Some(command)) => format!("{text}\n{}", command.render_long_help()),
            (Some((_, text)), None) => (*text).to_string(),
            (None, Some(command)) => command.render_long_help().to_string(),
            (None, None) => {
                let topics = TOPICS.map(|(topic, _)| topic).join(", ");
                return Err(bad_input!("there is no help on {name:?}; topics are {topics}, and the names of commands"));
            }
        },
    };
    print(text.trim_end())?;
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
