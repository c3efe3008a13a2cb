//! The rest of the story for a one-step prior: noise to image embeddings, which are neither guided nor denormalized.
//!
//! Source: `src/pipelines/pipeline_kandinsky_prior.py` of eclipse-t2i/eclipse-inference.

use super::progress::{Progress, check_cancelled};
use super::request::Row;
use crate::Result;
use crate::diffusion::noise::{BatchNoise, NoiseSource};
use crate::nn::prior::{PriorTransformer, TextCondition};
use tch::{Kind, Tensor};

/// The image embeddings of rows, `(rows, clip_embed_dim)`, float32. `prompt_of_row` has the prompt of each row, as an index
/// into `text`.
///
/// # Errors
/// If memory runs out, and [`crate::Error::Cancelled`].
pub(super) fn predict(
    prior: &PriorTransformer,
    text: &TextCondition,
    prompt_of_row: &[usize],
    rows: &[Row],
    progress: &mut dyn Progress,
) -> Result<Tensor> {
    let noise: Vec<NoiseSource> = rows.iter().map(|row| row.noise).collect();
    let noise = BatchNoise::draw(&noise, prior.config().embedding_dim, 0, prior.device())?;
    let embeds = prior.predict(text, prompt_of_row, &noise.latents)?.f_to_kind(Kind::Float)?;
    progress.step(1, 1);
    check_cancelled(progress)?;
    Ok(embeds)
}
