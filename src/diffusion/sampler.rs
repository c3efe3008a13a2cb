//! The denoising loop.

use super::guidance::Guidance;
use super::noise::BatchNoise;
use super::scheduler::Scheduler;
use crate::model::prior::PriorTransformer;
use anyhow::Result;
use tch::{Kind, Tensor};

/// What a batch of rows is conditioned on.
#[derive(Debug)]
pub struct Conditioning {
    /// `(rows, embedding_proj_dim)`.
    pub text_embeds: Tensor,
    /// `(rows, num_embeddings, embedding_dim)`.
    pub text_states: Tensor,
    /// 1 for a text token, 0 for padding, `(rows, num_embeddings)`.
    pub text_mask: Tensor,
}

impl Conditioning {
    /// These rows, then those of `other`.
    fn followed_by(&self, other: &Self) -> Result<Self> {
        Ok(Self {
            text_embeds: Tensor::f_cat(&[&self.text_embeds, &other.text_embeds], 0)?,
            text_states: Tensor::f_cat(&[&self.text_states, &other.text_states], 0)?,
            text_mask: Tensor::f_cat(&[&self.text_mask, &other.text_mask], 0)?,
        })
    }
}

/// Denoises one batch of rows and gives their image embeddings, `(rows, clip_embed_dim)`, float32.
///
/// `conditionings` are the prompts' and, where guidance is on, what it leads away from. `after_step` is called once a
/// step.
///
/// # Errors
/// If shapes do not fit or memory runs out.
pub fn sample(
    prior: &PriorTransformer,
    scheduler: &dyn Scheduler,
    guidance: Guidance,
    conditionings: (&Conditioning, Option<&Conditioning>),
    noise: &BatchNoise,
    after_step: &mut dyn FnMut(),
) -> Result<Tensor> {
    let both;
    let conditioning = match conditionings {
        (conditional, Some(unconditional)) => {
            both = unconditional.followed_by(conditional)?;
            &both
        }
        (conditional, None) => conditional,
    };
    let mut latents = noise.latents.shallow_clone();
    for (step, &timestep) in scheduler.timesteps().iter().enumerate() {
        let predicted = predict(prior, guidance, conditioning, &latents, timestep)?;
        latents = scheduler.step(step, &predicted, &latents, noise.steps.get(step))?.prev_sample;
        after_step();
    }
    Ok(prior.post_process_latents(&latents)?.f_to_kind(Kind::Float)?)
}

fn predict(
    prior: &PriorTransformer,
    guidance: Guidance,
    conditioning: &Conditioning,
    latents: &Tensor,
    timestep: i64,
) -> Result<Tensor> {
    let input = if guidance.is_on() { Tensor::f_cat(&[latents, latents], 0)? } else { latents.shallow_clone() };
    let output = prior.forward(
        &input.f_to_kind(prior.kind())?,
        &Tensor::f_from_slice(&[timestep])?.f_to_device(prior.device())?,
        &conditioning.text_embeds,
        Some(&conditioning.text_states),
        Some(&conditioning.text_mask),
    )?;
    let predicted = output.predicted_image_embedding.f_to_kind(Kind::Float)?;
    if !guidance.is_on() {
        return Ok(predicted);
    }
    let rows = latents.size()[0];
    guidance.combine(&predicted.f_narrow(0, 0, rows)?, &predicted.f_narrow(0, rows, rows)?)
}
