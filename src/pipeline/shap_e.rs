//! The rest of the story for Shap-E's prior: text embeddings to a sequence of latents, from which its renderer makes a
//! thing in 3D.
//!
//! Source: diffusers 0.42 `pipelines/shap_e/pipeline_shap_e.py`, with `output_type="latent"`. The prior has no mask, so
//! every token depends on the noise and nothing can be cached from step to step.

use super::progress::{Progress, check_cancelled};
use super::request::Row;
use crate::Result;
use crate::diffusion::guidance::Guidance;
use crate::diffusion::noise::{BatchNoise, NoiseSource};
use crate::diffusion::scheduler::Scheduler;
use crate::nn::prior::PriorTransformer;
use tch::{Kind, Tensor};

/// The latents of rows, `(rows, tokens · dim)`, float32.
///
/// `text_embeds` is `(prompts, embedding_proj_dim)`, and `prompt_of_row` has the prompt of each row. The text that the
/// rows are guided away from has an embedding of zeros.
///
/// # Errors
/// If memory runs out, and [`crate::Error::Cancelled`].
pub(super) fn denoise(
    prior: &PriorTransformer,
    scheduler: &mut dyn Scheduler,
    guidance: Guidance,
    text_embeds: &Tensor,
    prompt_of_row: &[usize],
    rows: &[Row],
    progress: &mut dyn Progress,
) -> Result<Tensor> {
    let (tokens, dim) = (prior.config().num_embeddings, prior.config().embedding_dim);
    let index: Vec<i64> = prompt_of_row.iter().map(|&prompt| prompt as i64).collect();
    let index = Tensor::f_from_slice(&index)?.f_to_device(prior.device())?;
    let conditional = rescale(text_embeds)?.f_index_select(0, &index)?;
    let embeds = match guidance.is_on() {
        true => Tensor::f_cat(&[conditional.f_zeros_like()?, conditional], 0)?,
        false => conditional,
    };
    let noise: Vec<NoiseSource> = rows.iter().map(|row| row.noise).collect();
    let noise = BatchNoise::draw(&noise, tokens * dim, scheduler.noisy_steps(), prior.device())?;
    let mut latents = noise.latents.f_mul_scalar(scheduler.init_noise_sigma())?;
    let timesteps = scheduler.timesteps().to_vec();
    for (step, &timestep) in timesteps.iter().enumerate() {
        let input = scheduler.scale_model_input(step, &latents)?.f_reshape([-1, tokens, dim])?;
        let input = if guidance.is_on() { Tensor::f_cat(&[&input, &input], 0)? } else { input };
        let timestep = Tensor::f_from_slice(&[timestep as f32])?.f_to_device(prior.device())?;
        let output = prior.forward(&input, Some(&timestep), &embeds, None, None)?.predicted_image_embedding;
        // The other half of each token's numbers is a variance.
        let predicted = output.f_narrow(-1, 0, dim)?.f_to_kind(Kind::Float)?.f_flatten(1, 2)?;
        let predicted = match guidance.is_on() {
            true => {
                let count = rows.len() as i64;
                guidance.combine(&predicted.f_narrow(0, 0, count)?, &predicted.f_narrow(0, count, count)?)?
            }
            false => predicted,
        };
        latents = scheduler.step(step, &predicted, &latents, noise.steps.get(step))?.prev_sample;
        progress.step(step + 1, timesteps.len());
        check_cancelled(progress)?;
    }
    Ok(latents)
}

/// Text embeddings scaled to unit variance, `(prompts, dim)`.
fn rescale(embeds: &Tensor) -> Result<Tensor> {
    let embeds = embeds.f_to_kind(Kind::Float)?;
    let norms = embeds.f_square()?.f_sum_dim_intlist([-1].as_slice(), true, Kind::Float)?.f_sqrt()?;
    let dim = embeds.size().last().copied().unwrap_or(1);
    Ok(embeds.f_div(&norms)?.f_mul_scalar((dim as f64).sqrt())?)
}
