//! `prior-embed interpolate`: weighted sums of embeddings, or a sequence along the arcs between them.

use super::args::{at_least_one, text};
use super::context::Context;
use super::mixing::{Embeds, MixArgs, MixedRow, Mixing};
use crate::arithmetic::{NoArc, arc, weighted_sum};
use crate::bad_input;
use crate::rows::Item;
use anyhow::Result;
use clap::builder::TypedValueParser;
use ndarray::Array1;

/// Mix prompts, pictures and embeddings into one embedding, or into a sequence
///
/// An item is a prompt ("a cat"), a picture (@cat.png), or a row of a file of embeddings (@embs.npy[3]); a prompt that
/// begins with @ has two of them. The mix is that of `interpolate` in diffusers' Kandinsky prior pipelines: the sum of
/// the weights times the embeddings, whatever the weights' own sum. The noise of the prompt at place i, counted from 0
/// among all items, is that of seed S + i, and the negative embedding's follows; --seed-layout call gives the noise of
/// one torch.Generator. --negative-prompt is `negative_prior_prompt` there, --decoder-negative-prompt `negative_prompt`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Items: "a prompt", @picture.png, @embs.npy[3]
    #[arg(value_name = "ITEM", required = true, num_args = 1..,
          value_parser = text().try_map(|text| text.parse::<Item>()))]
    items: Vec<Item>,

    /// A weight for each item, with commas between them [default: the same for each, 1 in all]
    #[arg(long, value_name = "W,W,…", allow_hyphen_values = true, value_parser = weights, conflicts_with = "slerp")]
    weights: Option<Weights>,

    /// Write a sequence of --frames that goes from item to item along great circles
    ///
    /// The first and the last item are its ends, as they are; between two, direction and length change evenly.
    #[arg(long, requires = "frames")]
    slerp: bool,

    /// Rows of the sequence, its ends included
    #[arg(long, value_name = "N", requires = "slerp", allow_negative_numbers = true,
          value_parser = at_least_one("a number of frames"))]
    frames: Option<usize>,

    #[command(flatten)]
    mix: MixArgs,
}

/// `--weights`.
#[derive(Debug, Clone, PartialEq)]
struct Weights(Vec<f64>);

fn weights(text: &str) -> Result<Weights, String> {
    let finite = |weight: &str| weight.trim().parse().ok().filter(|weight: &f64| weight.is_finite());
    let weights = text.split(',').map(finite).collect::<Option<_>>();
    weights.map(Weights).ok_or_else(|| "it must be finite numbers with commas between them, as 0.3,0.7".into())
}

/// Writes the mix.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for what the user can fix, and whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let count = args.items.len();
    let weights = match &args.weights {
        Some(Weights(weights)) if weights.len() != count => {
            return Err(bad_input!(
                "--weights has {} weights for {count} items; give one for each, with commas between them",
                weights.len()
            ));
        }
        Some(Weights(weights)) => weights.clone(),
        None => vec![1.0 / count as f64; count],
    };
    let frames = args.frames.filter(|_| args.slerp);
    if frames.is_some() && count < 2 {
        return Err(bad_input!("--slerp goes from item to item, and there is one; give two or more"));
    }
    if let Some(frames) = frames.filter(|frames| *frames < count) {
        return Err(bad_input!("--frames {frames} is less than the {count} items; give {count} or more"));
    }
    let mut mixing = Mixing::open(&args.items, false, &args.mix, context)?;
    let Embeds { items: embeds, negative } = mixing.embeds()?;
    let rows = match frames {
        Some(frames) => sequence(&args.items, &embeds, frames)?,
        None => vec![sum(&args.items, &embeds, &weights)],
    };
    mixing.write(rows, negative)?;
    Ok(0)
}

/// The weighted sum.
fn sum(items: &[Item], embeds: &[Array1<f32>], weights: &[f64]) -> MixedRow {
    let views: Vec<_> = embeds.iter().map(|embed| embed.view()).collect();
    let terms: Vec<String> = items.iter().zip(weights).map(|(item, weight)| format!("{weight} * {item}")).collect();
    MixedRow { embedding: weighted_sum(&views, weights), caption: terms.join(" + ") }
}

/// The frames of a sequence, evenly along the arcs from each embedding to the next.
fn sequence(items: &[Item], embeds: &[Array1<f32>], frames: usize) -> Result<Vec<MixedRow>> {
    let (arcs, steps) = (items.len() - 1, frames - 1);
    let frame = |frame: usize| {
        // In whole numbers, so that an item which is reached is reached exactly.
        let (place, rest) =
            if frame == steps { (arcs - 1, steps) } else { (frame * arcs / steps, frame * arcs % steps) };
        let t = rest as f64 / steps as f64;
        let (start, end) = (&items[place], &items[place + 1]);
        let embedding = arc(embeds[place].view(), embeds[place + 1].view(), t).map_err(|error| match error {
            NoArc::Zero(end) => bad_input!("no arc begins or ends at {}: {error}", items[place + end]),
            NoArc::Opposite => bad_input!("there is no arc from {start} to {end}: {error}; put an item between them"),
        })?;
        Ok(MixedRow { embedding, caption: format!("{start} -> {end} @ {t}") })
    };
    (0..frames).map(frame).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn a_sequence_passes_through_its_items() {
        let items = ["a", "b", "c"].map(|text| Item::Prompt(text.into()));
        let embeds = [array![1.0, 0.1], array![0.0, 2.0], array![-3.0, 0.7]];
        for frames in [3, 5, 7, 8, 100] {
            let rows = sequence(&items, &embeds, frames).unwrap();
            assert_eq!(rows.len(), frames);
            assert_eq!((&rows[0].embedding, &rows[frames - 1].embedding), (&embeds[0], &embeds[2]), "{frames}");
            let passes = rows.iter().any(|row| row.embedding == embeds[1]);
            assert_eq!(passes, frames % 2 == 1, "{frames}");
        }
        assert_eq!(sequence(&items[..2], &embeds[..2], 2).unwrap()[1].embedding, embeds[1]);
    }

    #[test]
    fn a_sum_is_not_normalized() {
        let items = ["a", "b"].map(|text| Item::Prompt(text.into()));
        let MixedRow { embedding, caption } = sum(&items, &[array![1.0, 2.0], array![3.0, -1.0]], &[0.5, 2.0]);
        assert_eq!((embedding, caption.as_str()), (array![6.5, -1.0], "0.5 * a + 2 * b"));
        assert!(weights("0.3, -0.7").unwrap() == Weights(vec![0.3, -0.7]));
        assert!(["", "0.3;0.7", "1,", "nan,1", "1,inf"].into_iter().all(|text| weights(text).is_err()));
    }
}
