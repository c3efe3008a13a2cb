//! How large the networks are: how much memory a run needs, and so how many rows are computed together, by how many
//! pipelines side by side, and whether threads are worth it.

use super::Pipeline;
use super::layout::Layout;
use crate::diffusion::sampler::MAX_TIMESTEP_TOKENS;
use crate::files::Folder;
use crate::nn::image_encoder::ImageEncoder;
use crate::nn::text_encoder::TextEncoder;
use crate::weights::checkpoint::Checkpoint;
use anyhow::{Result, anyhow};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tch::Device;

/// Rows that are computed together at most: with two tokens a row in each of two branches, more rows make the products
/// of a step no faster.
const MOST_ROWS: usize = 64;

/// What libtorch, the tokenizer and the activations of a batch take beside weights and caches.
const BASE_BYTES: u64 = 512 << 20;

/// What a further pipeline takes beside weights, caches and activations: a tokenizer, and what the allocator keeps for its
/// thread.
const FURTHER_BYTES: u64 = 64 << 20;

/// Numbers of a network's width that a token takes while it runs: in the built-in model about 20.
const ACTIVATIONS: u64 = 24;

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
    /// Bytes of memory to plan with; what is free if not given.
    pub free_memory: Option<u64>,
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
        let most = demand.rows.clamp(1, MOST_ROWS);
        let Some(free) = demand.free_memory.or_else(|| self.free_bytes()) else { return Ok(wanted.unwrap_or(most)) };
        let needs = self.needs(demand)?;
        let batch = wanted.unwrap_or_else(|| largest_that_fits(most, free, &|batch| needs.bytes(batch, 1)));
        let needed = needs.bytes(batch, 1);
        if needed <= free {
            return Ok(batch);
        }
        let (needed, free) = (in_gigabytes(needed), in_gigabytes(free));
        let way_out =
            if batch > 1 { "a smaller --batch-size, or --dtype bf16 or int8" } else { "--dtype bf16 or int8" };
        Err(anyhow!("not enough memory: {needed} GB are needed and {free} GB are free; try {way_out}"))
    }

    /// How many pipelines of a small model may work side by side, each on `batch` rows: `most`, or as many as memory
    /// allows.
    ///
    /// # Errors
    /// As [`Pipeline::is_small`].
    pub fn plan_workers(&self, demand: Demand, batch: usize, most: usize) -> Result<usize> {
        match demand.free_memory.or_else(|| self.free_bytes()) {
            Some(free) => Ok(most_that_fit(most, free, &self.needs(demand)?, batch)),
            None => Ok(most),
        }
    }

    /// The most memory that a run takes on the CPU, in bytes.
    ///
    /// # Errors
    /// As [`Pipeline::is_small`].
    pub fn needed_bytes(&self, demand: Demand, batch: usize, workers: usize) -> Result<u64> {
        Ok(self.needs(demand)?.bytes(batch, workers))
    }

    fn needs(&self, demand: Demand) -> Result<MemoryNeeds> {
        let Parameters { prior, text_encoder, image_encoder } = self.parameters()?;
        let encoder_bytes = |weights: u64| weights.saturating_mul(self.options.precision.unquantized().bytes());
        Ok(MemoryNeeds {
            prior: prior.saturating_mul(self.options.precision.bytes()),
            text_encoder: encoder_bytes(text_encoder),
            image_encoder: if demand.zero_embed { encoder_bytes(image_encoder) } else { 0 },
            token: self.token_bytes(),
            activations: ACTIVATIONS
                * self.prior_config.inner_dim().max(self.text.config.hidden_size).unsigned_abs()
                * self.options.precision.unquantized().bytes(),
            prompt_tokens: self.prior_config.num_embeddings as u64 + 1,
            demand,
        })
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

/// Bytes that a run needs: of each network's weights, of the keys and values of a token in all blocks, and of its
/// activations.
#[derive(Debug, Clone, Copy)]
struct MemoryNeeds {
    prior: u64,
    text_encoder: u64,
    /// 0 if it is not needed.
    image_encoder: u64,
    token: u64,
    activations: u64,
    /// Most tokens of a prompt.
    prompt_tokens: u64,
    demand: Demand,
}

impl MemoryNeeds {
    /// All of so many pipelines side by side, each with so many rows at a time.
    fn bytes(&self, batch: usize, workers: usize) -> u64 {
        let Demand { rows, is_uniform, .. } = self.demand;
        // Each row's own long prompt, and its timesteps.
        let tokens = (batch.min(rows) as u64).saturating_mul(self.prompt_tokens);
        let caches = self.token.saturating_mul(tokens.saturating_add(2 * MAX_TIMESTEP_TOKENS as u64));
        // With a single batch the text encoder is gone by the time that the prior is read.
        let is_only = is_uniform && batch >= rows;
        let weights =
            if is_only { self.prior.max(self.text_encoder) } else { self.prior.saturating_add(self.text_encoder) };
        let each = weights.saturating_add(caches);
        let further = each.saturating_add(self.activations.saturating_mul(tokens)).saturating_add(FURTHER_BYTES);
        let further = (workers as u64).saturating_sub(1).saturating_mul(further);
        // The image encoder comes first, and goes.
        each.saturating_add(further).max(self.image_encoder).saturating_add(BASE_BYTES)
    }
}

/// The most pipelines that fit; one at least, which [`Pipeline::plan_batch`] has room for.
fn most_that_fit(most: usize, free: u64, needs: &MemoryNeeds, batch: usize) -> usize {
    (2..=most).rev().find(|workers| needs.bytes(batch, *workers) <= free).unwrap_or(1)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(rows: usize) -> MemoryNeeds {
        let demand = Demand { rows, is_uniform: true, zero_embed: true, free_memory: None };
        MemoryNeeds {
            prior: 60 << 20,
            text_encoder: 40 << 20,
            image_encoder: 4 << 30,
            token: 4096,
            activations: 10_000,
            prompt_tokens: 81,
            demand,
        }
    }

    #[test]
    fn each_worker_needs_its_own_weights_and_caches() {
        let needs = needs(10_000);
        let caches = |rows: u64| 4096 * (81 * rows + 2 * MAX_TIMESTEP_TOKENS as u64);
        let of_one = (100 << 20) + caches(64);
        assert_eq!(needs.bytes(64, 1), BASE_BYTES + (4 << 30), "the image encoder, which comes before them");
        let further = |rows: u64| 10_000 * 81 * rows + FURTHER_BYTES;
        assert_eq!(needs.bytes(64, 100), BASE_BYTES + 100 * of_one + 99 * further(64));
        assert_eq!(needs.bytes(usize::MAX, 1), BASE_BYTES + (4 << 30));
        assert_eq!(needs.bytes(1, 1000), BASE_BYTES + 1000 * ((100 << 20) + caches(1)) + 999 * further(1));
    }

    #[test]
    fn there_are_fewer_workers_where_memory_is_short() {
        let needs = needs(10_000);
        for workers in 20..200 {
            let free = needs.bytes(64, workers);
            assert_eq!(most_that_fit(200, free, &needs, 64), workers);
            assert_eq!(most_that_fit(200, free - 1, &needs, 64), workers - 1);
            assert_eq!(most_that_fit(10, free, &needs, 64), 10);
        }
        assert_eq!(most_that_fit(200, 0, &needs, 64), 1);
        assert_eq!(most_that_fit(1, u64::MAX, &needs, 64), 1);
    }
}
