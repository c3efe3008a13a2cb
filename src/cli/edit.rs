//! `prior-embed edit`: turns an embedding towards a text, away from another (arXiv 2204.06125, section 3.3, "text diffs").

use super::args::{at_least_one, text};
use super::context::Context;
use super::mixing::{Embeds, MixArgs, MixedRow, Mixing};
use crate::arithmetic::{NoArc, turn};
use crate::bad_input;
use crate::rows::Item;
use anyhow::Result;
use clap::builder::TypedValueParser;

/// Frames of a range of angles, if not said.
const FRAMES: usize = 6;

/// Turn an embedding towards a text and away from another
///
/// The text diffs of the unCLIP paper (section 3.3): slerp(z, norm(z_to - z_from), theta), in which z is the embedding of a
/// picture, a row or a prompt, z_to and z_from are CLIP text embeddings, and theta goes from A to B. 0 is the source as it
/// is, and 1 the direction alone; the paper goes up to between 0.25 and 0.5. Every frame is as long as the source.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to turn: @picture.png, @embs.npy[3], or "a prompt", whose embedding the prior makes
    #[arg(value_name = "ITEM", value_parser = text().try_map(|text| text.parse::<Item>()))]
    item: Item,

    /// What the source shows
    #[arg(long, value_name = "TEXT", value_parser = text())]
    from: String,

    /// What it is to show
    #[arg(long, value_name = "TEXT", value_parser = text())]
    to: String,

    /// How far to turn, 0 to 1: a range, or one number
    #[arg(long, value_name = "A..B", default_value = "0..0.5", allow_hyphen_values = true, value_parser = theta)]
    theta: Theta,

    /// Rows to write, evenly from A to B, both included [default: 6, or 1 of one number]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = at_least_one("a number of frames"))]
    frames: Option<usize>,

    #[command(flatten)]
    mix: MixArgs,
}

/// `--theta`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Theta {
    from: f64,
    to: f64,
}

fn theta(text: &str) -> Result<Theta, String> {
    let share = |text: &str| text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let theta = share(from).zip(share(to)).map(|(from, to)| Theta { from, to });
    theta.ok_or_else(|| "it must be a range between 0 and 1, as 0..0.5, or one number".into())
}

impl Theta {
    /// So many, evenly, from one end to the other.
    fn frames(self, count: usize) -> impl Iterator<Item = f64> {
        let last = count.saturating_sub(1).max(1) as f64;
        (0..count).map(move |frame| {
            let share = frame as f64 / last;
            self.from * (1.0 - share) + self.to * share
        })
    }
}

/// Writes the frames.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for what the user can fix, and whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let Args { item, from, to, theta, .. } = args;
    let is_range = theta.from != theta.to;
    let frames = args.frames.unwrap_or(if is_range { FRAMES } else { 1 });
    if is_range && frames == 1 {
        return Err(bad_input!("--frames 1 is one end of the range; give --theta one number, or more frames"));
    }
    let mut mixing = Mixing::open(std::slice::from_ref(item), true, &args.mix, context)?;
    let [image, text] = [mixing.pipeline.embedding_dim(), mixing.pipeline.text_embedding_dim()];
    if image != text {
        return Err(bad_input!(
            "edit: this model's text embeddings have {text} numbers and its image embeddings {image}, so that no text is a \
             direction; name another --model"
        ));
    }
    let texts = mixing.pipeline.text_embeds(&[from, to], &mut ())?;
    let Embeds { items: embeds, negative } = mixing.embeds()?;
    let source = embeds[0].view();
    let direction = &texts.row(1) - &texts.row(0);
    let frame = |theta: f64| {
        let embedding = turn(source, direction.view(), theta).map_err(|error| match error {
            NoArc::Zero(1) => bad_input!("--from and --to have the same text embedding, which is no direction"),
            NoArc::Zero(_) => bad_input!("{item} cannot be turned: {error}"),
            NoArc::Opposite => bad_input!("{item} cannot be turned from {from:?} to {to:?}: {error}"),
        })?;
        Ok(MixedRow { embedding, caption: format!("{item}: {from} -> {to} @ {theta}") })
    };
    let rows = theta.frames(frames).map(frame).collect::<Result<Vec<_>>>()?;
    mixing.write(rows, negative)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn theta_is_a_range_or_a_number() {
        assert_eq!(theta("0..0.5"), Ok(Theta { from: 0.0, to: 0.5 }));
        assert_eq!(theta(".25"), Ok(Theta { from: 0.25, to: 0.25 }));
        for text in ["", "..", "0..", "..1", "-0.1..1", "0..1.1", "nan", "0...5..1"] {
            assert!(theta(text).is_err(), "{text}");
        }
        let frames: Vec<f64> = Theta { from: 0.5, to: 0.0 }.frames(3).collect();
        assert_eq!(frames, [0.5, 0.25, 0.0]);
        assert_eq!(Theta { from: 0.3, to: 0.3 }.frames(1).collect::<Vec<_>>(), [0.3]);
    }
}
