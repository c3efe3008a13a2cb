//! The memory plan: the batch size, how many pipelines run side by side, and whether threads are worth it.

use super::load::Pipeline;
use super::parameters::{Networks, Parameters};
use crate::diffusion::sampler::MAX_TIMESTEP_TOKENS;
use crate::error::Hint;
use crate::nn::prior::{NetworkConfig, PriorKind};
use crate::weights::checkpoint::Placement;
use crate::weights::parameter_count::ParameterCount;
use crate::{Error, Result};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tch::Device;

/// The largest automatic batch: at two tokens a row in each of two branches, more rows make the products of a step no
/// faster.
const MAX_BATCH: usize = 64;

/// The same of pictures on the CPU: each is hundreds of tokens already.
const MAX_PICTURES: usize = 16;

/// Memory of libtorch, the tokenizer and the activations of a batch.
const BASE_BYTES: u64 = 512 << 20;

/// Memory of a further pipeline beside weights, caches and activations: a tokenizer, and the allocator's arena of its
/// thread.
const FURTHER_BYTES: u64 = 64 << 20;

/// Activations of a token, in multiples of the network's width. The built-in model has about 20.
const ACTIVATIONS: u64 = 24;

/// Activations of a token of a picture, in multiples of the width inside the MLP: its input, its output, and four of a
/// quarter of that width.
const IMAGE_ACTIVATIONS: u64 = 3;

/// The largest network that runs best on one thread.
const SMALL_WEIGHTS: u64 = 1 << 24;

/// The properties of a run that its memory depends on.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Rows in all, those of negative embeddings included.
    pub rows: usize,
    /// Whether all have the same settings; rows of different settings are never in one batch.
    pub is_uniform: bool,
    /// Whether the run needs [`Pipeline::zero_embed`].
    pub zero_embed: bool,
    /// Bytes of memory to plan with, in place of what is free.
    pub free_memory: Option<u64>,
}

impl Pipeline {
    /// Whether the networks are so small that they run best on one thread.
    ///
    /// Threads synchronize after every product. In a small network this takes as long as the products, and a hundred
    /// times as long where another process occupies one of the cores.
    ///
    /// # Errors
    /// If weights are missing or damaged.
    pub fn is_small(&self) -> Result<bool> {
        let Parameters { prior, text_encoder, image_encoder } = self.parameters()?;
        Ok(prior.all.max(text_encoder.all).max(image_encoder.all) <= SMALL_WEIGHTS)
    }

    /// The batch size: `wanted`, or the largest useful one that fits into free memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if not even a batch of one row, or of `wanted` rows, fits.
    pub fn plan_batch(&self, demand: Demand, wanted: Option<usize>) -> Result<usize> {
        let max = match self.networks {
            Networks::ImageEncoder if self.placement.device == Device::Cpu => MAX_PICTURES,
            // A sequence of latents has as many tokens as a batch of embeddings.
            _ if self.prior_config.is_sequence() => 1,
            _ => MAX_BATCH,
        };
        let max = demand.rows.clamp(1, max);
        let Some(free) = demand.free_memory.or_else(|| self.free_bytes()) else { return Ok(wanted.unwrap_or(max)) };
        let needs = self.needs(demand)?;
        // Networks that are loaded need no more.
        let loaded = self.prior.as_ref().map_or(0, |_| needs.prior);
        let loaded = loaded.saturating_add(self.text.encoder.as_ref().map_or(0, |_| needs.text_encoder));
        let free = free.saturating_add(loaded);
        let batch = wanted.unwrap_or_else(|| largest_that_fits(max, free, &|batch| needs.bytes(batch, 1)));
        let needed = needs.bytes(batch, 1);
        if needed <= free {
            return Ok(batch);
        }
        let hint = Some(if batch > 1 { Hint::UseLessMemory } else { Hint::UseFewerBits });
        Err(Error::OutOfMemory { needed, free, hint })
    }

    /// Checks that [`Pipeline::zero_embed`] has room beside all that is loaded.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or an error if weights are missing or damaged.
    #[cfg(feature = "serve")]
    pub fn check_memory_of_zero_embed(&self) -> Result<()> {
        if self.layout.zero_image_encoder().is_none() {
            return Ok(());
        }
        let demand = Demand { rows: 1, is_uniform: true, zero_embed: false, free_memory: None };
        let needed = self.image_needs(demand, self.parameters()?.image_encoder)?.bytes(1, 1);
        match self.free_bytes() {
            Some(free) if needed > free => Err(Error::OutOfMemory { needed, free, hint: Some(Hint::UseFewerBits) }),
            _ => Ok(()),
        }
    }

    /// How many pipelines of a small model run side by side, each on `batch` rows: `max`, or as many as fit into free
    /// memory.
    ///
    /// # Errors
    /// As [`Pipeline::is_small`].
    pub fn plan_workers(&self, demand: Demand, batch: usize, max: usize) -> Result<usize> {
        match demand.free_memory.or_else(|| self.free_bytes()) {
            Some(free) => Ok(max_that_fit(max, free, &self.needs(demand)?, batch)),
            None => Ok(max),
        }
    }

    /// The memory that a run takes on the CPU at most, in bytes.
    ///
    /// # Errors
    /// As [`Pipeline::is_small`].
    pub fn needed_bytes(&self, demand: Demand, batch: usize, workers: usize) -> Result<u64> {
        Ok(self.needs(demand)?.bytes(batch, workers))
    }

    fn needs(&self, demand: Demand) -> Result<MemoryNeeds> {
        let Parameters { prior, text_encoder, image_encoder } = self.parameters()?;
        if self.networks == Networks::ImageEncoder {
            return self.image_needs(demand, image_encoder);
        }
        let Placement { device, precision } = self.placement;
        let encoder_bytes = |count: ParameterCount| count.bytes(precision.unquantized(), device);
        // A LoRA is added in float32.
        let prior = if self.loras.is_empty() { prior } else { ParameterCount { sixteen_bit: 0, ..prior } };
        let activations = ACTIVATIONS
            * self.prior_config.inner_dim().max(self.text.config.hidden_size).unsigned_abs()
            * self.element_bytes();
        let tokens = self.prior_config.num_embeddings().unsigned_abs();
        // A one-step prior keeps nothing from block to block, and neither does one of latents, whose rows are long: those
        // of a text embedding and a timestep, and the same without a text.
        let (token, prompt_tokens) = match self.kind() {
            PriorKind::Diffusion => (self.token_bytes(), tokens + 1),
            PriorKind::OneStep => (0, tokens + 3),
            PriorKind::Sequence => (activations, 2 * (tokens + 2)),
            // A prompt, one that it is guided away from, and the tokens of both.
            PriorKind::Autoregressive => (self.token_bytes(), 2 * (tokens + 1 + self.row_tokens())),
        };
        Ok(MemoryNeeds {
            prior: prior.bytes(precision, device),
            text_encoder: encoder_bytes(text_encoder),
            image_encoder: if demand.zero_embed { encoder_bytes(image_encoder) } else { 0 },
            token,
            activations,
            prompt_tokens,
            demand,
        })
    }

    /// The same where the image encoder is the only network. It keeps nothing but the activations of a layer.
    fn image_needs(&self, demand: Demand, weights: ParameterCount) -> Result<MemoryNeeds> {
        let config = self.image_encoder_config()?;
        let Placement { device, precision } = self.placement;
        let widest = config.hidden_size.max(config.intermediate_size).unsigned_abs();
        let activations = IMAGE_ACTIVATIONS.saturating_mul(widest).saturating_mul(self.element_bytes());
        Ok(MemoryNeeds {
            prior: weights.bytes(precision.unquantized(), device),
            text_encoder: 0,
            image_encoder: 0,
            token: activations,
            activations: 0,
            prompt_tokens: config.num_positions().unsigned_abs(),
            demand,
        })
    }

    /// How many there are; the headers are read once.
    fn parameters(&self) -> Result<Parameters> {
        if let Some(known) = self.parameters.get() {
            return Ok(*known);
        }
        let found = Parameters::count(&self.layout, self.networks)?;
        Ok(*self.parameters.get_or_init(|| found))
    }

    /// Bytes of one token's keys and values in all blocks.
    fn token_bytes(&self) -> u64 {
        let config = &self.prior_config;
        (2 * config.num_layers() * config.inner_dim()) as u64 * self.element_bytes()
    }

    /// Bytes of a number that is no weight.
    fn element_bytes(&self) -> u64 {
        self.placement.precision.kind().elt_size_in_bytes() as u64
    }

    /// The tokens of an image embedding.
    fn row_tokens(&self) -> u64 {
        match &self.prior_config {
            NetworkConfig::Autoregressive(config) => config.num_tokens.unsigned_abs(),
            NetworkConfig::Transformer(_) => 1,
        }
    }

    /// Free memory in bytes, of the machine or of the container; `None` if the networks run elsewhere, or it is not
    /// known.
    fn free_bytes(&self) -> Option<u64> {
        if self.placement.device != Device::Cpu {
            return None;
        }
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(memory);
        // Not `free_memory`, which takes the page cache for used: the kernel gives it up, and it holds the model's files.
        let in_container =
            system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
        let free = in_container.min(system.available_memory());
        (free > 0).then_some(free)
    }
}

/// Memory needs in bytes: the weights of each network, and a token's keys and values in all blocks and its activations.
#[derive(Debug, Clone, Copy)]
struct MemoryNeeds {
    prior: u64,
    text_encoder: u64,
    /// 0 if the run does not need it.
    image_encoder: u64,
    token: u64,
    activations: u64,
    /// The maximum number of tokens of a prompt.
    prompt_tokens: u64,
    demand: Demand,
}

impl MemoryNeeds {
    /// The memory of `workers` pipelines side by side, each on `batch` rows.
    fn bytes(&self, batch: usize, workers: usize) -> u64 {
        let Demand { rows, is_uniform, .. } = self.demand;
        // Each row has a prompt of its own, of maximum length, and timesteps.
        let tokens = (batch.min(rows) as u64).saturating_mul(self.prompt_tokens);
        let caches = self.token.saturating_mul(tokens.saturating_add(2 * MAX_TIMESTEP_TOKENS as u64));
        // In a run of a single batch, the text encoder is freed before the prior is loaded.
        let is_only = is_uniform && batch >= rows;
        let weights =
            if is_only { self.prior.max(self.text_encoder) } else { self.prior.saturating_add(self.text_encoder) };
        let each = weights.saturating_add(caches);
        let further = each.saturating_add(self.activations.saturating_mul(tokens)).saturating_add(FURTHER_BYTES);
        let further = (workers as u64).saturating_sub(1).saturating_mul(further);
        // The image encoder is loaded before the others, and freed.
        each.saturating_add(further).max(self.image_encoder).saturating_add(BASE_BYTES)
    }
}

/// The largest number of pipelines that fit; at least one, which [`Pipeline::plan_batch`] has checked.
fn max_that_fit(max: usize, free: u64, needs: &MemoryNeeds, batch: usize) -> usize {
    (2..=max).rev().find(|workers| needs.bytes(batch, *workers) <= free).unwrap_or(1)
}

/// Halves the batch until it fits.
fn largest_that_fits(max: usize, free: u64, needed: &dyn Fn(usize) -> u64) -> usize {
    let mut batch = max;
    while batch > 1 && needed(batch) > free {
        batch = batch.div_ceil(2);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::precision::Precision;
    use std::path::Path;

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
    fn each_kind_of_prior_has_a_plan_of_its_own() {
        let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let demand = Demand { rows: 1000, is_uniform: true, zero_embed: false, free_memory: Some(1 << 40) };
        let small = Pipeline::open(&fixtures.join("autoregressive/small"), placement).unwrap();
        // Two branches of 24 text states, a text embedding and 16 tokens: keys and values of 16 numbers in 2 blocks.
        let needs = small.needs(demand).unwrap();
        assert_eq!((needs.token, needs.prompt_tokens), (2 * 2 * 16 * 4, 2 * (24 + 1 + 16)));
        for (model, batch, keeps_tokens) in
            [("pipelines/kandinsky22", 64, true), ("one_step/kandinsky22", 64, false), ("shap_e/shap_e", 1, true)]
        {
            let pipeline = Pipeline::open(&fixtures.join(model), placement).unwrap();
            assert_eq!(pipeline.plan_batch(demand, None).unwrap(), batch, "{model}");
            assert_eq!(pipeline.needs(demand).unwrap().token > 0, keeps_tokens, "{model}");
        }
    }

    #[test]
    fn there_are_fewer_workers_where_memory_is_short() {
        let needs = needs(10_000);
        for workers in 20..200 {
            let free = needs.bytes(64, workers);
            assert_eq!(max_that_fit(200, free, &needs, 64), workers);
            assert_eq!(max_that_fit(200, free - 1, &needs, 64), workers - 1);
            assert_eq!(max_that_fit(10, free, &needs, 64), 10);
        }
        assert_eq!(max_that_fit(200, 0, &needs, 64), 1);
        assert_eq!(max_that_fit(1, u64::MAX, &needs, 64), 1);
    }
}
