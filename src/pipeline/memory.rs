//! The memory plan: the batch size, how many pipelines run side by side, and whether threads are worth it.

use super::load::Pipeline;
use super::parameters::{Networks, Parameters};
use crate::diffusion::sampler::MAX_TIMESTEP_TOKENS;
use crate::error::Hint;
use crate::nn::prior::{NetworkConfig, PriorKind};
use crate::weights::checkpoint::Placement;
use crate::weights::parameter_count::ParameterCount;
use crate::weights::precision::Precision;
use crate::{Error, Result};
use serde::Serialize;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tch::Device;

/// The largest automatic batch: at two tokens a row in each of two branches, more rows make the products of a step no
/// faster.
const MAX_BATCH: usize = 64;

/// The same of pictures on the CPU: each is hundreds of tokens already.
const MAX_PICTURES: usize = 16;

/// Memory of libtorch, the tokenizer and the program.
const BASE_BYTES: u64 = 144 << 20;

/// What a run on pictures takes besides: decoded pictures, and a layer's activations that [`IMAGE_ACTIVATIONS`] has not.
const PICTURE_BYTES: u64 = 384 << 20;

/// A plan has room for this more than a run is expected to take, and for a quarter of all that is no weight: allocators keep
/// some of what they are given back.
const SPARE_BYTES: u64 = 96 << 20;

/// Memory of a further pipeline beside weights, caches and activations: a tokenizer, and the allocator's arena of its
/// thread.
const FURTHER_BYTES: u64 = 64 << 20;

/// Activations of a token, in float32 numbers and multiples of the network's width: products with panels are computed a
/// part of the rows at a time, others all at once.
const PANEL_ACTIVATIONS: u64 = 6;
const ACTIVATIONS: u64 = 20;

/// What a matrix takes, in multiples of its size in its file, while it is converted: its pages, a copy, what is packed.
const CONVERTED: u64 = 3;

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

/// What runs on the CPU are expected to take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RunMemory {
    /// One prompt.
    pub one_prompt: u64,
    /// Many prompts of 16 tokens, in batches of 64.
    pub short_prompts: u64,
    /// Many prompts of as many tokens as the prior takes, in batches of 64.
    pub long_prompts: u64,
}

/// The tokens of a short prompt.
const SHORT_PROMPT: u64 = 16;

/// Denoising steps where nothing else is said.
const STEPS: u64 = 25;

/// What the memory of a run depends on in its model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes<'a> {
    pub(super) prior: &'a NetworkConfig,
    /// The width of the text encoder.
    pub(super) text_width: i64,
    pub(super) parameters: Parameters,
    pub(super) placement: Placement,
    /// Whether something is added to the prior's weights, in float32.
    pub(super) has_loras: bool,
}

impl Sizes<'_> {
    /// What runs take on the CPU.
    pub(super) fn run_memory(&self) -> RunMemory {
        let batch = if self.prior.is_sequence() { 1 } else { MAX_BATCH };
        let expected = |rows: usize, tokens: u64| {
            let demand = Demand { rows, is_uniform: true, zero_embed: false, free_memory: None };
            // All rows are guided away from one prompt.
            let needs = MemoryNeeds { steps: STEPS, branches: 1, ..self.needs(demand, tokens) };
            needs.expected(batch.min(rows), 1)
        };
        let long = self.prior.num_embeddings().unsigned_abs();
        let short = SHORT_PROMPT.min(long);
        RunMemory {
            one_prompt: expected(1, short),
            short_prompts: expected(usize::MAX, short),
            long_prompts: expected(usize::MAX, long),
        }
    }

    /// The needs of a run whose prompts have so many tokens.
    fn needs(&self, demand: Demand, tokens: u64) -> MemoryNeeds {
        let Parameters { prior, text_encoder, image_encoder } = self.parameters;
        let Placement { device, precision } = self.placement;
        let encoder_bytes = |count: ParameterCount| count.bytes(precision.unquantized(), device);
        let stored = if prior.sixteen_bit > 0 { 2 } else { 4 };
        // A LoRA is added in float32.
        let prior = if self.has_loras { ParameterCount { sixteen_bit: 0, ..prior } } else { prior };
        let width = self.prior.inner_dim().unsigned_abs();
        let has_panels =
            matches!(precision, Precision::F32 | Precision::Bf16Weights) && Precision::Bf16Weights.is_fast_on(device);
        let each = if has_panels { PANEL_ACTIVATIONS } else { ACTIVATIONS };
        let activations = (4 * each).saturating_mul(width.max(self.text_width.unsigned_abs()));
        // The largest matrix is that of an MLP, four times as high as wide.
        let largest = (4 * width).saturating_mul(width);
        let converted = match precision {
            Precision::F32 if has_panels => 0,
            Precision::Int8 => 4,
            _ => stored,
        };
        // A one-step prior keeps nothing from block to block, and neither does one of latents, whose rows are long: those
        // of a text embedding and a timestep, and the same without a text.
        let (token, prompt_tokens) = match self.prior.kind() {
            PriorKind::Diffusion => (self.token_bytes(), tokens + 1),
            PriorKind::OneStep => (0, tokens + 3),
            PriorKind::Sequence => (activations, 2 * (tokens + 2)),
            // A prompt, one that it is guided away from, and the tokens of both.
            PriorKind::Autoregressive => (self.token_bytes(), 2 * (tokens + 1 + self.row_tokens())),
        };
        MemoryNeeds {
            base: BASE_BYTES,
            prior: prior.bytes(precision, device),
            text_encoder: encoder_bytes(text_encoder),
            image_encoder: if demand.zero_embed { encoder_bytes(image_encoder) } else { 0 },
            token,
            activations,
            prompt_tokens,
            steps: u64::MAX,
            branches: 2,
            converting: CONVERTED.saturating_mul(converted).saturating_mul(largest),
            demand,
        }
    }

    /// Bytes of one token's keys and values in all blocks.
    fn token_bytes(&self) -> u64 {
        (2 * self.prior.num_layers() * self.prior.inner_dim()) as u64 * element_bytes(self.placement)
    }

    /// The tokens of an image embedding.
    fn row_tokens(&self) -> u64 {
        match self.prior {
            NetworkConfig::Autoregressive(config) => config.num_tokens.unsigned_abs(),
            NetworkConfig::Transformer(_) => 1,
        }
    }
}

/// Bytes of a number that is no weight.
fn element_bytes(placement: Placement) -> u64 {
    placement.precision.kind().elt_size_in_bytes() as u64
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
        let parameters = self.parameters()?;
        if self.networks == Networks::ImageEncoder {
            return self.image_needs(demand, parameters.image_encoder);
        }
        let sizes = Sizes {
            prior: &self.prior_config,
            text_width: self.text.config.hidden_size,
            parameters,
            placement: self.placement,
            has_loras: !self.loras.is_empty(),
        };
        Ok(sizes.needs(demand, self.prior_config.num_embeddings().unsigned_abs()))
    }

    /// The same where the image encoder is the only network. It keeps nothing but the activations of a layer.
    fn image_needs(&self, demand: Demand, weights: ParameterCount) -> Result<MemoryNeeds> {
        let config = self.image_encoder_config()?;
        let Placement { device, precision } = self.placement;
        let widest = config.hidden_size.max(config.intermediate_size).unsigned_abs();
        let activations = IMAGE_ACTIVATIONS.saturating_mul(widest).saturating_mul(element_bytes(self.placement));
        Ok(MemoryNeeds {
            base: BASE_BYTES + PICTURE_BYTES,
            prior: weights.bytes(precision.unquantized(), device),
            text_encoder: 0,
            image_encoder: 0,
            token: activations,
            activations: 0,
            prompt_tokens: config.num_positions().unsigned_abs(),
            steps: 0,
            branches: 1,
            converting: 0,
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
    base: u64,
    prior: u64,
    text_encoder: u64,
    /// 0 if the run does not need it.
    image_encoder: u64,
    token: u64,
    activations: u64,
    /// The maximum number of tokens of a prompt.
    prompt_tokens: u64,
    /// The maximum number of steps.
    steps: u64,
    /// The branches of guidance whose rows have prompts of their own.
    branches: u64,
    /// While weights are packed.
    converting: u64,
    demand: Demand,
}

impl MemoryNeeds {
    /// The memory that `workers` pipelines side by side, each on `batch` rows, take at most.
    fn bytes(&self, batch: usize, workers: usize) -> u64 {
        let expected = self.expected(batch, workers);
        let weights = self.weights(batch).saturating_mul(workers as u64).max(self.image_encoder);
        expected.saturating_add(expected.saturating_sub(weights) / 4).saturating_add(SPARE_BYTES)
    }

    /// What they are expected to take, by what was measured.
    fn expected(&self, batch: usize, workers: usize) -> u64 {
        // Each row has a prompt of its own, and timesteps.
        let prompts = batch.min(self.demand.rows) as u64;
        let tokens = prompts.saturating_mul(self.prompt_tokens);
        let timesteps = prompts.saturating_mul(self.steps).min(MAX_TIMESTEP_TOKENS as u64);
        let caches = self.token.saturating_mul(tokens.saturating_add(self.branches * timesteps));
        let running = caches.saturating_add(self.activations.saturating_mul(tokens));
        let each = self.weights(batch).saturating_add(running.max(self.converting));
        let further = (workers as u64).saturating_sub(1).saturating_mul(each.saturating_add(FURTHER_BYTES));
        // The image encoder is loaded before the others, and freed.
        each.saturating_add(further).max(self.image_encoder).saturating_add(self.base)
    }

    /// The weights of a pipeline. In a run of a single batch, the text encoder is freed before the prior is loaded.
    fn weights(&self, batch: usize) -> u64 {
        let is_only = self.demand.is_uniform && batch >= self.demand.rows;
        if is_only { self.prior.max(self.text_encoder) } else { self.prior.saturating_add(self.text_encoder) }
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
    use crate::nn::prior::PriorConfig;
    use std::path::Path;

    fn needs(rows: usize) -> MemoryNeeds {
        let demand = Demand { rows, is_uniform: true, zero_embed: true, free_memory: None };
        MemoryNeeds {
            base: BASE_BYTES,
            prior: 60 << 20,
            text_encoder: 40 << 20,
            image_encoder: 4 << 30,
            token: 4096,
            activations: 10_000,
            prompt_tokens: 81,
            steps: 25,
            branches: 2,
            converting: 20 << 20,
            demand,
        }
    }

    #[test]
    fn each_worker_needs_its_own_weights_and_caches() {
        let needs = needs(10_000);
        let timesteps = |rows: u64| 2 * (25 * rows).min(MAX_TIMESTEP_TOKENS as u64);
        let running = |rows: u64| 4096 * (81 * rows + timesteps(rows)) + 10_000 * 81 * rows;
        let of_one = (100 << 20) + running(64);
        assert_eq!(needs.expected(64, 1), BASE_BYTES + (4 << 30), "the image encoder, which comes before them");
        assert_eq!(needs.expected(64, 100), BASE_BYTES + 100 * of_one + 99 * FURTHER_BYTES);
        let of_one = (100 << 20) + (20 << 20);
        assert_eq!(needs.expected(1, 1000), BASE_BYTES + 1000 * of_one + 999 * FURTHER_BYTES, "while it is loaded");
        let alone = MemoryNeeds { image_encoder: 0, ..needs };
        assert_eq!(alone.expected(10_000, 1), BASE_BYTES + (60 << 20) + running(10_000), "the text encoder is freed");
        let (expected, rest) = (alone.expected(1, 1), BASE_BYTES + (20 << 20));
        assert_eq!((expected, alone.bytes(1, 1)), ((100 << 20) + rest, expected + rest / 4 + SPARE_BYTES));
    }

    #[test]
    fn what_a_run_takes_is_what_was_measured() {
        // Karlo's shape, megabytes at the peak: of one prompt, and of 64 of 77 tokens in one batch of two steps. Others keep
        // the text encoder, and more timesteps.
        let prior = PriorConfig { num_embeddings: 77, ..PriorConfig::default() };
        let prior = NetworkConfig::Transformer(prior);
        let of = |precision: Precision, sixteen_bit: u64| {
            let count = |all| ParameterCount { all, sixteen_bit: all * sixteen_bit };
            let parameters =
                Parameters { prior: count(1_022_036_992), text_encoder: count(123_653_376), image_encoder: count(0) };
            let placement = Placement { device: Device::Cpu, precision };
            let sizes = Sizes { prior: &prior, text_width: 768, parameters, placement, has_loras: false };
            let RunMemory { one_prompt, short_prompts, long_prompts } = sizes.run_memory();
            assert!(one_prompt < short_prompts && short_prompts < long_prompts);
            [one_prompt, long_prompts].map(|bytes| bytes / 1_000_000)
        };
        let near = |found: [u64; 2], measured: [u64; 2]| {
            let is_near = |(found, measured): (u64, u64)| found.abs_diff(measured) * 10 <= measured;
            assert!(found.into_iter().zip(measured).all(is_near), "{found:?}, not {measured:?}");
        };
        if Precision::Bf16Weights.is_fast_on(Device::Cpu) {
            near(of(Precision::F32, 0), [4230, 6144 + 494 + 127]);
            near(of(Precision::F32, 1), [2191, 4152 + 247 + 127]);
        }
        near(of(Precision::Bf16, 0), [2415, 3956 + 247 + 64]);
        near(of(Precision::Bf16, 1), [2230, 3668 + 247 + 64]);
        near(of(Precision::Int8, 0), [1373, 3574 + 494 + 127]);
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
