//! What guidance leads away from is the same for most batches of a run, and so is its cache.

use super::text::EncodedText;
use crate::diffusion::sampler::{Condition, MAX_TIMESTEP_TOKENS};
use crate::diffusion::scheduler::Scheduler;
use crate::model::prior::{Prefix, PriorTransformer, TimestepCache};
use anyhow::Result;

/// The caches of some negative prompts, kept from batch to batch.
#[derive(Debug)]
pub(super) struct NegativeCache {
    prompts: Vec<String>,
    timesteps: Vec<i64>,
    prefix: Prefix,
    /// Of all timesteps, unless they are so many that the sampler makes them bit by bit.
    timestep_cache: Option<TimestepCache>,
}

impl NegativeCache {
    /// Whether a cache from an earlier batch is of these prompts and timesteps.
    pub(super) fn serves(cache: &Option<Self>, prompts: &[&str], scheduler: &dyn Scheduler) -> bool {
        cache.as_ref().is_some_and(|cache| cache.prompts == prompts && cache.timesteps == scheduler.timesteps())
    }

    /// Runs the negative prompts and, if they are not too many, their timesteps.
    ///
    /// # Errors
    /// If memory runs out.
    pub(super) fn new(
        prior: &PriorTransformer,
        prompts: &[&str],
        text: &EncodedText,
        scheduler: &dyn Scheduler,
    ) -> Result<Self> {
        let prefix = prior.prefill(&text.states, &text.lens, &text.embeds)?;
        let timesteps = scheduler.timesteps().to_vec();
        let fits = prompts.len() * timesteps.len() <= MAX_TIMESTEP_TOKENS;
        let timestep_cache = fits.then(|| prior.prefill_timesteps(&prefix, &timesteps)).transpose()?;
        let prompts = prompts.iter().map(|prompt| prompt.to_string()).collect();
        Ok(Self { prompts, timesteps, prefix, timestep_cache })
    }

    /// The condition of rows of these prompts.
    pub(super) fn condition<'a>(&'a self, prompt_of_row: &'a [usize]) -> Condition<'a> {
        Condition { prefix: &self.prefix, prompts: prompt_of_row, timesteps: self.timestep_cache.as_ref() }
    }
}
