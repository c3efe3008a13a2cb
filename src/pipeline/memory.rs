//! How large the networks are: how much memory a run needs, and so how many rows are computed together, and whether
//! threads are worth it.

use super::Pipeline;
use crate::diffusion::sampler::MAX_TIMESTEP_TOKENS;
use crate::files::Folder;
use crate::hub::layout::Layout;
use crate::model::checkpoint::Checkpoint;
use crate::model::image_encoder::ImageEncoder;
use crate::model::text_encoder::TextEncoder;
use anyhow::{Result, anyhow};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tch::Device;

/// Rows that are computed together at most: with two tokens a row in each of two branches, more rows make the products
/// of a step no faster.
const MOST_ROWS: usize = 64;

/// What libtorch, the tokenizer and the activations of a batch take beside weights and caches.
const BASE_BYTES: u64 = 512 << 20;

/// The most weights of a network that one thread is enough for.
const FEW_WEIGHTS: u64 = 1 << 24;

/// Number of weights of each network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameters {
    prior: u64,
    text_encoder: u64,
    /// 0 if the model comes without one.
    image_encoder: u64,
}

/// What a run computes, as far as its memory depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Rows in all, negative ones included.
    pub rows: usize,
    /// Whether all have the same settings. Others are never computed together.
    pub is_uniform: bool,
    /// Whether [`Pipeline::zero_embed`] will be asked for.
    pub zero_embed: bool,
}

impl Pipeline {
    /// Whether the networks are so small that they are best computed by one thread.
    ///
    /// Threads wait for each other after every product. In a small network this takes as long as the products, and where
    /// another program has one of the cores it takes a hundred times as long.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if a network's weights are missing or broken.
    pub fn is_small(&self) -> Result<bool> {
        let Parameters { prior, text_encoder, image_encoder } = self.parameters()?;
        Ok(prior.max(text_encoder).max(image_encoder) <= FEW_WEIGHTS)
    }

    /// How many rows to compute together: `wanted`, or as many as memory allows up to where more are no gain.
    ///
    /// # Errors
    /// If not even that fits into the memory that is free: needed and free are named, and what to do.
    pub fn plan_batch(&self, demand: Demand, wanted: Option<usize>) -> Result<usize> {
        let Demand { rows, is_uniform, zero_embed } = demand;
        let most = rows.clamp(1, MOST_ROWS);
        let Some(free) = self.free_bytes() else { return Ok(wanted.unwrap_or(most)) };
        let Parameters { prior, text_encoder, image_encoder } = self.parameters()?;
        let prior = prior.saturating_mul(self.options.precision.bytes());
        let encoder_bytes = |weights: u64| weights.saturating_mul(self.options.precision.unquantized().bytes());
        let text = encoder_bytes(text_encoder);
        let image = if zero_embed { encoder_bytes(image_encoder) } else { 0 };
        let needed = |batch: usize| {
            let caches = self.token_bytes().saturating_mul(self.cached_tokens(batch.min(rows)));
            // With a single batch the text encoder is gone by the time that the prior is read.
            let together = if is_uniform && batch >= rows { prior.max(text) } else { prior.saturating_add(text) };
            together.saturating_add(caches).max(image).saturating_add(BASE_BYTES)
        };
        let batch = wanted.unwrap_or_else(|| largest_that_fits(most, free, &needed));
        let needed = needed(batch);
        if needed <= free {
            return Ok(batch);
        }
        let (needed, free) = (in_gigabytes(needed), in_gigabytes(free));
        let way_out =
            if batch > 1 { "a smaller --batch-size, or --dtype bf16 or int8" } else { "--dtype bf16 or int8" };
        Err(anyhow!("not enough memory: {needed} GB are needed and {free} GB are free; try {way_out}"))
    }

    /// How many weights the networks have. Their files' headers are read once.
    fn parameters(&self) -> Result<Parameters> {
        if let Some(known) = self.parameters.get() {
            return Ok(*known);
        }
        let count = |folder: &Folder, others: &[&str]| -> Result<u64> {
            Ok(Checkpoint::open_folder(folder)?.parameters_beside(others))
        };
        let count_image = |folder: &Folder| count(folder, &ImageEncoder::REST_OF_CLIP);
        let Layout { prior, text_encoder, image_encoder, .. } = &self.layout;
        let found = Parameters {
            prior: count(prior, &[])?,
            text_encoder: count(text_encoder, &TextEncoder::REST_OF_CLIP)?,
            image_encoder: image_encoder.as_ref().map_or(Ok(0), count_image)?,
        };
        Ok(*self.parameters.get_or_init(|| found))
    }

    /// Bytes of one token's keys and values in all blocks.
    fn token_bytes(&self) -> u64 {
        let config = &self.prior_config;
        (2 * config.num_layers * config.inner_dim()) as u64 * self.options.precision.unquantized().bytes()
    }

    /// Most tokens that are cached for a batch: each row's own long prompt, and its timesteps.
    fn cached_tokens(&self, batch: usize) -> u64 {
        let prompt = self.prior_config.num_embeddings as u64 + 1;
        (batch as u64).saturating_mul(prompt).saturating_add(2 * MAX_TIMESTEP_TOKENS as u64)
    }

    /// Free memory in bytes, of the machine or of the container that the process may be in; `None` if the networks do not
    /// run there, or nobody knows.
    fn free_bytes(&self) -> Option<u64> {
        if self.options.device != Device::Cpu {
            return None;
        }
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(memory);
        let free = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory).min(system.available_memory());
        (free > 0).then_some(free)
    }
}

/// Halves the batch until it fits.
fn largest_that_fits(most: usize, free: u64, needed: &dyn Fn(usize) -> u64) -> usize {
    let mut batch = most;
    while batch > 1 && needed(batch) > free {
        batch = batch.div_ceil(2);
    }
    batch
}

fn in_gigabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e9)
}
