//! The denoising loop.

use super::guidance::Guidance;
use super::noise::BatchNoise;
use super::scheduler::Scheduler;
use crate::model::prior::{Branch, Prefix, PriorTransformer, TimestepCache};
use anyhow::Result;
use tch::{Kind, Tensor};

/// Timestep tokens that are run and cached at once. More do not run faster, and each takes memory in every block.
pub const MAX_TIMESTEP_TOKENS: usize = 512;

/// What the rows of a batch are conditioned on, in one branch of the guidance.
#[derive(Debug, Clone, Copy)]
pub struct Condition<'a> {
    /// The prompts' caches.
    pub prefix: &'a Prefix,
    /// Each row's prompt, as an index into the prefix.
    pub prompts: &'a [usize],
    /// The caches of all timesteps, if they are there from before.
    pub timesteps: Option<&'a TimestepCache>,
}

/// Denoises a batch of rows and gives their image embeddings, `(rows, clip_embed_dim)`, float32.
///
/// `unconditional` is what guidance leads away from; it is looked at where guidance is on. `after_step` is called once a
/// step.
///
/// # Errors
/// If shapes do not fit or memory runs out.
pub fn sample(
    prior: &PriorTransformer,
    scheduler: &dyn Scheduler,
    guidance: Guidance,
    conditional: Condition,
    unconditional: Option<Condition>,
    noise: &BatchNoise,
    after_step: &mut dyn FnMut(),
) -> Result<Tensor> {
    // The unconditional rows come first, as in diffusers.
    let conditions: Vec<Condition> =
        unconditional.filter(|_| guidance.is_on()).into_iter().chain([conditional]).collect();
    let prompts: usize = conditions.iter().map(|condition| condition.prefix.len()).sum();
    let chunk_len = (MAX_TIMESTEP_TOKENS / prompts).max(1);
    let mut latents = noise.latents.shallow_clone();
    for (chunk, timesteps) in scheduler.timesteps().chunks(chunk_len).enumerate() {
        let first_step = chunk * chunk_len;
        let caches = conditions.iter().map(|condition| Cache::of(prior, condition, timesteps, first_step));
        let caches = caches.collect::<Result<Vec<Cache>>>()?;
        for step in first_step..first_step + timesteps.len() {
            let branches: Vec<Branch> =
                conditions.iter().zip(&caches).map(|(condition, cache)| cache.branch(condition, step)).collect();
            let input = Tensor::f_cat(&vec![&latents; branches.len()], 0)?;
            let predicted = guide(guidance, prior.step(&branches, &input)?.f_to_kind(Kind::Float)?)?;
            latents = scheduler.step(step, &predicted, &latents, noise.steps.get(step))?.prev_sample;
            after_step();
        }
    }
    Ok(prior.post_process_latents(&latents)?.f_to_kind(Kind::Float)?)
}

/// The timesteps' cache that some steps of a condition use.
enum Cache<'a> {
    /// Of all steps, from before.
    Whole(&'a TimestepCache),
    /// Of the steps from this one on.
    Chunk(TimestepCache, usize),
}

impl<'a> Cache<'a> {
    fn of(prior: &PriorTransformer, condition: &Condition<'a>, timesteps: &[i64], first_step: usize) -> Result<Self> {
        match condition.timesteps {
            Some(whole) => Ok(Self::Whole(whole)),
            None => Ok(Self::Chunk(prior.prefill_timesteps(condition.prefix, timesteps)?, first_step)),
        }
    }

    fn branch<'b>(&'b self, condition: &Condition<'b>, step: usize) -> Branch<'b> {
        let (timesteps, step) = match self {
            Self::Whole(cache) => (*cache, step),
            Self::Chunk(cache, first_step) => (cache, step - first_step),
        };
        Branch { prefix: condition.prefix, timesteps, step, prompts: condition.prompts }
    }
}

/// Combines the two halves of a prediction where guidance is on.
fn guide(guidance: Guidance, predicted: Tensor) -> Result<Tensor> {
    if !guidance.is_on() {
        return Ok(predicted);
    }
    let rows = predicted.size()[0] / 2;
    guidance.combine(&predicted.f_narrow(0, 0, rows)?, &predicted.f_narrow(0, rows, rows)?)
}
