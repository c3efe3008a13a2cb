//! The emoji whose pictures' embeddings are nearest to an embedding.

use super::builtin::{INDEX, INDEX_NAMES, drawing_files};
use crate::files::Folder;
use crate::search::{Block, Direction, Float};
use anyhow::{Context, Result, bail};
use ndarray::ArrayView1;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::borrow::Cow;

/// Asks for the colourful form of a character that also has a plain one.
const VARIATION_SELECTOR: char = '\u{fe0f}';

/// The first character of the blocks in which every one is an emoji.
const FIRST_OF_EMOJI: char = '\u{1f000}';

/// The index of emoji.
#[derive(Debug)]
pub struct EmojiIndex {
    emoji: Vec<Emoji>,
    /// In each array of the index, the direction of each emoji's embedding.
    arrays: Vec<Vec<Direction>>,
}

/// An emoji of the index.
#[derive(Debug, Deserialize)]
pub struct Emoji {
    /// Its code points, in hexadecimal with dashes between.
    code: String,
    /// What Unicode calls it.
    pub name: String,
}

impl EmojiIndex {
    /// Reads the index that is built in.
    ///
    /// # Errors
    /// If this build has none.
    pub fn load() -> Result<Self> {
        Self::read(&drawing_files().context("this build has no index of emoji")?)
    }

    fn read(folder: &Folder) -> Result<Self> {
        let emoji: Vec<Emoji> = serde_json::from_str(&folder.read_text(INDEX_NAMES)?)?;
        let bytes = folder.open(INDEX)?;
        let index = SafeTensors::deserialize(&bytes)?;
        let array = |name: &str| -> Result<Vec<Direction>> {
            let tensor = index.tensor(name)?;
            let float = match tensor.dtype() {
                Dtype::F16 => Float::F16,
                Dtype::F32 => Float::F32,
                other => bail!("internal error: an index of type {other:?}"),
            };
            let [rows, dim] = tensor.shape() else { bail!("internal error: an index of shape {:?}", tensor.shape()) };
            let block = Block { first: 0, dim: *dim, float, bytes: Cow::Borrowed(tensor.data()) };
            let directions: Option<Vec<_>> = (0..*rows).map(|row| block.direction(row)).collect();
            directions.filter(|_| *rows == emoji.len()).context("internal error: an index of other emoji")
        };
        let arrays = index.names().into_iter().map(array).collect::<Result<Vec<_>>>()?;
        Ok(Self { arrays, emoji })
    }

    /// The emoji nearest to an embedding, and the cosine between them.
    ///
    /// # Errors
    /// If the index is empty, or a number is not finite.
    pub fn nearest(&self, embed: ArrayView1<f32>) -> Result<(&Emoji, f64)> {
        let direction = Direction::of(embed.iter().map(|number| f64::from(*number)).collect())
            .context("internal error: an embedding that is not finite")?;
        // Of an emoji the array counts that is nearest, and of equal emoji the first.
        let score = |place: usize| {
            self.arrays.iter().map(|array| array[place].cosine(&direction)).fold(f64::NEG_INFINITY, f64::max)
        };
        let scored = self.emoji.iter().enumerate().map(|(place, emoji)| (emoji, score(place)));
        let nearest = scored.reduce(|best, other| if other.1 > best.1 { other } else { best });
        nearest.context("internal error: an index of no emoji")
    }
}

impl Emoji {
    /// It as text.
    pub fn characters(&self) -> String {
        let points = self.code.split('-').filter_map(|point| char::from_u32(u32::from_str_radix(point, 16).ok()?));
        let mut text: String = points.collect();
        let mut characters = text.chars();
        if let (Some(only), None) = (characters.next(), characters.next())
            && only < FIRST_OF_EMOJI
        {
            text.push(VARIATION_SELECTOR);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_characters_are_asked_for_in_colour() {
        for (code, text) in [("1F34E", "🍎"), ("2764", "❤\u{fe0f}"), ("A9", "©\u{fe0f}"), ("1F1EF-1F1F5", "🇯🇵")]
        {
            assert_eq!(Emoji { code: code.into(), name: String::new() }.characters(), text);
        }
    }
}
