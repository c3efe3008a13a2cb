//! The caches of the negative prompts, which are the same for most batches of a run.

use super::request::Prompt;
use crate::diffusion::sampler::Condition;
use crate::nn::prior::{Prefix, TimestepCache};

/// The caches of some negative prompts, kept from batch to batch.
#[derive(Debug)]
pub(super) struct NegativeCache {
    pub(super) prompts: Vec<Prompt<String>>,
    pub(super) timesteps: Vec<f64>,
    pub(super) prefix: Prefix,
    pub(super) timestep_cache: TimestepCache,
}

impl NegativeCache {
    /// Whether the cache is of these prompts and timesteps.
    pub(super) fn is_of(&self, prompts: &[Prompt<&str>], timesteps: &[f64]) -> bool {
        let is_same = |(own, other): (&Prompt<String>, &Prompt<&str>)| match (own, other) {
            (Prompt::Text(own), Prompt::Text(other)) => own == other,
            (Prompt::Condition(own), Prompt::Condition(other)) => own == other,
            _ => false,
        };
        let is_same = self.prompts.len() == prompts.len() && self.prompts.iter().zip(prompts).all(is_same);
        is_same && self.timesteps == timesteps
    }

    /// The condition of rows of these prompts.
    pub(super) fn condition<'a>(&'a self, prompt_of_row: &'a [usize]) -> Condition<'a> {
        Condition { prefix: &self.prefix, prompts: prompt_of_row, timesteps: &self.timestep_cache }
    }
}
