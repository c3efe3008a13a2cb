//! Which noise the rows of a run, and their negative embeddings, start from.

use crate::diffusion::noise::{CallRow, NoiseSource};
use ndarray::Array2;

/// Added to a row's seed for its negative embedding where the number of rows is not known, or must not matter.
pub const NEGATIVE_SEED_OFFSET: u64 = 1 << 63;

/// What a row of noise is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An image embedding.
    Image,
    /// The negative embedding of a negative prompt. diffusers' Kandinsky prior pipelines make it in the same call, in
    /// the rows after those of the image embeddings.
    Negative,
    /// That of a decoder's own negative prompt, made in a second call.
    DecoderNegative,
}

/// The noise of a run.
#[derive(Debug, Clone, Copy)]
pub struct NoisePlan<'a> {
    /// Rows of the output.
    pub rows: usize,
    /// Added to a row's seed for its negative embedding.
    pub negative_offset: u64,
    /// If one generator draws for all rows at once: the rows of a call, twice those of the output with a negative
    /// prompt.
    pub call_rows: Option<usize>,
    /// What rows start from in place of drawn noise, `(rows, dim)` in standard layout: those of the output, and perhaps
    /// as many for the negative embeddings.
    pub latents: Option<&'a Array2<f32>>,
}

impl<'a> NoisePlan<'a> {
    /// The noise of a row of the output that has this seed.
    pub fn source(&self, row: usize, seed: u64, purpose: Purpose) -> NoiseSource<'a> {
        let is_image = purpose == Purpose::Image;
        let place = if is_image { row } else { self.rows.saturating_add(row) };
        let given = self.latents.and_then(|latents| {
            let start = place.checked_mul(latents.ncols())?;
            latents.as_slice()?.get(start..start + latents.ncols())
        });
        let call = self.call_rows.map(|rows| CallRow {
            row: if purpose == Purpose::Negative { place } else { row },
            rows,
            calls_before: usize::from(purpose == Purpose::DecoderNegative),
        });
        let has_own_seed = !is_image && call.is_none();
        NoiseSource { seed: if has_own_seed { seed.wrapping_add(self.negative_offset) } else { seed }, given, call }
    }

    /// Checks the number of rows of the latents. `has_negatives` says whether rows have negative prompts.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, has_negatives: bool) -> Result<(), String> {
        let (Some(latents), rows) = (self.latents, self.rows) else { return Ok(()) };
        let (found, both) = (latents.nrows(), rows.saturating_mul(2));
        match found {
            found if has_negatives && found == both => Ok(()),
            found if found == rows && !(has_negatives && self.call_rows.is_some()) => Ok(()),
            _ if has_negatives && self.call_rows.is_some() => Err(format!(
                "has {found} rows, and a call with negative prompts takes {both}: for {rows} embeddings, then for \
                 their negatives"
            )),
            _ if has_negatives => {
                Err(format!("has {found} rows for {rows} embeddings; it takes {rows}, or {both} with their negatives"))
            }
            _ => Err(format!("has {found} rows for {rows} embeddings")),
        }
    }
}
