//! Pictures of the built-in model's embeddings.

use crate::images::Sheet;
use crate::pipeline::{BuiltinDecoder, EmojiIndex};
use anyhow::{Context, Result};
use ndarray::{Array2, Axis};
use std::sync::Mutex;

/// A picture of an embedding, and the emoji that it is nearest to.
#[derive(Debug)]
pub(super) struct Drawn {
    /// A PNG.
    pub(super) png: Vec<u8>,
    /// The emoji as text.
    pub(super) emoji: String,
    pub(super) name: String,
    pub(super) cosine: f64,
}

/// The built-in decoder and the index of emoji.
#[derive(Debug)]
pub(super) struct Artist {
    decoder: Mutex<BuiltinDecoder>,
    index: EmojiIndex,
}

impl Artist {
    /// # Errors
    /// If this build has no decoder.
    pub(super) fn load() -> Result<Self> {
        Ok(Self { decoder: Mutex::new(BuiltinDecoder::open()?), index: EmojiIndex::load()? })
    }

    /// Draws embeddings, `(rows, dim)`. It takes milliseconds a row: not for a thread that others wait for.
    ///
    /// # Errors
    /// [`crate::Error::Option`] if they are no embeddings of the built-in model.
    pub(super) fn draw(&self, embeds: &Array2<f32>) -> Result<Vec<Drawn>> {
        // The other cores compute embeddings.
        tch::set_num_threads(1);
        let mut drawn = Vec::with_capacity(embeds.nrows());
        for (rows, first) in
            embeds.axis_chunks_iter(Axis(0), BuiltinDecoder::BATCH).zip((0..).step_by(BuiltinDecoder::BATCH))
        {
            let decoder = self.decoder.lock().ok().context("internal error: the decoder panicked before")?;
            let pictures = decoder.draw(first, rows)?;
            drop(decoder);
            for (row, picture) in rows.outer_iter().zip(pictures.outer_iter()) {
                let pixels: Vec<u8> = picture.iter().copied().collect();
                let mut png = Vec::new();
                let sheet = Sheet { scale: 1, ..Sheet::new(1, picture.dim().0) };
                sheet.write(&mut png, |add| add(&pixels))?;
                let (emoji, cosine) = self.index.nearest(row)?;
                drawn.push(Drawn { png, emoji: emoji.characters(), name: emoji.name.clone(), cosine });
            }
        }
        Ok(drawn)
    }
}
